"""Cross-validation: train each fold in a process of its own, inside one experiment, and combine the results.

``output/results/<id>/`` has config.yaml, environment.json, train.log and a folder ``fold_<k>`` for each fold, which is
an experiment like any other. When all folds are finished it also has ``cross_validation.json`` and
``predictions_oof.csv``: each image predicted by the model that saw neither the image nor its patient.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.checkpoint import BEST, load_checkpoint
from common.cli.arguments import parse_args, to_dict
from common.cli.console import tell
from common.errors import EXIT_RESUMABLE, EXIT_USAGE, Interrupted, UsageError, WorkError, list_some
from common.evaluation.metric_table import key_title
from common.evaluation.metrics import constant_predictor, prevalences_of
from common.evaluation.texts import format_table
from common.experiments.folder import (
    Experiment,
    add_to_history,
    check_experiment_id,
    create_experiment,
    experiment_folder,
    lock_experiment,
    wait_for_orphan,
)
from common.experiments.logfile import setup_logging
from common.experiments.resume import changed_options, check_place, read_options
from common.files import write_csv, write_json
from common.lineage import Provenance
from common.reports.record import FAILED, FINISHED, RUNNING, STOPPED, read_record, write_status, write_value
from common.sweeps.plan import Planned, flags_of, planned
from common.sweeps.runner import INTERRUPTED, Outcome, Runner, slots
from common.waiting import Stalled
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.kinds.features import FEWEST_FOLDS
from rsna.kinds.kind import kind_of
from rsna.kinds.levels import LEVELS, Level, level_of
from rsna.training.lineage import check_starting_weights
from rsna.training.outcome import (
    CROSS_VALIDATION_FILE,
    PREDICTION_FILES,
    Conclude,
    describe_flattery,
    finished_folds,
    is_cross_validation,
    read_judged,
    studies_file,
)
from rsna.training.provenance import check_features_lineage, fold_provenance, write_provenance
from rsna_dataset import (
    LABEL_WEIGHTS,
    METRIC,
    dataset_folder,
    fold_numbers,
    fold_path,
    read_dataset_info,
    read_fold,
    rows_hash,
    select_rows,
)

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent.parent
FORMAT_VERSION = 1
OWN_OPTIONS = ("data_fold", "experiment_id", "output_dir", "cv_run", "tr_resume", "tr_resume_change")
ORPHAN_S = 60  # seconds to wait for the last steps of a fold whose cross-validation was killed


@dataclass(frozen=True)
class Fold:
    """A fold: its number, and the images (index ``id``) that train and validate its model."""

    number: int
    train: pd.DataFrame
    valid: pd.DataFrame

    @property
    def hash(self) -> str:
        """Hash of its images and labels, the same as in its run's checkpoints."""
        return rows_hash(self.train, self.valid)


def fold_name(number: int) -> str:
    """Return the name of a fold's experiment inside the cross-validation's folder."""
    return f"fold_{number}"


def asks_for_folds(config: TrainConfig) -> bool:
    """Whether the options start a cross-validation or continue one."""
    if config.is_cross_validation:
        return True
    return config.tr_resume is not None and is_cross_validation(resumed_folder(config))


def resumed_folder(config: TrainConfig) -> Path:
    """Return the folder that --tr_resume names, whether it exists or not."""
    path = Path(config.tr_resume)
    return path if len(path.parts) > 1 else config.output_dir / path


def cross_validate(
    config: TrainConfig,
    arguments: Sequence[str],
    conclude: Conclude,
    settle_length: Callable[[TrainConfig, TrainConfig, Sequence[int]], TrainConfig],
) -> Path:
    """Train the unfinished folds, combine all, print the experiment's folder as the last line and return it.

    ``settle_length`` is :func:`rsna.training.length.settle_fold_length`, from the start of the command on.

    Raises UsageError if folds, options and experiment don't fit each other, WorkError if a fold failed, and
    Interrupted, with the command that continues, after a signal.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a cross-validation starts a process for each fold, one on each GPU: start it without torchrun, or train "
            "single folds by torchrun (--data_fold=0)"
        )
    config, folder = joined_options(config, arguments)
    folds = read_folds(config)
    if not config.tr_resume and folder is None:
        check_lineages(config, folds)
    if config.cv_run is not None and config.cv_run not in [fold.number for fold in folds]:
        known = ", ".join(str(fold.number) for fold in folds)
        raise UsageError(f"--cv_run={config.cv_run}: the cross-validation has the folds {known}")
    if len(folds) < FEWEST_FOLDS and kind_of(config).gives_features:
        tell(f"{len(folds)} folds: predict.py --features=1, for --net_kind=sequence, needs {FEWEST_FOLDS} or more")
    if config.tr_hours is not None:
        first = replace(config, data_fold=folds[0].number, **fold_options(config, folds[0].number))
        config = settle_length(config, first, [len(fold.valid) for fold in folds])
    with claimed(config, folder, ["python", "train.py", *arguments]) as experiment:
        config = replace(config, tr_resume=None, output_dir=experiment.folder.parent, experiment_id=experiment.id)
        status = None if config.cv_run is not None else FAILED  # one of several jobs can't know how all end
        try:
            if run_folds(config, folds, experiment):
                status = FINISHED
        except (KeyboardInterrupt, Interrupted):
            status = status and STOPPED
            raise
        finally:
            if experiment.folder.is_dir():
                conclude(experiment.folder, status, report=config.tr_report)
    print(experiment.folder)
    return experiment.folder


def joined_options(config: TrainConfig, arguments: Sequence[str]) -> tuple[TrainConfig, Path | None]:
    """Return the options, and the folder of the cross-validation to continue or join, None for a new one.

    A cross-validation of the same name and options is continued.
    """
    folder = None
    if config.tr_resume is not None:
        folder = resumed_folder(config)
        if not is_cross_validation(folder):
            folder = experiment_folder(config.output_dir, config.tr_resume, "--tr_resume")
            raise UsageError(f"--tr_resume={config.tr_resume}: {folder} is no cross-validation; leave --data_fold out")
    elif config.experiment_id is not None:
        check_experiment_id(config.experiment_id)
        folder = config.output_dir / config.experiment_id
    elif config.cv_run is not None:
        raise UsageError("--cv_run needs --experiment_id, the name that the jobs have in common")
    if folder is None or not is_cross_validation(folder):
        return config, None
    if config.tr_resume_change:
        raise UsageError("--tr_resume_change: folds that were trained by other options are no cross-validation")
    saved = read_options(folder)
    before = parse_args(TrainConfig, [], saved)
    if config.tr_resume is not None:
        check_place(config, folder)
        config = parse_args(TrainConfig, arguments, saved)
    if config.tr_hours is not None:
        config = replace(config, tr_hours=None, tr_iteration_num=before.tr_iteration_num)
        tell(f"--tr_hours: the cross-validation keeps its {config.tr_iteration_num} iterations")
    changed_options(before, config, (), f"train it under another --experiment_id than {folder.name}")
    return config, folder


def read_folds(config: TrainConfig) -> list[Fold]:
    """Read the folds and check that no model is validated on images or patients that it trains on.

    Raises WorkError, naming file and patients or images, if a patient is on both sides of a fold, if two folds hold out
    the same patient, or if --data_fold=all doesn't hold out every image.
    """
    folder, dataset = dataset_folder(config.data_input_folder, config.data_dataset), config.data_dataset
    read_dataset_info(folder)
    numbers = config.data_fold or fold_numbers(folder, dataset)
    if len(numbers) < 2:
        raise UsageError(
            f"--data_fold=all: {folder} has {len(numbers)} folds; preprocessing.py --pre_folds=5 makes five"
        )
    tables = {number: read_fold(folder, dataset, number) for number in numbers}
    check_disjoint(
        tables, {number: fold_path(folder, dataset, number) for number in numbers}, everything=config.data_fold == ()
    )
    tables = kind_of(config).known_rows(config, tables)
    return [
        Fold(number, *(select_rows(rows, kind, config.dev_enabled) for kind in ("train", "valid")))
        for number, rows in tables.items()
    ]


def check_lineages(config: TrainConfig, folds: Sequence[Fold]) -> None:
    """Raise UsageError, before any fold trains, if starting weights or features learnt from validation images."""
    for fold in folds:
        weights = starting_weights(config.net_weight_file, fold.number) if starts_from_folds(config) else None
        own = replace(config, data_fold=fold.number, cv_run=None, net_weight_file=weights or config.net_weight_file)
        check_starting_weights(own, fold.valid.index)
    if kind_of(config).reads_features:
        check_features_lineage(config, pd.concat([fold.valid for fold in folds]).index)


def check_disjoint(tables: Mapping[int, pd.DataFrame], paths: Mapping[int, Path], everything: bool) -> None:
    """Raise WorkError if two folds hold out the same images or patients, or with ``everything`` if none holds one."""
    held: dict[int, pd.DataFrame] = {}
    for number, rows in tables.items():
        valid = rows[rows["sample_type"] == "valid"]
        train = rows[rows["sample_type"] == "train"]
        both = set(valid["group_id"]) & set(train["group_id"])
        if both:
            raise WorkError(
                f"{paths[number]}: {len(both)} patients stand in both train and valid ({list_some(sorted(both))}); run "
                "python preprocessing.py again"
            )
        for other, before in held.items():
            images = before.index.intersection(valid.index)
            patients = set(before["group_id"]) & set(valid["group_id"])
            if len(images) or patients:
                what = (
                    f"{len(images)} images ({list_some(images)})"
                    if len(images)
                    else (f"{len(patients)} patients ({list_some(sorted(patients))})")
                )
                raise WorkError(
                    f"{paths[number]}: holds out {what} that {paths[other].name} holds out too; run python "
                    "preprocessing.py again"
                )
        held[number] = valid
    if everything:
        images = pd.Index(np.concatenate([rows.index.to_numpy() for rows in tables.values()])).unique()
        left = images.difference(np.concatenate([rows.index.to_numpy() for rows in held.values()]))
        if len(left):
            raise WorkError(
                f"{paths[min(paths)].parent}: {len(left)} images are held out by no fold ({list_some(left)}); run "
                "python preprocessing.py again"
            )


@contextmanager
def claimed(config: TrainConfig, folder: Path | None, typed: Sequence[str]) -> Iterator[Experiment]:
    """Yield the experiment, new or existing, with its lock held. Jobs with --cv_run share it without the lock."""
    if folder is None:
        try:
            experiment = create_experiment(
                config.output_dir, config.experiment_id, to_dict(replace(config, cv_run=None)), typed
            )
        except UsageError:
            again = None if config.cv_run is None else joined_options(config, ())[1]
            if again is None:
                raise
            experiment = Experiment(again.name, again)  # another job made it first
    else:
        folder = folder.resolve()
        experiment = Experiment(folder.name, folder)
    with lock_experiment(experiment.folder) if config.cv_run is None else nullcontext():
        if folder is not None:
            options = to_dict(replace(config, cv_run=None, tr_resume=None))
            finished = read_record(folder).status == FINISHED
            done = int(read_options(folder)["tr_iteration_num"]) if finished else 0  # 0: the folds differ
            add_to_history(experiment.folder, typed, done, options)
        yield experiment


def run_folds(config: TrainConfig, folds: Sequence[Fold], experiment: Experiment) -> bool:
    """Train the folds that are left, combine them if all are finished, and return whether they are.

    If the first fold can't start, the experiment is removed again.
    """
    folder = experiment.folder
    wanted = [fold.number for fold in folds if config.cv_run in (None, fold.number)]
    if config.cv_run is None:
        write_status(folder, RUNNING)
    with setup_logging(folder, config.dev_enabled):
        logger.info("cross-validation of %s, folds %s", config.data_dataset, ", ".join(map(str, wanted)))
        plan = [fold_plan(config, folder, number) for number in wanted]
        outcomes = Runner(ROOT, slots(0, len(plan)), lambda _: [], stop_on_failure=True).run(plan)
        for outcome in outcomes:
            ended = outcome.said or ("finished" if outcome.code == 0 else f"exit code {outcome.code}")
            logger.info("%s: %s, %.0f s", outcome.planned.name, ended, outcome.seconds)
    check_outcomes(config, outcomes, plan, folder)
    missing = [fold.number for fold in folds if not is_finished(folder / fold_name(fold.number))]
    if missing:
        print(f"not finished yet: fold {', '.join(map(str, missing))}; the job that ends last puts the folds together")
    else:
        print(join_folds(config, folds, folder))
    return not missing


def is_finished(folder: Path) -> bool:
    """Whether a fold's run is finished and has its predictions."""
    return read_record(folder).status == FINISHED and (folder / PREDICTION_FILES[1]).is_file()


def fold_plan(config: TrainConfig, parent: Path, number: int) -> Planned:
    """Return the plan of a fold's run, with flags for all options that differ from their defaults.

    If the fold still runs because only its cross-validation was killed, wait for its end.
    """
    folder = parent / fold_name(number)
    fields = TrainConfig.__dataclass_fields__
    given = [name for name in fields if getattr(config, name) != fields[name].default and name not in OWN_OPTIONS]
    options = {name: value for name, value in to_dict(config).items() if name in given}
    own = {"data_fold": number, "output_dir": str(parent), "experiment_id": fold_name(number)}
    own |= {name: str(value) for name, value in fold_options(config, number).items()}
    with suppress(Stalled):
        wait_for_orphan(folder, ORPHAN_S)
    plan = planned(flags_of(options | own), parent)
    longer = plan.state == FINISHED and str(config.tr_iteration_num) != read_options(folder).get("tr_iteration_num")
    return replace(plan, state="resume") if longer else plan


def fold_options(config: TrainConfig, number: int) -> dict[str, Any]:
    """Return the options that a fold's run needs changed: its starting weights, and paths instead of ids."""
    own = kind_of(config).fold_options(config)
    if starts_from_folds(config):
        own["net_weight_file"] = starting_weights(config.net_weight_file, number)
    return own


def starts_from_folds(config: TrainConfig) -> bool:
    """Whether each fold starts from the network of the same fold of another cross-validation."""
    return config.net_weight_file is not None and config.net_weight_file.is_dir()


def starting_weights(folder: Path, number: int) -> Path:
    """Return the weight file of a fold of the cross-validation in ``folder``; UsageError if it has no such fold."""
    facts = finished_folds(folder)
    if number not in facts:
        raise UsageError(f"--net_weight_file={folder}: has no fold {number}; it has {', '.join(map(str, facts))}")
    return (folder / facts[number]["weights"]).resolve()


def check_outcomes(config: TrainConfig, outcomes: Sequence[Outcome], plan: Sequence[Planned], folder: Path) -> None:
    """Raise the error that ended the cross-validation early; the fold's own message said why."""
    codes = [outcome.code for outcome in outcomes if outcome.code]
    if not codes and len(outcomes) == len(plan):
        return
    again = folder.name if config.output_dir == TrainConfig.output_dir else folder
    job = "" if config.cv_run is None else f" --cv_run={config.cv_run}"
    if not codes or codes[0] in (EXIT_RESUMABLE, INTERRUPTED):
        raise Interrupted(f"interrupted; go on with: python train.py --tr_resume={again}{job}")
    if codes[0] == EXIT_USAGE and config.cv_run is None and not any(folder.glob("fold_*")):
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError("the first fold can't be trained by these options; nothing was written")
    failed = next(outcome.planned.name for outcome in outcomes if outcome.code)
    raise WorkError(
        f"{folder / failed}: failed as its message says; go on with: python train.py --tr_resume={again}{job}"
    )


def join_folds(config: TrainConfig, folds: Sequence[Fold], folder: Path) -> str:
    """Write predictions_oof.csv and cross_validation.json; return their contents as text.

    Raises WorkError if a fold was trained on other images than it has now, or predicted other images.
    """
    frames, studies, facts = [], [], []
    level = max((level_of(fold.valid) for fold in folds), key=list(LEVELS.values()).index)
    for fold in folds:
        own = folder / fold_name(fold.number)
        frame, judged, found = fold_result(own, fold, level)
        frames.append(frame)
        studies.append(judged)
        facts.append({"fold": fold.number, "experiment": own.name, **found})
    together = pd.concat(frames)
    judged = None if any(part is None for part in studies) else pd.concat(studies)
    pooled = level.metrics(together, judged, pd.concat([fold.valid for fold in folds]))
    losses = [fact["weighted_log_loss"] for fact in facts]
    info = read_dataset_info(dataset_folder(config.data_input_folder, config.data_dataset))
    constant = float(np.average([fact["constant_log_loss"] for fact in facts], weights=[f["images"] for f in facts]))
    document = {
        "format_version": FORMAT_VERSION,
        "dataset": config.data_dataset,
        "dataset_hash": info.get("hash"),
        "images": len(together),
        "level": level.name,
        "pooled": pooled,
        "mean": float(np.mean(losses)),
        "sd": float(np.std(losses, ddof=1)),
        "constant_log_loss": constant,
        "folds": facts,
    }
    write_csv(folder / PREDICTION_FILES[0], together, index=True)
    if judged is not None:
        write_csv(studies_file(folder / PREDICTION_FILES[0]), judged, index=True)
    provenance = oof_provenance(config, folds, folder)
    write_provenance(folder / PREDICTION_FILES[0], provenance)
    document["unknown_lineage"] = list(provenance.unknown)
    write_json(folder / CROSS_VALIDATION_FILE, document)
    write_value(
        folder,
        {f"{level.prefix}{key}": value for key, value in pooled.items()},
        max(fact["iteration"] for fact in facts),
    )  # for report and leaderboard
    return f"{describe(document)}\n{describe_flattery(folder)}"


def oof_provenance(config: TrainConfig, folds: Sequence[Fold], folder: Path) -> Provenance:
    """Return which networks made the out-of-fold predictions, in the order of the folds, and their lineage."""
    weights = {fold.number: folder / fold_name(fold.number) / BEST for fold in folds}
    numbers = np.concatenate([np.full(len(fold.valid), fold.number) for fold in folds])
    return fold_provenance(weights, numbers, config.data_input_folder, pd.concat([fold.valid for fold in folds]).index)


def fold_result(folder: Path, fold: Fold, level: Level) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    """Return a fold's predictions of its validation images and studies, and its entry in cross_validation.json."""
    checkpoint = load_checkpoint(folder / BEST)
    if checkpoint["data_hash"] != fold.hash:
        raise WorkError(f"{folder}: the fold's images or labels changed since it was trained; cross-validate anew")
    path = folder / PREDICTION_FILES[1]
    frame = read_predictions(path)
    if len(frame) != len(fold.valid) or len(fold.valid.index.difference(frame.index)):
        raise WorkError(f"{path}: {len(frame)} images where the fold holds out {len(fold.valid)}; remove {folder}")
    frame, judged = frame.loc[fold.valid.index], read_judged(path)
    prevalences = prevalences_of(level.truth(fold.train))
    return (
        frame,
        judged,
        {
            "hash": fold.hash,
            "weights": f"{folder.name}/{BEST}",
            "best_weights": checkpoint["best_weights"],
            "iteration": checkpoint["iteration"],
            "images": len(frame),
            "patients": int(fold.valid["group_id"].nunique()),
            "constant_log_loss": constant_predictor(prevalences, level.truth(fold.valid).to_numpy(), LABEL_WEIGHTS),
            **level.metrics(frame, judged, fold.valid),
        },
    )


def describe(document: Mapping[str, Any]) -> str:
    """Return cross_validation.json as text for a console."""
    pooled, title = document["pooled"][METRIC], key_title(LEVELS[document["level"]].metric)
    columns = ["weighted_log_loss", "constant_log_loss", "images", "patients", "iteration", "best_weights"]
    table = pd.DataFrame(document["folds"]).set_index("fold")[columns]
    return (
        f"{format_table(table)}\n\n"
        f"{title} {document['mean']:.5f} ± {document['sd']:.5f} (mean and standard deviation of {len(table)} folds), of"
        f" all {document['images']} images together {pooled:.5f}, "
        f"constant predictor {document['constant_log_loss']:.5f}"
        + "".join(f"\nunknown lineage: {name}" for name in document["unknown_lineage"])
    )
