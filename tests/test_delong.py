"""Tests of common/evaluation/delong.py, against the definition of 1988 and a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
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
    assert test.p_value == pytest.approx(2 * norm.sf(abs(difference) / error), abs=1e-12)


def test_where_nothing_differs_one_test_in_twenty_says_so() -> None:
    p_values = np.array([delong_test(*cases(seed, 100, 6)).p_value for seed in range(800)])
    assert 0.03 < np.mean(p_values < 0.05) < 0.075


def test_a_model_is_no_different_from_itself() -> None:
    first, _, truth = cases(0)
    test = delong_test(first, first, truth)
    assert (test.standard_error, test.p_value) == (0.0, 1.0)


def test_a_single_case_of_a_side_is_refused() -> None:
    with pytest.raises(ValueError, match="two positive"):
        delong_test([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [1, 0, 0])
