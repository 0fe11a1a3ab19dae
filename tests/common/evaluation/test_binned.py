"""Tests of common/evaluation/binned.py, against scikit-learn and thresholds tried one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from common.evaluation import binned


def cases(seed: int, count: int = 80, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.random(count) < 0.3
    truth[:2] = True, False
    return np.round(0.4 * truth + 0.6 * random.random(count), decimals), truth


def histograms(scores: np.ndarray, truth: np.ndarray, bins: int = binned.BINS) -> tuple[np.ndarray, np.ndarray]:
    place = binned.bin_scores(scores, truth, bins)
    count = place.max() + 1
    return tuple(np.bincount(place[side], minlength=count)[None].astype(float) for side in (truth, ~truth))


@given(seed=st.integers(0, 1000))
def test_few_different_scores_give_scikit_learns_values_ties_included(seed: int) -> None:
    scores, truth = cases(seed)
    sides = histograms(scores, truth)
    assert binned.auroc(*sides)[0] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert binned.average_precision(*sides)[0] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_many_different_scores_lose_little() -> None:
    scores, truth = cases(0, 50_000, 15)
    scores = scores**6  # most near 0, as a rare label's
    sides = histograms(scores, truth)
    assert len(np.unique(scores)) > 10 * binned.BINS >= 10 * sides[0].shape[1]
    assert binned.auroc(*sides)[0] == pytest.approx(roc_auc_score(truth, scores), abs=2e-4)
    assert binned.average_precision(*sides)[0] == pytest.approx(average_precision_score(truth, scores), abs=2e-3)


@given(seed=st.integers(0, 1000), share=st.sampled_from((0.5, 0.9, 0.95, 1.0)))
def test_operating_points_are_the_best_of_all_thresholds(seed: int, share: float) -> None:
    scores, truth = cases(seed)
    sensitivity, specificity = [], []
    for threshold in (*np.unique(scores), np.inf):
        tpr, tnr = np.mean(scores[truth] >= threshold), np.mean(scores[~truth] < threshold)
        sensitivity.append(tpr if tnr >= share else 0)
        specificity.append(tnr if tpr >= share else 0)
    sides = histograms(scores, truth)
    assert binned.sensitivity_at(*sides, share)[0] == pytest.approx(max(sensitivity), abs=1e-12)
    assert binned.specificity_at(*sides, share)[0] == pytest.approx(max(specificity), abs=1e-12)


def test_a_side_without_images_has_no_value() -> None:
    positives, negatives = np.array([[1.0, 2.0]]), np.zeros((1, 2))
    for value in (
        binned.auroc(positives, negatives),
        binned.average_precision(negatives, positives),
        binned.sensitivity_at(positives, negatives, 0.9),
        binned.specificity_at(negatives, positives, 0.9),
    ):
        assert np.isnan(value).all()
