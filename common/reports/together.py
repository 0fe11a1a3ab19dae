"""Report sections of experiments made from others: a cross-validation's folds, an ensemble's members."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.evaluation.metric_table import key_of_labels, key_title, metric_of
from common.reports import page
from common.reports.page import Line
from common.reports.record import REPORT_FILE, Record
from common.reports.summary import Summary

SPREAD_ROW = "mean ± sd"
NOTHING = "–"
NO_WEIGHT = 1e-6  # a fit leaves this much


def folds_sections(folds: Sequence[Record], facts: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """Return tables of a cross-validation's folds, with mean and standard deviation, and the curves of all folds.

    ``facts``: for each fold, by its folder's name, the ``images``, ``patients`` and ``constant_log_loss`` of its
    validation.
    """
    if not folds:
        return [page.section("Folds", page.paragraph("None has begun."))]
    names = [fold.folder.name for fold in folds]
    links = {fold.folder.name: f"{fold.folder.name}/{REPORT_FILE}" for fold in folds if _has_report(fold)}
    best = [fold.best(metric) for fold in folds]
    values = [np.nan if found is None else found[0] for found in best]
    known = [facts.get(name, {}) for name in names]
    table = pd.DataFrame(
        {
            "status": [fold.status for fold in folds],
            key_title(metric): [_number(value) for value in values],
            "constant predictor": [_number(fact.get("constant_log_loss")) for fact in known],
            "iteration": [NOTHING if found is None else str(found[1]) for found in best],
            "weights": [NOTHING if found is None else found[2] for found in best],
            "images": [f"{fact['images']:,}" if "images" in fact else NOTHING for fact in known],
            "patients": [f"{fact['patients']:,}" if "patients" in fact else NOTHING for fact in known],
            "hours": [f"{fold.seconds / 3600:.2f}" for fold in folds],
        },
        index=pd.Index(names, name="fold"),
    )
    table.loc[SPREAD_ROW] = ["", spread(values), spread([f.get("constant_log_loss", np.nan) for f in known]), *[""] * 5]
    curves = [Line(name, *fold.series(f"valid/{metric}"), dots=True) for name, fold in zip(names, folds, strict=True)]
    losses = [Line(name, *fold.series("train/loss")) for name, fold in zip(names, folds, strict=True)]
    return [
        page.section(
            "Folds",
            page.table("", table, "The standard deviation is that between the folds.", links),
            page.table(f"{metric_of(metric).title.capitalize()} by label", label_values(folds, metric)),
        ),
        page.section(
            "Curves",
            page.cards(
                page.lines("Validation", curves, ("iteration", key_title(metric))),
                page.lines("Training", losses, ("iteration", "loss")),
            ),
        ),
    ]


def label_values(folds: Sequence[Record], metric: str) -> pd.DataFrame:
    """Return each label's value at the fold's best weighted ``metric``, as text, with mean and standard deviation."""
    columns: dict[str, list[float]] = {}
    for place, fold in enumerate(folds):
        best = fold.best(metric)
        if best is None:
            continue
        group = "valid" if best[2] == "raw" else f"valid_{best[2]}"
        prefix = f"{group}/{key_of_labels(metric)}"
        for key in fold.keys:
            if key.startswith(prefix):
                values = columns.setdefault(key.removeprefix(prefix), [np.nan] * len(folds))
                values[place] = dict(zip(*fold.series(key), strict=True))[best[1]]
    names = [*(fold.folder.name for fold in folds), SPREAD_ROW]
    texts = {label: [*map(_number, values), spread(values)] for label, values in columns.items()}
    return pd.DataFrame(texts, index=pd.Index(names, name="fold"))


def members_section(
    names: Sequence[str],
    members: Mapping[str, Summary],
    metric: str,
    reported: Collection[str],
    columns: Mapping[str, Mapping[str, float]],
) -> str:
    """Return a table of members: each one's score alone, then ``columns`` (title -> member -> value).

    ``reported``: names of the members that have a report.
    """
    best = [members[name].best if name in members else None for name in names]
    table = pd.DataFrame(
        {f"{key_title(metric)} alone": [NOTHING if found is None else _number(found[0]) for found in best]}
        | {title: [_number(values.get(name)) for name in names] for title, values in columns.items() if values},
        index=pd.Index(names, name="member"),
    )
    links = {name: f"../{name}/{REPORT_FILE}" for name in reported}
    weights = columns.get("weight", {})
    note = describe_only_member({name: weights[name] for name in names if weights.get(name) is not None})
    return page.section("Members", page.table("", table, note, links))


def describe_only_member(weights: Mapping[str, float]) -> str:
    """Say it of an ensemble that has one member, or gives one all the weight; empty for others.

    ``weights``: by member. Example: ``All weight is on a: the ensemble is this member alone.``
    """
    heaviest = max(weights, key=weights.__getitem__, default="")
    if len(weights) == 1:
        return f"{heaviest} is the only member: nothing is averaged."
    if weights and sum(abs(weight) for weight in weights.values()) - abs(weights[heaviest]) <= NO_WEIGHT:
        return f"All weight is on {heaviest}: the ensemble is this member alone."
    return ""


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation (n − 1) of the finite values as text."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    if len(known) == 0:
        return NOTHING
    return f"{known.mean():.4f}" if len(known) == 1 else f"{known.mean():.4f} ± {known.std(ddof=1):.4f}"


def _number(value: float | None) -> str:
    return NOTHING if value is None or not np.isfinite(value) else f"{value:.4f}"


def _has_report(record: Record) -> bool:
    return (record.folder / REPORT_FILE).is_file()
