"""Honest rivals: this project beside loops that one would write without it, each side tuned alike.

python benchmarks/rivals.py FOLDER                  tune and judge all sides
python benchmarks/rivals.py FOLDER --budgets=240    by one budget
python benchmarks/rivals.py FOLDER --final          then what was chosen, 4,000 iterations at 96 pixels on `real`
python benchmarks/rivals.py FOLDER --entries=plain:0.003:affine,ours:default:default   judge these, tune nothing

All sides have the same images in the same fold, the same pixels, the same network and batches, and so see the same
number of images. They train in processes of their own, by the last weights; the log has their processor time. The
sides are train.py and the loops of rival_loops.py.

- Tuning: each side has the same number of configurations, learning rates by augmentations. Successive halving on the
  phantom `tuning`, one seed: all train by the smallest budget, the best third by the next one.
- Judging: for each budget the two configurations of each side with the lowest log loss there train with three seeds on
  the phantom `judging`, which no tuning saw. It is made when the tuning is over. train.py's defaults are judged too.
- Chosen, in bold, is the configuration of each side that the tuning put first. What is lower in the judging is not
  chosen for that. Only `the best rival` is: it is the lowest of all rivals in the judging, which favours the rivals.
- Intervals: the loss of an image is its mean over the seeds, and patients are drawn. Seeds stand beside that.

FOLDER/rivals.csv is the log, a row for each finished run, and FOLDER/rivals.md the table. A killed run is begun anew by
the same command, finished ones stand.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rival_loops import AUGMENTATIONS, LOOPS  # noqa: E402

LOG = ROOT / "benchmarks" / "rivals.csv"  # of the runs that the documents tell of
OURS, DEFAULT = "ours", "default"
RATES = ("0.001", "0.003", "0.01")
OWN_AUGMENTATIONS = {  # ours, by name: files of transforms/, as many as the rivals' AUGMENTATIONS
    "none": "valid_demo.json",
    DEFAULT: None,
    "intermediate": "train_intermediate_128.json",
    "complex": "train_complex_128.json",
}
DATASET, FOLDS, DRAWS = "rivals", 2, 10_000
KEPT, FINALISTS = 3, 2  # one of so many configurations trains by the next budget; so many of a side are judged
KEYS = ["phantom", "side", "rate", "augmentation", "iterations", "seed"]
FINAL_ITERATIONS = 4_000


@dataclass(frozen=True)
class Plan:
    """Sizes of the phantoms, of the pictures and of the judging."""

    studies: int = 140
    scanned: int = 256  # pixels of the phantoms' DICOM files
    model: str = "resnet10t"
    batch: int = 32
    seeds: int = 3


@dataclass(frozen=True)
class Phantom:
    """One phantom: its seed and difficulty, and the pixels of a picture."""

    seed: int
    difficulty: str = "demo"
    size: int = 64


PLAN = Plan()
PHANTOMS = {"tuning": Phantom(2), "judging": Phantom(1), "final": Phantom(3, "real", 96)}


@dataclass(frozen=True)
class Entry:
    """A configuration of a side: ``plain``, ``0.003``, ``affine``. ``default``: what train.py takes where not told."""

    side: str
    rate: str
    augmentation: str

    def __str__(self) -> str:
        return f"{self.side}:{self.rate}:{self.augmentation}"


DEFAULTS = Entry(OURS, DEFAULT, DEFAULT)
SIDES = (OURS, *LOOPS)


def grid(side: str) -> list[Entry]:
    """Return all configurations of a side that are tuned."""
    augmentations = OWN_AUGMENTATIONS if side == OURS else AUGMENTATIONS
    return [Entry(side, rate, augmentation) for rate in RATES for augmentation in augmentations]


class Comparison:
    """Trains in a folder, once each, and keeps the log and the predictions there."""

    def __init__(self, folder: Path, plan: Plan, cores: str) -> None:
        """``folder`` may hold what an earlier comparison left; ``cores`` is the flag ``--n_jobs=…``."""
        self.folder, self.plan, self.cores = folder, plan, cores
        self.log_file = folder / "rivals.csv"
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
        for left in folder.glob("run_*"):  # of a killed run
            shutil.rmtree(left)
        self.rows: dict[tuple[str, ...], dict[str, Any]] = {}
        if self.log_file.is_file():
            rows = read_log(self.log_file).to_dict("records")
            self.rows = {tuple(str(row[name]) for name in KEYS): row for row in rows}

    def data(self, name: str) -> Path:
        """Make a phantom and its dataset unless they stand; return the folder that holds datasets/."""
        phantom, folder = PHANTOMS[name], self.folder / name
        if not (folder / "datasets" / DATASET / "dataset.json").is_file():
            source = folder / "phantom"
            options = [f"--phantom_studies={self.plan.studies}", f"--phantom_difficulty={phantom.difficulty}"]
            options += ["--phantom_test_share=0.01", f"--phantom_image_size={self.plan.scanned}"]
            options += [f"--seed={phantom.seed}", "--phantom_only_if_missing=1", self.cores]
            self.command("rsna_phantom.py", f"--phantom_folder={source}", *options)
            options = [f"--pre_source={source}", f"--pre_size={phantom.size}", f"--pre_folds={FOLDS}", self.cores]
            place = [f"--data_input_folder={folder}", f"--data_dataset={DATASET}"]
            self.command("preprocessing.py", *place, *options)
        return folder

    def command(self, *command: str) -> None:
        """Run ``python <command>``; its output goes to a log file."""
        log = self.folder / "commands.log"
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file, stderr=file).returncode
        if code:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            sys.exit(f"error: {command[0]} ended with exit code {code}; the end of {log}:\n{tail}")

    def loss(self, phantom: str, entry: Entry, iterations: int, seed: int) -> float:
        """Return the log loss of the fold's validation images after a training, which is made unless it stands."""
        key = phantom, entry.side, entry.rate, entry.augmentation, str(iterations), str(seed)
        if key not in self.rows:
            self.rows[key] = dict(zip(KEYS, key, strict=True)) | self.train(phantom, entry, iterations, seed)
            self.write_log()
            row = self.rows[key]
            print(f"{' '.join(key)}: {row['log_loss']:.4f}, {row['cpu_seconds']:.0f} s of a core", flush=True)
        return float(self.rows[key]["log_loss"])

    def train(self, phantom: str, entry: Entry, iterations: int, seed: int) -> dict[str, Any]:
        """Train, keep the predictions, and return what the log says of the run."""
        from common.experiments.environment import environment

        data = self.data(phantom)
        work = Path(
            tempfile.mkdtemp(prefix="run_", dir=self.folder)
        )  # its own: what a kill left alive can't disturb it
        command, predictions = self.training(entry, data, PHANTOMS[phantom].size, iterations, seed, work)
        start, used = time.perf_counter(), children_seconds()
        self.command(*command)
        seconds, cpu = time.perf_counter() - start, children_seconds() - used
        predictions.replace(self.predictions(phantom, entry, iterations, seed))
        shutil.rmtree(work)
        loss = float(self.losses(phantom, entry, iterations, seed).mean())
        images = iterations * self.plan.batch
        made_by = str(environment(sys.argv)["git_commit"] or "")[:7]
        return {"images": images, "log_loss": loss, "cpu_seconds": cpu, "seconds": seconds, "commit": made_by}

    def training(
        self, entry: Entry, data: Path, size: int, iterations: int, seed: int, work: Path
    ) -> tuple[list[str], Path]:
        """Return the command of a training, and where it leaves the predictions of the validation images."""
        plan = self.plan
        if entry.side != OURS:
            options = {
                "dataset": DATASET, "fold": 0, "rate": entry.rate, "augmentation": entry.augmentation,
                "model": plan.model, "size": size, "batch": plan.batch, "iterations": iterations, "seed": seed,
                "output": work / "predictions.csv",
            }  # fmt: skip
            flags = [f"--{name}={value}" for name, value in options.items()]
            command = ["benchmarks/rival_loops.py", entry.side, str(data), *flags, self.cores]
            return command, work / "predictions.csv"
        options = {
            "data_input_folder": data, "data_dataset": DATASET, "data_fold": 0, "net_model": plan.model,
            "data_image_size": size, "tr_batch_size": plan.batch, "tr_iteration_num": iterations,
            "tr_iteration_valid": iterations, "tr_report": 0, "seed": seed, "output_dir": work, "experiment_id": "run",
        }  # fmt: skip
        if entry.rate != DEFAULT:
            options["optim_lr"] = entry.rate
        if file := OWN_AUGMENTATIONS.get(entry.augmentation):
            options["data_train_transform"] = resized(ROOT / "transforms" / file, size, work)
        flags = [f"--{name}={value}" for name, value in options.items()]
        return ["train.py", *flags, self.cores], work / "run" / "predictions_valid.csv"

    def predictions(self, phantom: str, entry: Entry, iterations: int, seed: int) -> Path:
        """Return the file of a run's predictions."""
        name = f"{phantom}_{entry.side}_{entry.rate}_{entry.augmentation}_{iterations}_{seed}.csv"
        return self.folder / "predictions" / name

    def losses(self, phantom: str, entry: Entry, iterations: int, seed: int) -> np.ndarray:
        """Return each validation image's log loss, in the fold's order."""
        from rsna.forms import read_predictions

        frame = read_predictions(self.predictions(phantom, entry, iterations, seed))
        rows = fold(self.data(phantom), "valid")
        return losses(frame.loc[rows.index], rows)

    def write_log(self) -> None:
        """Write the log."""
        import pandas as pd

        from common.files import write_csv

        write_csv(self.log_file, pd.DataFrame(list(self.rows.values())))

    def tune(self, sides: Sequence[str], budgets: Sequence[int]) -> None:
        """Train by successive halving, each side alike."""
        for side in sides:
            entries = grid(side)
            for iterations in budgets:
                found = {entry: self.loss("tuning", entry, iterations, 0) for entry in entries}
                entries = sorted(entries, key=found.__getitem__)[: max(FINALISTS, len(entries) // KEPT)]

    def judge(self, phantom: str, entries: Sequence[Entry], iterations: int) -> None:
        """Train each configuration with each seed, seed by seed."""
        for seed in range(self.plan.seeds):
            for entry in entries:
                self.loss(phantom, entry, iterations, seed)

    def table(self, phantom: str, entries: Sequence[Entry], iterations: int) -> pd.DataFrame:
        """Return a row for each configuration: its losses over seeds, and the first of ours less it, paired."""
        import pandas as pd

        from common.evaluation.metrics import prevalences_of
        from common.evaluation.reader import change_of
        from common.evaluation.resampling import PatientBootstrap, mean_interval
        from rsna_dataset import LABELS, known_groups

        names = list(LABELS)
        rows, learnt = (fold(self.data(phantom), split) for split in ("valid", "train"))
        bootstrap = PatientBootstrap(known_groups(rows), DRAWS)
        positive = (rows[names] == 1).any(axis=1).to_numpy()
        seeds = range(self.plan.seeds)
        each = {entry: [self.losses(phantom, entry, iterations, seed) for seed in seeds] for entry in entries}
        constant = pd.DataFrame([prevalences_of(learnt[names])] * len(rows), rows.index, names)
        each[Entry("constant predictor", "", "")] = [losses(constant, rows)] * len(seeds)
        ours = next(entry for entry in entries if entry.side == OURS)
        found, sides = [], set()
        for entry, values in each.items():
            mean = sum(values) / len(values)
            low, high, _ = mean_interval(bootstrap, mean, positive, "log")
            by_seed = pd.Series([value.mean() for value in values])
            key = phantom, entry.side, entry.rate, entry.augmentation, str(iterations)
            cpu = [self.rows[(*key, str(seed))]["cpu_seconds"] for seed in seeds] if entry in entries else [0.0]
            row = {"entry": entry, "log_loss": mean.mean(), "low": low, "high": high, "spread": by_seed.std(ddof=1)}
            row |= {"seeds": by_seed.tolist(), "cpu_seconds": sum(cpu) / len(cpu), "chosen": entry.side not in sides}
            sides.add(entry.side)
            if entry.side != OURS:
                row["change"] = change_of(sum(each[ours]) / len(seeds) - mean, positive, bootstrap)
            found.append(row)
        return pd.DataFrame(found)


def chosen(log: pd.DataFrame, side: str, iterations: int) -> list[Entry]:
    """Return a side's configurations that the tuning of this budget puts first; none where none was tuned."""
    tuned = log[(log["phantom"] == "tuning") & (log["side"] == side) & (log["iterations"] == str(iterations))]
    best = tuned.sort_values("log_loss", kind="stable").head(FINALISTS)
    return [Entry(side, row.rate, row.augmentation) for row in best.itertuples()]


def read_log(path: Path) -> pd.DataFrame:
    """Read a log; :data:`KEYS` are texts."""
    import pandas as pd

    return pd.read_csv(path, dtype=dict.fromkeys([*KEYS, "commit"], str), keep_default_na=False)


def fold(folder: Path, split: str) -> pd.DataFrame:
    """Return the rows of fold 0 that train or validate."""
    from rsna_dataset import dataset_folder, read_fold, select_rows

    return select_rows(read_fold(dataset_folder(folder, DATASET), DATASET, 0), split, dev_enabled=False)


def losses(frame: pd.DataFrame, labels: pd.DataFrame) -> np.ndarray:
    """Return each image's weighted log loss."""
    from common.evaluation.metrics import binary_log_losses, normalized_weights
    from rsna_dataset import LABEL_WEIGHTS, LABELS

    weights = normalized_weights(LABEL_WEIGHTS, len(LABELS))
    names = list(LABELS)
    return binary_log_losses(frame[names].to_numpy(), labels.loc[frame.index, names].to_numpy(float)) @ weights


def children_seconds() -> float:
    """Return the processor time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resized(path: Path, size: int, folder: Path) -> Path:
    """Return the transform file, or a copy in ``folder`` whose random crops have ``size`` pixels."""
    from common.files import write_json

    document = json.loads(path.read_text(encoding="utf-8"))
    crops = [step for step in document["transform"]["transforms"] if "size" in step]
    for step in crops:
        step["size"] = [size, size]
    if not crops:
        return path
    write_json(folder / path.name, document)
    return folder / path.name


def markdown(table: pd.DataFrame, facts: str) -> str:
    """Return the table of a budget as Markdown, and what the best rival is."""
    lines = [
        facts,
        "",
        "| side: rate, augmentation | log loss [95 %] | its seeds (standard deviation) | first of ours less it [95 %] "
        "| CPU seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in table.itertuples():
        entry, change, mark = row.entry, "–", "**" if row.chosen and row.entry.rate else ""
        name = f"{entry.side}: {entry.rate}, {entry.augmentation}" if entry.rate else entry.side
        if entry.side != OURS:
            change = row.change.text
        ends = "" if row.low != row.low else f" [{row.low:.4f}, {row.high:.4f}]"
        seeds = f"{', '.join(f'{value:.4f}' for value in row.seeds)} ({row.spread:.4f})" if entry.rate else "–"
        lines.append(
            f"| {name} | {mark}{row.log_loss:.4f}{mark}{ends} | {seeds} | {change} | {row.cpu_seconds or 0:.0f} |"
        )
    rivals = table[[entry.side in LOOPS for entry in table["entry"]]]
    if len(rivals):
        best, ours = rivals.loc[rivals["log_loss"].idxmin()], table.iloc[0]
        share = ours["log_loss"] / best["log_loss"]
        lines += ["", f"{ours['entry']} has {share:.2f} of the log loss of the best rival, {best['entry']}."]
    return "\n".join(lines)


def parse_entries(text: str) -> list[Entry]:
    """Read ``side:rate:augmentation,…``; argparse.ArgumentTypeError for what no side has."""
    found = []
    for part in text.split(","):
        words = part.split(":")
        entry = Entry(*words) if len(words) == 3 else None
        known = entry is not None and entry.side in SIDES
        if not known or (entry != DEFAULTS and entry not in grid(entry.side)):
            example = "plain:0.003:affine,ours:default:default"
            raise argparse.ArgumentTypeError(f"{part} is no side:rate:augmentation that is compared, as in {example}")
        found.append(entry)
    if all(entry.side != OURS for entry in found):
        raise argparse.ArgumentTypeError("give one of ours too, which the others are compared with")
    return sorted(found, key=lambda entry: entry.side != OURS)


def numbers(text: str) -> list[int]:
    """Read rising numbers, as in 240,1000."""
    return sorted(int(part) for part in text.split(","))


def main() -> None:
    """Tune, judge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where phantoms, log and table go, and what is there goes on")
    parser.add_argument("--budgets", type=numbers, default=[240, 1000], help="iterations, smallest first")
    parser.add_argument("--entries", type=parse_entries, help="side:rate:augmentation,… to judge; nothing is tuned")
    parser.add_argument("--final", action="store_true", help="train what the largest budget chose on `real`")
    parser.add_argument("--n_jobs", type=int, default=1, help="cores to use; 0: all there are")
    options = parser.parse_args()

    from common.files import write_text

    folder, budgets = options.folder.resolve(), options.budgets
    comparison = Comparison(folder, PLAN, f"--n_jobs={options.n_jobs}")
    if options.entries is None:
        comparison.tune(SIDES, budgets)
    rounds = [("judging", iterations) for iterations in budgets]
    if options.final:
        rounds.append(("final", FINAL_ITERATIONS))
    reports = []
    for phantom, iterations in rounds:
        entries = options.entries
        if entries is None:
            log = read_log(comparison.log_file)
            best = [chosen(log, side, min(iterations, budgets[-1])) for side in SIDES]
            if phantom == "final":
                best = [side[:1] for side in best]
            entries = [entry for side in best for entry in side]
            entries += [DEFAULTS] * (DEFAULTS not in entries)
        comparison.judge(phantom, entries, iterations)
        valid = fold(comparison.data(phantom), "valid")
        facts = f"{iterations} iterations of {PLAN.batch} ({iterations * PLAN.batch:,} images seen), {PLAN.model}, "
        facts += f"{PHANTOMS[phantom].size} pixels, phantom `{PHANTOMS[phantom].difficulty}` of seed "
        facts += f"{PHANTOMS[phantom].seed}: {len(valid):,} images of {valid['group_id'].nunique()} patients; "
        facts += "given, not tuned" if options.entries else f"{len(grid(OURS))} configurations of each side tuned"
        reports.append(markdown(comparison.table(phantom, entries, iterations), facts))
    report = "\n\n".join(reports)
    write_text(folder / "rivals.md", report + "\n")
    hours = sum(float(row["cpu_seconds"]) for row in comparison.rows.values()) / 3600
    print(f"\n{report}\n\n{len(comparison.rows)} runs, {hours:.1f} CPU hours; {folder / 'rivals.md'}")


if __name__ == "__main__":
    main()
