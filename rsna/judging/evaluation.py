"""Evaluation of predictions as of a reader study: intervals over patients, calibration, operating points, studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.checkpoint import BEST
from common.errors import UsageError, WorkError, list_some
from common.evaluation.calibration import reliability_table
from common.evaluation.metrics import binary_log_losses, normalized_weights, prevalences_of
from common.evaluation.reader import (
    SMALLER_IS_BETTER,
    WEIGHTED,
    Change,
    ReaderStudy,
    by_group,
    calibration_table,
    change_of,
    compare_areas,
    comparison,
    strata_table,
)
from common.evaluation.resampling import PatientBootstrap
from common.evaluation.statistics import format_table, label_table
from common.files import write_csv, write_json, write_text
from common.reports.evaluation import evaluation_page
from rsna.forms import read_predictions
from rsna.phantom.write import TRUTH_FILE
from rsna.training.outcome import HOLDOUT_FILE
from rsna_dataset import (
    IDENTITY_COLUMNS,
    LABEL_WEIGHTS,
    LABELS,
    known_groups,
    read_dataset_info,
    read_holdout,
    read_metadata,
)
from rsna_network import pooled_metrics

SEED = 0
WORST = 50
SAME_STUDY = 1e-6  # apart at most: the model says of a study what its highest slices say
SHOWN = {
    "log_loss": "log loss",
    "brier": "Brier",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "calibration_error": "calibration error",
}
BLOOD = "blood_mm3"  # of a phantom, in the slice
QUARTERS = {"slice_spacing_mm": "slice spacing, mm", "thickness_mm": "slice thickness, mm"}


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_predictions` found.

    ``table``: a row for each label and ``weighted``, the metrics with their intervals beside the constant predictor's.
    ``document``: all of it in JSON's types. ``worst``: the images with the highest weighted log loss. ``judged``: what
    the model itself says of the studies, where that is more than their highest slices.
    """

    study: ReaderStudy
    studies: ReaderStudy
    table: pd.DataFrame
    document: dict[str, Any]
    worst: pd.DataFrame
    judged: ReaderStudy | None = None


@dataclass(frozen=True)
class HeldOut:
    """Experiments' ``predictions`` of the images that --pre_holdout kept out of all folds, and their labels ``rows``.

    They come from what predicts the test set, the mean of a cross-validation's models, and none of these saw them.
    """

    predictions: dict[str, pd.DataFrame]
    rows: pd.DataFrame

    @property
    def targets(self) -> np.ndarray:
        """The labels (N, 6)."""
        return self.rows[list(LABELS)].to_numpy(np.float64)


def held_out_predictions(dataset: Path, experiments: Mapping[str, Path]) -> HeldOut:
    """Read what experiments (folders by name) say of the images in no fold of ``dataset``.

    Raises UsageError, with what to do, where there are no such images or an experiment was not asked about them;
    WorkError where its predictions lack some.
    """
    rows = read_holdout(dataset, dataset.name)
    files = {name: folder / HOLDOUT_FILE for name, folder in experiments.items()}
    for file in files.values():
        if not file.is_file():
            folder = file.parent
            if (folder / "ensemble.json").is_file() or (folder / "second_level.json").is_file():
                what = "make its members' by predict.py --split=holdout, then the experiment anew"
            else:
                weights = folder / BEST if (folder / BEST).is_file() else folder
                what = f"python predict.py --split=holdout --net_weight_file={weights} writes it"
            raise UsageError(f"there is no {file}; {what}")
    found = {name: matching_predictions(read_predictions(file), rows.index, str(file)) for name, file in files.items()}
    return HeldOut(found, rows)


def labelled_rows(folder: Path) -> pd.DataFrame:
    """Return all images of a dataset that have labels, as :func:`rsna_dataset.read_fold` does; UsageError for none."""
    metadata = read_metadata(folder)
    rows = metadata[metadata[list(LABELS)].notna().all(axis=1)]
    if rows.empty:
        raise UsageError(f"{folder}: no image of the dataset has labels; give them to preprocessing.py --pre_labels")
    return rows[[*LABELS, *IDENTITY_COLUMNS]].astype(dict.fromkeys(LABELS, np.int8))


def constant_basis(labelled: pd.DataFrame, known: pd.Index) -> pd.DataFrame:
    """Return the labelled images whose prevalences the constant predictor knows: those other than ``known``.

    Where these are fewer, such as the ones that --pre_holdout kept out, all: anything would beat the prevalences of a
    few images.
    """
    others = labelled.drop(index=known)
    return others if len(others) >= len(known) else labelled


def constant_prevalences(labelled: pd.DataFrame, known: pd.Index) -> np.ndarray:
    """Return the prevalences (6,) that the constant predictor knows, by :func:`constant_basis`."""
    return prevalences_of(constant_basis(labelled, known)[list(LABELS)])


def evaluation_table(frame: pd.DataFrame, rows: pd.DataFrame, prevalences: np.ndarray) -> pd.DataFrame:
    """Return the metrics of predictions of labelled ``rows`` by label, beside the constant predictor's."""
    return label_table(frame.to_numpy(), rows[list(LABELS)].to_numpy(), LABELS, LABEL_WEIGHTS, prevalences)


def evaluate_predictions(
    frame: pd.DataFrame,
    rows: pd.DataFrame,
    prevalences: np.ndarray,
    draws: int,
    described: pd.DataFrame | None = None,
    judged: pd.DataFrame | None = None,
) -> Evaluation:
    """Evaluate probabilities ``frame`` of the labelled ``rows`` (the same ids in the same order), slices and studies.

    ``prevalences`` (C,) are the constant predictor's; ``described`` the dataset's metadata, for the strata; ``judged``
    what the model itself says of whole studies (index ``study_id``).
    """
    predictions, targets = frame[list(LABELS)].to_numpy(np.float64), rows[list(LABELS)].to_numpy(np.float64)
    patients = known_groups(rows)
    bootstrap = PatientBootstrap(patients, draws, SEED)
    study = ReaderStudy(predictions, targets, bootstrap, LABELS, LABEL_WEIGHTS)
    studies = study_level(predictions, targets, rows, draws)
    basic = evaluation_table(frame, rows, prevalences)
    table = basic.join(study.intervals().drop(columns=["log_loss", "auroc", "average_precision"]))
    worst = worst_images(predictions, targets, rows)
    strata = strata_table(study, strata_of(rows, described))
    document = {
        "images": len(rows),
        "patients": bootstrap.count,
        "positive_patients": study.evidence[WEIGHTED].positive,
        "no_interval": study.evidence[WEIGHTED].reason,
        "studies": len(studies.targets),
        "draws": draws,
        "slice_level": records(table.reset_index()),
        "study_level": records(studies.intervals().reset_index()),
        "operating_points": {
            "slice_level": records(study.operating_points()),
            "study_level": records(studies.operating_points()),
        },
        "calibration": records(calibration_table(predictions, targets, patients, LABELS, LABEL_WEIGHTS).reset_index()),
        "reliability": {
            name: records(reliability_table(predictions[:, c], targets[:, c])) for c, name in enumerate(LABELS)
        },
        "decision_curve": records(study.decision_curve()),
        "strata": records(strata),
        "largest_error_of_binned_scores": study.binning_errors(),
        "worst_images": records(worst.head(10)),
    }
    own = None if judged is None else study_level(predictions, targets, rows, draws, judged)
    if own is None or np.allclose(own.predictions, studies.predictions, rtol=0, atol=SAME_STUDY):
        return Evaluation(study, studies, table, document, worst)
    document["study_output"] = records(own.intervals().reset_index())
    document["study_output_against_highest_slice"] = records(comparison(own, studies))
    return Evaluation(study, studies, table, document, worst, own)


def study_level(
    predictions: np.ndarray, targets: np.ndarray, rows: pd.DataFrame, draws: int, judged: pd.DataFrame | None = None
) -> ReaderStudy:
    """Return the same for studies: of each label the highest probability and the highest target of the slices.

    With ``judged`` (index ``study_id``) the probabilities are these.
    """
    patients = pd.Series(known_groups(rows), index=rows.index)
    studies = rows["study_id"].where(rows["study_id"] != "", patients).to_numpy(dtype=str)
    first = pd.Series(patients.to_numpy()).groupby(studies).first()  # sorted, as by_group
    bootstrap = PatientBootstrap(first.to_numpy(dtype=str), draws, SEED)
    highest = by_group(predictions, studies)
    values = highest if judged is None else judged.loc[np.unique(studies), list(LABELS)].to_numpy(np.float64)
    return ReaderStudy(values, by_group(targets, studies), bootstrap, LABELS, LABEL_WEIGHTS)


def strata_of(rows: pd.DataFrame, described: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """Return which part of each stratum the images belong to: how many kinds they show, how they were scanned."""
    kinds = rows[[name for name in LABELS if name != "any"]].sum(axis=1).clip(upper=2)
    strata = {"kinds of hemorrhage in the slice": kinds.map({0: "none", 1: "one", 2: "two or more"}).to_numpy()}
    if described is None:
        return strata
    known = described.loc[rows.index]
    if "pixel_form" in known:  # datasets made by earlier versions lack some columns
        strata["stored pixels: bits/signed/slope/intercept"] = known["pixel_form"].to_numpy()
    for column, title in QUARTERS.items():
        if column not in known:
            continue
        values = known[column]
        if values.min() < values.max():
            strata[title] = parts_of_equal_size(values, 4).fillna("unknown").to_numpy(dtype=str)
    if BLOOD in known:
        strata |= phantom_strata(known)
    return strata


def parts_of_equal_size(values: pd.Series, number: int) -> pd.Series:
    """Return in which of ``number`` parts of about equal size each value lies, as text "lowest to highest value".

    Equal values share a part, so there may be fewer; what is missing stays missing.
    """
    parts = pd.qcut(values, number, labels=False, duplicates="drop")
    texts = values.groupby(parts).agg(lambda part: f"{part.min():.4g} to {part.max():.4g}")
    return parts.map(texts)


def described_images(folder: Path, truth: Path | None = None) -> pd.DataFrame:
    """Return a dataset's metadata for the strata, with what a phantom's truth file knows of its images.

    ``truth`` None: of a dataset that was made from a phantom the file in the input folder's ``phantom/``, where there
    is one that has these images. Raises UsageError for a ``truth`` that can't be read or knows none of the images.
    """
    described = read_metadata(folder, described=True)
    path = truth
    if truth is None:
        if read_dataset_info(folder).get("source", {}).get("kind") != "phantom":
            return described
        path = folder.parent.parent / "phantom" / TRUTH_FILE
    try:
        table = pd.read_csv(path, dtype={"id": str}, keep_default_na=False).set_index("id")
        blood = table[[f"{name}_mm3" for name in LABELS if name != "any"]].astype(float).sum(axis=1)
        known = pd.DataFrame({BLOOD: blood, "mimics": table["mimics"], "quirks": table["quirks"]})
        known = known[~known.index.duplicated()].reindex(described.index)
    except (OSError, ValueError, KeyError) as error:
        if truth is None:
            return described
        if isinstance(error, OSError):
            raise UsageError(f"--eval_truth={truth}: cannot be read ({error.strerror})") from None
        what = "it lacks columns of one" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UsageError(f"--eval_truth={truth}: not a phantom's truth file ({what})") from None
    if truth is not None and known[BLOOD].isna().all():
        raise UsageError(f"--eval_truth={truth}: knows none of the images of {folder}")
    if known[BLOOD].isna().any():  # another phantom's
        return described if truth is None else described.join(known)
    return described.join(known)


def phantom_strata(known: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the parts that only a phantom's truth file can tell: the images' blood, look-alikes and file's quirks."""
    blood = known[BLOOD]
    parts = pd.Series("none", known.index, dtype=object)
    parts[blood.isna()] = "unknown"
    bleeding = blood[blood > 0]
    if bleeding.nunique() > 2:
        parts[bleeding.index] = parts_of_equal_size(bleeding, 3)
    else:
        parts[bleeding.index] = "some"
    strata = {"blood in the slice, mm3": parts.to_numpy(dtype=str)}
    for column, title in (("mimics", "look-alikes of blood"), ("quirks", "what is unusual about the file")):
        texts = known[column].fillna("unknown").replace("", "none")
        strata[title] = texts.where(~texts.str.contains(";"), "several").to_numpy(dtype=str)
    return strata


def worst_images(predictions: np.ndarray, targets: np.ndarray, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the images with the highest weighted log loss: ``id``, ``log_loss``, each label and its probability."""
    losses = binary_log_losses(predictions, targets) @ normalized_weights(LABEL_WEIGHTS, len(LABELS))
    order = np.argsort(-losses, kind="stable")[:WORST]
    table = pd.DataFrame({"id": rows.index[order], "log_loss": losses[order]})
    for column, name in enumerate(LABELS):
        table[name] = targets[order, column].astype(np.int8)
        table[f"{name}_predicted"] = predictions[order, column]
    return table


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows in JSON's types, numbers with all their digits; no value, or one not finite, is null.

    A rounded threshold would leave out the very image that set it.
    """
    known = table.replace([np.inf, -np.inf], np.nan)
    return known.astype(object).where(known.notna(), None).to_dict("records")


def describe(evaluation: Evaluation) -> str:
    """Return the evaluation as text for a console."""
    document = evaluation.document
    evidence = evaluation.study.evidence[WEIGHTED]
    lines = [
        f"95 % intervals over {evidence.text}, {document['draws']} draws" * (not evidence.reason)
        or f"no interval: {evidence.reason}",
        format_table(interval_texts(evaluation.table).rename_axis("slices")),
        "",
        format_table(interval_texts(evaluation.studies.intervals()).rename_axis("studies (highest slice)")),
        "",
    ]
    if evaluation.judged is not None:
        change = difference_lines(comparison(evaluation.judged, evaluation.studies))[0]
        lines += [
            format_table(interval_texts(evaluation.judged.intervals()).rename_axis("studies (the model's output)")),
            f"studies, the model's output against the highest slice: {' '.join(change.split())}",
            "",
        ]
    lacking = {name: item.reason for name, item in evaluation.study.evidence.items() if item.reason}
    if lacking and not evidence.reason:
        lines.insert(1, "no interval of " + "; ".join(f"{name}: {reason}" for name, reason in lacking.items()))
    for point in document["operating_points"]["slice_level"]:
        if point["label"] == "any":
            other = "sensitivity" if point["fixed"] == "specificity" else "specificity"
            value = interval_text(point["value"], point["low"], point["high"], 3)
            threshold = point["threshold"]  # none: no score is high enough
            where = "above all scores" if threshold is None else f"threshold {threshold:.4f}"
            lines.append(f"any, slices: {other} {value} at {point['fixed']} {point['at']:.2f} ({where})")
    line = next(row for row in document["calibration"] if row["label"] == "any")
    slope = interval_text(line["slope"], line["slope_low"], line["slope_high"], 3)
    intercept = interval_text(line["intercept"], line["intercept_low"], line["intercept_high"], 3)
    lines.append(f"calibration of any, slices: slope {slope} (below 1: overconfident), intercept {intercept}")
    after = next(row for row in document["calibration"] if row["label"] == WEIGHTED)
    lines.append(
        f"calibration, weighted: log loss {after['log_loss']:.5f}, by temperature {after['log_loss_temperature']:.5f}, "
        f"isotonic {after['log_loss_isotonic']:.5f} (fitted on other patients)"
    )
    return "\n".join(lines)


def interval_text(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    """Return ``value [low, high]``; without the interval, or ``-``, where there is none (None or NaN)."""
    if pd.isna(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if pd.isna(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def interval_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of texts ``value [low, high]``, a column for each metric."""
    return pd.DataFrame(
        {
            title: [
                interval_text(row[metric], row[f"{metric}_low"], row[f"{metric}_high"], 4)
                for _, row in table.iterrows()
            ]
            for metric, title in SHOWN.items()
        },
        index=table.index,
    )


def write_evaluation(evaluation: Evaluation, folder: Path, name: str = "evaluation") -> Path:
    """Write ``<name>.csv``, ``<name>.json``, ``<name>_worst.csv`` and ``<name>.html``; return the first."""
    study, document = evaluation.study, evaluation.document
    lead = f"{document['images']:,} slices of {document['studies']:,} studies and {document['patients']:,} patients"
    html = evaluation_page("Evaluation", lead, document, study.predictions, study.targets, LABELS)
    write_text(folder / f"{name}.html", html)
    write_csv(folder / f"{name}_worst.csv", evaluation.worst)
    write_json(folder / f"{name}.json", evaluation.document)
    write_csv(folder / f"{name}.csv", evaluation.table, index=True)
    return folder / f"{name}.csv"


def matching_predictions(frame: pd.DataFrame, ids: pd.Index, source: str) -> pd.DataFrame:
    """Return the rows of ``frame`` for ``ids``, in their order; WorkError where some are missing."""
    missing = ids.difference(frame.index)
    if len(missing):
        raise WorkError(
            f"{source}: has no predictions for {len(missing)} of {len(ids)} images ({list_some(missing)}); only "
            "predictions of the same images can be compared"
        )
    return frame.loc[ids]


def compare(evaluation: Evaluation, other: Evaluation) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the paired differences ``evaluation`` minus ``other`` of slices, and DeLong's tests of studies."""
    one, two = evaluation.studies, other.studies
    areas = compare_areas(one.predictions, two.predictions, one.targets, one.bootstrap.place, LABELS)
    return comparison(evaluation.study, other.study), areas


def describe_comparison(differences: pd.DataFrame, areas: pd.DataFrame, first: str, second: str) -> str:
    """Return a comparison as text: a line for each metric of the weighted row, and DeLong's test of ``any``."""
    lines = [f"{first} against {second}, paired over patients:", *difference_lines(differences)]
    for row in areas[areas["label"] == "any"].itertuples():
        lines.append(
            f"  AUROC of any, studies {row.first:.4f} - {row.second:.4f} = {row.difference:+.4f}, "
            f"DeLong p = {row.p_value:.3g}"
        )
    return "\n".join(lines)


def difference_lines(differences: pd.DataFrame) -> list[str]:
    """Return a line for each metric of the weighted row of a comparison, log loss first."""
    lines = []
    for row in differences[differences["label"] == WEIGHTED].itertuples():
        direction = "lower is better" if SMALLER_IS_BETTER[row.metric] else "higher is better"
        behind = f"{row.patients} patients, {row.positive_patients} positive"
        found = f"[{row.low:+.5f}, {row.high:+.5f}] {row.verdict}, {behind}"
        if not row.verdict:
            found = f"no interval: {row.no_interval}"
        change = f"{row.first:.5f} - {row.second:.5f} = {row.difference:+.5f}"
        lines.append(f"  {SHOWN[row.metric]:18} {change} {found} ({direction})")
    return lines


def loss_change(first: np.ndarray, second: np.ndarray, targets: np.ndarray, patients: np.ndarray, draws: int) -> Change:
    """Return by how much the weighted log loss of probabilities ``first`` (N, 6) is above that of ``second``."""
    weights = normalized_weights(LABEL_WEIGHTS, len(LABELS))
    change = (binary_log_losses(first, targets) - binary_log_losses(second, targets)) @ weights
    return change_of(change, (targets == 1).any(axis=1), PatientBootstrap(patients, draws, SEED))


def compare_views(rows: pd.DataFrame, plain: pd.DataFrame, augmented: pd.DataFrame, draws: int) -> str:
    """Say in one line what test-time augmentation gains or loses, and whether that is sure (patients are drawn)."""
    targets = rows[list(LABELS)].to_numpy(np.float64)
    values = [frame.loc[rows.index, list(LABELS)].to_numpy() for frame in (augmented, plain)]
    after, before = (pooled_metrics(frame.loc[rows.index], rows)["weighted_log_loss"] for frame in (augmented, plain))
    change = loss_change(*values, targets, known_groups(rows), draws)
    return f"test-time augmentation changes the weighted log loss from {before:.5f} to {after:.5f}: {change.text}"
