"""An ensemble from its members' predictions: weights, honest scores, what each member adds, its own experiment."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.cli.arguments import to_dict
from common.errors import UsageError, UserError, WorkError
from common.evaluation.calibration import MAPS, Map
from common.evaluation.ensemble_fitting import (
    FittedEnsemble,
    fit_nested,
    logit_correlations,
    outer_folds,
    weighted_loss,
)
from common.evaluation.ensembling import Link, align, build_link, combine, scaled_weights, stacked, weighted_mean
from common.evaluation.metrics import normalized_weights
from common.evaluation.statistics import format_table, label_table, member_table
from common.experiments.folder import experiment_folder, experiment_options
from common.experiments.resume import read_options
from common.files import check_output, write_csv, write_json
from common.foreign import Unreadable, read_json
from common.lineage import Overlap, Provenance
from common.reports.record import write_value
from common.spreadsheets import read_texts, table_form, to_numbers
from config import TrainConfig
from rsna.forms import SUBMISSION_COLUMNS, check_submission, read_competition_labels, read_predictions, write_submission
from rsna.judging.evaluation import (
    Evaluation,
    HeldOut,
    constant_basis,
    constant_prevalences,
    describe,
    described_images,
    evaluate_predictions,
    held_out_predictions,
    loss_change,
    records,
    write_evaluation,
)
from rsna.judging.options import EnsembleConfig
from rsna.judging.reports import put_together
from rsna.training.lineage import overlap, overlap_lines, refuse_seen
from rsna.training.outcome import HOLDOUT_FILE, PREDICTION_FILES, experiment_predictions
from rsna.training.provenance import write_provenance, written_provenance
from rsna_dataset import (
    DATASET_INFO,
    IDENTITY_COLUMNS,
    LABEL_WEIGHTS,
    LABELS,
    METADATA_FILE,
    dataset_folder,
    known_groups,
    read_dataset_info,
)
from rsna_network import pooled_metrics

logger = logging.getLogger(__name__)

ENSEMBLE_ROW = "ensemble"
EQUAL_ROW = "equal weights"
CALIBRATED_ROW = "calibrated"
SAME_MODELS = "predicted_by_what_is_submitted"  # in ensemble.json
NO_PATIENTS = "has no column patient_id, so that weights can't be judged on other patients"
SCALE = normalized_weights(LABEL_WEIGHTS, len(LABELS))


@dataclass(frozen=True)
class HeldEnsemble:
    """What an ensemble says of the images in no fold: ``predictions`` of each by maps without its patient.

    ``scores``: log losses before and after calibration; ``comparison`` in words.
    """

    predictions: pd.DataFrame
    scores: pd.DataFrame
    comparison: str = ""


@dataclass(frozen=True)
class Members:
    """What an ensemble is made of, by member.

    ``predictions``: frames of the same rows, aligned; ``files``: where each was read. ``labels``: of some of these rows
    and others, with patient_id, study_id and group_id where they are known, from ``label_source``; None where no labels
    are known. ``described``: the dataset's metadata, for strata. ``submissions``: the members' files for the test set,
    where all have one. ``provenance``: which networks made each row of the predictions; ``seen``: what is known of the
    labelled images that these learnt from, None without a dataset.
    ``held``: what all of them say of images in no fold, where they have been asked.
    ``same_models``: the labelled images were predicted by the very models that predict the test set, which are the
    mean of several where a member is a cross-validation.
    """

    predictions: dict[str, pd.DataFrame]
    files: dict[str, Path]
    labels: pd.DataFrame | None
    label_source: Path | None
    described: pd.DataFrame | None
    submissions: dict[str, Path]
    provenance: dict[str, Provenance]
    seen: Overlap | None = None
    held: HeldOut | None = None
    same_models: bool = True

    @property
    def known(self) -> pd.Index:
        """The predicted images that have labels, in the first member's order."""
        rows = next(iter(self.predictions.values())).index
        return rows[:0] if self.labels is None else rows.intersection(self.labels.index, sort=False)

    @property
    def together(self) -> Provenance:
        """Which networks made each row of the ensemble."""
        return reduce(Provenance.beside, self.provenance.values())

    @property
    def notes(self) -> list[str]:
        """What the ensemble has to say of what its members' networks learnt from."""
        if self.seen is not None:
            return overlap_lines(self.seen)
        unknown = self.together.unknown
        return [f"unknown lineage: {', '.join(unknown)}"] if unknown else []

    @property
    def all_submissions(self) -> bool:
        """Whether all predictions stand in the competition's form."""
        return all(is_submission(file) for file in self.files.values())


@dataclass(frozen=True)
class Ensemble:
    """What :func:`build_ensemble` found; all but ``weights`` and ``predictions`` are None where no labels are known.

    ``predictions``: of every row; those of images with labels are honest: by weights that never saw their patient,
    where weights or calibration were fitted. ``fitted``: weights, and the outer folds'. ``maps``: each label's
    calibration for images without labels. ``scores``: log losses by member and ensemble.
    ``contributions``: by member the ensemble's loss without it. ``correlations`` of the members' logits.
    """

    weights: np.ndarray
    predictions: pd.DataFrame
    correlations: pd.DataFrame
    fitted: FittedEnsemble | None = None
    maps: Mapping[str, Map] | None = None
    scores: pd.DataFrame | None = None
    contributions: pd.DataFrame | None = None
    comparisons: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    held: HeldEnsemble | None = None


def read_members(config: EnsembleConfig) -> Members:
    """Read the members' predictions and the labels; UsageError and WorkError where they don't fit together."""
    if config.ens_output is not None:
        check_output("ens_output", config.ens_output)
    folders = {
        name: experiment_folder(config.output_dir, name, "member")
        for name in config.members
        if not name.endswith(".csv")
    }
    files = {name: experiment_predictions(folders[name]) if name in folders else Path(name) for name in config.members}
    predictions = align({name: read_predictions(file) for name, file in files.items()})
    labels, source, described = None, config.ens_labels, None
    if source is not None:
        labels = read_labels(source)
    elif folders:
        source, labels, described = dataset_labels(next(iter(folders.values())))
    submissions = {name: folder / "submission.csv" for name, folder in folders.items()}
    missing = [name for name in config.members if name not in folders or not submissions[name].is_file()]
    if folders and missing:
        logger.warning("no submission is written: %s has none (predict.py --split=test makes it)", ", ".join(missing))
    ids = next(iter(predictions.values())).index
    provenance = {name: member_provenance(file, ids) for name, file in files.items()}
    members = Members(
        predictions, files, labels, source, described, {} if missing else submissions, provenance,
        same_models=all(name not in folders or judged_as_submitted(folders[name]) for name in config.members),
    )  # fmt: skip
    check_labels(config, members)
    seen = check_lineage(members)
    return replace(members, seen=seen, held=read_held_out(config, folders, members))


def member_provenance(file: Path, ids: pd.Index) -> Provenance:
    """Return which networks made a member's predictions of ``ids``."""
    try:
        place = Path(read_options(file.parent)["data_input_folder"])
    except (WorkError, KeyError):
        place = TrainConfig.data_input_folder
    own, provenance = written_provenance(file, place)
    return provenance.rows(own.get_indexer(ids))


def check_lineage(members: Members) -> Overlap | None:
    """Return what is known of the labelled images that the members' networks learnt from; None without a dataset.

    Raises UsageError where a member learnt from images that judge the ensemble.
    """
    folder = None if members.label_source is None else members.label_source.parent
    if folder is None or not (folder / METADATA_FILE).is_file() or not (folder / DATASET_INFO).is_file():
        return None
    places = next(iter(members.predictions.values())).index.get_indexer(members.known)
    what, advice = f"{folder.name} that judge the ensemble", "give predictions of images that it was not trained on"
    for name, provenance in members.provenance.items():
        found = overlap(provenance.rows(places), folder, members.known)
        refuse_seen(found, str(members.files[name]), what, advice)
    return overlap(members.together.rows(places), folder, members.known)


def judged_as_submitted(folder: Path) -> bool:
    """Whether an experiment's labelled predictions come from the very models that its submission comes from.

    Not so for a cross-validation, of which a single fold's model predicts each image and the mean of all the test set,
    nor for what is made of one.
    """
    if experiment_predictions(folder).name != PREDICTION_FILES[0]:
        return True
    try:
        return read_json(folder / "ensemble.json").get(SAME_MODELS) is True
    except (OSError, Unreadable, AttributeError):
        return False


def read_held_out(config: EnsembleConfig, folders: Mapping[str, Path], members: Members) -> HeldOut | None:
    """Return what all members say of the images in no fold; None where they have not been asked.

    Raises UsageError where --ens_calibrate needs it: a mean of several models is less sure than each of them, so that
    maps fitted to single models' predictions would make it worse.
    """
    flag = f"--ens_calibrate={config.ens_calibrate}"
    try:
        if len(folders) < len(config.members):
            raise UsageError("members that are files have no predictions of such images; name experiments")
        held = held_out_predictions(dataset_of(next(iter(folders.values()))), folders)
        learnt = known_groups(members.labels.loc[members.known])
        again = np.isin(learnt, known_groups(held.rows))
        if again.any():
            raise UsageError(f"{again.sum()} images of the folds are of patients who are held out now; train anew")
    except UserError as error:
        if config.ens_calibrate == "none" or members.same_models:
            return None
        raise UsageError(
            f"{flag}: the submission is of several models together and the labelled predictions of each alone, so that "
            f"maps need images that none of them saw: {error}"
        ) from None
    return held


def dataset_of(folder: Path) -> Path:
    """Return the folder of the dataset that an experiment was trained on; UsageError where it can't be found."""
    try:
        config = experiment_options(folder)
        dataset = dataset_folder(Path(config["data_input_folder"]), str(config["data_dataset"]))
        read_dataset_info(dataset)
    except (KeyError, TypeError, UserError) as error:
        raise UsageError(f"{folder}: its dataset can't be found ({error}); name the labels by --ens_labels") from None
    return dataset


def dataset_labels(folder: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """Return the file, the labelled rows, and the whole metadata of the dataset that an experiment was trained on."""
    dataset = dataset_of(folder)
    described = described_images(dataset)
    labels = described[described[list(LABELS)].notna().all(axis=1)]
    return dataset / METADATA_FILE, labels[[*LABELS, *IDENTITY_COLUMNS]], described


def check_labels(config: EnsembleConfig, members: Members) -> None:
    """Raise UsageError where labels are needed or named and there are none that fit."""
    asked = [
        f"--{name}={value}"
        for name, value in (("ens_fit", config.ens_fit), ("ens_calibrate", config.ens_calibrate))
        if value != "none"
    ]
    if members.labels is None:
        if asked:
            raise UsageError(f"{asked[0]} needs labels: name them by --ens_labels")
        return
    rows = len(next(iter(members.predictions.values())))
    if members.known.empty:
        raise UsageError(f"{members.label_source}: knows none of the {rows} predicted images")
    if asked and "patient_id" not in members.labels:
        raise UsageError(f"{asked[0]}: {members.label_source} {NO_PATIENTS}; name a fold CSV or metadata.csv")
    if config.ens_fit != "none" and len(config.members) < 2:
        raise UsageError(f"--ens_fit={config.ens_fit} needs at least two members")


def is_submission(path: Path) -> bool:
    """Whether a file that was read as predictions has the competition's long form, told by its header."""
    return table_form(path).has(SUBMISSION_COLUMNS)


def read_labels(path: Path) -> pd.DataFrame:
    """Return the known labels of a fold CSV, a metadata.csv or the competition's train CSV: index id, 0 or 1 a label.

    The former two also have patient_id, study_id and group_id. Images without labels (the test images of a
    metadata.csv) are left out. Raises UsageError where the file can't be read or has other columns, WorkError for a
    label that is not 0 or 1, an image with some labels only, or twice.
    """
    form = table_form(path)
    if form.has(SUBMISSION_COLUMNS):
        return read_competition_labels(path)
    missing = [name for name in ("id", *LABELS) if not form.has([name])]
    if missing:
        raise UsageError(
            f"--ens_labels={path}: has no column {', '.join(missing)}; give a fold CSV, a metadata.csv "
            "or the competition's train CSV"
        )
    named = [name for name in IDENTITY_COLUMNS if form.has([name])]
    text = read_texts(path, ["id", *LABELS, *named]).set_index("id")
    if text.index.has_duplicates:
        raise WorkError(f"{path}: image {text.index[text.index.duplicated()][0]} stands there more than once")
    labelled = text[(text[list(LABELS)] != "").any(axis=1)]
    values = labelled[list(LABELS)]
    numbers = values.apply(lambda column: pd.Series(to_numbers(column), column.index))
    wrong = np.argwhere(~numbers.isin((0, 1)).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        found = values.iloc[row, column]
        raise WorkError(
            f"{path}: image {values.index[row]}, label {values.columns[column]}: "
            f"{f'{found!r} is not 0 or 1' if found else 'is empty'}"
        )
    return numbers.astype("int8").join(labelled[named])


def build_ensemble(config: EnsembleConfig, members: Members) -> Ensemble:
    """Fit or take the weights, combine, and score what has labels."""
    link = build_link(config.ens_method, config.ens_power)
    stack = stacked(members.predictions)
    first = next(iter(members.predictions.values()))
    names = list(members.predictions)
    correlations = pd.DataFrame(logit_correlations(stack), names, names).rename_axis("correlation of logits")
    linked = link.forward(stack)
    weights = scaled_weights(config.weights or [1.0] * len(names), len(names))
    if members.labels is None:
        return Ensemble(weights, _frame(weighted_mean(linked, weights, link), first), correlations)

    known = members.known
    place = first.index.get_indexer(known)
    rows = members.labels.loc[known]
    targets = rows[list(LABELS)].to_numpy(np.float64)
    patients = known_groups(rows) if "patient_id" in rows else None

    def honest(chosen: Sequence[int]) -> tuple[np.ndarray, FittedEnsemble | None]:
        """Return predictions (N, 6) of the labelled images by some of the members, fitted without their patients."""
        if config.ens_fit == "none" or len(chosen) == 1:
            part = weights[chosen] if weights[chosen].sum() > 0 else np.ones(len(chosen))
            return weighted_mean(linked[chosen][:, place], part / part.sum(), link), None
        fitted = fit_nested(linked[np.ix_(chosen, place)], targets, patients, link, SCALE, config.ens_fit)
        return fitted.predictions, fitted

    everyone = list(range(len(names)))
    predictions, fitted = honest(everyone)
    weights = weights if fitted is None else fitted.weights
    whole = weighted_mean(linked, weights, link)
    without = [honest([other for other in everyone if other != one])[0] for one in everyone] if len(names) > 1 else []
    scored = {name: stack[number, place] for number, name in enumerate(names)}
    if fitted is not None or config.weights is not None:
        equal = np.full(len(names), 1 / len(names))
        scored[EQUAL_ROW] = weighted_mean(linked[:, place], equal, link)
    scored[ENSEMBLE_ROW] = predictions
    contributions, maps = _contributions(names, weights, predictions, without, targets), None
    prevalences = constant_prevalences(members.labels, members.known)
    unseen = None if members.held is None else held_ensemble(config, members, link, weights)
    if config.ens_calibrate != "none" and not members.same_models:
        mixed = weighted_mean(link.forward(stacked(members.held.predictions)), weights, link)
        maps = calibration_maps(config.ens_calibrate, mixed, members.held.targets)
    elif config.ens_calibrate != "none":
        maps = calibration_maps(config.ens_calibrate, predictions, targets)
        whole = mapped(_frame(whole, first), maps).to_numpy()
        # As the weights of an outer fold, its maps are fitted without its patients; given weights are all folds' own.
        held = outer_folds(patients, "ens_calibrate") if fitted is None else fitted.held
        by_fold = itertools.repeat(weights, held.max() + 1) if fitted is None else fitted.fold_weights
        mixed = (weighted_mean(linked[:, place], own, link) for own in by_fold)
        predictions = calibrated_by_fold(config.ens_calibrate, mixed, held, targets)
        scored[CALIBRATED_ROW] = predictions
    whole[place] = predictions
    return Ensemble(
        weights,
        _frame(whole, first),
        correlations,
        fitted,
        maps,
        member_table(scored, targets, LABELS, LABEL_WEIGHTS, prevalences),
        contributions,
        () if patients is None else _comparisons(scored, names, targets, patients, config.ens_draws),
        None if patients is None else evaluate_predictions(
            _frame(predictions, first.loc[known]), _labelled(rows), prevalences, config.ens_draws, members.described
        ),
        unseen,
    )  # fmt: skip


def held_ensemble(config: EnsembleConfig, members: Members, link: Link, weights: np.ndarray) -> HeldEnsemble:
    """Return what the ensemble says of the images in no fold, each patient's calibrated by the others."""
    rows, targets = members.held.rows, members.held.targets
    first = next(iter(members.held.predictions.values()))
    mixed = weighted_mean(link.forward(stacked(members.held.predictions)), weights, link)
    scored, comparison = {ENSEMBLE_ROW: mixed}, ""
    if config.ens_calibrate != "none":
        patients = known_groups(rows)
        held = outer_folds(patients, "ens_calibrate")
        by_fold = itertools.repeat(mixed, held.max() + 1)
        scored[CALIBRATED_ROW] = calibrated_by_fold(config.ens_calibrate, by_fold, held, targets)
        comparison = _change(scored[CALIBRATED_ROW], mixed, targets, patients, config.ens_draws)
    prevalences = constant_prevalences(members.labels, rows.index.intersection(members.labels.index))
    table = member_table(scored, targets, LABELS, LABEL_WEIGHTS, prevalences)
    return HeldEnsemble(_frame(list(scored.values())[-1], first), table, comparison)


def calibration_maps(method: str, predictions: np.ndarray, targets: np.ndarray) -> dict[str, Map]:
    """Return the calibration of each label that has both classes, fitted to ``predictions`` and ``targets`` (N, 6)."""
    return {
        label: MAPS[method](predictions[:, column], targets[:, column])
        for column, label in enumerate(LABELS)
        if targets[:, column].min() < targets[:, column].max()
    }


def calibrated_by_fold(method: str, mixed: Iterable[np.ndarray], held: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return predictions (N, 6) of which each outer fold's are mapped by what the other images teach.

    ``mixed``: all images' predictions (N, 6) by the weights of each outer fold; ``held`` (N,): the one that each is in.
    """
    result = np.empty_like(targets)
    for fold, predictions in enumerate(mixed):
        own = held == fold
        maps = calibration_maps(method, predictions[~own], targets[~own])
        result[own] = mapped(pd.DataFrame(predictions[own], columns=list(LABELS)), maps)
    return result


def mapped(frame: pd.DataFrame, maps: Mapping[str, Map] | None) -> pd.DataFrame:
    """Return probabilities with the calibration of each label that has one."""
    return frame.assign(**{label: change(frame[label].to_numpy()) for label, change in (maps or {}).items()})


def _frame(values: np.ndarray, like: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(values, index=like.index.rename("id"), columns=like.columns)


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a study for each image: its patient, where the labels name none."""
    return rows if "study_id" in rows else rows.assign(study_id="")


def _contributions(
    names: Sequence[str],
    weights: np.ndarray,
    predictions: np.ndarray,
    without: Sequence[np.ndarray],
    targets: np.ndarray,
) -> pd.DataFrame:
    """Return by member: ``weight``, the ensemble's log loss ``without`` it, and what it ``adds`` (above 0: helps)."""
    whole = weighted_loss(predictions, targets, SCALE)
    losses = [weighted_loss(values, targets, SCALE) for values in without] or [np.nan]
    table = pd.DataFrame({"weight": weights, "without": losses}, index=pd.Index(names, name="member"))
    return table.assign(adds=table["without"] - whole)


def _comparisons(
    scored: Mapping[str, np.ndarray], names: Sequence[str], targets: np.ndarray, patients: np.ndarray, draws: int
) -> tuple[str, ...]:
    """Say what the ensemble gains over the best member, equal weights and itself uncalibrated, with intervals."""
    best = min(names, key=lambda name: weighted_loss(scored[name], targets, SCALE))
    last = CALIBRATED_ROW if CALIBRATED_ROW in scored else ENSEMBLE_ROW
    what = {best: f"the best member ({best})", ENSEMBLE_ROW: "the ensemble uncalibrated"}
    others = [best, *(row for row in (EQUAL_ROW, ENSEMBLE_ROW) if row in scored and row != last)]
    return tuple(
        f"against {what.get(other, other)}: {_change(scored[last], scored[other], targets, patients, draws)}"
        for other in others
    )


def _change(first: np.ndarray, second: np.ndarray, targets: np.ndarray, patients: np.ndarray, draws: int) -> str:
    """Say by how much the weighted log loss of ``first`` (N, 6) is above that of ``second``, and how sure that is."""
    return loss_change(first, second, targets, patients, draws).text


def write_ensemble(config: EnsembleConfig, members: Members, ensemble: Ensemble, command: Sequence[str]) -> Path:
    """Write the one file of --ens_output, or an experiment; return the file or the experiment's folder."""
    if config.ens_output is not None:
        write_one_file(members, ensemble, config.ens_output)
        return config.ens_output
    options = experiment_config(config, members)
    with put_together(config.output_dir, config.experiment_id, options, command) as folder:
        write_parts(config, members, ensemble, folder)
    return folder


def write_parts(config: EnsembleConfig, members: Members, ensemble: Ensemble, folder: Path) -> None:
    """Write the files of an ensemble's experiment."""
    if len(members.known):
        known = ensemble.predictions.loc[members.known]
        write_csv(folder / PREDICTION_FILES[0], known, index=True)
        places = ensemble.predictions.index.get_indexer(members.known)
        write_provenance(folder / PREDICTION_FILES[0], members.together.rows(places))
        write_value(folder, pooled_metrics(known, members.labels.loc[members.known]))
    if ensemble.held is not None:
        write_csv(folder / HOLDOUT_FILE, ensemble.held.predictions, index=True)
    if members.submissions:
        frames = {name: read_predictions(file) for name, file in members.submissions.items()}
        first = next(iter(members.submissions.values()))
        submission = combine(frames, ensemble.weights.tolist(), config.ens_method, config.ens_power)
        write_submission(mapped(submission, ensemble.maps), first, folder / "submission.csv")
    elif len(members.known) < len(ensemble.predictions):
        name = "submission.csv" if members.all_submissions else "predictions.csv"
        write_one_file(members, ensemble, folder / name)
    if ensemble.evaluation is not None:
        if members.seen is not None:
            ensemble.evaluation.document["lineage"] = members.seen.document() | {"notes": members.notes}
        write_evaluation(ensemble.evaluation, folder)
    write_json(folder / "ensemble.json", ensemble_document(config, members, ensemble))


def experiment_config(config: EnsembleConfig, members: Members) -> dict[str, Any]:
    """Return the options for config.yaml, with the labels' dataset by its options, so that evaluate.py finds it."""
    options = to_dict(config)
    folder = members.label_source.parent if members.label_source is not None else None
    if folder is not None and folder.parent.name == "datasets":
        options |= {"data_input_folder": str(folder.parent.parent), "data_dataset": folder.name}
    return options


def write_one_file(members: Members, ensemble: Ensemble, path: Path) -> None:
    """Write a submission with rows and order of the first file where all are submissions, else the wide form."""
    if members.all_submissions:
        first = next(iter(members.files.values()))
        write_submission(ensemble.predictions, first, path)
        check_submission(path, first)
    else:
        write_csv(path, ensemble.predictions, index=True)


def ensemble_document(config: EnsembleConfig, members: Members, ensemble: Ensemble) -> dict[str, Any]:
    """Return ensemble.json: how it was made, weights, scores, contributions, correlations; nothing unknown is there."""
    names = list(members.predictions)
    document: dict[str, Any] = {
        "method": config.ens_method,
        "power": config.ens_power,
        "fit": config.ens_fit,
        "calibration": config.ens_calibrate,
        SAME_MODELS: members.same_models,
        "members": [
            {"name": name, "file": str(members.files[name]), "weight": weight}
            for name, weight in zip(names, ensemble.weights.tolist(), strict=True)
        ],
        "correlations_of_logits": records(ensemble.correlations.reset_index(drop=True)),
        "unknown_lineage": list(members.together.unknown),
    }
    if ensemble.scores is not None:
        document["log_loss"] = records(ensemble.scores.reset_index(names="name"))
        document["contributions"] = records(ensemble.contributions.reset_index())
    if ensemble.held is not None:
        document["log_loss_of_images_in_no_fold"] = records(ensemble.held.scores.reset_index(names="name"))
    if ensemble.fitted is not None:
        document["weights_of_outer_folds"] = ensemble.fitted.fold_weights.tolist()
    return document


def describe_ensemble(config: EnsembleConfig, members: Members, ensemble: Ensemble) -> str:
    """Return what was made as text for a console."""
    lines = []
    if ensemble.scores is not None:
        basis = len(constant_basis(members.labels, members.known))
        known, labelled = len(members.known), len(members.labels)
        origin = "same" if basis == known == labelled else "labelled" if basis == labelled else "other labelled"
        lines += [
            f"{len(members.known)} of {len(ensemble.predictions)} images have labels in {members.label_source}; the "
            f"constant predictor knows the prevalences of the {basis} {origin} images",
            "",
            format_table(ensemble.scores),
            "",
            *ensemble.comparisons,
            format_table(ensemble.contributions),
            "",
        ]
        if any(file.name in PREDICTION_FILES for file in members.files.values()):
            lines += ["weights of networks are the best of their validations on such images: these scores flatter", ""]
    if ensemble.held is not None:
        lines += [f"the {len(ensemble.held.predictions)} images in no fold, which no member saw:"]
        lines += [format_table(ensemble.held.scores)]
        lines += [f"calibration changes that by {ensemble.held.comparison}"] * bool(ensemble.held.comparison) + [""]
    if len(members.predictions) > 1:
        lines += [format_table(ensemble.correlations), ""]
    if ensemble.scores is not None:
        values = ensemble.predictions.loc[members.known].to_numpy()
        targets = members.labels.loc[members.known, list(LABELS)].to_numpy()
        table = label_table(values, targets, LABELS, LABEL_WEIGHTS, constant_prevalences(members.labels, members.known))
        lines += [format_table(table.rename_axis(ENSEMBLE_ROW)), ""]
    if ensemble.evaluation is not None:
        lines += [describe(ensemble.evaluation), ""]
    kind = config.ens_method if config.ens_power is None else f"{config.ens_method} {config.ens_power:g}"
    lines += members.notes
    lines.append(f"{kind} of {len(members.predictions)} members, {len(ensemble.predictions)} rows:")
    return "\n".join(lines)
