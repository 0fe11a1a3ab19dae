"""Tables of each label's metrics, beside those of the constant predictor, which knows only the prevalences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.evaluation.interval_rules import MeanRule
from common.evaluation.metric_table import METRICS, Metric
from common.evaluation.metrics import (
    WEIGHTED,
    binary_log_losses,
    label_means,
    mean_log_loss,
    normalized_weights,
)

Array = npt.NDArray[np.float64]

CONSTANT_ROW = "constant predictor"
SHORT = ("log_loss", "auroc", "average_precision")  # metrics of a table without intervals


def label_table(
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike,
    class_names: Sequence[str],
    weights: Sequence[float],
    prevalences: npt.ArrayLike,
    known: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return one row for each class and a last row ``weighted``.

    ``predictions`` are probabilities (N, C), ``targets`` 0, 1 or NaN (N, C), ``weights`` and ``prevalences`` (C,).
    Columns: ``log_loss``; ``constant_log_loss``, the log loss of predicting ``prevalences`` everywhere; ``auroc`` and
    ``average_precision`` (as in scikit-learn), NaN for a class whose targets are all the same; ``positives`` and
    ``images``, counts. NaN in ``targets`` is a missing label: a class is judged by the images that have it, and one
    without any has no values. The row ``weighted`` holds the averages with ``weights``: of losses over all labels that
    are there, of rankings NaN if a term is NaN. Its ``positives`` are the images with at least one positive class, its
    ``images`` those with any label. ``known``: a table with the metrics' columns, if
    they were computed before. Raises ValueError if shapes don't agree, N is 0, or a prediction is not a probability.
    """
    values = np.asarray(predictions, dtype=np.float64)
    truth = np.asarray(targets, dtype=np.float64)
    constants = np.asarray(prevalences, dtype=np.float64)
    _check(values, truth, constants, class_names)
    cells = ~np.isnan(truth)
    index = pd.Index([*class_names, WEIGHTED], name="label")
    if known is None:
        columns = {name: _by_class(METRICS[name], values, truth, weights) for name in SHORT}
        known = pd.DataFrame(columns, index)
    constant = binary_log_losses(constants, truth)
    table = known.loc[index, list(SHORT)]
    table.insert(1, "constant_log_loss", [*label_means(constant), mean_log_loss(constant, weights)])
    positives = [*(truth == 1).sum(axis=0), (truth == 1).any(axis=1).sum()]
    images = [*cells.sum(axis=0), cells.any(axis=1).sum()]
    return table.assign(positives=np.array(positives, dtype=np.int64), images=np.array(images, dtype=np.int64))


def member_table(
    members: Mapping[str, npt.ArrayLike],
    targets: npt.ArrayLike,
    class_names: Sequence[str],
    weights: Sequence[float],
    prevalences: npt.ArrayLike,
) -> pd.DataFrame:
    """Return log losses: a row for each of ``members`` (name -> probabilities (N, C)), and ``constant predictor``.

    Columns: ``weighted``, then the classes. The other arguments and the errors are those of :func:`label_table`.
    """
    truth = np.asarray(targets, dtype=np.float64)
    constants = np.asarray(prevalences, dtype=np.float64)
    rows = {}
    for name, predictions in members.items():
        values = np.asarray(predictions, dtype=np.float64)
        _check(values, truth, constants, class_names)
        rows[name] = binary_log_losses(values, truth)
    rows[CONSTANT_ROW] = binary_log_losses(constants, truth)
    table = {name: [mean_log_loss(losses, weights), *label_means(losses)] for name, losses in rows.items()}
    return pd.DataFrame.from_dict(table, orient="index", columns=[WEIGHTED, *class_names]).rename_axis("log loss")


def _check(values: Array, truth: Array, constants: Array, class_names: Sequence[str]) -> None:
    if values.ndim != 2 or values.shape != truth.shape or values.shape[1] != len(class_names) or len(values) == 0:
        raise ValueError(
            f"predictions and targets of shape (N, {len(class_names)}) expected, got {values.shape} and {truth.shape}"
        )
    if constants.shape != (len(class_names),):
        raise ValueError(f"{len(class_names)} prevalences expected, got shape {constants.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("predictions must be probabilities in 0..1")
    if not (np.isin(truth, (0, 1)) | np.isnan(truth)).all():
        raise ValueError("targets must be 0 or 1, or NaN where a label is missing")


def _by_class(metric: Metric, values: Array, truth: Array, weights: Sequence[float]) -> list[float]:
    """Return a metric of each class and ``weighted``; a ranking is NaN for a class whose targets are all the same."""
    known = ~np.isnan(truth)
    if isinstance(metric.interval, MeanRule):
        each = np.where(known, metric.function(values, truth), np.nan)
        return [*label_means(each), mean_log_loss(each, weights)]
    found = [
        metric.function(values[rows, c], truth[rows, c]) if np.unique(truth[rows, c]).size == 2 else np.nan
        for c, rows in enumerate(known.T)
    ]
    return [*found, float(normalized_weights(weights, len(found)) @ found)]
