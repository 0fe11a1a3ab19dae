"""Calibration: does a predicted 0.3 come true three times in ten? And maps that correct predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, stdtrit

from common.cli.choices import load
from common.evaluation.ensemble_choices import MAPS
from common.evaluation.resampling import Evidence, student_interval

Array = npt.NDArray[np.float64]
Map = Callable[[Array], Array]

BINS = 15  # Guo et al. 2017
FOLDS = 5
CLIP = 1e-7
TEMPERATURES = (0.05, 20.0)
HALVINGS = 20  # to a millionth
ROUNDS, LONGEST_STEP = 60, 5.0  # of Newton's method


def bin_of(predictions: npt.ArrayLike, bins: int = BINS) -> npt.NDArray[np.int64]:
    """Return the bin of each of ``predictions`` (any shape), of ``bins`` with equal width."""
    return np.minimum((np.asarray(predictions, dtype=np.float64) * bins).astype(np.int64), bins - 1)


def calibration_error(predictions: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Return the expected calibration error of one label (N,): Σ |predicted − observed| by bin (Guo et al. 2017)."""
    values, truth = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    return float(np.abs(np.bincount(bin_of(values), values - truth)).sum() / len(values))


def calibration_error_interval(deviations: Array, draws: Array, freedom: float) -> tuple[float, float]:
    """Return the 95 % interval of a calibration error Σ |d|, from each bin's share d (B,) and its ``draws`` (D, B).

    Chance alone makes Σ |d| too large: once in the images, and once more in the draws. So an interval around the draws
    lies too high. Instead, a test is inverted: which multiples c d of the deviations, with chance added, could give a
    sum as small, or as large, as the observed one? Each draw's chance gives the c where the sum is just that. The ends
    are the 2.5th and 97.5th percentile. The upper end is at least that of Student's interval, with ``freedom``, around
    the error minus its bias.
    """
    seen = np.abs(deviations).sum()
    if seen == 0:
        return 0.0, float(np.quantile(np.abs(draws).sum(axis=1), 0.975))
    times, sums = stdtrit(freedom, 0.975), np.abs(draws).sum(axis=1)
    chance = draws - deviations
    low, high = np.zeros(len(draws)), (seen + np.abs(chance).sum(axis=1)) / seen
    for _ in range(HALVINGS):  # the sum is convex in c, and above the observed one at the upper end
        middle = (low + high) / 2
        above = np.abs(middle[:, None] * deviations + chance).sum(axis=1) > seen
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    ends = np.quantile(low, [0.025, 0.975]) * seen
    unbiased = 2 * seen - sums.mean()
    return float(min(ends[0], seen)), float(max(ends[1], seen, unbiased + times * sums.std(ddof=1)))


@dataclass(frozen=True)
class CalibrationLine:
    """Observed over predicted risks on the logit scale, with 95 % intervals (NaN if there is none).

    ``slope``: 1 is right; below 1 the risks are too extreme (overconfident). ``intercept``: 0 is right; above 0 the
    risks are too low on the whole. It is fitted with the slope held at 1 (calibration in the large).
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    intercept_low: float
    intercept_high: float


def calibration_line(
    predictions: npt.ArrayLike, targets: npt.ArrayLike, patients: npt.ArrayLike, evidence: Evidence
) -> CalibrationLine:
    """Return calibration slope and intercept (Cox 1958; Van Calster et al. 2016) of one label's predictions (N,).

    The slope comes from a logistic regression of ``targets`` on the predictions' logits. The intercept comes from one
    with the logits as offset. The errors are those of the sandwich estimator over ``patients`` (N,). NaN if a class is
    missing, all risks are equal, or a threshold separates the classes, so that the slope has no limit.
    """
    logits, truth = logits_of(predictions), np.asarray(targets, dtype=np.float64)
    owners = np.unique(np.asarray(patients), return_inverse=True)[1]
    ones = np.ones((len(truth), 1))
    line = _logistic(np.column_stack([ones, logits]), np.zeros(len(truth)), truth, owners)
    large = _logistic(ones, logits, truth, owners)
    values: list[float] = []
    for value, error in ((line[0][-1], line[1][-1]), (large[0][-1], large[1][-1])):
        ends = (np.nan, np.nan) if evidence.reason else student_interval(value, error, evidence.freedom)
        values += [float(value), *map(float, ends)]
    return CalibrationLine(*values)


def _logistic(columns: Array, offset: Array, truth: Array, owners: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Return a logistic regression's coefficients (K,), by Newton's method, and their errors over ``owners``."""
    nothing = np.full(columns.shape[1], np.nan)
    if truth.min() == truth.max() or np.ptp(columns[:, -1]) == 0 < columns.shape[1] - 1:
        return nothing, nothing
    found = np.zeros(columns.shape[1])
    for _ in range(ROUNDS):
        risks = expit(offset + columns @ found)
        information = columns.T @ (columns * (risks * (1 - risks))[:, None])
        try:
            step = np.linalg.solve(information, columns.T @ (truth - risks))
        except np.linalg.LinAlgError:
            return nothing, nothing
        found = found + step * min(1.0, LONGEST_STEP / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    else:
        return nothing, nothing  # the classes are separated: the slope has no limit
    scores = columns * (truth - risks)[:, None]
    sums = np.stack([np.bincount(owners, column) for column in scores.T], axis=1)
    inverse = np.linalg.inv(information)
    variance = inverse @ (sums.T @ sums) @ inverse * len(sums) / max(len(sums) - 1, 1)
    return found, np.sqrt(np.diag(variance))


def reliability_table(predictions: npt.ArrayLike, targets: npt.ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """Return a row for each bin with images: ``low``, ``high``, ``images``, ``predicted`` and ``observed`` means."""
    values, truth = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    place = bin_of(values, bins)
    counts = np.bincount(place, minlength=bins)
    used = np.flatnonzero(counts)
    return pd.DataFrame(
        {
            "low": used / bins,
            "high": (used + 1) / bins,
            "images": counts[used],
            "predicted": np.bincount(place, values, bins)[used] / counts[used],
            "observed": np.bincount(place, truth, bins)[used] / counts[used],
        }
    )


def logits_of(predictions: npt.ArrayLike) -> Array:
    """Return the logits of probabilities, which are clipped to 1e-7 from 0 and 1."""
    clipped = np.clip(np.asarray(predictions, dtype=np.float64), CLIP, 1 - CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def fit_temperature(predictions: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Return the temperature T whose sigmoid(logit / T) has the lowest log loss (Guo et al. 2017); 0.05 to 20."""
    logits, truth = logits_of(predictions), np.asarray(targets, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - truth * scaled))

    from scipy.optimize import minimize_scalar  # half a second, which a leaderboard doesn't need

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def temperature_map(predictions: Array, targets: Array) -> Map:
    """Return the map of :func:`fit_temperature`."""
    temperature = fit_temperature(predictions, targets)
    return lambda values: expit(logits_of(values) / temperature)


def isotonic_map(predictions: Array, targets: Array) -> Map:
    """Return the monotone map with the smallest squared error (pool adjacent violators).

    It stays 0.5 / (N + 1) away from 0 and 1: N images without a failure prove nothing for certain, and the log loss of
    a wrong certainty has no limit.
    """
    from sklearn.isotonic import IsotonicRegression  # here: it takes a second, and few callers need it

    fitted = IsotonicRegression(out_of_bounds="clip").fit(predictions, targets)
    margin = 0.5 / (len(targets) + 1)
    return lambda values: np.clip(fitted.predict(values), margin, 1 - margin)


def fit_temperatures(predictions: pd.DataFrame, targets: pd.DataFrame) -> dict[str, float]:
    """Return the temperature of each column that has both classes (see :func:`fit_temperature`); 1 for the others.

    A target that is NaN is a missing label, which doesn't count.
    """
    both, known = targets.max() > targets.min(), targets.notna()
    return {
        str(name): fit_temperature(predictions[name][known[name]], targets[name][known[name]]) if both[name] else 1.0
        for name in predictions.columns
    }


def calibration_of(predictions: pd.DataFrame, temperatures: Mapping[str, float]) -> pd.DataFrame:
    """Return probabilities with each column's logits divided by its temperature."""
    return pd.DataFrame(
        {name: expit(logits_of(column) / temperatures[str(name)]) for name, column in predictions.items()},
        index=predictions.index,
    )


def calibrated(
    predictions: npt.ArrayLike, targets: npt.ArrayLike, patients: npt.ArrayLike, method: str, folds: int = FOLDS
) -> Array:
    """Return ``predictions`` (N,) of one label mapped by ``method`` of :data:`MAPS`, fitted without their own patients.

    The patients are divided into ``folds`` parts, and each part gets the map that was fitted to the others. So the
    result is as honest as predictions for new patients. If the others are all positive or all negative, the part stays
    as it is.
    """
    from sklearn.model_selection import GroupKFold

    values, truth, groups = np.asarray(predictions, np.float64), np.asarray(targets, np.float64), np.asarray(patients)
    result = values.copy()
    parts = min(folds, len(np.unique(groups)))
    if parts < 2:
        return result
    for train, test in GroupKFold(parts).split(values, groups=groups):
        if truth[train].min() < truth[train].max():
            result[test] = load(MAPS[method].path)(values[train], truth[train])(values[test])
    return result
