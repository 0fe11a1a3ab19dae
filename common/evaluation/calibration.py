"""Whether a predicted 0.3 comes true three times in ten, and maps that make it so."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

Array = npt.NDArray[np.float64]
Map = Callable[[Array], Array]

BINS = 15  # Guo et al. 2017
FOLDS = 5
CLIP = 1e-7
TEMPERATURES = (0.05, 20.0)


def bin_of(predictions: npt.ArrayLike, bins: int = BINS) -> npt.NDArray[np.int64]:
    """Return which of ``bins`` intervals of equal width each of ``predictions`` (any shape) lies in."""
    return np.minimum((np.asarray(predictions, dtype=np.float64) * bins).astype(np.int64), bins - 1)


def calibration_error(counts: Array, predicted: Array, observed: Array) -> Array:
    """Return the expected calibration error of D tables (D, B): of each bin images, Σ predictions and Σ targets.

    Σ |Σ predictions − Σ targets| / images over the bins (Guo et al. 2017, equation 3).
    """
    return np.abs(predicted - observed).sum(axis=1) / counts.sum(axis=1)


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

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def temperature_map(predictions: Array, targets: Array) -> Map:
    """Return the map of :func:`fit_temperature`."""
    temperature = fit_temperature(predictions, targets)
    return lambda values: expit(logits_of(values) / temperature)


def isotonic_map(predictions: Array, targets: Array) -> Map:
    """Return the monotone map with the smallest squared error (pool adjacent violators).

    It stays 0.5 / (N + 1) off 0 and 1: what never failed in N images is no certainty, and the log loss would punish it
    without limit.
    """
    fitted = IsotonicRegression(out_of_bounds="clip").fit(predictions, targets)
    margin = 0.5 / (len(targets) + 1)
    return lambda values: np.clip(fitted.predict(values), margin, 1 - margin)


MAPS: dict[str, Callable[[Array, Array], Map]] = {"temperature": temperature_map, "isotonic": isotonic_map}


def fit_temperatures(predictions: pd.DataFrame, targets: pd.DataFrame) -> dict[str, float]:
    """Return the temperature of each column that has both classes (see :func:`fit_temperature`); 1 for the others."""
    both = targets.max() > targets.min()
    return {
        str(name): fit_temperature(predictions[name], targets[name]) if both[name] else 1.0
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

    The patients are cut into ``folds`` parts, and each part is mapped by what the others teach: what comes out is as
    honest as predictions for new patients. Where the others are all positive or all negative the part stays as it is.
    """
    values, truth, groups = np.asarray(predictions, np.float64), np.asarray(targets, np.float64), np.asarray(patients)
    result = values.copy()
    parts = min(folds, len(np.unique(groups)))
    if parts < 2:
        return result
    for train, test in GroupKFold(parts).split(values, groups=groups):
        if truth[train].min() < truth[train].max():
            result[test] = MAPS[method](values[train], truth[train])(values[test])
    return result
