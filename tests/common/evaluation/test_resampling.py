"""Tests of common/evaluation/resampling.py, against the normal distribution and draws made one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common.evaluation import resampling
from common.evaluation.resampling import (
    Evidence,
    PatientBootstrap,
    effective_number,
    error_of,
    student_interval,
    verdict,
)
from common.evaluation.resampling import mean_interval as judged_mean

MANY = Evidence(1000, 500, 500, 500.0, np.arange(1000) < 500)


def mean_interval(values: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    return judged_mean(PatientBootstrap(patients, draws=2000), values, patients % 2 == 0)[:2]


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
    assert np.isnan(MANY.interval(50.0, error_of(draws), 9.0)).all()
    assert np.isnan(MANY.interval(1.0, error_of(draws), 9.0, "share")).all()
    assert np.isnan(MANY.change_interval(50.0, np.ones(1000), draws)).all()
    draws[0] = 5.0
    assert error_of(draws) == pytest.approx(np.std(draws[~np.isnan(draws)], ddof=1))
    assert np.isfinite(MANY.interval(50.0, error_of(draws), 9.0)).all()


def test_the_effective_number_is_less_where_one_patient_has_nearly_all() -> None:
    assert effective_number([3, 3, 3, 3]) == pytest.approx(4)
    assert effective_number([97, 1, 1, 1, 0]) == pytest.approx(100**2 / (97**2 + 3))
    assert effective_number([0, 0]) == 0


def test_on_the_plain_scale_it_is_scipys_interval_of_student() -> None:
    low, high = student_interval(2.0, 0.3, 7.0)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 7, 2.0, 0.3))


@pytest.mark.parametrize("scale", ["log", "share"])
@given(value=st.floats(1e-4, 1 - 1e-4), error=st.floats(1e-5, 0.5), freedom=st.floats(1, 100))
def test_on_a_scale_with_ends_the_interval_stays_within_and_holds_the_value(scale, value, error, freedom) -> None:
    low, high = student_interval(value, error, freedom, scale)
    assert 0 <= low <= value <= high
    assert scale == "log" or high <= 1
    if scale == "log" and low > 1e-12:
        assert np.log(value) - np.log(low) == pytest.approx(np.log(high) - np.log(value), rel=1e-3, abs=1e-6)


@given(found=st.integers(1, 59), number=st.integers(60, 200))
def test_on_the_scale_of_shares_it_is_scipys_interval_of_wilson(found: int, number: int) -> None:
    share = found / number
    ends = student_interval(share, np.sqrt(share * (1 - share) / number), 1e9, "share")
    wilson = stats.binomtest(found, number).proportion_ci(0.95, method="wilson")
    assert ends == pytest.approx((wilson.low, wilson.high), abs=1e-6)


@pytest.mark.parametrize(("value", "known"), [(1.0, 1), (0.0, 0)])
def test_a_perfect_score_has_the_interval_of_a_proportion_that_never_failed(value: float, known: int) -> None:
    """Where no patient moves it there is no error to be seen: statistics books take Wilson's interval."""
    low, high = student_interval(value, 0.0, 9.0, "share")
    wilson = stats.binomtest(10 * known, 10).proportion_ci(0.95, method="wilson")
    inner, books = (low, wilson.low) if known else (high, wilson.high)
    assert (high, low)[1 - known] == value
    # Student's quantile of 9 degrees is wider than the normal one that Wilson takes.
    assert abs(inner - value) > abs(books - value)
    assert inner == pytest.approx(books, abs=0.08)


@pytest.mark.parametrize(
    ("patients", "positive", "said"),
    [
        (1, 1, "1 patient, and an interval needs 20"),
        (19, 9, "19 patients, and an interval needs 20"),
        (40, 4, "4 positive patients, and an interval needs 5"),
        (40, 38, "2 negative patients, and an interval needs 5"),
        (20, 5, ""),
    ],
)
def test_too_few_patients_give_no_interval_but_the_reason(patients: int, positive: int, said: str) -> None:
    bootstrap = PatientBootstrap(np.arange(patients).repeat(3), 200)
    truth = np.arange(patients).repeat(3) < positive
    evidence = bootstrap.evidence(truth)
    assert evidence.reason == said
    ends = evidence.interval(0.5, 0.01, 9.0)
    assert np.isnan(ends).all() == bool(said)
    assert verdict(*ends, smaller_is_better=True) == ("" if said else "worse")


def test_the_freedom_of_a_mean_is_that_of_simulated_variances() -> None:
    """Twice the squared mean of a variance over its variance, of 4,000 sets of 40 patients, 10 of them positive."""
    random, positive = np.random.default_rng(0), np.arange(40) < 10
    evidence = Evidence.of_sides(positive * 1.0, np.ones(40))
    sets = np.where(positive, random.normal(0, 1, (4000, 40)), random.normal(0, 0.5, (4000, 40)))
    sets -= sets.mean(axis=1, keepdims=True)
    variances = (sets**2).sum(axis=1)
    found = [evidence.freedom_of(parts) for parts in sets]
    assert np.median(found) == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.15)


def test_the_error_of_a_mean_is_the_sandwich_of_patients() -> None:
    """Liang and Zeger 1986: the regression on a constant, by the formula written out."""
    random = np.random.default_rng(0)
    patients = random.integers(0, 60, 400)
    values = random.normal(0, 1, 60)[patients] + random.normal(0, 1, 400)
    low, high, evidence = judged_mean(PatientBootstrap(patients), values, patients % 2 == 0)
    sums = np.array([(values - values.mean())[patients == name].sum() for name in np.unique(patients)])
    error = np.sqrt((sums**2).sum() * 60 / 59) / 400
    assert (low, high) == pytest.approx(stats.t.interval(0.95, evidence.freedom_of(sums), values.mean(), error))


def test_what_two_patients_do_together_is_taken_off_a_change_once() -> None:
    """The product of two samples' means, both about 0: its variance 1 / (m n) is all pairs, and the parts' is twice."""
    random, taken = np.random.default_rng(0), []
    positive = np.arange(60) < 30
    evidence = Evidence.of_sides(positive * 1.0, ~positive * 1.0)
    counts = PatientBootstrap(np.arange(60), 400).totals(np.eye(60))
    for _ in range(40):
        a, b = random.normal(size=(2, 30))
        parts = np.r_[(a - a.mean()) * b.mean(), (b - b.mean()) * a.mean()] / 30
        drawn = (counts[:, :30] @ a) * (counts[:, 30:] @ b) / counts[:, :30].sum(axis=1) / counts[:, 30:].sum(axis=1)
        low, high = evidence.change_interval(0.0, parts, drawn - a.mean() * b.mean() - counts @ parts)
        variance = ((high - low) / 2 / stats.t.ppf(0.975, evidence.freedom_of(parts))) ** 2
        taken.append((variance, parts @ parts))
    found, first = np.mean(taken, axis=0)
    assert first == pytest.approx(2 / 900, rel=0.5)
    assert 0.5 * first < found < 0.8 * first


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
