"""DeLong's test for the AUROCs of two models on the same cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DeLong:
    """Both areas, the standard error of their difference ``first - second``, and the two-sided p-value."""

    first: float
    second: float
    standard_error: float
    p_value: float


def delong_test(first: npt.ArrayLike, second: npt.ArrayLike, targets: npt.ArrayLike) -> DeLong:
    """Compare the AUROCs of two scores (N,) for the same N independent cases; ``targets`` are 0 or 1.

    DeLong, DeLong and Clarke-Pearson 1988, by ranks (Sun and Xu 2014). The cases must be independent: patients or
    studies, never slices. Raises ValueError where there are fewer than two cases of a side.
    """
    truth = np.asarray(targets) == 1
    if min(truth.sum(), (~truth).sum()) < 2:
        raise ValueError("two positive and two negative cases are needed at least")
    scores = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    positive, negative = scores[:, truth], scores[:, ~truth]
    areas, by_positive, by_negative = [], [], []
    for own, other in zip(positive, negative, strict=True):
        ranks = rankdata(np.concatenate([own, other]))
        above = (ranks[: len(own)] - rankdata(own)) / len(other)  # the share of negatives that each positive beats
        below = 1 - (ranks[len(own) :] - rankdata(other)) / len(own)
        areas.append(above.mean())
        by_positive.append(above)
        by_negative.append(below)
    covariance = np.cov(by_positive) / positive.shape[1] + np.cov(by_negative) / negative.shape[1]
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error = float(np.sqrt(max(variance, 0.0)))
    difference = areas[0] - areas[1]
    p_value = 1.0 if difference == 0 else 0.0 if error == 0 else float(2 * norm.sf(abs(difference) / error))
    return DeLong(float(areas[0]), float(areas[1]), error, p_value)
