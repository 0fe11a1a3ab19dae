"""An evaluation as sections of an HTML page: tables with intervals, ROC, recall, calibration, decision curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from common.evaluation.metric_table import METRICS, metric_texts
from common.evaluation.texts import interval_text
from common.reports import page
from common.reports.page import Line

Array = npt.NDArray[np.float64]

CURVE_POINTS = 200
ONLY_STUDIES = "Only studies have labels: all that follows is of studies, none of it of slices."
UNIT = (0.0, 1.0)
MAPPED = {"by temperature": "temperature", "isotonic": "isotonic"}


def evaluation_page(
    title: str, lead: str, document: Mapping[str, Any], predictions: Array, targets: Array, names: Sequence[str]
) -> str:
    """Return an evaluation as an HTML document: tables and charts, no picture of a patient.

    The other arguments are those of :func:`evaluation_sections`.
    """
    sections = evaluation_sections(document, predictions, targets, names)
    return page.page(title, lead, [*sections, page.paragraph(page.NOTICE)])


def evaluation_sections(
    document: Mapping[str, Any], predictions: Array, targets: Array, names: Sequence[str]
) -> list[str]:
    """Return the sections of an evaluation.

    ``document``: the evaluation as evaluate.py writes it as JSON. ``predictions``, ``targets`` (N, C): those of the
    slices, or of the studies if only these have labels. ``names``: the C labels.
    """
    note = document["no_interval"] or (
        f"95 % intervals over {document['patients']} patients, {document['positive_patients']} positive"
    )
    note = f"No interval: {note}." if document["no_interval"] else f"{note}; none where too few patients are positive."
    levels = (
        ("slice_level", "Slices"),
        ("study_level", "Studies (highest slice)"),
        ("study_output", "Studies (the model's output)"),
    )
    tables = [page.table(title, interval_table(document[key]), note) for key, title in levels if document.get(key)]
    units, points = document["level"], document["operating_points"]
    curves = (roc_chart(predictions, targets, names), recall_chart(predictions, targets, names))
    calibrated = calibration_texts(document["calibration"])
    confusion = confusion_table(points["slice_level"] or points["study_level"], predictions, targets, names)
    notes = document.get("lineage", {}).get("notes", [])  # networks of unknown lineage, images left out
    return [
        *([page.section("What the networks learnt from", *map(page.paragraph, notes))] if notes else []),
        page.section("Labels", *([] if document["slice_level"] else [page.paragraph(ONLY_STUDIES)]), *tables),
        page.section("Ranking", page.cards(*curves)),
        page.section(
            "Calibration",
            reliability_chart(document["reliability"]),
            page.table(
                "Before and after a map that was fitted on other patients",
                calibrated,
                "Slope of the observed over the predicted risk's logit: below 1 is overconfident. Intercept beside a "
                "slope of 1: above 0 the risks are too low. Both with 95 % intervals (Van Calster et al. 2016).",
            ),
        ),
        page.section(
            "Operating points",
            page.table(
                f"{units.capitalize()} at 90 % sensitivity and at 90 % specificity",
                confusion,
                f"Of these {units} those at or above the threshold count as positive; they set it. TP, FP, FN, TN: "
                "true and false positives, false and true negatives.",
            ),
            decision_chart(document["decision_curve"], units=units),
        ),
        *strata_section(document["strata"]),
    ]


def judging_rows(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the rows by label at the level that judges: slices, or studies where only these have labels."""
    return document["slice_level"] or document.get("study_output") or document["study_level"]


def interval_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a table of texts ``value [low, high]``: a row for each label, a column for each metric."""
    table = {
        row["label"]: ({"positives": f"{row['positives']:,} of {row['images']:,}"} if "positives" in row else {})
        | {"positive patients": f"{row['positive_patients']:,} of {row['patients']:,}"}
        | metric_texts(row)
        for row in rows
    }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("label")


def roc_chart(predictions: Array, targets: Array, names: Sequence[str]) -> str:
    """Draw the ROC curve of each label that has both classes."""
    curves = []
    for scores, truth, name in _with_both_classes(predictions, targets, names):
        false, true, _ = roc_curve(truth, scores)
        curves.append(Line(name, *_thinned(false, true)))
    return page.lines("ROC", curves, ("1 − specificity", "sensitivity"), "", UNIT, UNIT)


def recall_chart(predictions: Array, targets: Array, names: Sequence[str]) -> str:
    """Draw precision over recall of each label that has both classes."""
    curves = []
    for scores, truth, name in _with_both_classes(predictions, targets, names):
        precision, recall, _ = precision_recall_curve(truth, scores)
        curves.append(Line(name, *_thinned(recall[::-1], precision[::-1])))
    return page.lines("Precision and recall", curves, ("recall (sensitivity)", "precision"), "", UNIT, UNIT)


def _with_both_classes(predictions: Array, targets: Array, names: Sequence[str]) -> list[tuple[Array, Array, str]]:
    columns = [
        (scores[~np.isnan(truth)], truth[~np.isnan(truth)], name)
        for scores, truth, name in zip(predictions.T, targets.T, names, strict=True)
    ]
    return [(scores, truth, name) for scores, truth, name in columns if 0 < truth.sum() < len(truth)]


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """Return at most :data:`CURVE_POINTS` points of a curve, evenly spread along its length, with both ends."""
    if len(x) <= CURVE_POINTS:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    places = np.unique(np.searchsorted(length, np.linspace(0, length[-1], CURVE_POINTS)).clip(max=len(x) - 1))
    return x[places], y[places]


def reliability_chart(tables: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Draw the observed share of positives over the predicted one for each label, and the perfect model."""
    curves = [
        Line(name, [row["predicted"] for row in rows], [row["observed"] for row in rows], dots=True)
        for name, rows in tables.items()
        if rows
    ]
    perfect = Line("perfect", UNIT, UNIT)
    note = "15 bins of equal width; bins with few images scatter."
    return page.lines("Reliability", [*curves, perfect], ("predicted", "observed"), note, UNIT, UNIT)


def calibration_texts(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return log loss and calibration error before and after temperature and isotonic maps, as texts."""
    columns: dict[str, str] = {}
    for place, name in enumerate(("log_loss", "calibration_error")):
        columns |= {METRICS[name].title: name}
        columns |= {f"{title}{' ' * place}": f"{name}_{method}" for title, method in MAPPED.items()}
    table = {
        row["label"]: {title: interval_text(row[key], None, None) for title, key in columns.items()}
        | {
            what: interval_text(*(row[f"{what}{end}"] for end in ("", "_low", "_high")), 2)
            for what in ("slope", "intercept")
        }
        for row in rows
    }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("label")


def confusion_table(
    points: Sequence[Mapping[str, Any]], predictions: Array, targets: Array, names: Sequence[str]
) -> pd.DataFrame:
    """Return true and false positives and negatives of each label at its operating points."""
    rows = []
    for point in points:
        if point["at"] != 0.9:
            continue
        column = names.index(point["label"])
        threshold = np.inf if point["threshold"] is None else point["threshold"]  # None: no score is high enough
        known = ~np.isnan(targets[:, column])
        flagged, truth = predictions[known, column] >= threshold, targets[known, column] == 1
        other = "sensitivity" if point["fixed"] == "specificity" else "specificity"
        rows.append(
            {
                "label": point["label"],
                "held": f"{point['fixed']} {point['at']:.0%}",
                "threshold": f"{threshold:.4f}",
                other: interval_text(point["value"], point["low"], point["high"], 3),
                "TP": int((flagged & truth).sum()),
                "FP": int((flagged & ~truth).sum()),
                "FN": int((~flagged & truth).sum()),
                "TN": int((~flagged & ~truth).sum()),
            }
        )
    order = ["held", "threshold", "sensitivity", "specificity", "TP", "FP", "FN"]
    table = pd.DataFrame(rows, columns=["label", *order, "TN"]).fillna("as held")
    return table.sort_values("held", kind="stable", ascending=False).set_index("label")


def decision_chart(rows: Sequence[Mapping[str, Any]], label: str = "any", units: str = "slices") -> str:
    """Draw one label's net benefit of acting on the model, on everyone and on nobody."""
    known = [row for row in rows if row["label"] == label]
    at = [row["threshold"] for row in known]
    curves = [
        Line("model", at, [row["model"] for row in known], dots=True),
        Line("everyone", at, [row["everyone"] for row in known]),
        Line("nobody", at, [0.0] * len(at)),
    ]
    top = max([row["model"] for row in known], default=0.1)
    bounds = [
        Line(f"model, {end} end", at, [row[f"model_{end}"] for row in known], dots=True)
        for end in ("low", "high")
        if all(row[f"model_{end}"] is not None for row in known)
    ]
    note = (
        "True positives minus false positives weighted by the threshold's odds, as a share of the "
        f"{units} (Vickers and Elkin 2006); low and high end of the 95 % interval at each threshold."
    )
    axes = ("threshold of risk", "net benefit")
    return page.lines(
        f"Decision curve of {label}", [*curves, *bounds], axes, note, None, (min(-0.02, -top / 5), max(top * 1.1, 0.02))
    )


def strata_section(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a section with a table of the strata; no section without ``rows``."""
    if not rows:
        return []
    table = pd.DataFrame(rows)
    known = table[table["images"] > 0].copy()
    texts = {
        "part": known["part"],
        "images": known["images"].map("{:,}".format),
        "patients": known["patients"].map("{:,}".format),
        METRICS["log_loss"].title: [
            interval_text(*values) for values in known[["log_loss", "low", "high"]].itertuples(index=False, name=None)
        ],
    }
    return [
        page.section(
            "Parts of the images", page.table("", pd.DataFrame(texts).set_axis(known["stratum"]).rename_axis("by"))
        )
    ]
