"""Ranking metrics from histograms of scores.

AUROC, average precision and operating points need sorted scores, and sorting them for each bootstrap draw takes long.
Histograms simply add up over patients. Scores in one bin count as equal. The error that this makes is measured on the
whole set and reported beside the metric.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BINS = 500


def bin_scores(scores: npt.ArrayLike, positive: npt.NDArray[np.bool_], bins: int = BINS) -> npt.NDArray[np.int64]:
    """Return the bin of each of ``scores`` (N,): higher scores lie in higher bins, from 0 to at most ``bins`` - 1.

    With no more different scores than bins, each has its own bin and nothing is lost. Otherwise the limits are
    quantiles: half of them of the positive scores, half of the others. So the few positives of a rare label are told
    apart as well as the many negatives.
    """
    values = np.asarray(scores, dtype=np.float64)
    different, place = np.unique(values, return_inverse=True)
    if len(different) <= bins:
        return place
    limits: list[Array] = []
    for side in (values[positive], values[~positive]):
        if len(side):
            limits.append(np.quantile(side, np.linspace(0, 1, bins // 2), method="lower"))
    edges = np.unique(np.concatenate(limits))[1:]
    return np.searchsorted(edges, values, side="right")


def auroc(positives: Array, negatives: Array) -> Array:
    """Return the area under the ROC curve of D histograms (D, B) of either side; NaN if a side is empty.

    It is the share of pairs (positive, negative) in the right order; ties count half (Hanley and McNeil 1982).
    """
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positives * (below + negatives / 2)).sum(axis=1) / pairs


def auroc_slopes(positives: Array, negatives: Array) -> tuple[Array, Array]:
    """Return by how much :func:`auroc` of histograms (B,) grows with one more score in each bin, for either side."""
    area = auroc(positives[None], negatives[None])
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = 1 - (np.cumsum(positives) - positives / 2) / positives.sum()
    return (below - area) / positives.sum(), (above - area) / negatives.sum()


def average_precision(positives: Array, negatives: Array) -> Array:
    """Return Σ (R_k − R_{k−1}) P_k over falling thresholds, as scikit-learn does; NaN without positives."""
    found = np.cumsum(positives[:, ::-1], axis=1)
    flagged = found + np.cumsum(negatives[:, ::-1], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(flagged > 0, found / flagged, 0.0)
        return (positives[:, ::-1] * precision).sum(axis=1) / positives.sum(axis=1)


def average_precision_slopes(positives: Array, negatives: Array) -> tuple[Array, Array]:
    """Return :func:`average_precision`'s slopes (see :func:`auroc_slopes`); a score counts at all thresholds below."""
    value, total = average_precision(positives[None], negatives[None]), positives.sum()
    found = np.cumsum(positives[::-1])[::-1]
    flagged = np.maximum(found + np.cumsum(negatives[::-1])[::-1], 1)
    precision, weight = found / flagged, positives / flagged / total
    lost = np.cumsum(weight * precision)
    return (precision - value) / total + np.cumsum(weight) - lost, -lost


def sensitivity_at(positives: Array, negatives: Array, specificity: float) -> Array:
    """Return the highest sensitivity of a threshold with at least that specificity; NaN if a side is empty."""
    return _best_share(positives, negatives, specificity)


def specificity_at(positives: Array, negatives: Array, sensitivity: float) -> Array:
    """Return the highest specificity of a threshold with at least that sensitivity; NaN if a side is empty."""
    return _best_share(negatives[:, ::-1], positives[:, ::-1], sensitivity)


def _best_share(wanted: Array, unwanted: Array, spared: float) -> Array:
    """Return the largest share of ``wanted`` above a threshold that has at least ``spared`` of ``unwanted`` below."""
    total = unwanted.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        above = np.cumsum(unwanted[:, ::-1], axis=1) / total
        share = np.cumsum(wanted[:, ::-1], axis=1) / wanted.sum(axis=1, keepdims=True)
    allowed = above <= 1 - spared + 1e-12
    best = np.where(allowed, share, 0.0).max(axis=1)
    empty = (total[:, 0] == 0) | (wanted.sum(axis=1) == 0)
    return np.where(empty, np.nan, best)
