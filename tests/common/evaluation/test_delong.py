"""Tests of common/evaluation/delong.py, against the definitions of 1988 and 1997, published data and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_ind
from sklearn.metrics import roc_auc_score

from common.evaluation.delong import delong_test


def cases(seed: int, count: int = 40, decimals: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = np.arange(count) % 3 == 0
    shared = random.normal(size=count) + 1.2 * truth
    first, second = (np.round(shared + random.normal(size=count), decimals) for _ in range(2))
    return first, second, truth


def by_definition(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Difference of the areas and its standard error from the matrix of all pairs (DeLong et al. 1988, equation 5)."""
    psi = [
        (scores[truth][:, None] > scores[~truth]) + 0.5 * (scores[truth][:, None] == scores[~truth])
        for scores in (first, second)
    ]
    positives, negatives = truth.sum(), (~truth).sum()
    variance = 0.0
    for r, sign_r in enumerate((1, -1)):
        for s, sign_s in enumerate((1, -1)):
            by_positive = [(psi[k].mean(axis=1) - psi[k].mean()) for k in (r, s)]
            by_negative = [(psi[k].mean(axis=0) - psi[k].mean()) for k in (r, s)]
            part = (by_positive[0] @ by_positive[1]) / (positives - 1) / positives
            part += (by_negative[0] @ by_negative[1]) / (negatives - 1) / negatives
            variance += sign_r * sign_s * part
    return psi[0].mean() - psi[1].mean(), np.sqrt(variance)


@given(seed=st.integers(0, 500))
def test_it_equals_the_definition_ties_included(seed: int) -> None:
    first, second, truth = cases(seed)
    test = delong_test(first, second, truth)
    difference, error = by_definition(first, second, truth)
    assert test.first == pytest.approx(roc_auc_score(truth, first), abs=1e-12)
    assert test.first - test.second == pytest.approx(difference, abs=1e-12)
    assert test.standard_error == pytest.approx(error, abs=1e-12)
    assert truth.sum() - 1 <= test.freedom <= len(truth) - 2
    assert test.p_value == pytest.approx(2 * t.sf(abs(difference) / error, test.freedom), abs=1e-12)


def test_with_binary_scores_it_is_scipys_test_of_welch() -> None:
    """An AUROC against a constant score is a difference of two means where scores are 0 or 1, and so are its errors."""
    random = np.random.default_rng(0)
    truth = np.arange(50) < 15
    score = (random.random(50) < np.where(truth, 0.7, 0.3)).astype(float)
    test = delong_test(score, np.zeros(50), truth)
    welch = ttest_ind(score[truth], score[~truth], equal_var=False)
    assert test.freedom == pytest.approx(welch.df)
    assert test.p_value == pytest.approx(welch.pvalue)


def test_where_nothing_differs_one_test_in_twenty_says_so() -> None:
    p_values = np.array([delong_test(*cases(seed, 100, 6)).p_value for seed in range(800)])
    assert 0.03 < np.mean(p_values < 0.05) < 0.075


# DeLong et al. 1988: albumin, total protein, K-G score and whether surgery helped, of the 43 patients who have all,
# as SAS prints them in the example "Comparing Receiver Operating Characteristic Curves" of PROC LOGISTIC.
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0
2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1
4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1
3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1
3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1
3.6 6.6 5 1
"""


def test_the_published_example_has_its_published_areas_and_errors() -> None:
    """Areas 0.7366, 0.6478, 0.7258; against the K-G score 0.0108 ± 0.0953 and −0.0780 ± 0.1046."""
    albumin, protein, score, truth = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4).T
    against = [delong_test(scores, 10 - score, truth) for scores in (albumin, protein)]
    assert [test.first for test in against] == pytest.approx([0.7366, 0.6478], abs=5e-5)
    assert [test.second for test in against] == pytest.approx([0.7258, 0.7258], abs=5e-5)
    assert [test.first - test.second for test in against] == pytest.approx([0.0108, -0.0780], abs=5e-5)
    assert [test.standard_error for test in against] == pytest.approx([0.0953, 0.1046], abs=5e-5)


def clustered(seed: int, patients: int = 40, same: float = 0.8) -> tuple[np.ndarray, ...]:
    """Scores of two equally good models for patients with one to five cases each, which share most of their noise."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), random.integers(1, 6, patients))
    truth = random.random(len(owner)) < np.where(random.random(patients) < 0.4, 0.7, 0.05)[owner]
    scores = [
        truth + random.normal(0, same, patients)[owner] + random.normal(0, 1 - same, len(owner)) for _ in range(2)
    ]
    return *scores, truth, owner


def by_obuchowski(first: np.ndarray, second: np.ndarray, truth: np.ndarray, owner: np.ndarray) -> float:
    """The standard error by Obuchowski 1997, from the matrix of all pairs of one model minus the other's."""
    psi = [(x[truth][:, None] > x[~truth]) + 0.5 * (x[truth][:, None] == x[~truth]) for x in (first, second)]
    change = psi[0] - psi[1]
    theta, positives, negatives = change.mean(), truth.sum(), (~truth).sum()
    names = np.unique(owner)
    v10 = np.array([(change.mean(axis=1)[owner[truth] == name] - theta).sum() for name in names])
    v01 = np.array([(change.mean(axis=0)[owner[~truth] == name] - theta).sum() for name in names])
    i10, i01, i = len(np.unique(owner[truth])), len(np.unique(owner[~truth])), len(names)
    s10 = i10 / ((i10 - 1) * positives) * (v10**2).sum()
    s01 = i01 / ((i01 - 1) * negatives) * (v01**2).sum()
    s11 = i / (i - 1) * (v10 * v01).sum()
    return float(np.sqrt(s10 / positives + s01 / negatives + 2 * s11 / (positives * negatives)))


@given(seed=st.integers(0, 500))
def test_cases_of_one_patient_have_the_variance_of_1997(seed: int) -> None:
    first, second, truth, owner = clustered(seed)
    test = delong_test(np.round(first, 1), np.round(second, 1), truth, owner)
    assert test.standard_error == pytest.approx(
        by_obuchowski(np.round(first, 1), np.round(second, 1), truth, owner), abs=1e-12
    )
    alone = delong_test(first, second, truth, np.arange(len(truth)))
    assert alone == delong_test(first, second, truth)


def test_its_error_is_that_of_patients_drawn_again() -> None:
    first, second, truth, owner = clustered(3, 150)
    random, changes = np.random.default_rng(0), []
    cases = [np.flatnonzero(owner == name) for name in range(150)]
    for _ in range(200):
        rows = np.concatenate([cases[name] for name in random.integers(0, 150, 150)])
        changes.append(roc_auc_score(truth[rows], first[rows]) - roc_auc_score(truth[rows], second[rows]))
    assert delong_test(first, second, truth, owner).standard_error == pytest.approx(np.std(changes), rel=0.2)


def test_equal_models_of_patients_with_several_cases_are_called_different_one_time_in_twenty() -> None:
    """As independent cases they were three times as often."""
    sets = [clustered(seed, 30) for seed in range(500)]
    sets = [part for part in sets if min(len(np.unique(part[3][part[2]])), part[2].sum()) >= 5]
    by_patient = np.mean([delong_test(*part).p_value < 0.05 for part in sets])
    by_case = np.mean([delong_test(*part[:3]).p_value < 0.05 for part in sets])
    assert 0.02 < by_patient < 0.08
    assert by_case > 0.12


def test_patients_who_all_say_the_same_are_no_more_than_a_sign_test() -> None:
    """Six positive patients: a difference without any spread had p = 0."""
    truth = np.arange(12) < 6
    assert delong_test(truth * 1.0, np.zeros(12), truth).p_value == pytest.approx(2 / 2**6)


def test_a_model_is_no_different_from_itself() -> None:
    first, _, truth = cases(0)
    test = delong_test(first, first, truth)
    assert (test.standard_error, test.p_value) == (0.0, 1.0)


def test_a_single_patient_of_a_side_is_refused() -> None:
    with pytest.raises(ValueError, match="two patients with positive"):
        delong_test([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [1, 0, 0])
    with pytest.raises(ValueError, match="two patients with positive"):
        delong_test([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.2], [1, 1, 0, 0], ["a", "a", "b", "c"])
