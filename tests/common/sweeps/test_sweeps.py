"""Sweeps: what is to run, how it ends, what happens to the rest when one fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import sweep
from common.cli.arguments import parse_args, parse_mode
from common.errors import UsageError
from common.experiments.folder import lock_experiment
from common.reports.record import read_record, write_status
from common.sweeps.plan import Planned, planned, read_grid, read_lines
from common.sweeps.runner import Outcome, Runner, gpu_names, slots
from config import TrainConfig
from rsna.training.options import SweepConfig
from rsna.training.sweep import steps, summary
from tests import PROJECT
from tests.common.reports.test_record import experiment
from tests.runs import failure

FAKE = """
import os, signal, sys, time
from pathlib import Path
name = next(flag.partition("=")[2] for flag in sys.argv if flag.startswith("--experiment_id="))
with open("log", "a") as log:
    log.write(f"{time.monotonic()} start {name} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
if name.startswith("wait"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    Path("waiting").touch()
    time.sleep(60)
if name.startswith("slow"):
    time.sleep(0.5)
if name.startswith("hang"):
    time.sleep(600)
with open("log", "a") as log:
    log.write(f"{time.monotonic()} end {name}\\n")
if name.startswith("bad"):
    sys.exit(1)
print("some line", f"results/{name}", sep="\\n")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch) -> Path:
    """A project whose train.py is quick: named bad it fails, named wait it waits for SIGTERM."""
    (tmp_path / "train.py").write_text(FAKE)
    (tmp_path / "evaluate.py").write_text(
        "import sys; print('evaluated', sys.argv[1]); sys.exit('worse' in sys.argv[1])"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(*names: str) -> list[Planned]:
    return [Planned((f"--experiment_id={name}",), name) for name in names]


def test_lines_are_read_as_a_shell_reads_them_but_for_comments_and_blanks(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("# all\n--seed=1 --experiment_id='a'  # first\n\n--net_model=\"x y\"\n")
    assert read_lines(tmp_path / "lines") == [["--seed=1", "--experiment_id=a"], ["--net_model=x y"]]
    (tmp_path / "lines").write_text("--seed=1\n--net_model='x\n")
    with pytest.raises(UsageError, match="lines, line 2: No closing quotation"):
        read_lines(tmp_path / "lines")


def test_a_grid_gives_every_combination_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "lr.yaml"
    path.write_text(
        "base: {net_model: resnet34, tr_use_amp: true, data_windows: 40/80}\n"
        "grid: {optim_lr: [1.0e-3, 3.0e-4], seed: [0, 1]}"
    )
    lines = read_grid(path)
    assert [line[0] for line in lines] == [
        "--experiment_id=lr_lr-0.001_seed-0",
        "--experiment_id=lr_lr-0.001_seed-1",
        "--experiment_id=lr_lr-0.0003_seed-0",
        "--experiment_id=lr_lr-0.0003_seed-1",
    ]
    config = parse_args(TrainConfig, lines[3])
    assert (config.optim_lr, config.seed, config.net_model, config.tr_use_amp) == (3e-4, 1, "resnet34", True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("grid: {seed: 1}", "grid, seed: give a list"),
        ("base: {seed: 1}", "expected 'grid:"),
        ("grid: {seed: [1]}\nmore: 1", "expected 'grid:"),
        ("[", "not a YAML file"),
        ("grid: [1]", "expected 'grid:"),
        (
            f"grid: {{{', '.join(f'o{n}: {list(range(100))}' for n in range(9))}}}",
            "000 experiments; a sweep",
        ),
        ("grid: {net_model: [a/b, a+b]}", "two of its experiments would be called g_model-a-b"),
    ],
)
def test_a_grid_of_another_form_is_one_line(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_grid(tmp_path / "g.yaml")
    assert part in str(caught.value)


def test_a_named_experiment_is_skipped_when_finished_and_goes_on_when_cut(tmp_path: Path) -> None:
    flags = ["--seed=1", "--experiment_id=x"]
    assert planned(["--seed=1"], tmp_path) == Planned(("--seed=1",))
    assert planned(flags, tmp_path).state == "new"
    folder = experiment(tmp_path / "x")
    for status, state in (
        ("running", "resume"),
        ("failed", "resume"),
        ("interrupted", "resume"),
        ("finished", "finished"),
    ):
        write_status(folder, status)
        assert planned(flags, tmp_path).state == state
    assert Planned(tuple(flags), "x", "resume").command == [*flags, "--tr_resume=x"]
    write_status(folder, "running")
    with lock_experiment(folder):
        assert planned(flags, tmp_path).state == "running"


def test_experiments_run_in_turn_and_a_failed_one_stops_no_other(fake: Path) -> None:
    done = Planned(("--experiment_id=old",), "old", "finished")
    runner = Runner(fake, [{}], lambda folder: [["evaluate.py", folder.name]])
    outcomes = runner.run([*named("one", "bad", "worse"), done, *named("last")])
    assert [outcome.code for outcome in outcomes] == [0, 1, 1, 0, 0]
    assert [outcome.said for outcome in outcomes] == [
        "",
        "",
        "trained, but evaluate.py failed",
        "was finished before",
        "",
    ]
    assert outcomes[0].folder == Path("results/one")
    assert outcomes[0].outputs == {"evaluate.py": "evaluated one"}
    events = [line.split()[1:3] for line in (fake / "log").read_text().splitlines()]
    assert events == [[what, name] for name in ("one", "bad", "worse", "last") for what in ("start", "end")]


def test_an_experiment_in_which_nothing_moves_is_ended_and_counts_as_failed(fake: Path, capsys) -> None:
    (outcome,) = Runner(fake, [{}], lambda folder: [], limit_s=0.2).run(named("hang"))
    assert outcome.code == 1
    assert "error: the sweep waits for train.py: no progress for 0.2 seconds; it was" in capsys.readouterr().err


def test_a_finished_experiment_gets_what_is_still_to_follow_it(fake: Path) -> None:
    done = Planned(("--experiment_id=old",), "old", "finished", Path("results/old"))
    (outcome,) = Runner(fake, [{}], lambda folder: [["evaluate.py", folder.name]]).run([done])
    assert (outcome.code, outcome.said, outcome.outputs) == (0, "", {"evaluate.py": "evaluated old"})
    assert not (fake / "log").exists()  # nothing was trained


def test_only_what_is_missing_or_older_than_the_run_follows_it(tmp_path: Path) -> None:
    config = parse_mode(SweepConfig, ["--lines=x"])

    def scripts() -> list[str]:
        return [command[0] for command in steps(tmp_path, config)]

    assert scripts() == ["evaluate.py", "predict.py"]
    write_status(tmp_path, "finished")
    (tmp_path / "evaluation.csv").touch()
    assert scripts() == ["predict.py"]
    (tmp_path / "predictions_test.csv").touch()
    assert scripts() == []
    os.utime(tmp_path / "evaluation.csv", (1, 1))
    assert scripts() == ["evaluate.py"]


JOINED = """
--experiment_id=cv --data_fold=all
--experiment_id=lstm --data_fold=all --net_kind=sequence --seq_features=cv
ensemble.py cv lstm --experiment_id=both
"""


def test_lines_that_need_others_run_in_turn_by_their_own_commands_and_the_first_failure_ends_the_list(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "list.txt").write_text(JOINED)
    flags = [f"--lines={tmp_path / 'list.txt'}", f"--output_dir={tmp_path / 'results'}", "--flags=--seed=1"]
    sweep.main([*flags, "--dry_run=1"])
    commands = [line.split() for line in capsys.readouterr().out.splitlines()[:3]]
    assert [command[1] for command in commands] == ["train.py", "train.py", "ensemble.py"]
    assert ["--seed=1" in command for command in commands] == [True, True, False]
    assert "--parallel=2" in failure(sweep.main, [*flags, "--parallel=2"], capsys)

    for script in ("train.py", "ensemble.py"):
        (tmp_path / script).write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rsna.training.sweep.ROOT", tmp_path)
    (tmp_path / "predict.py").write_text("print('features')")
    sweep.main([*flags, "--evaluate=0"])
    events = [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines()]
    assert [event[1] for event in events if event[0] == "start"] == ["cv", "lstm", "both"]
    capsys.readouterr()

    (tmp_path / "predict.py").write_text("raise SystemExit(1)")  # the features of cv
    (tmp_path / "log").unlink()
    with pytest.raises(SystemExit) as ended:
        sweep.main([*flags, "--evaluate=0"])
    assert ended.value.code != 0
    assert [line.split()[2] for line in (tmp_path / "log").read_text().splitlines() if "start" in line] == ["cv"]


@pytest.mark.parametrize("line", ["ensemble.py", "ensemble.py a --weights=1,2", "second_level.py a --seeed=1"])
def test_a_line_of_another_command_is_checked_as_that_command_does(line: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "list.txt").write_text(line)
    assert "experiment 1 (" in failure(sweep.main, [f"--lines={tmp_path / 'list.txt'}"], capsys)


def test_a_list_writes_the_features_that_later_lines_read(tmp_path: Path) -> None:
    config = parse_mode(SweepConfig, ["--lines=x"])
    assert [command[0] for command in steps(tmp_path, config, {tmp_path.name})] == [
        "predict.py",
        "evaluate.py",
        "predict.py",
    ]
    assert steps(tmp_path, config, {tmp_path.name})[0][-1] == "--features=1"
    write_status(tmp_path, "finished")
    for name in ("features/train/features.json", "evaluation.csv", "submission.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert steps(tmp_path, config, {tmp_path.name}) == []
    os.utime(tmp_path / "features/train/features.json", (1, 1))  # the training went on afterwards
    assert [command[-1] for command in steps(tmp_path, config, {tmp_path.name})] == ["--features=1"]


def test_each_experiment_is_announced_and_an_interrupted_one_is_not_called_failed(fake: Path, capsys) -> None:
    Runner(fake, [{}], lambda folder: []).run([*named("one"), Planned(("--experiment_id=2",))])
    announced = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert announced == ["[1 of 2] one: new", "[2 of 2] a new experiment: new"]
    outcomes = [Outcome(named("a")[0], code=75), Outcome(named("b")[0], code=1)]
    assert summary(outcomes, fake / "results")["ended"].tolist() == [
        "interrupted, state saved",
        "failed with exit code 1",
    ]


def test_each_gpu_has_one_experiment_at_a_time(fake: Path) -> None:
    outcomes = Runner(fake, [{"CUDA_VISIBLE_DEVICES": name} for name in "01"], lambda folder: []).run(
        named("slow1", "slow2", "slow3", "slow4")
    )
    assert [outcome.code for outcome in outcomes] == [0] * 4
    running: dict[str, str] = {}
    for line in sorted((fake / "log").read_text().splitlines(), key=lambda line: float(line.split()[0])):
        _, what, name, *gpu = line.split()
        if what == "end":
            del running[name]
        else:
            assert gpu[0] in "01"
            assert gpu[0] not in running.values()
            running[name] = gpu[0]


@pytest.mark.parametrize(
    ("listed", "count", "names"),
    [
        (None, 3, ["0", "1", "2"]),
        ("2,5", 2, ["2", "5"]),
        (" 3, 1 ,0", 3, ["3", "1", "0"]),
        ("2,-1,5", 1, ["2"]),  # CUDA ends the list there
        ("1,9", 1, ["1"]),  # and at a GPU that there isn't
        ("GPU-8932f937,GPU-4fd3", 2, ["GPU-8932f937", "GPU-4fd3"]),
        # A process sees one part of a GPU, whatever the list names.
        ("MIG-41b36014,MIG-6ca0a4b2,MIG-0c757cd7", 1, ["MIG-41b36014", "MIG-6ca0a4b2", "MIG-0c757cd7"]),
        ("MIG-GPU-8932f937/1/0,MIG-GPU-8932f937/2/0", 1, ["MIG-GPU-8932f937/1/0", "MIG-GPU-8932f937/2/0"]),
        ("", 0, []),
        ("NoDevFiles", 0, []),  # Slurm, for a job without a GPU
        ("MIG-41b36014", 0, []),
    ],
)
def test_the_gpus_of_a_sweep_are_those_of_the_users_own_list(listed: str | None, count: int, names: list[str]) -> None:
    assert gpu_names(listed, count) == names


def test_slots_have_a_gpu_of_the_list_each_and_share_the_cores(tmp_path: Path, monkeypatch) -> None:
    # A torch that counts GPUs as the real one does; there are eight here.
    (tmp_path / "torch.py").write_text(
        "import os, types\n"
        "listed = os.environ.get('CUDA_VISIBLE_DEVICES', '0,1,2,3,4,5,6,7')\n"
        "cuda = types.SimpleNamespace(device_count=lambda: len(listed.split(',')) if listed else 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(20)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")

    def chosen(parallel: int, experiments: int) -> list[tuple[str | None, str | None]]:
        names = ("CUDA_VISIBLE_DEVICES", "LOKY_MAX_CPU_COUNT")
        return [tuple(place.get(name) for name in names) for place in slots(parallel, experiments)]

    assert chosen(0, 10) == [("4", "6"), ("6", "6"), ("7", "6")]
    assert chosen(0, 2) == [("4", "10"), ("6", "10")]
    assert chosen(6, 10) == [("4", "3"), ("6", "3"), ("7", "3")] * 2
    assert chosen(0, 1) == [(None, None)]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [gpu for gpu, _ in chosen(0, 10)] == list("01234567")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # one: it stays as it is
    assert chosen(2, 10) == [(None, "10")] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen(4, 10) == [(None, "5")] * 4
    assert chosen(0, 10) == [(None, None)]


def test_an_experiment_of_a_slot_uses_its_share_of_the_cores() -> None:
    code = "from common.training.hardware import cpu_cores; print(cpu_cores(0), cpu_cores(3))"
    shared = {**os.environ, "LOKY_MAX_CPU_COUNT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=shared, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "3"]


def test_ctrl_c_lets_the_running_one_save_its_state_and_starts_no_other(fake: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from pathlib import Path\n"
        "from tests.common.sweeps.test_sweeps import named\n"
        "from common.sweeps.runner import Runner\n"
        "outcomes = Runner(Path.cwd(), [{}], lambda folder: []).run(named('wait', 'never'))\n"
        "print([outcome.code for outcome in outcomes])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=fake, stdout=subprocess.PIPE, text=True)
    while not (fake / "waiting").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "[75]\n"
    assert "never" not in (fake / "log").read_text()


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ("--seed=1\n--optim_lrr=1", "experiment 2 (--optim_lrr=1): unknown option --optim_lrr"),
        ("--experiment_id=a\n--experiment_id=a", "two experiments are called a"),
        ("# nothing", "names no experiment"),
        ("--experiment_id=a\n--experiment_id a", "two experiments are called a"),
        ("--seed=1\n--list=optim", "experiment 2 (--list=optim): --list=optim trains nothing"),
        ("--help", "experiment 1 (--help): --help trains nothing"),
    ],
)
def test_a_mistake_in_any_line_ends_the_sweep_before_the_first_one_runs(tmp_path: Path, lines, part, capsys) -> None:
    (tmp_path / "lines").write_text(lines)
    assert part in failure(
        sweep.main, [f"--lines={tmp_path / 'lines'}", f"--output_dir={tmp_path / 'results'}"], capsys
    )
    assert not (tmp_path / "results").exists()


def test_a_dry_run_says_what_would_run_and_runs_nothing(tmp_path: Path, capsys) -> None:
    write_status(experiment(tmp_path / "results/x"), "finished")
    write_status(experiment(tmp_path / "results/y"), "interrupted")
    place = f"--output_dir={tmp_path / 'results'}"
    (tmp_path / "lines").write_text(f"{place} --seed=1\n--experiment_id=x\n--experiment_id=y\n")  # as train.sh writes
    sweep.main([f"--lines={tmp_path / 'lines'}", place, "--data_dataset=phantom", "--dry_run=1"])
    assert capsys.readouterr().out.splitlines() == [
        f"python train.py --data_dataset=phantom {place} --seed=1",
        "# x is finished",
        f"python train.py {place} --data_dataset=phantom --experiment_id=y --tr_resume=y",
    ]


def test_a_name_and_a_place_count_however_they_are_given(tmp_path: Path, capsys) -> None:
    write_status(experiment(tmp_path / "results/x"), "finished")
    write_status(experiment(tmp_path / "elsewhere/y"), "finished")
    (tmp_path / "x.yaml").write_text("experiment_id: x")
    lines = (
        "--experiment_id x",
        f"--config={tmp_path / 'x.yaml'}",
        f"--experiment_id=y --output_dir={tmp_path / 'elsewhere'}",
    )
    for line, name in zip(lines, "xxy", strict=True):
        (tmp_path / "lines").write_text(line)
        sweep.main([f"--lines={tmp_path / 'lines'}", f"--output_dir={tmp_path / 'results'}", "--dry_run=1"])
        assert capsys.readouterr().out == f"# {name} is finished\n"


def test_flags_of_a_grids_command_reach_every_experiment(tmp_path: Path, capsys) -> None:
    (tmp_path / "g.yaml").write_text("grid: {seed: [0, 1]}")
    place = f"--output_dir={tmp_path / 'results'}"
    command = [f"--grid={tmp_path / 'g.yaml'}", place, "--dry_run=1"]
    sweep.main([*command, "--flags=--optim=lion --net_drop=0.1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("--optim=lion --net_drop=0.1") for line in lines)
    for flags, part in (
        ("--optimm=lion", "unknown option --optimm"),
        ("--optim='lion", "--flags: No closing quotation"),
    ):
        assert part in failure(sweep.main, [*command, f"--flags={flags}"], capsys)


@pytest.mark.parametrize("flags", [[], ["--data_windows=40/80", "--optim=lion"]])
def test_train_sh_hands_its_flags_to_a_grid(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("grid: {seed: [0, 1]}")
    command = ["bash", "train.sh", "sweep", str(tmp_path / "g.yaml"), "--dry-run", *flags]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2
    assert all(" ".join(flags) in line for line in said)
    missing = subprocess.run(["bash", "train.sh", "sweep"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (missing.returncode, "the file is missing" in missing.stderr) == (2, True)


@pytest.mark.slow
def test_a_signal_to_train_sh_alone_reaches_the_run_which_saves_its_state(small_dataset, tmp_path: Path) -> None:
    flags = [*small_dataset.flags, "--net_model=test_resnet", "--data_image_size=32", "--tr_batch_size=4", "--n_jobs=1"]
    flags += ["--tr_iteration_num=100000", "--tr_iteration_valid=50000", "--tr_report=0"]
    command = ["bash", "train.sh", *flags, f"--output_dir={tmp_path}", "--experiment_id=x"]
    with (tmp_path / "errors").open("w") as errors:
        run = subprocess.Popen(command, cwd=PROJECT, stderr=errors, start_new_session=True)
    try:
        while not (tmp_path / "x" / "metrics.jsonl").exists() or not (tmp_path / "x" / "metrics.jsonl").read_bytes():
            assert run.poll() is None, (tmp_path / "errors").read_text()
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 75, (tmp_path / "errors").read_text()
        assert read_record(tmp_path / "x").status == "interrupted"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_sweep_trains_evaluates_and_predicts_and_skips_what_is_finished(small_dataset, tmp_path: Path) -> None:
    more = (
        "--net_model=resnet10t --data_image_size=32 --tr_batch_size=8 --tr_iteration_num=4 --tr_iteration_valid=4 "
        f"--data_input_folder={small_dataset.input_folder}"
    )
    results, lines = tmp_path / "results", tmp_path / "lines"

    def sweep_of(*experiments: str, **options: int) -> subprocess.CompletedProcess[str]:
        lines.write_text("\n".join(f"{experiment} {more}" for experiment in experiments))
        flags = [f"--lines={lines}", f"--output_dir={results}", "--data_dataset=phantom"]
        flags += [f"--{name}={value}" for name, value in options.items()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "sweep.py", *flags]
        return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)

    first = sweep_of("--experiment_id=a", "--experiment_id=b --optim_lr=1e30")
    assert first.returncode == 1, first.stderr[-2000:]
    assert "1 of 2 experiments failed" in first.stderr
    assert (results / "a" / "submission.csv").is_file()
    table = pd.read_csv(results / "leaderboard.csv", dtype={"experiment": str}).set_index("experiment")
    assert table["status"].to_dict() == {"a": "finished", "b": "failed"}
    stamp = (results / "a" / "best.pt").stat().st_mtime_ns
    second = sweep_of("--experiment_id=a", "", evaluate=0)
    assert second.returncode == 0, second.stderr[-2000:]
    assert "was finished before" in second.stdout
    assert (results / "a" / "best.pt").stat().st_mtime_ns == stamp
    assert read_record(results / "1").status == "finished"


def test_a_sweep_is_planned_and_ended_without_the_packages_that_its_runs_import() -> None:
    heavy = "{'torch', 'sklearn', 'albumentations', 'timm', 'torchvision'}"
    code = f"import sys, rsna.training.sweep; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_what_was_learnt_by_heart_is_predicted_and_not_evaluated(tmp_path: Path) -> None:
    """Evaluating it would be refused, since it was trained on the very images that validate it."""
    config = parse_mode(SweepConfig, [f"--lines={tmp_path / 'lines'}"])
    for learnt, due in (("0", ["evaluate.py", "predict.py"]), ("1", ["predict.py"])):
        folder = tmp_path / learnt
        folder.mkdir()
        (folder / "config.yaml").write_text(f"tr_overfit: {learnt}\n")
        assert [command[0] for command in steps(folder, config)] == due
