"""The ladder: from the constant predictor to a calibrated ensemble, a few commands a rung, judged on other patients.

python benchmarks/ladder.py FOLDER            about an hour of one core, 10 GB of disk
python benchmarks/ladder.py FOLDER --seeds=3  the same three times on the same data: what chance alone moves
python benchmarks/ladder.py FOLDER --quick    some minutes: says that all rungs work, and not what they are worth

Makes a phantom of difficulty `real` in FOLDER whose test studies have known labels (phantom_truth.csv) that no command
reads. Climbs with this project's own commands, and trains the rivals of rival_loops.py on as many pictures as the
folds' networks saw, by the rate and augmentation that rivals.py chose for each (benchmarks/rivals.csv).

A rung is built on the best rung below it. Which that is, and all that is chosen or fitted, comes from validation and
out-of-fold predictions, never from the test studies. Bold is the rung that this rule ends on. FOLDER/ladder.md and
ladder.csv hold the table: weighted log loss of the test images with a 95 % interval over patients, and the paired
difference from the rung that this one was built on, for a rival from the bold one. With several seeds there is a table
of each, and one of all. The same command goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rivals import LOG, OURS, SIDES, Entry, children_seconds, chosen, losses, read_log  # noqa: E402

DATASET = "real"
DATA_STEPS = ("phantom", "preprocessing")
FOLDS = 3
DRAWS = 10_000
TEST_SHARE = 0.4
HOLDOUT_SHARE = 0.15  # of the labelled images, which the calibration is fitted to
NOT_TUNED = "0.003", "affine"  # a rival's rate and augmentation where the log has none
NO_AUGMENTATION, AUGMENTATION = "valid_demo.json", "train_demo.json"


@dataclass(frozen=True)
class Budget:
    """Size of the phantom and of the trainings; iterations of a sequence model are batches of 8 series."""

    studies: int
    size: int
    iterations: int
    sequence_iterations: int
    model: str = "resnet10t"
    batch: int = 32


FULL = Budget(studies=400, size=96, iterations=500, sequence_iterations=600)
QUICK = Budget(studies=60, size=64, iterations=60, sequence_iterations=60)


@dataclass(frozen=True)
class Rung:
    """A rung of the ladder: predictions of the test images, and what it scores where choices are made.

    ``base``: name of the rung that it was built on; ``steps``: names of the commands that made it; ``known``: its score
    on validation or out-of-fold predictions, ``before``: that of its base on the same images.
    """

    name: str
    test: pd.DataFrame
    base: str | None = None
    steps: tuple[str, ...] = ()
    known: float | None = None
    before: float | None = None
    basis: str = ""

    @property
    def helps(self) -> bool:
        """Whether the rungs above are built on this one."""
        return self.before is None or self.known < self.before


class Ladder:
    """Runs commands in a folder once, keeps what they took, and collects the rungs."""

    def __init__(self, folder: Path, budget: Budget, n_jobs: int, seed: int = 0) -> None:
        """``folder`` may hold what an earlier run left; ``n_jobs`` as everywhere; ``seed``: of all trainings."""
        self.folder, self.budget, self.seed = folder, budget, seed
        self.results = folder / ("results" if seed == 0 else f"results_{seed}")
        self.cores, self.own_seed = f"--n_jobs={n_jobs}", f"--seed={seed}"
        self.record_file = folder / "ladder.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, dict[str, Any]] = {}
        if self.record_file.is_file():
            self.done = json.loads(self.record_file.read_text(encoding="utf-8"))
        if self.done.setdefault("budget", vars(budget)) != vars(budget):
            sys.exit(f"error: {folder} holds a ladder of another size; name another folder")
        self.rungs: list[Rung] = []
        self.trainings: dict[str, list[str]] = {}  # by name the command that trains all folds

    def run(self, step: str, *command: str) -> None:
        """Run ``python <command>`` unless the step was done before; its output goes to ``logs/<step>.log``."""
        from common.files import write_json

        step = self.step(step)
        if step in self.done:
            return
        line = ["python", *(word.replace(str(self.folder), "FOLDER") for word in command)]
        print(f"{step}: {shlex.join(line)}", flush=True)
        log = self.folder / "logs" / f"{step.replace(' ', '_')}.log"
        log.parent.mkdir(exist_ok=True)
        start, used = time.perf_counter(), children_seconds()
        with log.open("a") as file:
            code = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file, stderr=file).returncode
        if code:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            sys.exit(f"error: {step} ended with exit code {code}; the end of {log}:\n{tail}")
        seconds, cpu = time.perf_counter() - start, children_seconds() - used
        self.done[step] = {"command": line, "seconds": seconds, "cpu_seconds": cpu}
        write_json(self.record_file, self.done)

    def step(self, name: str) -> str:
        """Return the name of a step among those of all seeds, which share the data."""
        return name if self.seed == 0 or name in DATA_STEPS else f"{name} seed {self.seed}"

    @property
    def place(self) -> list[str]:
        """Options that every training has."""
        data = [f"--data_input_folder={self.folder}", f"--data_dataset={DATASET}"]
        return [*data, f"--output_dir={self.results}", self.own_seed]

    def make_data(self) -> None:
        """Write the phantom and preprocess it to 128 pixels."""
        phantom = self.folder / "phantom"
        options = [f"--phantom_studies={self.budget.studies}", f"--phantom_test_share={TEST_SHARE}"]
        self.run("phantom", "rsna_phantom.py", f"--phantom_folder={phantom}", *options, self.cores)
        more = [f"--pre_source={phantom}", "--pre_size=128", f"--pre_folds={FOLDS}", f"--pre_holdout={HOLDOUT_SHARE}"]
        self.run("preprocessing", "preprocessing.py", *self.place[:2], *more, self.cores)

    def train_fold(self, name: str, *options: str) -> tuple[str, ...]:
        """Train fold 0 of the cross-validation ``name`` and predict the test images; return the steps."""
        budget = self.budget
        options = (
            f"--net_model={budget.model}",
            f"--data_image_size={budget.size}",
            f"--tr_batch_size={budget.batch}",
            f"--tr_iteration_num={budget.iterations}",
            f"--tr_iteration_valid={max(1, budget.iterations // 4)}",
            *options,
        )
        command = ["train.py", self.cores, *self.place, "--data_fold=all", f"--experiment_id={name}", *options]
        self.run(f"{name} fold 0", *command, "--cv_run=0")
        self.run(f"{name} test", "predict.py", self.cores, f"--net_weight_file={self.fold_folder(name) / 'best.pt'}")
        self.trainings[name] = command
        return f"{name} fold 0", f"{name} test"

    def fold_folder(self, name: str) -> Path:
        """Return the folder of fold 0 of a cross-validation."""
        return self.results / name / "fold_0"

    def valid_loss(self, name: str) -> float:
        """Return the best validation's weighted log loss of fold 0."""
        return self.loss_of(self.fold_folder(name) / "predictions_valid.csv")

    def loss_of(self, path: Path) -> float:
        """Return the weighted log loss of predictions of labelled images of the training folds."""
        from rsna.forms import read_predictions
        from rsna_dataset import dataset_folder, read_metadata

        rows = read_metadata(dataset_folder(self.folder, DATASET))
        frame = read_predictions(path)
        return float(losses(frame, rows.loc[frame.index]).mean())

    def add(self, rung: Rung) -> Rung:
        """Add a rung, say what it scores, and return it."""
        self.rungs.append(rung)
        said = "" if rung.known is None else f", {rung.basis} {rung.known:.4f}"
        if rung.before is not None:
            said += f" after {rung.before:.4f}: {'goes on' if rung.helps else 'nothing is built on it'}"
        print(f"  {rung.name}: test {losses(rung.test, self.truth.loc[rung.test.index]).mean():.4f}{said}", flush=True)
        return rung

    @cached_property
    def truth(self) -> pd.DataFrame:
        """Labels and patient of the test images that have a picture, by the phantom's truth file."""
        import pandas as pd

        from rsna_dataset import LABELS, dataset_folder, read_metadata

        table = pd.read_csv(self.folder / "phantom" / "phantom_truth.csv", index_col="id", keep_default_na=False)
        metadata = read_metadata(dataset_folder(self.folder, DATASET))
        tests = metadata.index[metadata["split"] == "test"]
        return table.loc[tests, list(LABELS)].join(metadata["group_id"])

    def submission(self, path: Path) -> pd.DataFrame:
        """Read predictions of the test images, in one order."""
        from rsna.forms import read_predictions

        return read_predictions(path).loc[self.truth.index]


def constant(ladder: Ladder) -> Rung:
    """The prevalences of fold 0's training images for every image."""
    import numpy as np
    import pandas as pd

    from common.evaluation.metrics import prevalences_of
    from rsna_dataset import LABELS, dataset_folder, read_fold

    rows = read_fold(dataset_folder(ladder.folder, DATASET), DATASET, 0)
    means = prevalences_of(rows.loc[rows["sample_type"] == "train", list(LABELS)])
    index = ladder.truth.index
    return ladder.add(Rung("constant predictor", pd.DataFrame(np.tile(means, (len(index), 1)), index, list(LABELS))))


def single_networks(ladder: Ladder, bottom: Rung) -> tuple[Rung, str]:
    """Slice network, augmentation, neighbours as channels; return the best and its experiment."""

    def train(name: str, title: str, base: Rung, before: str | None, *options: str) -> Rung:
        steps = ladder.train_fold(name, *options)
        test = ladder.submission(ladder.fold_folder(name) / "submission.csv")
        known = ladder.valid_loss(name)
        earlier = None if before is None else ladder.valid_loss(before)
        return ladder.add(Rung(title, test, base.name, steps, known, earlier, "validation fold"))

    best, experiment = (
        train("slice", "slice network", bottom, None, f"--data_train_transform={NO_AUGMENTATION}"),
        "slice",
    )
    transform = NO_AUGMENTATION
    augmented = train("augmented", "+ augmentation", best, experiment, f"--data_train_transform={AUGMENTATION}")
    if augmented.helps:
        best, experiment, transform = augmented, "augmented", AUGMENTATION
    context = train(
        "context", "+ neighbouring slices (2.5-D)", best, experiment, f"--data_train_transform={transform}",
        "--data_context=1",
    )  # fmt: skip
    if context.helps:
        best, experiment = context, "context"
    return best, experiment


def studies(ladder: Ladder, single: Rung, slices: str) -> Rung:
    """All folds' networks, sequence models on their features, both, second level, calibration; return the best."""
    ladder.run(f"{slices} other folds", *ladder.trainings[slices])
    ladder.run(f"{slices} all test", "predict.py", ladder.cores, f"--net_weight_file={ladder.results / slices}")

    def read(name: str) -> tuple[pd.DataFrame, float]:
        folder = ladder.results / name
        return ladder.submission(folder / "submission.csv"), ladder.loss_of(folder / "predictions_oof.csv")

    basis = "out of fold"
    test, known = read(slices)
    steps = f"{slices} other folds", f"{slices} all test"
    folds = ladder.add(Rung(f"+ mean of {FOLDS} folds' networks", test, single.name, steps, known, None, basis))

    batches = ladder.budget.sequence_iterations
    options = [f"--tr_iteration_num={batches}", f"--tr_iteration_valid={max(1, batches // 6)}", "--tr_batch_size=8"]
    ladder.run("features", "predict.py", ladder.cores, f"--net_weight_file={ladder.results / slices}", "--features=1")
    kind = ["--net_kind=sequence", f"--seq_features={slices}", "--seq_model=lstm", "--experiment_id=sequence"]
    ladder.run("sequence", "train.py", ladder.cores, *ladder.place, "--data_fold=all", *kind, *options)
    ladder.run("sequence test", "predict.py", ladder.cores, f"--net_weight_file={ladder.results / 'sequence'}")
    test, known = read("sequence")
    steps = "features", "sequence", "sequence test"
    sequence = ladder.add(Rung("+ sequence model over the study", test, folds.name, steps, known, folds.known, basis))
    best, experiment = (sequence, "sequence") if sequence.helps else (folds, slices)

    results = f"--output_dir={ladder.results}"
    for name in (slices, "sequence"):
        weights = f"--net_weight_file={ladder.results / name}"
        ladder.run(f"{name} held out", "predict.py", ladder.cores, weights, "--split=holdout")
    for name, title, command in (
        ("ensemble", "+ ensemble of slices and sequences", ["ensemble.py", slices, "sequence", "--ens_fit=weights"]),
        ("level", "+ second level (boosted trees)", ["second_level.py", slices, "sequence", ladder.own_seed]),
    ):
        ladder.run(name, *command, results, f"--experiment_id={name}")
        test, known = read(name)
        rung = ladder.add(Rung(title, test, best.name, (name,), known, best.known, basis))
        if rung.helps:
            best, experiment = rung, name
    ladder.run(
        "calibrated", "ensemble.py", experiment, "--ens_calibrate=temperature", results, "--experiment_id=calibrated"
    )
    test, _ = read("calibrated")
    held = [ladder.loss_of(ladder.results / name / "predictions_holdout.csv") for name in ("calibrated", experiment)]
    steps = *(f"{name} held out" for name in (slices, "sequence")), "calibrated"
    last = ladder.add(Rung("+ calibration (temperatures)", test, best.name, steps, *held, "images in no fold"))
    return last if last.helps else best


def rivals(ladder: Ladder, best: Rung) -> None:
    """Programs that this project is not, on all training images, with the budget of the three folds' networks."""
    budget = ladder.budget
    iterations = FOLDS * budget.iterations
    for side in SIDES:
        if side == OURS:
            continue
        entry, text = tuned(side, iterations)
        step = f"{side} {entry.rate} {entry.augmentation}"  # a rival that was tuned anew is another step
        output = ladder.folder / f"{ladder.step(step).replace(' ', '_')}.csv"
        ladder.run(
            step, "benchmarks/rival_loops.py", side, str(ladder.folder), f"--dataset={DATASET}",
            f"--model={budget.model}", ladder.cores, f"--rate={entry.rate}", f"--augmentation={entry.augmentation}",
            f"--size={budget.size}", f"--batch={budget.batch}", f"--iterations={iterations}",
            f"--output={output}", ladder.own_seed,
        )  # fmt: skip
        ladder.add(Rung(f"rival: {side} ({text})", ladder.submission(output), best.name, (step,)))


def tuned(side: str, iterations: int) -> tuple[Entry, str]:
    """Return a rival's configuration of the largest tuned budget up to ``iterations``, and it in words."""
    if LOG.is_file():
        log = read_log(LOG)
        budgets = sorted({int(number) for number in log.loc[log["phantom"] == "tuning", "iterations"]})
        for number in [*(number for number in reversed(budgets) if number <= iterations), *budgets]:
            if best := chosen(log, side, number):
                return best[0], f"{best[0].rate}, {best[0].augmentation}, tuned by {number} iterations"
    entry = Entry(side, *NOT_TUNED)
    return entry, f"{entry.rate}, {entry.augmentation}, not tuned"


def table_of(ladder: Ladder) -> pd.DataFrame:
    """Return the table: a row for each rung."""
    import pandas as pd

    from common.evaluation.reader import change_of
    from common.evaluation.resampling import PatientBootstrap, mean_interval
    from rsna_dataset import LABELS

    truth = ladder.truth
    bootstrap = PatientBootstrap(truth["group_id"].to_numpy(), DRAWS)
    values = {rung.name: losses(rung.test, truth) for rung in ladder.rungs}

    positive = (truth[list(LABELS)] == 1).any(axis=1).to_numpy()
    rows = []
    for rung in ladder.rungs:
        low, high, _ = mean_interval(bootstrap, values[rung.name], positive, "log")
        steps = [ladder.done[ladder.step(step)] for step in rung.steps]
        row = {
            "seed": ladder.seed,
            "rung": rung.name, "log_loss": values[rung.name].mean(), "low": low, "high": high, "built_on": rung.base,
            "known": rung.known, "basis": rung.basis, "goes_on": rung.helps,
            **{unit: sum(step[unit] for step in steps) for unit in ("seconds", "cpu_seconds")},
            "commands": "; ".join(shlex.join(step["command"]) for step in steps),
        }  # fmt: skip
        if rung.base is not None:
            change = change_of(values[rung.name] - values[rung.base], positive, bootstrap)
            ends = {"change_low": change.low, "change_high": change.high}
            row |= {"change": change.value, **ends, "verdict": change.verdict or change.evidence.reason}
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    import pandas as pd

    lines = [
        f"{facts['images']:,} test images of {facts['patients']} patients; {facts['text']}",
        "",
        "| rung | test log loss [95 %] | against what it is built on [95 %] | chosen by | CPU minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in table.itertuples():
        change = "–"
        if pd.notna(row.change):
            ends = "" if pd.isna(row.change_low) else f"[{row.change_low:+.4f}, {row.change_high:+.4f}] "
            change = f"{row.change:+.4f} {ends}{row.verdict}"
        known = (
            "–"
            if pd.isna(row.known)
            else f"{row.basis} {row.known:.4f}{'' if row.goes_on else ', nothing built on it'}"
        )
        minutes = "–" if not row.cpu_seconds else f"{row.cpu_seconds / 60:.1f}"
        chosen = row.rung == facts["chosen"]
        loss = f"{'**' * chosen}{row.log_loss:.4f}{'**' * chosen}"
        loss += "" if pd.isna(row.low) else f" [{row.low:.4f}, {row.high:.4f}]"
        lines.append(f"| {row.rung} | {loss} | {change} | {known} | {minutes} |")
    return "\n".join(lines)


def seeds_table(table: pd.DataFrame) -> str:
    """Return as Markdown what the seeds' tables, one below the other, say of each rung together."""
    seeds = table["seed"].unique().tolist()
    lines = [
        f"Test log loss of {len(seeds)} seeds",
        "",
        f"| rung | {' | '.join(f'seed {seed}' for seed in seeds)} | mean (standard deviation) | change, mean [lowest, "
        "highest] | goes on |",
        f"| --- |{' --- |' * (len(seeds) + 3)}",
    ]
    for name, rows in table.groupby("rung", sort=False):
        values, changes = rows["log_loss"], rows["change"].dropna()
        change = "–" if changes.empty else f"{changes.mean():+.4f} [{changes.min():+.4f}, {changes.max():+.4f}]"
        each = " | ".join(f"{value:.4f}" for value in values)
        built = "–" if rows["known"].isna().all() else f"{int(rows['goes_on'].sum())} of {len(rows)}"
        lines.append(f"| {name} | {each} | {values.mean():.4f} ({values.std(ddof=1):.4f}) | {change} | {built} |")
    return "\n".join(lines)


def main() -> None:
    """Climb, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="where phantom, dataset and experiments go, and what is there goes on"
    )
    parser.add_argument("--quick", action="store_true", help="a small phantom and short trainings")
    parser.add_argument("--n_jobs", type=int, default=0, help="cores to use; 0: all there are")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to train all by, each on the same data")
    options = parser.parse_args()
    import pandas as pd

    from common.files import write_csv, write_text

    budget, folder = QUICK if options.quick else FULL, options.folder.resolve()
    tables, reports, shares = [], [], []
    for seed in range(options.seeds):
        ladder = Ladder(folder, budget, options.n_jobs, seed)
        ladder.make_data()
        single, slices = single_networks(ladder, constant(ladder))
        best = studies(ladder, single, slices)
        rivals(ladder, best)
        table = table_of(ladder)
        text = (
            f"{budget.model}, {budget.size} pixels, {budget.iterations} iterations of {budget.batch} for each network"
        )
        facts = {"images": len(ladder.truth), "patients": ladder.truth["group_id"].nunique()}
        # Chosen by validation and held-out predictions, not by the test images.
        facts |= {"text": f"{text}, seed {seed}", "chosen": best.name}
        reports.append(markdown(table, facts))
        values = table.set_index("rung")["log_loss"]
        rival = values[values.index.str.startswith("rival")].min()
        shares.append(f"seed {seed}: {best.name}: {values[best.name] / rival:.2f} of the best rival's log loss")
        tables.append(table)
    together = pd.concat(tables, ignore_index=True)
    if options.seeds > 1:
        reports.append(seeds_table(together))
    write_csv(folder / "ladder.csv", together)
    report = "\n\n".join(reports)
    write_text(folder / "ladder.md", report + "\n")
    print(f"\n{report}\n\n" + "\n".join(shares) + "\naim: at most 0.60")
    print(folder / "ladder.md")


if __name__ == "__main__":
    main()
