"""The tables of an evaluation: each metric with its interval over patients, as reader studies report it.

Everywhere ``predictions`` are probabilities (N, C), ``targets`` 0 or 1 (N, C), ``patients`` (N,) and ``weights`` (C,).
The row or key ``weighted`` averages the labels with ``weights``. A target that is NaN is a missing label: each label is
judged by the images that have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.evaluation import binned, calibration
from common.evaluation.delong import delong_test
from common.evaluation.ensemble_choices import MAPS
from common.evaluation.interval_rules import IntervalRule, SamplesByLabel
from common.evaluation.metric_table import METRICS, Metric
from common.evaluation.metrics import WEIGHTED, binary_log_losses, mean_of_cells, normalized_weights
from common.evaluation.resampling import (
    Array,
    Evidence,
    PatientBootstrap,
    error_of,
    mean_interval,
    verdict,
)

SHARES = (0.90, 0.95)  # specificities and sensitivities of the operating points
PROBABILITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # thresholds of the decision curve
FIXED = {"specificity": binned.sensitivity_at, "sensitivity": binned.specificity_at}


@dataclass
class ReaderStudy:
    """Predictions with their labels and patients; computes each label's samples of every metric once.

    ``known`` (N, C): which labels are there. ``cells`` (C,): how many of each label.
    ``evidence``: the patients behind each label, and behind ``weighted``, where any positive label counts.
    ``fewest``: the evidence of the label with the fewest; a weighted mean of the labels' own values rests on it.
    """

    predictions: Array
    targets: Array
    bootstrap: PatientBootstrap
    names: Sequence[str]
    weights: Sequence[float]
    samples: dict[str, SamplesByLabel] = field(init=False)
    evidence: dict[str, Evidence] = field(init=False)

    def __post_init__(self) -> None:
        self.scale = normalized_weights(self.weights, len(self.names))
        self.known = ~np.isnan(self.targets)
        self.cells = self.known.sum(axis=0)
        keys = (*self.names, WEIGHTED)
        truth, known = (np.column_stack([cells, cells.any(axis=1)]).T for cells in (self.targets == 1, self.known))
        self.evidence = {key: self.bootstrap.evidence(truth[c], known[c]) for c, key in enumerate(keys)}
        self.fewest = min(
            (self.evidence[name] for name in self.names), key=lambda item: (not item.reason, item.effective)
        )
        self.point_draws: dict[tuple[str, str, float], Array] = {}
        by_rule: dict[type[IntervalRule], list[Metric]] = {}
        for metric in METRICS.values():
            by_rule.setdefault(type(metric.interval), []).append(metric)
        found = {
            name: by_label
            for rule, metrics in by_rule.items()
            for name, by_label in rule.samples(metrics, self).items()
        }
        self.samples = {name: found[name] for name in METRICS}

    def labelled(self, column: int) -> tuple[Array, Array]:
        """Return predictions and targets (n,) of the images that have the label."""
        rows = self.known[:, column]
        return self.predictions[rows, column], self.targets[rows, column]

    def histograms(self) -> Iterator[tuple[str, Array, Array, list[Array], tuple[Array, ...]]]:
        """Yield each label's name, scores and targets (n,), and histograms of positive and of other scores.

        There are histograms of each patient (P, B) and of each draw (D, B). Drawing takes longest, so the values that
        the operating points need are kept on the way.
        """
        for column, name in enumerate(self.names):
            (scores, truth), known = self.labelled(column), self.known[:, column]
            place = np.zeros(len(known), dtype=np.int64)
            if len(truth):
                place[known] = binned.bin_scores(scores, truth == 1)
            positive = self.targets[:, column] == 1
            sides = [
                self.bootstrap.histograms(place, side, int(place.max()) + 1) for side in (positive, known & ~positive)
            ]
            drawn = self.drawn(sides)
            for fixed, function in FIXED.items():
                self.point_draws |= {(name, fixed, share): function(*drawn, share) for share in SHARES}
            yield name, scores, truth, sides, drawn

    def drawn(self, sums: Sequence[Array]) -> tuple[Array, ...]:
        """Return the draws' totals of several sums over patients (patients, B), all from the same draw."""
        return tuple(np.hsplit(self.bootstrap.totals(np.hstack(sums)), len(sums)))

    def intervals(self) -> pd.DataFrame:
        """Return a row for each label and ``weighted``: each metric, its ``…_low`` and ``…_high`` over patients.

        Columns also: ``patients``, ``positive_patients``, and ``no_interval``, the reason why a mean has none.
        """
        rows: dict[str, dict[str, Any]] = {}
        for metric, by_label in self.samples.items():
            for name, item in by_label.items():
                low, high = item.ends
                rows.setdefault(name, {}).update({metric: item.value, f"{metric}_low": low, f"{metric}_high": high})
        for name, item in self.evidence.items():
            rows[name] |= {"patients": item.patients, "positive_patients": item.positive, "no_interval": item.reason}
        return pd.DataFrame.from_dict(rows, orient="index").loc[[*self.names, WEIGHTED]].rename_axis("label")

    def binning_errors(self) -> dict[str, float]:
        """Return by metric the largest difference between binned and exact value over the labels."""
        errors = {metric: [by_label[name].error for name in self.names] for metric, by_label in self.samples.items()}
        return {metric: float(np.nanmax(found)) for metric, found in errors.items() if not np.isnan(found).all()}

    def operating_points(self) -> pd.DataFrame:
        """Return sensitivity at given specificities and the reverse, with thresholds and intervals.

        Columns: ``label``, ``fixed`` (specificity or sensitivity), ``at``, ``threshold`` (an image counts as positive
        at or above it), ``value`` of the other one, ``low``, ``high``. A label needs both classes for a row.
        """
        rows = []
        for column, name in enumerate(self.names):
            scores, truth = self.labelled(column)
            truth = truth == 1
            if truth.all() or not truth.any():
                continue
            for fixed in FIXED:
                for share in SHARES:
                    threshold, value = _operating_point(scores, truth, fixed, share)
                    error, evidence = error_of(self.point_draws[name, fixed, share]), self.evidence[name]
                    low, high = evidence.interval(value, error, evidence.freedom, "share")
                    rows.append((name, fixed, share, threshold, value, low, high))
        return pd.DataFrame(rows, columns=["label", "fixed", "at", "threshold", "value", "low", "high"])

    def decision_curve(self) -> pd.DataFrame:
        """Return the net benefit of acting on the model and on everyone, by threshold of risk (Vickers and Elkin 2006).

        Columns: ``label``, ``threshold``, ``model``, ``everyone``, and ``…_low`` and ``…_high`` of both; acting on
        nobody has the net benefit 0.
        """
        rows = []
        for column, name in enumerate(self.names):
            if not self.cells[column]:
                continue
            known, truth = self.known[:, column], np.where(self.known[:, column], self.targets[:, column], 0)
            benefits = [known.astype(np.float64)]
            for threshold in PROBABILITIES:
                acting = known * (
                    truth - (1 - truth) * threshold / (1 - threshold)
                )  # net benefit of acting on an image
                benefits += [acting * (self.predictions[:, column] >= threshold), acting]
            columns = np.column_stack(benefits)
            means, sums = columns.sum(axis=0) / self.cells[column], self.bootstrap.by_patient(columns)
            parts = (sums - sums[:, :1] * means) / self.cells[column]
            ends = [
                self.evidence[name].mean_interval(float(value), part)
                for value, part in zip(means, parts.T, strict=True)
            ]
            for place, threshold in enumerate(PROBABILITIES):
                model, everyone = 2 * place + 1, 2 * place + 2
                values = (float(means[model]), float(means[everyone]))
                rows.append((name, threshold, *values, *ends[model], *ends[everyone]))
        ends = ["model_low", "model_high", "everyone_low", "everyone_high"]
        return pd.DataFrame(rows, columns=["label", "threshold", "model", "everyone", *ends])


def calibration_table(
    predictions: Array, targets: Array, patients: npt.ArrayLike, names: Sequence[str], weights: Sequence[float]
) -> pd.DataFrame:
    """Return log loss and calibration error before and after each map; maps are fitted to other patients.

    A row for each label and ``weighted``; columns ``log_loss``, ``calibration_error`` and the same after
    ``temperature`` and ``isotonic``: ``log_loss_temperature``, … The labels, before a map, also have calibration slope
    and intercept with their intervals (:func:`common.evaluation.calibration.calibration_line`).
    """
    known, bootstrap = ~np.isnan(targets), PatientBootstrap(patients, draws=0)
    rows: dict[str, dict[str, float]] = {}
    for column, name in enumerate(names):
        inside = known[:, column]
        if not inside.any():
            rows[name] = {}
            continue
        values, truth, owners = predictions[inside, column], targets[inside, column], bootstrap.place[inside]
        maps = {"": values} | {f"_{method}": calibration.calibrated(values, truth, owners, method) for method in MAPS}
        rows[name] = {
            key: value
            for suffix, mapped in maps.items()
            for key, value in (
                (f"log_loss{suffix}", float(binary_log_losses(mapped, truth).mean())),
                (f"calibration_error{suffix}", calibration.calibration_error(mapped, truth)),
            )
        }
        evidence = bootstrap.evidence(targets[:, column] == 1, inside)
        rows[name] |= vars(calibration.calibration_line(values, truth, owners, evidence))
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(list(names)).rename_axis("label")
    cells = known.sum(axis=0)
    means = [name for name in table if name.startswith(("log_loss", "calibration_error"))]
    table.loc[WEIGHTED, means] = [mean_of_cells(table[name], cells, weights) for name in means]
    return table


def comparison(first: ReaderStudy, second: ReaderStudy) -> pd.DataFrame:
    """Return ``first`` minus ``second`` for each label and metric, paired over the same draws of the same patients.

    Columns: ``label``, ``metric``, ``first``, ``second``, ``difference``, ``low``, ``high``, ``verdict`` on the first,
    ``patients``, ``positive_patients``, and ``no_interval``, the reason for none.
    """
    rows = []
    for metric in METRICS.values():
        for name in (*first.names, WEIGHTED):
            one, other = first.samples[metric.name][name], second.samples[metric.name][name]
            low, high = one.change_ends(other)
            reason = one.evidence.reason or ("too few draws have a value" if np.isnan(low) else "")
            said = verdict(low, high, smaller_is_better=metric.smaller_is_better)
            found = (name, metric.name, one.value, other.value, one.value - other.value, low, high, said)
            rows.append((*found, one.evidence.patients, one.evidence.positive, reason))
    columns = ["label", "metric", "first", "second", "difference", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=[*columns, "patients", "positive_patients", "no_interval"])


@dataclass(frozen=True)
class Change:
    """A paired difference of mean losses, with its interval, ``verdict`` and evidence; ``text`` puts it in words."""

    value: float
    low: float
    high: float
    verdict: str
    evidence: Evidence

    @property
    def text(self) -> str:
        """The change in words."""
        if self.evidence.reason:
            return f"{self.value:+.5f}, no interval: {self.evidence.reason}"
        ends = f"95 % interval {self.low:+.5f} to {self.high:+.5f}"
        return f"{self.value:+.5f}, {ends} over {self.evidence.text}: {self.verdict}"


def change_of(
    change: npt.ArrayLike, positive: npt.ArrayLike, bootstrap: PatientBootstrap, weights: npt.ArrayLike = 1.0
) -> Change:
    """Judge the mean of ``change`` (N,), the images' differences in loss; ``positive`` (N,) marks positive images.

    ``weights`` (N,): see :func:`common.evaluation.resampling.mean_interval`.
    """
    low, high, evidence = mean_interval(bootstrap, change, positive, weights=weights)
    value = float(np.sum(change) / np.broadcast_to(weights, np.shape(change)).sum())
    return Change(value, low, high, verdict(low, high, smaller_is_better=True), evidence)


def image_losses(losses: Array, weights: Sequence[float]) -> tuple[Array, Array]:
    """Return each image's weighted sum of ``losses`` (N, C) over its labels, and the sum of their weights, both (N,).

    The loss of a missing label is NaN. An image with all labels has the weight 1.
    """
    scale, known = normalized_weights(weights, losses.shape[1]), ~np.isnan(losses)
    return np.where(known, losses, 0) @ scale, known @ scale


def compare_areas(
    first: Array, second: Array, targets: Array, patients: npt.ArrayLike, names: Sequence[str]
) -> pd.DataFrame:
    """Return DeLong's test for cases (N, C) of ``patients`` (N,), for each label with enough patients."""
    rows, bootstrap = [], PatientBootstrap(patients, draws=0)
    for column, name in enumerate(names):
        known = ~np.isnan(targets[:, column])
        if bootstrap.evidence(targets[:, column] == 1, known).reason:
            continue
        parts = (first[known, column], second[known, column], targets[known, column], bootstrap.place[known])
        test = delong_test(*parts)
        found = (test.first, test.second, test.first - test.second, test.standard_error, test.freedom, test.p_value)
        rows.append((name, *found))
    columns = ["label", "first", "second", "difference", "standard_error", "freedom", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def strata_table(study: ReaderStudy, strata: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    """Return the weighted log loss of each part of each stratum, with its interval over patients.

    ``strata``: by name, each image's part (N,). Columns: ``stratum``, ``part``, ``images`` (those with a label),
    ``positives`` (those with any positive label), ``patients``, ``log_loss``, ``low``, ``high``, and ``no_interval``,
    the reason for none. A part without any label has no row.
    """
    losses, weights = image_losses(binary_log_losses(study.predictions, study.targets), study.weights)
    rows = []
    for name, parts in strata.items():
        labels = np.asarray(parts, dtype=str)
        for part in np.unique(labels):
            inside = (labels == part) & (weights > 0)
            if not inside.any():
                continue
            bootstrap = PatientBootstrap(study.bootstrap.place[inside])
            positive = (study.targets[inside] == 1).any(axis=1)
            low, high, evidence = mean_interval(bootstrap, losses[inside], positive, "log", weights[inside])
            counts = (int(inside.sum()), int(positive.sum()), evidence.patients)
            mean = float(losses[inside].sum() / weights[inside].sum())
            rows.append((name, part, *counts, mean, low, high, evidence.reason))
    columns = ["stratum", "part", "images", "positives", "patients", "log_loss", "low", "high", "no_interval"]
    return pd.DataFrame(rows, columns=columns)


def _operating_point(scores: Array, truth: npt.NDArray[np.bool_], fixed: str, share: float) -> tuple[float, float]:
    """Return the threshold with at least ``share`` of ``fixed`` that is best for the other measure, and that one."""
    wanted, spared = (scores[truth], scores[~truth]) if fixed == "specificity" else (scores[~truth], scores[truth])
    if fixed == "specificity":
        # At most floor(allowed) of the negatives may lie at or above the threshold.
        allowed = int(np.floor((1 - share) * len(spared) + 1e-9))
        limit = np.sort(spared)[::-1][allowed] if allowed < len(spared) else -np.inf
        above = scores[scores > limit]
        threshold = float(above.min()) if len(above) else float("inf")
        return threshold, float(np.mean(wanted >= threshold))
    needed = int(np.ceil(share * len(spared) - 1e-9))
    threshold = float(np.sort(spared)[::-1][max(needed, 1) - 1])
    return threshold, float(np.mean(wanted < threshold))
