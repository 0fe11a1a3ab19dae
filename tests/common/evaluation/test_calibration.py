"""Tests of common/evaluation/calibration.py, against worked examples and known distortions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from common.evaluation import calibration
from common.evaluation.calibration import calibrated, calibration_line, fit_temperature, reliability_table
from common.evaluation.ensemble_choices import MAPS
from common.evaluation.resampling import PatientBootstrap


def overconfident(count: int = 20_000, factor: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(-1, 1.5, count)
    return expit(factor * logits), (random.random(count) < expit(logits)).astype(float)


def test_the_reliability_table_by_hand() -> None:
    table = reliability_table([0.05, 0.06, 0.5, 1.0], [0, 1, 1, 1], bins=10)
    expected = pd.DataFrame(
        {
            "low": [0.0, 0.5, 0.9],
            "high": [0.1, 0.6, 1.0],
            "images": [2, 1, 1],
            "predicted": [0.055, 0.5, 1.0],
            "observed": [0.5, 1.0, 1.0],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


def line(predictions: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> calibration.CalibrationLine:
    return calibration_line(predictions, targets, patients, PatientBootstrap(patients).evidence(targets == 1))


def test_slope_and_intercept_are_those_of_scikit_learns_regression() -> None:
    predictions, targets = overconfident(3000)
    found = line(predictions, targets, np.arange(3000))
    logits = np.log(predictions / (1 - predictions))
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], targets)
    assert found.slope == pytest.approx(fitted.coef_[0, 0], abs=1e-5)
    # The intercept beside a slope of 1 is where the expected number of positives is the observed one.
    assert expit(logits + found.intercept).sum() == pytest.approx(targets.sum(), abs=1e-6)
    assert found.slope_low < 0.5 < found.slope_high  # the logits were made twice as large as they should be


def test_their_errors_are_those_of_patients_drawn_again() -> None:
    random = np.random.default_rng(2)
    patients = np.arange(1200) // 8
    logits = random.normal(-0.5, 1, 1200)
    targets = (random.random(1200) < expit(logits + random.normal(0, 1, 150)[patients])).astype(float)
    found, drawn = line(expit(logits), targets, patients), []
    for _ in range(200):
        rows = (random.integers(0, 150, 150)[:, None] * 8 + np.arange(8)).ravel()
        again = line(expit(logits[rows]), targets[rows], np.arange(150).repeat(8))
        drawn.append((again.slope, again.intercept))
    half = np.array([found.slope_high - found.slope_low, found.intercept_high - found.intercept_low]) / 2
    np.testing.assert_allclose(half, 2 * np.std(drawn, axis=0), rtol=0.2)


@pytest.mark.parametrize(("shift", "factor"), [(0.7, 1.0), (-0.4, 1.0), (0.0, 2.5), (0.0, 0.6)])
def test_what_was_changed_is_what_they_find(shift: float, factor: float) -> None:
    """Van Calster et al. 2016: a slope below 1 is too extreme, an intercept above 0 too low."""
    random = np.random.default_rng(0)
    logits = random.normal(-1, 1.2, 40_000)
    targets = (random.random(40_000) < expit(logits)).astype(float)
    found = line(expit(factor * logits - shift), targets, np.arange(40_000) // 10)
    assert found.slope == pytest.approx(1 / factor, abs=0.05)
    if factor == 1:
        assert found.intercept == pytest.approx(shift, abs=0.05)


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [
        (np.linspace(0.1, 0.9, 40), np.zeros(40)),
        (np.linspace(0.1, 0.9, 40), (np.arange(40) >= 20) * 1.0),
        (np.full(40, 0.3), np.arange(40) % 2 * 1.0),
    ],
)
def test_where_there_is_no_slope_none_is_told(predictions: np.ndarray, targets: np.ndarray) -> None:
    """One class only, classes that a threshold separates, and risks that are all the same."""
    assert np.isnan(line(predictions, targets, np.arange(40)).slope)


def test_the_temperature_undoes_a_known_factor() -> None:
    predictions, targets = overconfident()
    assert fit_temperature(predictions, targets) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("method", MAPS)
def test_a_map_mends_overconfidence(method: str) -> None:
    predictions, targets = overconfident()
    patients = np.arange(len(targets)) // 20
    mapped = calibrated(predictions, targets, patients, method)
    best = log_loss(targets, expit(np.log(predictions / (1 - predictions)) / 2))
    assert log_loss(targets, mapped) < best + 0.002 < log_loss(targets, predictions)


@pytest.mark.parametrize("method", MAPS)
def test_what_a_patient_is_mapped_to_does_not_depend_on_his_own_labels(method: str) -> None:
    predictions, targets = overconfident(600)
    patients = np.arange(600) // 20
    other = targets.copy()
    other[patients == 7] = 1 - other[patients == 7]
    before, after = (calibrated(predictions, labels, patients, method) for labels in (targets, other))
    np.testing.assert_array_equal(before[patients == 7], after[patients == 7])
    assert not np.array_equal(before, after)


def test_isotonic_values_stay_off_0_and_1() -> None:
    mapped = calibration.isotonic_map(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0, 1, 1]))(np.array([0, 0.5, 1.0]))
    assert mapped[0] == pytest.approx(0.1)
    assert mapped[2] == pytest.approx(0.9)


@pytest.mark.parametrize("targets", [np.zeros(6), np.array([1.0, 0, 0, 0, 0, 0])])
def test_what_cannot_be_fitted_stays_as_it_is(targets: np.ndarray) -> None:
    predictions = np.linspace(0.1, 0.6, 6)
    mapped = calibrated(predictions, targets, ["a", "b", "c", "d", "e", "f"], "temperature")
    assert mapped[0] == predictions[0]
    np.testing.assert_array_equal(calibrated(predictions, targets, ["a"] * 6, "isotonic"), predictions)
