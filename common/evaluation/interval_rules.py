"""How a metric gets its bootstrap draws over patients, and from these its interval: a class for each kind of metric.

A rule's ``samples`` is given all metrics of its class at once, because their draws are made together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.evaluation import calibration
from common.evaluation.metrics import WEIGHTED
from common.evaluation.resampling import Array, Evidence, interval

if TYPE_CHECKING:
    from common.evaluation.metric_table import Metric
    from common.evaluation.reader import ReaderStudy


@dataclass
class Samples:
    """A metric of one label: its ``value``, its ``draws`` (D,) and the ``evidence``, who is behind it.

    ``scale``, ``freedom`` and ``widened`` are those of :func:`common.evaluation.resampling.interval`. ``error``: what
    binning the scores did to the value. ``parts``: of a mean, what each patient adds to it, centred on 0 (P,).
    ``own_ends``: the interval of a metric that has no scale for one.
    """

    value: float
    draws: Array
    evidence: Evidence
    scale: str = "plain"
    freedom: float | None = None
    widened: float = 1.0
    error: float = 0.0
    parts: Array | None = None
    own_ends: tuple[float, float] | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The 95 % interval; NaN where the evidence has a reason for none."""
        if self.own_ends is not None:
            return self.own_ends
        return interval(self.value, self.draws, self.evidence, self.scale, self.freedom, self.widened)


SamplesByLabel = dict[str, Samples]  # the labels, then ``weighted``


class IntervalRule(Protocol):
    """Gives value and draws of each label, and of ``weighted``, their weighted mean."""

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """Return by the metrics' names their samples; all ``metrics`` have rules of this class."""


@dataclass(frozen=True)
class MeanRule:
    """Of a mean over images: the metric's function gives each element's part of it, shape as given.

    ``scale``: on which the interval is Student's; plain, log (above 0) or logit (0 to 1).
    """

    scale: str

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """See :class:`IntervalRule`."""
        elements = [metric.function(study.predictions, study.targets) for metric in metrics]
        columns = [np.ones(len(study.targets)), *(part for each in elements for part in (each, each @ study.scale))]
        sums = study.bootstrap.by_patient(np.column_stack(columns))
        totals = study.bootstrap.totals(sums)
        draws = iter((totals[:, 1:] / totals[:, :1]).T)
        added = iter(sums.T[1:])
        found: dict[str, SamplesByLabel] = {}
        for metric, each in zip(metrics, elements, strict=True):
            means = each.mean(axis=0)
            found[metric.name] = {}
            for key, mean in zip(study.evidence, (*means, study.scale @ means), strict=True):
                parts = next(added) - sums[:, 0] * mean
                evidence, freedom = study.evidence[key], study.freedom(key, parts)
                item = Samples(float(mean), next(draws), evidence, metric.interval.scale, freedom, parts=parts)
                found[metric.name][key] = item
        return found


@dataclass(frozen=True)
class RankingRule:
    """Of the scores' order, between 0 and 1: the metric's function gives one label's value, NaN for a single class.

    ``binned``: the same of histograms (D, B) of positive and of other scores, for the draws (``binned.py``).
    ``widened``: what the draws' error is multiplied by, from the evidence's effective number of patients.
    """

    binned: Callable[[Array, Array], Array]
    widened: Callable[[float], Array | float] = lambda effective: 1.0

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """See :class:`IntervalRule`."""
        found: dict[str, SamplesByLabel] = {metric.name: {} for metric in metrics}
        for name, scores, truth, whole, drawn in study.histograms():
            for metric in metrics:
                value = float(metric.function(scores, truth)) if 0 < truth.sum() < len(truth) else float("nan")
                binned = metric.interval.binned
                item = Samples(value, binned(*drawn), study.evidence[name], "logit", study.evidence[name].freedom)
                item.error = abs(float(binned(*whole)[0]) - value)
                found[metric.name][name] = item
        for metric in metrics:
            labels = found[metric.name]
            draws = np.stack([item.draws for item in labels.values()], axis=1) @ study.scale
            value = float(study.scale @ [item.value for item in labels.values()])
            labels[WEIGHTED] = Samples(value, draws, study.fewest, "logit", min(i.freedom for i in labels.values()))
            labels[WEIGHTED].error = max(item.error for item in labels.values())
            for item in labels.values():
                item.widened = float(metric.interval.widened(item.evidence.effective))
        return found


@dataclass(frozen=True)
class CalibrationRule:
    """Of the calibration error, whose interval is a test turned round (``calibration.py``)."""

    @staticmethod
    def samples(metrics: Sequence[Metric], study: ReaderStudy) -> dict[str, SamplesByLabel]:
        """See :class:`IntervalRule`."""
        bins = [_deviations(study, column) for column in range(len(study.names))]
        found: dict[str, SamplesByLabel] = {}
        for metric in metrics:
            values = [metric.function(study.predictions[:, c], study.targets[:, c]) for c in range(len(bins))]
            found[metric.name] = {
                name: _calibration([bins[c]], [1.0], values[c], study.evidence[name])
                for c, name in enumerate(study.names)
            }
            weighted = float(study.scale @ values)
            found[metric.name][WEIGHTED] = _calibration(bins, study.scale, weighted, study.fewest)
        return found


def _deviations(study: ReaderStudy, column: int) -> tuple[Array, Array]:
    """Return each bin's share of predictions minus targets: of the whole set (B,), of the draws (D, B)."""
    scores, truth = study.predictions[:, column], study.targets[:, column]
    place = calibration.bin_of(scores)
    columns = (np.ones(len(truth)), scores - truth)
    sums = [study.bootstrap.histograms(place, column, calibration.BINS) for column in columns]
    counts, deviations = study.drawn(sums)
    return sums[1].sum(axis=0) / len(truth), deviations / counts.sum(axis=1, keepdims=True)


def _calibration(
    deviations: Sequence[tuple[Array, Array]], scale: Sequence[float] | Array, value: float, evidence: Evidence
) -> Samples:
    """Return the calibration error of labels that are weighted by ``scale``, from their bins' deviations."""
    whole = np.concatenate([weight * part for weight, (part, _) in zip(scale, deviations, strict=True)])
    drawn = np.hstack([weight * part for weight, (_, part) in zip(scale, deviations, strict=True)])
    item = Samples(value, np.abs(drawn).sum(axis=1), evidence, freedom=evidence.freedom)
    if not evidence.reason:
        low, high = calibration.calibration_error_interval(whole, drawn, evidence.freedom)
        item.own_ends = (min(low, value), max(high, value))  # they are of the same sum, rounded otherwise
    return item
