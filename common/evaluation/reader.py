"""The tables of an evaluation: every metric with its interval over patients, as a reader study reports them.

``predictions`` are probabilities (N, C), ``targets`` 0 or 1 (N, C), ``patients`` (N,), ``weights`` (C,) everywhere.
The row or key ``weighted`` averages the labels with ``weights``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.evaluation import binned, calibration
from common.evaluation.delong import delong_test
from common.evaluation.resampling import Array, PatientBootstrap, interval, verdict
from common.metrics import binary_log_losses, normalized_weights

WEIGHTED = "weighted"
SMALLER_IS_BETTER = {
    "log_loss": True, "brier": True, "auroc": False, "average_precision": False, "calibration_error": True
}  # fmt: skip
SHARES = (0.90, 0.95)  # specificities and sensitivities of the operating points
PROBABILITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # thresholds of the decision curve


@dataclass
class Samples:
    """A metric of one label: its ``value``, its ``draws`` (D,), and the ``error`` that binning the scores made."""

    value: float
    draws: Array
    error: float = 0.0


@dataclass
class ReaderStudy:
    """Predictions with what is known of their images; computes each label's samples once."""

    predictions: Array
    targets: Array
    bootstrap: PatientBootstrap
    names: Sequence[str]
    weights: Sequence[float]
    samples: dict[str, dict[str, Samples]] = field(init=False)

    def __post_init__(self) -> None:
        scale = normalized_weights(self.weights, len(self.names))
        losses = binary_log_losses(self.predictions, self.targets)
        squares = (self.predictions - self.targets) ** 2
        columns = np.column_stack([np.ones(len(losses)), losses, losses @ scale, squares, squares @ scale])
        drawn = self.bootstrap.totals(self.bootstrap.by_patient(columns))
        means = (columns.mean(axis=0)[1:], drawn[:, 1:] / drawn[:, :1])
        keys = (*self.names, WEIGHTED)
        self.samples = {}
        for metric, part in zip(("log_loss", "brier"), (slice(len(keys)), slice(len(keys), None)), strict=True):
            values, draws = means[0][part], means[1][:, part]
            self.samples[metric] = {key: Samples(float(values[c]), draws[:, c]) for c, key in enumerate(keys)}
        for column, name in enumerate(self.names):
            for metric, found in self._ranked(column):
                self.samples.setdefault(metric, {})[name] = found
        for metric in ("auroc", "average_precision", "calibration_error"):
            by_label = [self.samples[metric][name] for name in self.names]
            self.samples[metric][WEIGHTED] = Samples(
                float(scale @ [item.value for item in by_label]),
                np.stack([item.draws for item in by_label], axis=1) @ scale,
                max(item.error for item in by_label),
            )

    def _ranked(self, column: int) -> Iterator[tuple[str, Samples]]:
        """Yield the metrics of a label that don't add up over images."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        scores, truth = self.predictions[:, column], self.targets[:, column]
        whole, drawn = self.histograms(column)
        both = 0 < truth.sum() < len(truth)
        for metric, binned_metric, exact in (
            ("auroc", binned.auroc, roc_auc_score),
            ("average_precision", binned.average_precision, average_precision_score),
        ):
            value = float(exact(truth, scores)) if both else float("nan")
            error = abs(float(binned_metric(*whole)[0]) - value)
            yield metric, Samples(value, binned_metric(*drawn), error)
        place = calibration.bin_of(scores)
        sums = [
            self.bootstrap.histograms(place, part, calibration.BINS) for part in (np.ones(len(truth)), scores, truth)
        ]
        value = calibration.calibration_error(*(part.sum(axis=0, keepdims=True) for part in sums))
        draws = calibration.calibration_error(*self._drawn(sums))
        yield "calibration_error", Samples(float(value[0]), draws)

    def histograms(self, column: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Return a label's histograms of positive and other scores: of the whole set (1, B), of the draws (D, B)."""
        scores, positive = self.predictions[:, column], self.targets[:, column] == 1
        place = binned.bin_scores(scores, positive)
        sides = [self.bootstrap.histograms(place, side, int(place.max()) + 1) for side in (positive, ~positive)]
        whole = tuple(side.sum(axis=0, keepdims=True) for side in sides)
        return whole, self._drawn(sides)

    def _drawn(self, sums: Sequence[Array]) -> tuple[Array, ...]:
        """Return the draws' totals of several sums over patients (patients, B), drawn once for all."""
        return tuple(np.hsplit(self.bootstrap.totals(np.hstack(sums)), len(sums)))

    def intervals(self) -> pd.DataFrame:
        """Return a row for each label and ``weighted``: each metric, its ``…_low`` and ``…_high`` over patients."""
        rows: dict[str, dict[str, float]] = {}
        for metric, by_label in self.samples.items():
            for name, item in by_label.items():
                low, high = interval(item.draws)
                rows.setdefault(name, {}).update({metric: item.value, f"{metric}_low": low, f"{metric}_high": high})
        return pd.DataFrame.from_dict(rows, orient="index").loc[[*self.names, WEIGHTED]].rename_axis("label")

    def binning_errors(self) -> dict[str, float]:
        """Return by metric the largest difference over the labels between the binned value and the exact one."""
        errors = {metric: [by_label[name].error for name in self.names] for metric, by_label in self.samples.items()}
        return {metric: float(np.nanmax(found)) for metric, found in errors.items() if not np.isnan(found).all()}

    def operating_points(self) -> pd.DataFrame:
        """Return sensitivity at given specificities and the other way, with intervals and the threshold of each.

        Columns: ``label``, ``fixed`` (specificity or sensitivity), ``at``, ``threshold`` (an image counts as positive
        at or above it), ``value`` of the other one, ``low``, ``high``. Labels with one class only have no row.
        """
        rows = []
        for column, name in enumerate(self.names):
            scores, truth = self.predictions[:, column], self.targets[:, column] == 1
            if truth.all() or not truth.any():
                continue
            _, drawn = self.histograms(column)
            for fixed, function in (("specificity", binned.sensitivity_at), ("sensitivity", binned.specificity_at)):
                for share in SHARES:
                    threshold, value = _operating_point(scores, truth, fixed, share)
                    low, high = interval(function(*drawn, share))
                    rows.append((name, fixed, share, threshold, value, low, high))
        return pd.DataFrame(rows, columns=["label", "fixed", "at", "threshold", "value", "low", "high"])

    def decision_curve(self) -> pd.DataFrame:
        """Return the net benefit of acting on the model, on everyone, at thresholds of risk (Vickers and Elkin 2006).

        Columns: ``label``, ``threshold``, ``model``, ``everyone``; acting on nobody has the net benefit 0.
        """
        rows = []
        for column, name in enumerate(self.names):
            truth = self.targets[:, column] == 1
            for threshold in PROBABILITIES:
                odds = threshold / (1 - threshold)
                flagged = self.predictions[:, column] >= threshold
                model = np.mean(flagged & truth) - np.mean(flagged & ~truth) * odds
                everyone = truth.mean() - (1 - truth.mean()) * odds
                rows.append((name, threshold, float(model), float(everyone)))
        return pd.DataFrame(rows, columns=["label", "threshold", "model", "everyone"])


def calibration_table(
    predictions: Array, targets: Array, patients: npt.ArrayLike, names: Sequence[str], weights: Sequence[float]
) -> pd.DataFrame:
    """Return log loss and calibration error before and after each map, which never saw the patients that it maps.

    A row for each label and ``weighted``; columns ``log_loss``, ``calibration_error`` and the same after
    ``temperature`` and ``isotonic``: ``log_loss_temperature``, …
    """
    maps = {"": predictions} | {
        f"_{method}": np.column_stack(
            [calibration.calibrated(predictions[:, c], targets[:, c], patients, method) for c in range(len(names))]
        )
        for method in calibration.MAPS
    }
    columns: dict[str, Array] = {}
    for suffix, values in maps.items():
        place = calibration.bin_of(values)
        columns[f"log_loss{suffix}"] = binary_log_losses(values, targets).mean(axis=0)
        columns[f"calibration_error{suffix}"] = np.array(
            [
                np.abs(np.bincount(place[:, c], values[:, c] - targets[:, c])).sum() / len(values)
                for c in range(len(names))
            ]
        )
    table = pd.DataFrame(columns, index=pd.Index(names, name="label"))
    table.loc[WEIGHTED] = normalized_weights(weights, len(names)) @ table.to_numpy()
    return table


def comparison(first: ReaderStudy, second: ReaderStudy) -> pd.DataFrame:
    """Return ``first`` minus ``second`` of each label and metric, paired over the same draws of the same patients.

    Columns: ``label``, ``metric``, ``first``, ``second``, ``difference``, ``low``, ``high``, ``verdict`` on the first.
    """
    rows = []
    for metric, smaller in SMALLER_IS_BETTER.items():
        for name in (*first.names, WEIGHTED):
            one, other = first.samples[metric][name], second.samples[metric][name]
            low, high = interval(one.draws - other.draws)
            said = "" if np.isnan(low) else verdict(low, high, smaller_is_better=smaller)
            rows.append((name, metric, one.value, other.value, one.value - other.value, low, high, said))
    return pd.DataFrame(rows, columns=["label", "metric", "first", "second", "difference", "low", "high", "verdict"])


def compare_areas(first: Array, second: Array, targets: Array, names: Sequence[str]) -> pd.DataFrame:
    """Return DeLong's test of each label for independent cases (N, C), studies or patients; rows that can be tested."""
    rows = []
    for column, name in enumerate(names):
        try:
            test = delong_test(first[:, column], second[:, column], targets[:, column])
        except ValueError:  # hardly any case of a side
            continue
        rows.append((name, test.first, test.second, test.first - test.second, test.standard_error, test.p_value))
    return pd.DataFrame(rows, columns=["label", "first", "second", "difference", "standard_error", "p_value"])


def by_group(values: Array, groups: npt.ArrayLike) -> Array:
    """Return each group's largest value in each column, groups in sorted order: slices (N, C) to studies."""
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    result = np.full((place.max() + 1, values.shape[1]), -np.inf)
    np.maximum.at(result, place, values)
    return result


def strata_table(study: ReaderStudy, strata: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    """Return the weighted log loss in each part of the images, with its interval over patients.

    ``strata``: by name, what each image (N,) belongs to. Columns: ``stratum``, ``part``, ``images``, ``positives``
    (images with any positive label), ``log_loss``, ``low``, ``high``.
    """
    scale = normalized_weights(study.weights, len(study.names))
    losses = binary_log_losses(study.predictions, study.targets) @ scale
    whole = study.bootstrap
    rows = []
    for name, parts in strata.items():
        labels = np.asarray(parts, dtype=str)
        for part in np.unique(labels):
            inside = labels == part
            bootstrap = PatientBootstrap(whole.place[inside], whole.draws, whole.seed)
            totals = bootstrap.totals(bootstrap.by_patient(np.column_stack([losses[inside], np.ones(inside.sum())])))
            low, high = interval(totals[:, 0] / totals[:, 1])
            positive = int((study.targets[inside] == 1).any(axis=1).sum())
            rows.append((name, part, int(inside.sum()), positive, float(losses[inside].mean()), low, high))
    return pd.DataFrame(rows, columns=["stratum", "part", "images", "positives", "log_loss", "low", "high"])


def _operating_point(scores: Array, truth: npt.NDArray[np.bool_], fixed: str, share: float) -> tuple[float, float]:
    """Return the threshold with at least ``share`` of ``fixed`` that serves the other side best, and what it gets."""
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
