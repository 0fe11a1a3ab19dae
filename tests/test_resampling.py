"""Tests of common/evaluation/resampling.py, against the normal distribution and draws made one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.evaluation import resampling
from common.evaluation.resampling import PatientBootstrap, interval, verdict


def mean_interval(values: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    bootstrap = PatientBootstrap(patients, draws=2000)
    totals = bootstrap.totals(bootstrap.by_patient(np.column_stack([values, np.ones(len(values))])))
    return interval(totals[:, 0] / totals[:, 1])


def test_the_interval_of_single_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3, 2, 1000)
    low, high = mean_interval(values, np.arange(1000))
    half = 1.96 * values.std() / np.sqrt(1000)
    assert abs(low - (values.mean() - half)) < 0.02
    assert abs(high - (values.mean() + half)) < 0.02


def test_values_of_one_patient_count_as_one_piece_of_evidence() -> None:
    """Each value ten times in one patient: the interval is that of the single values."""
    values = np.random.default_rng(0).normal(0, 1, 100)
    single = mean_interval(values, np.arange(100))
    np.testing.assert_allclose(mean_interval(np.repeat(values, 10), np.repeat(np.arange(100), 10)), single, atol=1e-12)


@given(seed=st.integers(0, 1000))
def test_each_draw_is_of_as_many_whole_patients_as_there_are(seed: int) -> None:
    random = np.random.default_rng(seed)
    patients = random.integers(0, 5, 30)
    bootstrap = PatientBootstrap(patients, draws=40, seed=seed)
    one_hot = np.eye(5)[patients]
    drawn = bootstrap.totals(bootstrap.by_patient(one_hot))
    sizes = one_hot.sum(axis=0)
    present = sizes > 0
    times = drawn[:, present] / sizes[present]
    np.testing.assert_array_equal(times, times.round())
    np.testing.assert_array_equal(times.sum(axis=1), np.full(40, present.sum()))


def test_the_draws_do_not_depend_on_the_size_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap = PatientBootstrap(np.arange(50).repeat(3), draws=100, seed=3)
    sums = bootstrap.by_patient(np.random.default_rng(0).random((150, 4)))
    whole = bootstrap.totals(sums)
    monkeypatch.setattr(resampling, "CHUNK_COUNTS", 7 * 50)
    np.testing.assert_allclose(bootstrap.totals(sums), whole, rtol=1e-12)


def test_a_histogram_is_counted_for_each_patient() -> None:
    bootstrap = PatientBootstrap(["b", "a", "b"])
    np.testing.assert_array_equal(bootstrap.histograms(np.array([0, 2, 2]), [1, 1, 5], 3), [[0, 0, 1], [1, 0, 5]])


def test_an_interval_without_enough_draws_is_none() -> None:
    draws = np.arange(100.0)
    draws[:11] = np.nan
    assert np.isnan(interval(draws)).all()
    draws[0] = 5.0
    assert interval(draws)[1] == pytest.approx(np.quantile(draws[~np.isnan(draws)], 0.975))


@pytest.mark.parametrize(
    ("ends", "smaller", "said"),
    [
        ((-2, -1), True, "better"),
        ((-2, -1), False, "worse"),
        ((1, 2), False, "better"),
        ((-1, 1), True, "no difference shown"),
        ((0, 1), True, "no difference shown"),
    ],
)
def test_the_verdict_needs_an_interval_beyond_0(ends: tuple[float, float], smaller: bool, said: str) -> None:
    assert verdict(*ends, smaller_is_better=smaller) == said


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no patient"):
        PatientBootstrap([])
