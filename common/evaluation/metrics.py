"""Log losses, and a metric that is updated with batches and computed once over the whole set, all in float64.

The sums are divided only at the end, so that the value does not depend on the batches. Several processes can add up
their sums before one of them divides.
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


def probabilities(logits: npt.ArrayLike) -> Array:
    """Return the sigmoid of ``logits`` (any shape) as float64; no logit overflows, NaN stays NaN."""
    return np.asarray(expit(np.asarray(logits, dtype=np.float64)), dtype=np.float64)


def binary_log_losses(predictions: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """Return the binary log loss of every element, shape as given (the two shapes broadcast).

    ``predictions`` are probabilities and are clipped to [1e-15, 1 − 1e-15]; ``targets`` lie in 0..1.
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


def prevalences_of(targets: npt.ArrayLike) -> Array:
    """Return the share of positives in each column of ``targets`` (N, C), at least 0.5 / (N + 1) away from 0 and 1.

    A class without a case in N images can still occur, and its first case would cost 34 in log loss. N = 0 gives 0.5.
    """
    truth = np.asarray(targets, dtype=np.float64)
    margin = 0.5 / (len(truth) + 1)
    return np.clip(truth.sum(axis=0) / max(len(truth), 1), margin, 1 - margin)


def constant_predictor(prevalences: npt.ArrayLike, targets: npt.ArrayLike, weights: Sequence[float]) -> float:
    """Return the weighted log loss of predicting ``prevalences`` (C,) for every row of ``targets`` (N, C).

    A model that never looks at an image scores this, so every model has to beat it.
    """
    truth = np.asarray(targets, dtype=np.float64)
    constants = np.asarray(prevalences, dtype=np.float64)
    if truth.ndim != 2 or constants.shape != truth.shape[1:] or len(truth) == 0:
        raise ValueError(f"prevalences (C,) and targets (N, C) expected, got {constants.shape} and {truth.shape}")
    scale = normalized_weights(weights, len(constants))
    return float(scale @ binary_log_losses(constants, truth).mean(axis=0))


class WeightedLogLoss:
    """Weighted multi-label log loss, pooled over all images: Σ_c w_c · mean over images of the binary log loss.

    ``weights`` holds one number for each class (the competition's are 1, 1, 1, 1, 1, 2) and is divided by its sum.
    """

    def __init__(self, class_names: Sequence[str], weights: Sequence[float]) -> None:
        self.class_names = tuple(class_names)
        self.weights = normalized_weights(weights, len(self.class_names))
        self.reset()

    def reset(self) -> None:
        """Forget everything seen so far."""
        self.loss_sums = np.zeros(len(self.class_names), dtype=np.float64)
        self.image_count = 0

    def update(self, predictions: npt.ArrayLike, targets: npt.ArrayLike, image_ids: Sequence[str]) -> None:
        """Add a batch: probabilities (N, C), targets (N, C) in 0..1 and the N images' ids. N may be 0.

        Raises WorkError, naming image and class, if a prediction is not finite; the batch then doesn't count. Raises
        ValueError if shapes don't agree or a value lies outside 0..1, which is the caller's fault.
        """
        values = np.asarray(predictions, dtype=np.float64)
        truth = np.asarray(targets, dtype=np.float64)
        self._check(values, truth, image_ids)
        self.loss_sums = self.loss_sums + binary_log_losses(values, truth).sum(axis=0)
        self.image_count += len(values)

    def compute(self) -> dict[str, float]:
        """Return ``weighted_log_loss`` and ``log_loss/<class>`` of all images; ValueError without images."""
        if self.image_count == 0:
            raise ValueError("no image was counted, so there is no log loss")
        per_class = self.loss_sums / self.image_count
        named = {f"log_loss/{name}": float(value) for name, value in zip(self.class_names, per_class, strict=True)}
        return {"weighted_log_loss": float(self.weights @ per_class), **named}

    def sums(self) -> Array:
        """Return the state as float64 (C + 1,): each class's loss sum, then the number of images.

        The sums of several processes may be added element by element and given to :meth:`set_sums`.
        """
        return np.append(self.loss_sums, np.float64(self.image_count))

    def set_sums(self, sums: npt.ArrayLike) -> None:
        """Replace the state by ``sums`` (C + 1,), in the form of :meth:`sums`."""
        values = np.asarray(sums, dtype=np.float64)
        if values.shape != (len(self.class_names) + 1,):
            raise ValueError(f"{len(self.class_names) + 1} sums expected, got shape {values.shape}")
        self.loss_sums = values[:-1].copy()
        self.image_count = round(values[-1])

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
        if not ((truth >= 0) & (truth <= 1)).all():
            raise ValueError("targets must lie in 0..1")
