"""Log losses, and a metric that is updated with batches and computed once over the whole set, all in float64.

The sums are divided only at the end, so that the value does not depend on the batches. A target that is NaN is a
missing label. It counts nowhere, each label for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from common.errors import WorkError

Array = npt.NDArray[np.float64]

# The competition scored with scikit-learn's log_loss of 2019, whose default eps was 1e-15.
CLIP = 1e-15
WEIGHTED = "weighted"  # row of every table by label: the labels' weighted mean
STUDY = "study_"  # begins the key of a metric of whole studies: study_weighted_log_loss, study_log_loss/any


def levels_of(metric: str) -> tuple[str, str]:
    """Return the keys of a metric at both levels: that of slices, and that of whole studies."""
    return metric, f"{STUDY}{metric}"


def probabilities(logits: npt.ArrayLike) -> Array:
    """Return the sigmoid of ``logits`` (any shape) as float64; no logit overflows, NaN stays NaN."""
    return np.asarray(expit(np.asarray(logits, dtype=np.float64)), dtype=np.float64)


def binary_log_losses(predictions: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """Return the binary log loss of every element, shape as given (the two shapes broadcast).

    ``predictions`` are probabilities and are clipped to [1e-15, 1 − 1e-15]; ``targets`` lie in 0..1. The loss of a
    missing label (NaN) is NaN.
    """
    clipped = np.clip(np.asarray(predictions, dtype=np.float64), CLIP, 1.0 - CLIP)
    truth = np.asarray(targets, dtype=np.float64)
    return -(truth * np.log(clipped) + (1.0 - truth) * np.log(1.0 - clipped))


def normalized_weights(weights: Sequence[float], count: int) -> Array:
    """Return ``weights`` divided by their sum, shape (count,).

    Raises ValueError if there are not ``count`` of them, one is negative or not finite, or all are 0.
    """
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (count,):
        raise ValueError(f"{count} weights expected, got shape {values.shape}")
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise ValueError(f"weights must be finite, not negative and not all 0, got {values.tolist()}")
    return values / values.sum()


def label_means(values: npt.ArrayLike) -> Array:
    """Return the mean (C,) of each column of ``values`` (N, C) over what is not NaN; NaN for a column of NaN alone."""
    numbers = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(numbers)
    if known.all() and len(numbers):
        return np.asarray(numbers.mean(axis=0))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, numbers, 0).sum(axis=0) / known.sum(axis=0))


def mean_of_cells(means: npt.ArrayLike, counts: npt.ArrayLike, weights: Sequence[float]) -> float:
    """Return the weighted sum over all labelled cells divided by the sum of their weights; NaN without a cell.

    ``means`` (C,) of each label's cells, ``counts`` (C,) of these cells, ``weights`` (C,) of a cell of each label. A
    label without a cell has no part in it. Where all labels have equally many cells this is the weighted mean of the
    labels.
    """
    values, cells = np.asarray(means, dtype=np.float64), np.asarray(counts)
    scale = normalized_weights(weights, len(values))
    if cells.min() == cells.max() > 0:
        return float(scale @ values)
    parts = scale * cells
    with np.errstate(invalid="ignore"):
        return float(parts @ np.where(cells > 0, values, 0) / np.float64(parts.sum()))


def mean_log_loss(losses: npt.ArrayLike, weights: Sequence[float]) -> float:
    """Return :func:`mean_of_cells` of ``losses`` (N, C), NaN where no label is known."""
    values = np.asarray(losses, dtype=np.float64)
    return mean_of_cells(label_means(values), (~np.isnan(values)).sum(axis=0), weights)


def prevalences_of(targets: npt.ArrayLike) -> Array:
    """Return the share of positives in each column of ``targets`` (N, C), at least 0.5 / (N + 1) away from 0 and 1.

    N counts the labels of a column that are known (not NaN). A class without a case in N images can still occur, and
    its first case would cost 34 in log loss. N = 0 gives 0.5.
    """
    truth = np.asarray(targets, dtype=np.float64)
    counts = (~np.isnan(truth)).sum(axis=0)
    margin = 0.5 / (counts + 1)
    return np.clip(np.nansum(truth, axis=0) / np.maximum(counts, 1), margin, 1 - margin)


def constant_predictor(prevalences: npt.ArrayLike, targets: npt.ArrayLike, weights: Sequence[float]) -> float:
    """Return the weighted log loss of predicting ``prevalences`` (C,) for every row of ``targets`` (N, C).

    A model that never looks at an image scores this, so every model has to beat it.
    """
    truth = np.asarray(targets, dtype=np.float64)
    constants = np.asarray(prevalences, dtype=np.float64)
    if truth.ndim != 2 or constants.shape != truth.shape[1:] or len(truth) == 0:
        raise ValueError(f"prevalences (C,) and targets (N, C) expected, got {constants.shape} and {truth.shape}")
    return mean_log_loss(binary_log_losses(constants, truth), weights)


def by_group(values: Array, groups: npt.ArrayLike) -> Array:
    """Return each group's largest value in each column, groups sorted: for example slices (N, C) to studies."""
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    result = np.full((place.max() + 1, values.shape[1]), -np.inf)
    np.maximum.at(result, place, values)
    return result


class WeightedLogLoss:
    """Weighted multi-label log loss, pooled over all images: Σ_c w_c · mean over images of the binary log loss.

    ``weights`` holds one number for each class (the competition's are 1, 1, 1, 1, 1, 2) and is divided by its sum.
    Where labels are missing it is the weighted sum over the labelled cells, divided by the sum of their weights.
    """

    def __init__(self, class_names: Sequence[str], weights: Sequence[float]) -> None:
        self.class_names = tuple(class_names)
        normalized_weights(weights, len(self.class_names))  # raises for wrong ones
        self.weights = tuple(weights)
        self.reset()

    def reset(self) -> None:
        """Forget everything seen so far."""
        self.loss_sums = np.zeros(len(self.class_names), dtype=np.float64)
        self.counts = np.zeros(len(self.class_names), dtype=np.int64)
        self.image_count = 0

    def update(self, predictions: npt.ArrayLike, targets: npt.ArrayLike, image_ids: Sequence[str]) -> None:
        """Add a batch: probabilities (N, C), targets (N, C) in 0..1 or NaN, and the N images' ids. N may be 0.

        Raises WorkError, naming image and class, if a prediction is not finite; the batch then doesn't count. Raises
        ValueError if shapes don't agree or a value lies outside 0..1, which is the caller's fault.
        """
        values = np.asarray(predictions, dtype=np.float64)
        truth = np.asarray(targets, dtype=np.float64)
        self._check(values, truth, image_ids)
        self.loss_sums = self.loss_sums + np.nansum(binary_log_losses(values, truth), axis=0)
        self.counts = self.counts + (~np.isnan(truth)).sum(axis=0)
        self.image_count += len(values)

    def compute(self) -> dict[str, float]:
        """Return ``weighted_log_loss`` and ``log_loss/<class>``; ValueError without a label.

        A class without a label has no value, and so no key.
        """
        if not self.counts.any():
            raise ValueError("no labelled image was counted, so there is no log loss")
        per_class = self.loss_sums / np.maximum(self.counts, 1)
        named = {
            f"log_loss/{name}": float(value)
            for name, value, count in zip(self.class_names, per_class, self.counts, strict=True)
            if count
        }
        return {"weighted_log_loss": mean_of_cells(per_class, self.counts, self.weights), **named}

    def _check(self, values: Array, truth: Array, image_ids: Sequence[str]) -> None:
        expected = (len(image_ids), len(self.class_names))
        if values.shape != expected or truth.shape != expected:
            raise ValueError(
                f"predictions and targets of shape {expected} expected, got {values.shape} and {truth.shape}"
            )
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            raise WorkError(
                f"image {image_ids[row]}: the prediction for {self.class_names[column]} is {values[row, column]}; "
                "the model has diverged or the image is damaged (a lower --optim_lr helps against the first)"
            )
        if ((values < 0) | (values > 1)).any():
            raise ValueError("predictions must be probabilities in 0..1, not logits")
        if ((truth < 0) | (truth > 1)).any():
            raise ValueError("targets must lie in 0..1, or be NaN where a label is missing")
