"""Build an ensemble from its members' predictions: fit weights, score honestly, write it as an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.cli.arguments import to_dict
from common.cli.choices import load
from common.evaluation.calibration import Map
from common.evaluation.ensemble_choices import MAPS
from common.evaluation.ensemble_fitting import (
    FittedEnsemble,
    fit_nested,
    logit_correlations,
    outer_folds,
    weighted_loss,
)
from common.evaluation.ensembling import Link, build_link, combine, scaled_weights, stacked, weighted_mean
from common.evaluation.metrics import normalized_weights
from common.evaluation.statistics import label_table, member_table
from common.evaluation.texts import format_table
from common.files import write_csv, write_json
from common.reports.record import write_value
from common.reports.together import describe_only_member
from rsna.forms import check_submission, read_predictions, write_submission
from rsna.judging.evaluation import (
    Evaluation,
    constant_basis,
    constant_prevalences,
    evaluate_predictions,
    loss_change,
    records,
    write_evaluation,
)
from rsna.judging.evaluation_text import describe
from rsna.judging.members import SAME_MODELS, Members
from rsna.judging.options import EnsembleConfig
from rsna.judging.put_together import put_together
from rsna.training.outcome import HOLDOUT_FILE, PREDICTION_FILES, Conclude
from rsna.training.provenance import write_provenance
from rsna_dataset import LABEL_WEIGHTS, LABELS, known_groups
from rsna_network import pooled_metrics

ENSEMBLE_ROW = "ensemble"
EQUAL_ROW = "equal weights"
CALIBRATED_ROW = "calibrated"
SCALE = normalized_weights(LABEL_WEIGHTS, len(LABELS))


@dataclass(frozen=True)
class HeldEnsemble:
    """An ensemble's ``predictions`` of the images in no fold, each calibrated by maps that never saw its patient.

    ``scores``: log losses before and after calibration. ``comparison``: their difference in words.
    """

    predictions: pd.DataFrame
    scores: pd.DataFrame
    comparison: str = ""


@dataclass(frozen=True)
class Ensemble:
    """What :func:`build_ensemble` found. Without labels only weights, predictions and correlations are known.

    ``weights`` (M,), or (M, 6) where each label has its own. ``predictions``: of every row. Those of labelled images
    are honest: if weights or calibration were fitted, then without the image's patient. ``correlations``: of the
    members' logits. ``fitted``: the weights of all images and of the outer folds. ``maps``: each label's calibration
    for images without labels. ``scores``: log losses of members and ensemble. ``contributions``: for each member the
    ensemble's loss without it.
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


def build_ensemble(config: EnsembleConfig, members: Members) -> Ensemble:
    """Fit the weights or take the given ones, combine the members, and score the labelled images."""
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
        """Return predictions (N, 6) of the labelled images by ``chosen`` members; no fit sees the image's patient."""
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
        # The maps of an outer fold are fitted without its patients, like its weights. Given weights serve all folds.
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
        () if patients is None else _comparisons(scored, names, targets, patients),
        None if patients is None else evaluate_predictions(
            _frame(predictions, first.loc[known]), _labelled(rows), prevalences, config.ens_draws, members.described
        ),
        unseen,
    )  # fmt: skip


def held_ensemble(config: EnsembleConfig, members: Members, link: Link, weights: np.ndarray) -> HeldEnsemble:
    """Predict and score the images in no fold; each patient's predictions are calibrated by the other patients."""
    rows, targets = members.held.rows, members.held.targets
    first = next(iter(members.held.predictions.values()))
    mixed = weighted_mean(link.forward(stacked(members.held.predictions)), weights, link)
    scored, comparison = {ENSEMBLE_ROW: mixed}, ""
    if config.ens_calibrate != "none":
        patients = known_groups(rows)
        held = outer_folds(patients, "ens_calibrate")
        by_fold = itertools.repeat(mixed, held.max() + 1)
        scored[CALIBRATED_ROW] = calibrated_by_fold(config.ens_calibrate, by_fold, held, targets)
        comparison = loss_change(scored[CALIBRATED_ROW], mixed, targets, patients).text
    prevalences = constant_prevalences(members.labels, rows.index.intersection(members.labels.index))
    table = member_table(scored, targets, LABELS, LABEL_WEIGHTS, prevalences)
    return HeldEnsemble(_frame(list(scored.values())[-1], first), table, comparison)


def calibration_maps(method: str, predictions: np.ndarray, targets: np.ndarray) -> dict[str, Map]:
    """Fit a calibration to ``predictions`` and ``targets`` (N, 6), for each label that has both classes."""
    return {
        label: load(MAPS[method].path)(predictions[:, column], targets[:, column])
        for column, label in enumerate(LABELS)
        if targets[:, column].min() < targets[:, column].max()
    }


def calibrated_by_fold(method: str, mixed: Iterable[np.ndarray], held: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return predictions (N, 6) in which each outer fold is calibrated by maps fitted to the other folds.

    ``mixed``: for each outer fold, all images' predictions (N, 6) by its weights. ``held`` (N,): each image's fold.
    """
    result = np.empty_like(targets)
    for fold, predictions in enumerate(mixed):
        own = held == fold
        maps = calibration_maps(method, predictions[~own], targets[~own])
        result[own] = mapped(pd.DataFrame(predictions[own], columns=list(LABELS)), maps)
    return result


def mapped(frame: pd.DataFrame, maps: Mapping[str, Map] | None) -> pd.DataFrame:
    """Calibrate the probabilities of each label that has a map."""
    return frame.assign(**{label: change(frame[label].to_numpy()) for label, change in (maps or {}).items()})


def _frame(values: np.ndarray, like: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(values, index=like.index.rename("id"), columns=like.columns)


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a study_id; an empty one makes the patient the study."""
    return rows if "study_id" in rows else rows.assign(study_id="")


def _contributions(
    names: Sequence[str],
    weights: np.ndarray,
    predictions: np.ndarray,
    without: Sequence[np.ndarray],
    targets: np.ndarray,
) -> pd.DataFrame:
    """Return for each member ``weight``, the ensemble's loss ``without`` it, and what it ``adds`` (> 0: it helps).

    Where each label has weights of its own, a member's ``weight`` is their mean by the labels' shares of the loss.
    """
    whole = weighted_loss(predictions, targets, SCALE)
    losses = [weighted_loss(values, targets, SCALE) for values in without] or [np.nan]
    table = pd.DataFrame({"weight": shared_weights(weights), "without": losses}, index=pd.Index(names, name="member"))
    return table.assign(adds=table["without"] - whole)


def shared_weights(weights: np.ndarray) -> np.ndarray:
    """Return one weight for each member (M,), of weights (M,) or of each label's (M, 6) by the shares of the loss."""
    return weights if weights.ndim == 1 else weights @ SCALE


def weights_by_label(ensemble: Ensemble, names: Sequence[str]) -> pd.DataFrame | None:
    """Return the table of each member's weight for each label, or None where all labels share the weights."""
    if ensemble.weights.ndim == 1:
        return None
    return pd.DataFrame(ensemble.weights, index=pd.Index(names, name="weight"), columns=list(LABELS))


def _comparisons(
    scored: Mapping[str, np.ndarray], names: Sequence[str], targets: np.ndarray, patients: np.ndarray
) -> tuple[str, ...]:
    """Compare the ensemble with its best member, with equal weights and with itself uncalibrated, in words."""
    best = min(names, key=lambda name: weighted_loss(scored[name], targets, SCALE))
    last = CALIBRATED_ROW if CALIBRATED_ROW in scored else ENSEMBLE_ROW
    what = {best: f"the best member ({best})", ENSEMBLE_ROW: "the ensemble uncalibrated"}
    others = [best, *(row for row in (EQUAL_ROW, ENSEMBLE_ROW) if row in scored and row != last)]
    return tuple(
        f"against {what.get(other, other)}: {loss_change(scored[last], scored[other], targets, patients).text}"
        for other in others
    )


def write_ensemble(
    config: EnsembleConfig, members: Members, ensemble: Ensemble, typed: Sequence[str], conclude: Conclude
) -> Path:
    """Write the file that --ens_output names, or else an experiment; return the file or the experiment's folder."""
    if config.ens_output is not None:
        write_one_file(members, ensemble, config.ens_output)
        return config.ens_output
    options = experiment_config(config, members)
    with put_together(config.output_dir, config.experiment_id, options, typed, conclude) as folder:
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
        submission = combine(frames, ensemble.weights, config.ens_method, config.ens_power)
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
    """Return the options for config.yaml. They name the labels' dataset, so that evaluate.py finds it."""
    options = to_dict(config)
    folder = members.label_source.parent if members.label_source is not None else None
    if folder is not None and folder.parent.name == "datasets":
        options |= {"data_input_folder": str(folder.parent.parent), "data_dataset": folder.name}
    return options


def write_one_file(members: Members, ensemble: Ensemble, path: Path) -> None:
    """Write a submission in the first file's order if all members are submissions, else a CSV in wide form."""
    if members.all_submissions:
        first = next(iter(members.files.values()))
        write_submission(ensemble.predictions, first, path)
        check_submission(path, first)
    else:
        write_csv(path, ensemble.predictions, index=True)


def ensemble_document(config: EnsembleConfig, members: Members, ensemble: Ensemble) -> dict[str, Any]:
    """Return ensemble.json: options, weights, scores, contributions and correlations; what is unknown is left out."""
    names = list(members.predictions)
    document: dict[str, Any] = {
        "method": config.ens_method,
        "power": config.ens_power,
        "fit": config.ens_fit,
        "calibration": config.ens_calibrate,
        SAME_MODELS: members.same_models,
        "members": [
            {"name": name, "file": str(members.files[name]), "weight": weight}
            for name, weight in zip(names, shared_weights(ensemble.weights).tolist(), strict=True)
        ],
        "correlations_of_logits": records(ensemble.correlations.reset_index(drop=True)),
        "unknown_lineage": list(members.together.unknown),
    }
    by_label = weights_by_label(ensemble, names)
    if by_label is not None:
        document["weights_by_label"] = records(by_label.reset_index(names="name"))
    if ensemble.scores is not None:
        document["log_loss"] = records(ensemble.scores.reset_index(names="name"))
        document["contributions"] = records(ensemble.contributions.reset_index())
    if ensemble.held is not None:
        document["log_loss_of_images_in_no_fold"] = records(ensemble.held.scores.reset_index(names="name"))
    if ensemble.fitted is not None:
        document["weights_of_outer_folds"] = ensemble.fitted.fold_weights.tolist()
    return document


def describe_ensemble(config: EnsembleConfig, members: Members, ensemble: Ensemble) -> str:
    """Return the ensemble's scores and weights as text for a console."""
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
        by_label = weights_by_label(ensemble, list(members.predictions))
        lines += [] if by_label is None else [format_table(by_label), ""]
        if any(file.name in PREDICTION_FILES for file in members.files.values()):
            lines += ["weights of networks are the best of their validations on such images: these scores flatter", ""]
    if ensemble.held is not None:
        lines += [f"the {len(ensemble.held.predictions)} images in no fold, which no member saw:"]
        lines += [format_table(ensemble.held.scores)]
        lines += [f"calibration changes that by {ensemble.held.comparison}"] * bool(ensemble.held.comparison) + [""]
    if len(members.predictions) > 1:
        lines += [format_table(ensemble.correlations), ""]
    if ensemble.scores is not None:
        table = ensemble_table(members, ensemble)
        lines += [format_table(table.rename_axis(ENSEMBLE_ROW)), ""]
    if ensemble.evaluation is not None:
        lines += [describe(ensemble.evaluation), ""]
    kind = config.ens_method if config.ens_power is None else f"{config.ens_method} {config.ens_power:g}"
    lines += members.notes
    weights = shared_weights(ensemble.weights).tolist()
    alone = describe_only_member(dict(zip(members.predictions, weights, strict=True)))
    lines += [alone] * bool(alone)
    lines.append(f"{kind} of {len(members.predictions)} members, {len(ensemble.predictions)} rows:")
    return "\n".join(lines)


def ensemble_table(members: Members, ensemble: Ensemble) -> pd.DataFrame:
    """Return the ensemble's metrics by label, without intervals."""
    values = ensemble.predictions.loc[members.known].to_numpy()
    targets = members.labels.loc[members.known, list(LABELS)].to_numpy()
    prevalences = constant_prevalences(members.labels, members.known)
    known = None if ensemble.evaluation is None else ensemble.evaluation.table
    return label_table(values, targets, LABELS, LABEL_WEIGHTS, prevalences, known)
