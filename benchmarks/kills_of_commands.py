"""Kill commands at random moments and start them again: python benchmarks/kills_of_commands.py --kills=10

Each scenario is a command (or two side by side) that SIGKILL ends so many times, each time after a part of the time
that an undisturbed run takes; the same command then starts again. The last start must end with exit code 0, no
half-written file, and tables with the bytes of an undisturbed run's. ``read_only``: instead of a kill the folder
becomes read-only during a training, in a mount namespace; the training must end with one line, and go on afterwards.

Prints a line for each run and a table of counts; exit code 1 where anything was wrong. benchmarks/kills.py kills the
preprocessing, and RANDOM_KILLS=100 pytest tests/common/experiments/test_resume.py -k random the training.
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).resolve().parent.parent
TINY = ["--net_model=test_resnet", "--data_image_size=32", "--tr_batch_size=4", "--tr_iteration_num=6"]
TINY += ["--tr_iteration_valid=2", "--n_jobs=1"]
ITERATIONS = 40  # of the training whose results become read-only
LIMIT_S = 1800.0  # for a run that may hang


@dataclass(frozen=True)
class Scenario:
    """``commands`` of a results' folder run side by side; ``made``: what they write there, as patterns of paths."""

    commands: Callable[[Path], list[list[str]]]
    made: Sequence[str]


def second_level(results: Path) -> list[list[str]]:
    return [["second_level.py", "cv", f"--output_dir={results}", "--experiment_id=second"]]


def export(results: Path) -> list[list[str]]:
    weights = results / "cv" / "fold_0" / "best.pt"
    return [["export.py", f"--net_weight_file={weights}", "--export_format=torch_export", "--n_jobs=1"]]


def sweep(results: Path) -> list[list[str]]:
    return [["sweep.py", f"--lines={results.parent / 'lines.txt'}", f"--output_dir={results}", "--parallel=2"]]


def cv_run(results: Path) -> list[list[str]]:
    data = shlex.split((results.parent / "lines.txt").read_text().splitlines()[0])
    flags = [flag for flag in data if not flag.startswith("--experiment_id")]
    command = ["train.py", *flags, "--data_fold=0,1", "--experiment_id=shared", f"--output_dir={results}"]
    return [[*command, f"--cv_run={fold}"] for fold in (0, 1)]


SCENARIOS = {
    "second_level": Scenario(second_level, ("second/predictions_oof.csv", "second/evaluation.csv")),
    "export": Scenario(export, ("cv/fold_0/best.pt2",)),
    "sweep": Scenario(sweep, ("[ab]/predictions_valid.csv", "[ab]/submission.csv", "[ab]/evaluation.csv")),
    "cv_run": Scenario(cv_run, ("shared/predictions_oof.csv", "shared/fold_*/predictions_valid.csv")),
}


@dataclass
class Counts:
    """How the runs of a scenario ended."""

    kills: int = 0
    finished: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)


def start(command: Sequence[str]) -> subprocess.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, PROJECT / command[0], *command[1:]], cwd=PROJECT, **quiet)


def ended(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        return False
    return True


def contents(results: Path, scenario: Scenario) -> dict[str, bytes]:
    """Return what the scenario's commands made, tables as their bytes; a network only has to be there."""
    paths = sorted(path for pattern in scenario.made for path in results.glob(pattern))
    return {str(path.relative_to(results)): path.read_bytes() if path.suffix == ".csv" else b"" for path in paths}


def left_over(results: Path) -> list[str]:
    return [str(path.relative_to(results)) for path in results.rglob("*.tmp")]


def undisturbed(scenario: Scenario, base: Path, folder: Path) -> tuple[dict[str, bytes], float]:
    """Return what a run that nobody kills makes, and how long it takes."""
    results = fresh(base, folder)
    began = time.monotonic()
    for process in [start(command) for command in scenario.commands(results)]:
        if process.wait(LIMIT_S) != 0:
            sys.exit(f"the undisturbed run failed: {process.stderr.read()}")
    found = contents(results, scenario)
    if not found:
        sys.exit(f"the undisturbed run made nothing of {', '.join(scenario.made)}")
    return found, time.monotonic() - began


def fresh(base: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    return folder / "results"


def kill_one(scenario: Scenario, base: Path, folder: Path, kills: int, draw: random.Random, counts: Counts) -> None:
    """Kill a run again and again until ``counts`` has so many; each time that one ends, compare and begin anew."""
    expected, seconds = undisturbed(scenario, base, folder)
    print(f"  undisturbed: {seconds:.0f} s, {len(expected)} files", flush=True)
    while counts.kills < kills:
        results = fresh(base, folder)
        commands = scenario.commands(results)
        processes = [start(command) for command in commands]
        for _ in range(min(draw.randint(1, 4), kills - counts.kills)):
            place = draw.randrange(len(processes))
            if ended(processes[place], draw.uniform(0, seconds)):
                break
            processes[place].kill()
            processes[place].wait()
            counts.kills += 1
            processes[place] = start(commands[place])
        codes = [process.returncode if ended(process, LIMIT_S) else "hangs" for process in processes]
        for process in processes:
            process.kill()
        counts.finished += 1
        found, left = contents(results, scenario), left_over(results)
        differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if codes == [0] * len(codes) and not differing and not left:
            counts.right += 1
        else:
            said = [process.stderr.read().strip().splitlines()[-1:] for process in processes if process.returncode]
            counts.wrong.append(f"codes {codes}, {differing=}, {left=}: {said}")
        print(f"  {counts.kills} kills, {counts.right} of {counts.finished} runs right", flush=True)


READ_ONLY = """
timeout {limit} {command} 2>{errors} >/dev/null & run=$!
while kill -0 $run 2>/dev/null && [ "$(wc -l 2>/dev/null <{experiment}/metrics.jsonl || echo 0)" -lt {lines} ]; do
  sleep 0.02
done
mount --bind {results} {results} && mount -o remount,bind,ro {results} && echo read-only
wait $run; echo "code $?"
umount {results}
timeout {limit} {command} --tr_resume=x >/dev/null 2>>{errors}.2; echo "code $?"
"""


def make_read_only(base: Path, folder: Path, times: int, draw: random.Random, counts: Counts) -> None:
    """Make the results' folder read-only while a training writes there, end that, and go on with the training."""
    scenario = Scenario(training, ("x/predictions_valid.csv",))
    expected, _ = undisturbed(scenario, base, folder)
    for _ in range(times):
        results = fresh(base, folder)
        (command,) = scenario.commands(results)
        script = READ_ONLY.format(
            limit=int(LIMIT_S),
            command=shlex.join([sys.executable, str(PROJECT / command[0]), *command[1:]]),
            errors=folder / "errors",
            experiment=results / "x",
            results=results,
            lines=draw.randint(1, ITERATIONS // 2),
        )
        done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False)
        said = done.stdout.splitlines()
        counts.kills += "read-only" in said
        counts.finished += 1
        errors = (folder / "errors").read_text()
        found, left = contents(results, scenario), left_over(results)
        one_line = said[-2] == "code 1" and "Traceback" not in errors
        if one_line and said[-1] == "code 0" and found == expected and not left:
            counts.right += 1
        else:
            counts.wrong.append(f"{said}, same={found == expected}, {left=}: {errors.strip().splitlines()[-1:]}")
        print(f"  {counts.kills} times read-only, {counts.right} of {counts.finished} runs right: {said}", flush=True)


def training(results: Path) -> list[list[str]]:
    line = (results.parent / "lines.txt").read_text().splitlines()[0].replace("--experiment_id=a", "--experiment_id=x")
    more = [f"--tr_iteration_num={ITERATIONS}", "--tr_iteration_valid=4", "--tr_iteration_log=1"]
    return [["train.py", *shlex.split(line), *more, f"--output_dir={results}"]]


def make_base(base: Path) -> None:
    """Make a dataset and a cross-validation of two folds."""

    def run(*command: str) -> None:
        subprocess.run(
            [sys.executable, PROJECT / command[0], *command[1:]], cwd=PROJECT, check=True, capture_output=True
        )

    source = base.parent / "phantom"
    run("rsna_phantom.py", f"--phantom_folder={source}", "--phantom_studies=12", "--phantom_image_size=64")
    place = f"--data_input_folder={base.parent / 'input'}"
    run("preprocessing.py", place, f"--pre_source={source}", "--pre_max_failed=1", "--n_jobs=1")
    flags = [place, *TINY]
    run("train.py", *flags, "--data_fold=0,1", f"--output_dir={base / 'results'}", "--experiment_id=cv")
    lines = [shlex.join([*flags, f"--experiment_id={name}", f"--seed={seed}"]) for seed, name in enumerate("ab")]
    (base / "lines.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each scenario")
    parser.add_argument("--only", nargs="*", choices=[*SCENARIOS, "read_only"], default=[*SCENARIOS, "read_only"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows: dict[str, Counts] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base, folder = Path(scratch) / "base", Path(scratch) / "killed"
        base.mkdir()
        make_base(base)
        for name in options.only:
            print(name, flush=True)
            rows[name] = Counts()
            if name != "read_only":
                kill_one(SCENARIOS[name], base, folder, options.kills, draw, rows[name])
            elif subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
                print("  left out: no mount namespaces here (unshare -rm)")
            else:
                make_read_only(base, folder, options.kills, draw, rows[name])
    table = {name: {"kills": row.kills, "runs": row.finished, "right": row.right} for name, row in rows.items()}
    print(pd.DataFrame.from_dict(table, orient="index"))
    wrong = [f"{name}: {line}" for name, row in rows.items() for line in row.wrong]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
