"""Tests of common/evaluation/calibration.py, against worked examples and known distortions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss

from common.evaluation import calibration
from common.evaluation.calibration import calibrated, fit_temperature, reliability_table


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


def test_the_calibration_error_by_hand() -> None:
    """Two images at 0.055 of which half are positive, one at 0.5 and one at 1 that are: (2·0.445 + 0.5 + 0) / 4."""
    counts, predicted, observed = np.array([[2, 1, 1]]), np.array([[0.11, 0.5, 1.0]]), np.array([[1.0, 1.0, 1.0]])
    assert calibration.calibration_error(counts, predicted, observed)[0] == pytest.approx((0.89 + 0.5) / 4)


def test_the_temperature_undoes_a_known_factor() -> None:
    predictions, targets = overconfident()
    assert fit_temperature(predictions, targets) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("method", calibration.MAPS)
def test_a_map_mends_overconfidence(method: str) -> None:
    predictions, targets = overconfident()
    patients = np.arange(len(targets)) // 20
    mapped = calibrated(predictions, targets, patients, method)
    best = log_loss(targets, expit(np.log(predictions / (1 - predictions)) / 2))
    assert log_loss(targets, mapped) < best + 0.002 < log_loss(targets, predictions)


@pytest.mark.parametrize("method", calibration.MAPS)
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
