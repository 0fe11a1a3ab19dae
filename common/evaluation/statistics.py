"""Tables of numbers about predictions: what each label scores, beside the predictor that knows only the prevalence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.evaluation.metrics import binary_log_losses, normalized_weights

Array = npt.NDArray[np.float64]

WEIGHTED_ROW = "weighted"
CONSTANT_ROW = "constant predictor"
NO_VALUE = "-"


def label_table(
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike,
    class_names: Sequence[str],
    weights: Sequence[float],
    prevalences: npt.ArrayLike,
) -> pd.DataFrame:
    """Return one row for each class and a last row ``weighted``.

    ``predictions`` are probabilities (N, C), ``targets`` 0 or 1 (N, C), ``weights`` and ``prevalences`` (C,).
    Columns: ``log_loss``; ``constant_log_loss``, what predicting ``prevalences`` everywhere scores; ``auroc`` and
    ``average_precision`` (as in scikit-learn), NaN for a class whose targets are all the same; ``positives`` and
    ``images``, counts. The row ``weighted`` holds the averages with ``weights`` (NaN where one of the terms is NaN),
    and as ``positives`` the images with at least one positive class. Raises ValueError where shapes don't agree, N is
    0, or a prediction is not a probability.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # here: sweep.py needs none of its second

    values = np.asarray(predictions, dtype=np.float64)
    truth = np.asarray(targets, dtype=np.float64)
    constants = np.asarray(prevalences, dtype=np.float64)
    _check(values, truth, constants, class_names)
    scale = normalized_weights(weights, len(class_names))
    columns = {
        "log_loss": binary_log_losses(values, truth).mean(axis=0),
        "constant_log_loss": binary_log_losses(constants, truth).mean(axis=0),
        "auroc": _by_class(roc_auc_score, values, truth),
        "average_precision": _by_class(average_precision_score, values, truth),
    }
    table = pd.DataFrame(columns, index=pd.Index(class_names, name="label"))
    table.loc[WEIGHTED_ROW] = {name: float(scale @ column) for name, column in columns.items()}
    positives = [*(truth == 1).sum(axis=0), (truth == 1).any(axis=1).sum()]
    return table.assign(positives=np.array(positives, dtype=np.int64), images=np.int64(len(values)))


def member_table(
    members: Mapping[str, npt.ArrayLike],
    targets: npt.ArrayLike,
    class_names: Sequence[str],
    weights: Sequence[float],
    prevalences: npt.ArrayLike,
) -> pd.DataFrame:
    """Return log losses, a row for each of ``members`` (name -> probabilities (N, C)) and ``constant predictor``.

    Columns: ``weighted``, then one for each class; the other arguments and the errors are those of :func:`label_table`.
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
    table.insert(0, WEIGHTED_ROW, table.to_numpy() @ scale)
    return table.rename_axis("log loss")


def format_table(table: pd.DataFrame) -> str:
    """Return ``table`` as aligned text for a console: 5 decimals, whole numbers as they are, ``-`` for no value."""
    cells = table.map(_format_cell).astype(str)
    names = [str(table.index.name or ""), *(str(name) for name in table.index)]
    width = max(len(name) for name in names)
    lines = [name.ljust(width) for name in names]
    for column in cells.columns:
        texts = [str(column), *cells[column]]
        column_width = max(len(text) for text in texts)
        lines = [f"{line}  {text.rjust(column_width)}" for line, text in zip(lines, texts, strict=True)]
    return "\n".join(lines)


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


def _by_class(score: Callable[[Array, Array], float], values: Array, truth: Array) -> Array:
    both = [np.unique(column).size == 2 for column in truth.T]
    return np.array([score(truth[:, c], values[:, c]) if both[c] else np.nan for c in range(values.shape[1])])


def _format_cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return NO_VALUE if np.isnan(value) else f"{value:.5f}"
    return str(value)
