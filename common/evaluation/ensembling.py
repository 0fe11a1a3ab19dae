"""Average the predictions of several models, after aligning them by row name.

A frame of predictions holds float64 probabilities: a row for each image (the index), a column for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import rankdata

from common.cli.choices import choose, load
from common.errors import UsageError, WorkError
from common.evaluation.ensemble_choices import METHODS

Array = npt.NDArray[np.float64]

# About the smallest step of a float32 sigmoid below 1. Closer to 0 or 1 a model's number means nothing, and one
# member's exact 0 would otherwise outvote all others in a mean of logits.
LOGIT_CLIP = 1e-7
EXAMPLES = 3


@dataclass(frozen=True)
class Link:
    """A generalized mean: ``inverse`` of the weighted arithmetic mean of ``forward``.

    ``forward`` maps probabilities (..., images, classes) to the values that are averaged, such as logits. ``inverse``
    maps the average back to probabilities. ``slope`` is the derivative of ``inverse``.
    """

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]


def clipped_logits(values: npt.ArrayLike) -> Array:
    """Return the logits of probabilities, which are clipped to [1e-7, 1 − 1e-7]."""
    return logit(np.clip(np.asarray(values, dtype=np.float64), LOGIT_CLIP, 1.0 - LOGIT_CLIP))


def arithmetic(_: float) -> Link:
    """The mean."""
    return Link(np.asarray, np.asarray, np.ones_like)


def of_logits(_: float) -> Link:
    """The mean of the logits, clipped."""
    return Link(clipped_logits, expit, lambda mean: expit(mean) * expit(-mean))


def of_powers(power: float) -> Link:
    """The power mean."""
    # A mean of 0 stays 0; the slope there would be infinite for a power above 1.
    return Link(
        lambda values: values**power,
        lambda mean: mean ** (1 / power),
        lambda mean: np.maximum(mean, 1e-300) ** (1 / power - 1) / power,
    )


def of_ranks(_: float) -> Link:
    """The mean of the ranks within a member and class."""
    return Link(lambda values: rankdata(values, axis=-2) / values.shape[-2], np.asarray, np.ones_like)


def build_link(method: str, power: float | None = None) -> Link:
    """Return the link of a name in :data:`METHODS`; UsageError for another, or a power that is missing or unused.

    The power mean is (Σ w p^power)^(1/power) for a power above 0. A power of 1 gives the mean; a larger one comes
    nearer to the highest value. Ranks are taken within each member and class and scaled to (0, 1]; ties share their
    mean. Ranks suit AUROC, and have a bad log loss until they are calibrated.
    """
    row = choose("ens_method", method, METHODS)
    if row.has_power != (power is not None):
        what = "needs --ens_power, as in 0.5 or 3" if row.has_power else "has no --ens_power; only power has"
        raise UsageError(f"--ens_method={method} {what}")
    return load(row.path)(power or 1.0)


def weighted_mean(linked: Array, weights: Array, link: Link) -> Array:
    """Return probabilities (images, classes) from members after ``link.forward`` (members, images, classes).

    ``weights`` are of the members (members,) or of each class's members (members, classes), and sum to 1.
    """
    by_class = weights.ndim == 2
    mean = np.einsum("mc,mnc->nc", weights, linked) if by_class else np.tensordot(weights, linked, axes=1)
    # Rounded weights can sum to 1 + 2e-16, and the mean of ones then lies above 1.
    return np.clip(link.inverse(mean), 0.0, 1.0)


def align(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the frames with the rows and columns in the order of the first one.

    Raises WorkError, naming both files, if a frame has a row twice, or other columns or rows than the first (with
    counts and up to three ids). Raises WorkError also if a cell is empty or no probability.
    """
    if not frames:
        raise ValueError("no frame was given")
    for name, frame in frames.items():
        _check_frame(name, frame)
    first_name, first = next(iter(frames.items()))
    return {name: _align_to(name, frame, first_name, first) for name, frame in frames.items()}


def stacked(frames: Mapping[str, pd.DataFrame]) -> Array:
    """Return aligned frames as one array (members, images, classes)."""
    return np.stack([frame.to_numpy(dtype=np.float64) for frame in frames.values()])


def combine(
    frames: Mapping[str, pd.DataFrame], weights: npt.ArrayLike, method: str, power: float | None = None
) -> pd.DataFrame:
    """Align ``frames`` and return their weighted average by ``method`` and ``power`` (see :func:`build_link`).

    ``weights`` (frames,) or (frames, columns of the first) are divided by their sum. Raises UsageError for an unknown
    method, and for weights that are not one for each frame, finite, at least 0 and not all 0. Raises WorkError as
    :func:`align` does.
    """
    link = build_link(method, power)
    scale = scaled_weights(weights, len(frames))
    aligned = align(frames)
    first = next(iter(aligned.values()))
    values = weighted_mean(link.forward(stacked(aligned)), scale, link)
    return pd.DataFrame(values, index=first.index, columns=first.columns)


def scaled_weights(weights: npt.ArrayLike, count: int) -> Array:
    """Return ``weights`` (members,) or (members, classes) divided by their sum; UsageError as :func:`combine`."""
    values = np.asarray(weights, dtype=np.float64)
    if values.shape[:1] != (count,):
        raise UsageError(f"--weights: {len(values)} given for {count} members; give one for each member")
    totals = values.sum(axis=0)
    if not np.isfinite(values).all() or (values < 0).any() or (totals <= 0).any():
        typed = ",".join(f"{value:g}" for value in values.ravel())
        raise UsageError(f"--weights={typed}: must be at least 0 and not all 0")
    return values / totals


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
