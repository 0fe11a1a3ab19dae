"""Tables of each label's metrics, beside those of the constant predictor, which knows only the prevalences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.evaluation.interval_rules import MeanRule
from common.evaluation.metric_table import METRICS, Metric
from common.evaluation.metrics import WEIGHTED, binary_log_losses, normalized_weights

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

    ``predictions`` are probabilities (N, C), ``targets`` 0 or 1 (N, C), ``weights`` and ``prevalences`` (C,).
    Columns: ``log_loss``; ``constant_log_loss``, the log loss of predicting ``prevalences`` everywhere; ``auroc`` and
    ``average_precision`` (as in scikit-learn), NaN for a class whose targets are all the same; ``positives`` and
    ``images``, counts. The row ``weighted`` holds the averages with ``weights`` (NaN if a term is NaN). Its
    ``positives`` are the images with at least one positive class. ``known``: a table with the metrics' columns, if
    they were computed before. Raises ValueError if shapes don't agree, N is 0, or a prediction is not a probability.
    """
    values = np.asarray(predictions, dtype=np.float64)
    truth = np.asarray(targets, dtype=np.float64)
    constants = np.asarray(prevalences, dtype=np.float64)
    _check(values, truth, constants, class_names)
    scale = normalized_weights(weights, len(class_names))
    index = pd.Index([*class_names, WEIGHTED], name="label")
    if known is None:
        columns = {name: _by_class(METRICS[name], values, truth) for name in SHORT}
        known = pd.DataFrame({name: [*column, scale @ column] for name, column in columns.items()}, index)
    constant = binary_log_losses(constants, truth).mean(axis=0)
    table = known.loc[index, list(SHORT)]
    table.insert(1, "constant_log_loss", [*constant, scale @ constant])
    positives = [*(truth == 1).sum(axis=0), (truth == 1).any(axis=1).sum()]
    return table.assign(positives=np.array(positives, dtype=np.int64), images=np.int64(len(values)))


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
    scale = normalized_weights(weights, len(class_names))
    rows = {}
    for name, predictions in members.items():
        values = np.asarray(predictions, dtype=np.float64)
        _check(values, truth, constants, class_names)
        rows[name] = binary_log_losses(values, truth).mean(axis=0)
    rows[CONSTANT_ROW] = binary_log_losses(constants, truth).mean(axis=0)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(class_names))
    table.insert(0, WEIGHTED, table.to_numpy() @ scale)
    return table.rename_axis("log loss")


def _check(values: Array, truth: Array, constants: Array, class_names: Sequence[str]) -> None:
    if values.ndim != 2 or values.shape != truth.shape or values.shape[1] != len(class_names) or len(values) == 0:
        raise ValueError(
            f"predictions and targets of shape (N, {len(class_names)}) expected, got {values.shape} and {truth.shape}"
        )
    if constants.shape != (len(class_names),):
        raise ValueError(f"{len(class_names)} prevalences expected, got shape {constants.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("predictions must be probabilities in 0..1")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("targets must be 0 or 1")


def _by_class(metric: Metric, values: Array, truth: Array) -> Array:
    """Return a metric of each class; a ranking is NaN for a class whose targets are all the same."""
    if isinstance(metric.interval, MeanRule):
        return metric.function(values, truth).mean(axis=0)
    both = [np.unique(column).size == 2 for column in truth.T]
    return np.array([metric.function(values[:, c], truth[:, c]) if both[c] else np.nan for c in range(len(both))])
