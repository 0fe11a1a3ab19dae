"""What the leaderboard of many experiments costs.

    python benchmarks/leaderboard.py [--experiments=5000] [--folder=FOLDER]

Writes experiments as train.py leaves them (all its options, an environment, validations with all their metrics, a
status): most by themselves, some in a search, some as folds of cross-validations. Then report.py builds the leaderboard
three times, in processes of their own: from nothing, again after nothing changed, and after one experiment got another
validation. Prints seconds, seconds of the processor and peak memory of each, and the page's size; exit code 1 where the
last takes 5 s of a processor or more, or the page has 5 MB or more. --folder keeps what was written, and uses it again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS, MOST_BYTES = 5, 5_000_000
VALIDATIONS = 20
MODELS = ("resnet34", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224", "densenet121")


def names(count: int) -> list[str]:
    """Return where experiments lie: of ten, seven by themselves, two in searches and one as a fold."""
    found = []
    for number in range(count):
        kind = number % 10
        if kind < 7:
            found.append(f"sweep_lr-{number % 97}_model-{number % 6}_{number}")
        elif kind < 9:
            found.append(f"search_{number // 1000}/trial_{number:04d}")
        else:
            found.append(f"cv_{number // 50}/fold_{number // 10 % 5}")
    return found


def write_experiments(results: Path, count: int) -> None:
    """Write experiments of random options and values."""
    from common.cli.arguments import to_dict
    from common.experiments.folder import CONFIG, ENVIRONMENT, plain
    from common.reports.record import FINISHED, write_status
    from common.trackers.jsonl import FILE_NAME, point_line
    from config import TrainConfig
    from rsna_dataset import LABELS, METRIC

    chance, defaults = random.Random(0), to_dict(TrainConfig())
    for name in names(count):
        folder = results / name
        folder.mkdir(parents=True)
        if folder.parent != results and folder.parent.name.startswith("cv_"):
            write_options(folder.parent / CONFIG, plain(defaults | {"data_fold": "0,1,2,3,4"}))
        lr = 10 ** chance.uniform(-5, -1)
        options = {"net_model": chance.choice(MODELS), "optim_lr": lr, "seed": chance.randrange(1000)}
        options |= {"tr_batch_size": chance.choice((16, 32, 64)), "experiment_id": folder.name}
        write_options(folder / CONFIG, plain(defaults | options))
        environment = {"started": f"2026-01-{chance.randint(1, 28):02d}T12:00:00+00:00", "host": "somewhere"}
        environment |= {"packages": {f"package_{n}": "1.2.3" for n in range(30)}, "command": ["train.py", f"--x={lr}"]}
        (folder / ENVIRONMENT).write_text(json.dumps(environment | {"git_commit": "0123456789" * 4}))
        lines = []
        for at in range(1, VALIDATIONS + 1):
            lines += [point_line({"train/loss": chance.random(), "train/lr": lr}, at * 100 - 50, 1.7e9 + at * 60)]
            values = {f"valid/{METRIC}": 0.1 + chance.random(), "valid/auc": chance.random()}
            values |= {f"valid/log_loss/{label}": chance.random() for label in LABELS}
            lines += [point_line(values, at * 100, 1.7e9 + at * 60)]
        (folder / FILE_NAME).write_text("".join(lines))
        (folder / "report.html").write_text("<title>report</title>")
        write_status(folder, FINISHED)


def write_options(path: Path, options: dict[str, object]) -> None:
    """Write a configuration as an experiment has it."""
    import yaml

    path.write_text(yaml.dump(options, sort_keys=False, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.floods import measure
    from common.reports.leaderboard import HTML_FILE
    from common.reports.summary import KEPT_FILE
    from common.trackers.jsonl import FILE_NAME, point_line
    from rsna_dataset import METRIC

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=5000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leaderboard_") as scratch:
        results = Path(scratch) / "results" if options.folder is None else options.folder.resolve()
        if not results.is_dir():
            write_experiments(results, options.experiments)
        (results / KEPT_FILE).unlink(missing_ok=True)
        command = ["report.py", f"--output_dir={results}"]
        empty = Path(scratch) / "empty"
        empty.mkdir()
        baseline = measure(["report.py", f"--output_dir={empty}"], Path(scratch))
        print(f"{'no experiment':24} {baseline.seconds:6.1f} s {baseline.cpu:6.1f} s of CPU {baseline.mib:6.0f} MiB")
        for what in ("from nothing", "nothing changed", "one changed"):
            if what == "one changed":
                with (results / names(1)[0] / FILE_NAME).open("a") as file:
                    file.write(point_line({f"valid/{METRIC}": 0.05}, 10_000, 1.8e9))
            found = measure(command, Path(scratch))
            if found.code:
                raise SystemExit(found.text)
            print(f"{what:24} {found.seconds:6.1f} s {found.cpu:6.1f} s of CPU {found.mib:6.0f} MiB")
        size = (results / HTML_FILE).stat().st_size
        print(f"{'page':24} {size / 1e6:6.2f} MB of {options.experiments} experiments")
        raise SystemExit(int(found.cpu >= MOST_SECONDS or size >= MOST_BYTES))


if __name__ == "__main__":
    main()
