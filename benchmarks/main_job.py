"""What settings cost and change in the training that `bash train.sh` runs, interleaved, seeds paired.

python benchmarks/main_job.py INPUT_FOLDER [--dataset=phantom] [--seeds=0,1,2] [--settings=NAME=FLAGS ...]
    [--log=FILE] [FLAG ...]

Trains with the defaults, and FLAGs where given, and by each setting, seed by seed in turn; INPUT_FOLDER holds the
dataset, as train.sh or preprocessing.py leaves it. Prints for each setting the processor time and the elapsed time, the
median ratios to the defaults, and the best validation's log loss of each seed with the mean of the paired differences.
Processor time is little disturbed by what else runs on the machine; elapsed time is what a user waits for.

With --log each run is a line of FILE. Runs that stand there are not run again: the same command goes on where it was
ended, and one with more settings or seeds runs these alone. Delete FILE after a change of the code.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

METRIC = "valid/weighted_log_loss"
ROOT = Path(__file__).resolve().parent.parent
SETTINGS = [
    "channels_last=--tr_channels_last=1",
    "bfloat16=--tr_channels_last=1 --tr_use_amp=1 --tr_amp_dtype=bfloat16",
]


@dataclass(frozen=True)
class Run:
    """Processor and elapsed seconds of a training, and the lowest log loss of its validations."""

    processor: float
    elapsed: float
    loss: float


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input_folder", type=Path)
    parser.add_argument("--dataset", default="phantom")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--settings", action="append", metavar="NAME=FLAGS", help="none: those of SETTINGS")
    parser.add_argument("--log", type=Path, help="JSON lines of finished runs; none: all are run")
    options, flags = parser.parse_known_args()
    settings = {"defaults": []}
    for text in options.settings or SETTINGS:
        name, _, given = text.partition("=")
        settings[name] = given.split()
    common = [f"--data_input_folder={options.input_folder.resolve()}", f"--data_dataset={options.dataset}", *flags]
    runs: dict[str, list[Run]] = {name: [] for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(options.seeds):
            for name in list(settings)[:: -1 if number % 2 else 1]:  # what drifts, drifts for all
                run = logged(options.log, Path(folder), [*common, f"--seed={seed}", *settings[name]])
                runs[name].append(run)
                print(
                    f"seed {seed}, {name}: {run.processor:.0f} s of a core, {run.elapsed:.0f} s, {run.loss:.4f}",
                    flush=True,
                )
    report(runs)


def logged(log: Path | None, results: Path, flags: list[str]) -> Run:
    """Return the run with these ``flags`` from the log, or train and add it."""
    if log is None:
        return train(results, flags)
    for line in log.read_text().splitlines() if log.is_file() else ():
        found = json.loads(line)
        if found.pop("flags") == flags:
            return Run(**found)
    run = train(results, flags)
    with log.open("a") as file:
        file.write(json.dumps({"flags": flags, **asdict(run)}) + "\n")
    return run


def train(results: Path, flags: list[str]) -> Run:
    """Train in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [sys.executable, "train.py", f"--output_dir={results}", "--verbosity=0", *flags]
    folder = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1]
    elapsed = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [json.loads(line) for line in (ROOT / folder / "metrics.jsonl").read_text().splitlines()]
    return Run(processor, elapsed, min(line[METRIC] for line in lines if METRIC in line))


def report(runs: dict[str, list[Run]]) -> None:
    """Print a line for each setting."""
    first = next(iter(runs.values()))
    print("setting              core s   elapsed s   as quick (core, elapsed)   log loss: mean, paired difference")
    for name, found in runs.items():
        core, elapsed = (
            statistics.median(
                getattr(one, field) / getattr(other, field) for one, other in zip(first, found, strict=True)
            )
            for field in ("processor", "elapsed")
        )
        differences = [other.loss - one.loss for one, other in zip(first, found, strict=True)]
        spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
        print(
            f"{name:20}{statistics.median(run.processor for run in found):7.0f}"
            f"{statistics.median(run.elapsed for run in found):12.0f}{core:14.2f} x{elapsed:9.2f} x"
            f"{statistics.mean(run.loss for run in found):16.4f}, {statistics.mean(differences):+.4f} "
            f"(standard deviation {spread:.4f})"
        )


if __name__ == "__main__":
    main()
