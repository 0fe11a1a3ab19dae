"""How a metric gets what each patient adds to it, and from that its interval: a class for each kind of metric.

A rule's ``samples`` is given all metrics of its class at once, because their bootstrap draws are made together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.evaluation import calibration
from common.evaluation.metrics import WEIGHTED, label_means, mean_of_cells
from common.evaluation.resampling import Array, Evidence, error_of

if TYPE_CHECKING:
    from common.evaluation.metric_table import Metric
    from common.evaluation.reader import ReaderStudy

UNSEEN = 1e-9  # of a difference: an interval of no more width than this


@dataclass
class Samples:
    """A metric of one label: its ``value``, the ``evidence``, who is behind it, and what they add to it.

    ``parts`` (P,): how far the value moves with each patient's weight, centred on 0. ``rest`` (D,): what each bootstrap
    draw has beyond the value and its patients' parts; None of a mean, which has no more. Without ``parts`` it is all.
    ``scale``: of a mean's interval, see :func:`common.evaluation.resampling.student_interval`. ``error``: what binning
    the scores did to the value. ``own_ends``: the interval of a metric that makes its own.
    ``left_out`` (P,): how far the value moves where each patient is left out, of a metric whose interval is made of it.
    """

    value: float
    evidence: Evidence
    parts: Array | None
    rest: Array | None = None
    scale: str = "share"
    error: float = 0.0
    own_ends: tuple[float, float] | None = None
    left_out: Array | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The 95 % interval; NaN where the evidence has a reason for none."""
        if self.own_ends is not None:
            return self.own_ends
        if self.left_out is not None:
            return self.evidence.jackknife_interval(self.value, self.left_out)
        if self.parts is None:
            return self.evidence.interval(self.value, error_of(self.rest), self.evidence.freedom, self.scale)
        if self.rest is None:
            return self.evidence.mean_interval(self.value, self.parts, self.scale)
        return self.evidence.rank_interval(self.value, self.parts)

    def change_ends(self, other: Samples) -> tuple[float, float]:
        """Return the 95 % interval of this value minus that of ``other``, of the same draws of the same patients."""
        change, evidence = self.value - other.value, self.evidence
        if self.parts is None or other.parts is None:
            return evidence.interval(change, error_of(self.rest - other.rest), evidence.freedom)
        parts = self.parts - other.parts
        if self.rest is None or other.rest is None:
            return evidence.mean_interval(change, parts)
        low, high = evidence.change_interval(change, parts, self.rest - other.rest)
        if change and high - low <= UNSEEN * abs(change):
            # Each patient moves both values alike, as where one model is perfect and the other constant. No error can
            # be seen in the difference, so the two values' own intervals bound it: Zou and Donner 2008, equation 4.
            (first_low, first_high), (second_low, second_high) = self.ends, other.ends
            low = change - np.hypot(self.value - first_low, second_high - other.value)
            high = change + np.hypot(first_high - self.value, other.value - second_low)
        return float(low), float(high)


SamplesByLabel = dict[str, Samples]  # the labels, then ``weighted``


class IntervalRule(Protocol):
    """Gives the samples of each label, and of ``weighted``, their weighted mean."""

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """Return by the metrics' names their samples; all ``metrics`` have rules of this class."""


@dataclass(frozen=True)
class MeanRule:
    """Of a mean over images: the metric's function gives each element's part of it, shape as given.

    ``scale``: on which the interval is Student's; plain, log (above 0) or share (0 to 1).
    """

    scale: str

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """See :class:`IntervalRule`."""
        weights = np.column_stack([study.known, study.known @ study.scale])  # of an image in each label's mean
        total = np.maximum(weights.sum(axis=0), np.finfo(np.float64).tiny)
        counted = study.bootstrap.by_patient(weights) / total
        found: dict[str, SamplesByLabel] = {}
        for metric in metrics:
            each = np.where(study.known, metric.function(study.predictions, study.targets), np.nan)
            means = label_means(each)
            values = (*means, mean_of_cells(means, study.cells, study.weights))
            each = np.where(study.known, each, 0)
            sums = study.bootstrap.by_patient(np.column_stack([each, each @ study.scale])) / total
            parts = (sums - counted * values).T
            found[metric.name] = {
                key: Samples(float(value), study.evidence[key], part, scale=metric.interval.scale)
                for key, value, part in zip(study.evidence, values, parts, strict=True)
            }
        return found


@dataclass(frozen=True)
class RankingRule:
    """Of the scores' order, between 0 and 1: the metric's function gives one label's value, NaN for a single class.

    ``binned``: the same of histograms (D, B) of positive and of other scores, for the draws. ``slopes``: by how much
    that of two histograms (B,) grows with one more score in each bin; both are in ``binned.py``. Without slopes, of a
    metric that moves by jumps, the error is the draws' deviation. ``jackknife``: an interval's error comes from the
    metric without each patient in turn.
    """

    binned: Callable[[Array, Array], Array]
    slopes: Callable[[Array, Array], tuple[Array, Array]] | None = None
    jackknife: bool = False

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """See :class:`IntervalRule`."""
        found: dict[str, SamplesByLabel] = {metric.name: {} for metric in metrics}
        for name, scores, truth, sides, drawn in study.histograms():
            whole = [side.sum(axis=0) for side in sides]
            both = 0 < truth.sum() < len(truth)
            for metric in metrics:
                value = float(metric.function(scores, truth)) if both else float("nan")
                near = float(metric.interval.binned(*(side[None] for side in whole))[0])
                item = Samples(value, study.evidence[name], None, metric.interval.binned(*drawn) - near)
                item.error = abs(near - value)
                if metric.interval.slopes is not None:
                    slopes = metric.interval.slopes(*whole) if both else [np.full(len(side), np.nan) for side in whole]
                    item.parts, linear = (_added(of, slopes) for of in (sides, drawn))
                    item.rest -= linear
                if metric.interval.jackknife:
                    moved = metric.interval.binned(*(all_of - side for all_of, side in zip(whole, sides, strict=True)))
                    item.left_out = np.nan_to_num(moved - near)  # no interval is made where one patient is a whole side
                found[metric.name][name] = item
        for metric in metrics:
            labels = list(found[metric.name].values())
            # Divided last, so that ones are one exactly: only there is an error that nobody sees not taken as none.
            value = float(np.average([item.value for item in labels], weights=study.weights))
            parts = None if metric.interval.slopes is None else _weighted([item.parts for item in labels], study.scale)
            rest = _weighted([item.rest for item in labels], study.scale)
            error = max(item.error for item in labels)
            left_out = _weighted([item.left_out for item in labels], study.scale) if metric.interval.jackknife else None
            found[metric.name][WEIGHTED] = Samples(value, study.fewest, parts, rest, error=error, left_out=left_out)
        return found


def _added(sides: Sequence[Array], slopes: Sequence[Array]) -> Array:
    """Return what histograms of both sides (R, B) add to a metric (R,)."""
    return sides[0] @ slopes[0] + sides[1] @ slopes[1]


def _weighted(arrays: Sequence[Array], scale: Array) -> Array:
    return np.stack(arrays, axis=1) @ scale


@dataclass(frozen=True)
class CalibrationRule:
    """Of the calibration error, whose interval is a test turned round (``calibration.py``)."""

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """See :class:`IntervalRule`."""
        bins = [_deviations(study, column) for column in range(len(study.names))]
        found: dict[str, SamplesByLabel] = {}
        for metric in metrics:
            values = [metric.function(*study.labelled(c)) if study.cells[c] else float("nan") for c in range(len(bins))]
            found[metric.name] = {
                name: _calibration([bins[c]], [1.0], values[c], study.evidence[name])
                for c, name in enumerate(study.names)
            }
            weighted = float(study.scale @ values)
            found[metric.name][WEIGHTED] = _calibration(bins, study.scale, weighted, study.fewest)
        return found


def _deviations(study: ReaderStudy, column: int) -> tuple[Array, ...]:
    """Return each bin's share of predictions minus targets: of the whole set (B,), of the draws (D, B).

    Third and fourth, what each patient adds to the share (P, B), and the sum of that over each draw's patients (D, B).
    """
    known, scores = study.known[:, column], study.predictions[:, column]
    place = calibration.bin_of(scores)
    columns = (known, np.where(known, scores - study.targets[:, column], 0))
    total = max(study.cells[column], 1)
    counts, sums = (study.bootstrap.histograms(place, each, calibration.BINS) / total for each in columns)
    whole = sums.sum(axis=0)
    parts = sums - counts.sum(axis=1, keepdims=True) * whole
    images, drawn, linear = study.drawn((counts, sums, parts))
    with np.errstate(invalid="ignore"):  # a draw without a labelled image
        return whole, drawn / images.sum(axis=1, keepdims=True), parts, linear


def _calibration(
    deviations: Sequence[tuple[Array, ...]], scale: Sequence[float] | Array, value: float, evidence: Evidence
) -> Samples:
    """Return the calibration error of labels that are weighted by ``scale``, from their bins' deviations."""
    whole, drawn, parts, linear = (
        np.concatenate([weight * part for weight, part in zip(scale, of, strict=True)], axis=-1)
        for of in zip(*deviations, strict=True)
    )
    sign = np.sign(whole)
    item = Samples(value, evidence, parts @ sign, np.abs(drawn).sum(axis=1) - value - linear @ sign)
    if not evidence.reason:
        low, high = calibration.calibration_error_interval(whole, drawn, evidence.freedom_of(parts @ sign))
        item.own_ends = (min(low, value), max(high, value))  # they are of the same sum, rounded otherwise
    return item
