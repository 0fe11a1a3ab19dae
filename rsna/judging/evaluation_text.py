"""An evaluation as text for a console."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.evaluation.metric_table import METRICS, metric_texts
from common.evaluation.metrics import WEIGHTED
from common.evaluation.reader import comparison
from common.evaluation.texts import format_table, interval_text
from rsna.judging.evaluation import Evaluation, loss_change
from rsna_dataset import LABELS, known_groups
from rsna_network import pooled_metrics

CONSOLE_DIGITS = 4
NO_SLICES = "no values of slices: only studies have labels, and what follows is of studies"


def describe(evaluation: Evaluation) -> str:
    """Return the evaluation as text for a console."""
    document = evaluation.document
    evidence, units = evaluation.study.evidence[WEIGHTED], evaluation.level.units
    of_slices = [format_table(interval_table(evaluation.table, "slices")), ""] if units == "slices" else [NO_SLICES, ""]
    lines = [
        f"95 % intervals over {evidence.text}" * (not evidence.reason) or f"no interval: {evidence.reason}",
        *of_slices,
        format_table(interval_table(evaluation.studies.intervals(), "studies (highest slice)")),
        "",
    ]
    if evaluation.judged is not None:
        change = difference_lines(comparison(evaluation.judged, evaluation.studies))[0]
        lines += [
            format_table(interval_table(evaluation.judged.intervals(), "studies (the model's output)")),
            f"studies, the model's output against the highest slice: {' '.join(change.split())}",
            "",
        ]
    unlabelled = {
        what: [name for c, name in enumerate(LABELS) if not found.cells[c]]
        for what, found in (("slice", evaluation.study), ("study", evaluation.studies))[units != "slices" :]
    }
    lines[:0] = [
        f"no values of {', '.join(names)} by {what}: no {what} has this label"
        for what, names in unlabelled.items()
        if names
    ]
    lacking = {name: item.reason for name, item in evaluation.study.evidence.items() if item.reason}
    if lacking and not evidence.reason:
        lines.insert(
            1 + sum(map(bool, unlabelled.values())),
            "no interval of " + "; ".join(f"{name}: {reason}" for name, reason in lacking.items()),
        )
    points = document["operating_points"]
    for point in points["slice_level"] or points["study_level"]:
        if point["label"] == "any":
            other = "sensitivity" if point["fixed"] == "specificity" else "specificity"
            value = interval_text(point["value"], point["low"], point["high"], 3)
            threshold = point["threshold"]  # None: no score is high enough
            where = "above all scores" if threshold is None else f"threshold {threshold:.4f}"
            lines.append(f"any, {units}: {other} {value} at {point['fixed']} {point['at']:.2f} ({where})")
    line = next(row for row in document["calibration"] if row["label"] == "any")
    slope = interval_text(line["slope"], line["slope_low"], line["slope_high"], 3)
    intercept = interval_text(line["intercept"], line["intercept_low"], line["intercept_high"], 3)
    lines.append(f"calibration of any, {units}: slope {slope} (below 1: overconfident), intercept {intercept}")
    after = next(row for row in document["calibration"] if row["label"] == WEIGHTED)
    lines.append(
        f"calibration, weighted: log loss {after['log_loss']:.5f}, by temperature {after['log_loss_temperature']:.5f}, "
        f"isotonic {after['log_loss_isotonic']:.5f} (fitted on other patients)"
    )
    return "\n".join(lines)


def interval_table(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table of texts ``value [low, high]``, a column for each metric; ``name`` heads the index."""
    rows = [metric_texts(row, CONSOLE_DIGITS) for row in table.to_dict("records")]
    return pd.DataFrame(rows, table.index.rename(name))


def describe_comparison(differences: pd.DataFrame, areas: pd.DataFrame, first: str, second: str) -> str:
    """Return a comparison as text: a line for each weighted metric, then DeLong's test of ``any``."""
    lines = [f"{first} against {second}, paired over patients:", *difference_lines(differences)]
    for row in areas[areas["label"] == "any"].itertuples():
        lines.append(
            f"  AUROC of any, studies {row.first:.4f} - {row.second:.4f} = {row.difference:+.4f}, "
            f"DeLong p = {row.p_value:.3g}"
        )
    return "\n".join(lines)


def difference_lines(differences: pd.DataFrame) -> list[str]:
    """Return a line for each weighted metric of a comparison, log loss first."""
    lines, width = [], 1 + max(len(metric.title) for metric in METRICS.values())
    for row in differences[differences["label"] == WEIGHTED].itertuples():
        metric = METRICS[row.metric]
        behind = f"{row.patients} patients, {row.positive_patients} positive"
        found = f"[{row.low:+.5f}, {row.high:+.5f}] {row.verdict}, {behind}"
        if not row.verdict:
            found = f"no interval: {row.no_interval}"
        change = f"{row.first:.5f} - {row.second:.5f} = {row.difference:+.5f}"
        lines.append(f"  {metric.title:{width}} {change} {found} ({metric.direction})")
    return lines


def compare_views(rows: pd.DataFrame, plain: pd.DataFrame, augmented: pd.DataFrame) -> str:
    """Say in one line by how much test-time augmentation changes the log loss, with the interval."""
    targets = rows[list(LABELS)].to_numpy(np.float64)
    values = [frame.loc[rows.index, list(LABELS)].to_numpy() for frame in (augmented, plain)]
    after, before = (pooled_metrics(frame.loc[rows.index], rows)["weighted_log_loss"] for frame in (augmented, plain))
    change = loss_change(*values, targets, known_groups(rows))
    return f"test-time augmentation changes the weighted log loss from {before:.5f} to {after:.5f}: {change.text}"
