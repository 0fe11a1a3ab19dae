"""Puts predictions of several models together: aligned by row name first, then averaged.

A frame of predictions has one row for each image (its index), one column for each class, and probabilities as float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import rankdata

from common.errors import UsageError, WorkError, nearest

Array = npt.NDArray[np.float64]

# The smallest step that a float32 sigmoid takes below 1: nearer to 0 or 1 a model's number says nothing, and one
# member's exact 0 would otherwise outvote all others in a mean of logits.
LOGIT_CLIP = 1e-7
EXAMPLES = 3


@dataclass(frozen=True)
class EnsembleRow:
    """One way to put predictions together: (members, images, classes) and weights (members,) that sum to 1."""

    name: str
    summary: str
    combine: Callable[[Array, Array], Array]


def mean_of_probabilities(stack: Array, weights: Array) -> Array:
    """Return the weighted arithmetic mean over the members."""
    return np.tensordot(weights, stack, axes=1)


def mean_of_logits(stack: Array, weights: Array) -> Array:
    """Return the sigmoid of the weighted mean of the logits, probabilities clipped to [1e-7, 1 − 1e-7] before."""
    return expit(np.tensordot(weights, logit(np.clip(stack, LOGIT_CLIP, 1.0 - LOGIT_CLIP)), axes=1))


def mean_of_ranks(stack: Array, weights: Array) -> Array:
    """Return the weighted mean of the ranks within each member and class, scaled to (0, 1]; ties share their mean.

    These are no probabilities: they suit AUROC, and score badly in log loss until they are calibrated.
    """
    return np.tensordot(weights, rankdata(stack, axis=1) / stack.shape[1], axes=1)


METHODS: dict[str, EnsembleRow] = {
    row.name: row
    for row in (
        EnsembleRow("mean", "mean of the probabilities", mean_of_probabilities),
        EnsembleRow("logit", "sigmoid of the mean of the logits", mean_of_logits),
        EnsembleRow("rank", "mean of the ranks within a label, not calibrated probabilities", mean_of_ranks),
    )
}


def align(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the frames with the rows and columns in the order of the first one.

    Raises WorkError, naming both files, where a frame has other columns than the first, a row twice, or not exactly
    its rows (with the counts and up to three of the ids); also where a cell is empty or no probability.
    """
    if not frames:
        raise ValueError("no frame was given")
    for name, frame in frames.items():
        _check_frame(name, frame)
    first_name, first = next(iter(frames.items()))
    return {name: _align_to(name, frame, first_name, first) for name, frame in frames.items()}


def combine(frames: Mapping[str, pd.DataFrame], weights: Sequence[float], method: str) -> pd.DataFrame:
    """Align ``frames`` and return their weighted average by ``method`` (a name in :data:`METHODS`).

    ``weights`` has one number for each frame and is divided by its sum. Raises UsageError for an unknown method, and
    for weights that are not one for each file, finite, at least 0 and not all 0; WorkError as :func:`align` does.
    """
    if method not in METHODS:
        raise UsageError(f"--ens_method={method}: choose from {', '.join(METHODS)}{nearest(method, METHODS)}")
    scale = _scaled_weights(weights, len(frames))
    aligned = align(frames)
    first = next(iter(aligned.values()))
    stack = np.stack([frame.to_numpy(dtype=np.float64) for frame in aligned.values()])
    # A sum of weights can be 1 + 2e-16, and a mean of ones then lies above 1.
    values = np.clip(METHODS[method].combine(stack, scale), 0.0, 1.0)
    return pd.DataFrame(values, index=first.index, columns=first.columns)


def _scaled_weights(weights: Sequence[float], count: int) -> Array:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (count,):
        raise UsageError(f"--weights: {values.size} given for {count} files; give one for each file")
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise UsageError(f"--weights={','.join(f'{value:g}' for value in values)}: must be at least 0 and not all 0")
    return values / values.sum()


def _check_frame(name: str, frame: pd.DataFrame) -> None:
    if len(frame) == 0:
        raise WorkError(f"{name}: has no rows")
    twice = frame.index[frame.index.duplicated()]
    if len(twice):
        raise WorkError(f"{name}: row {twice[0]} stands there more than once")
    values = frame.to_numpy(dtype=np.float64)
    wrong = np.argwhere(~((values >= 0) & (values <= 1)))  # NaN fails both comparisons
    if len(wrong):
        row, column = wrong[0]
        value = values[row, column]
        found = "empty or not a number" if np.isnan(value) else f"{value:g}, not a probability in 0..1"
        raise WorkError(f"{name}: row {frame.index[row]}, label {frame.columns[column]}: {found}")


def _align_to(name: str, frame: pd.DataFrame, first_name: str, first: pd.DataFrame) -> pd.DataFrame:
    if sorted(frame.columns) != sorted(first.columns):
        raise WorkError(
            f"{name} has the labels {', '.join(frame.columns)}; {first_name} has {', '.join(first.columns)}"
        )
    missing = first.index.difference(frame.index)
    extra = frame.index.difference(first.index)
    if len(missing) or len(extra):
        parts = [
            f"{len(ids)} rows only in {owner} ({', '.join(map(str, ids[:EXAMPLES]))})"
            for ids, owner in ((missing, first_name), (extra, name))
            if len(ids)
        ]
        raise WorkError(
            f"{name} ({len(frame)} rows) and {first_name} ({len(first)} rows) don't cover the same rows: "
            f"{'; '.join(parts)}"
        )
    return frame.reindex(index=first.index, columns=first.columns)
