"""Tests of common/evaluation/metrics.py, against scikit-learn's log_loss put together by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from common.errors import WorkError
from common.evaluation.metrics import (
    WeightedLogLoss,
    binary_log_losses,
    constant_predictor,
    mean_log_loss,
    normalized_weights,
    prevalences_of,
    probabilities,
)

NAMES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
WEIGHTS = (1, 1, 1, 1, 1, 2)
COMPETITION_EPS = 1e-15


def make_metric():
    return WeightedLogLoss(NAMES, WEIGHTS)


def make_data(count, seed=0):
    rng = np.random.default_rng(seed)
    values = 1 / (1 + np.exp(-rng.normal(0, 4, (count, 6))))
    targets = (rng.random((count, 6)) < 0.2).astype(np.float64)
    return values, targets, [f"ID_{i:09x}" for i in range(count)]


def by_hand(values, targets):
    """The competition's score: scikit-learn per label, the weights 1, 1, 1, 1, 1, 2 over 7."""
    clipped = np.clip(values, COMPETITION_EPS, 1 - COMPETITION_EPS)
    per_label = [log_loss(targets[:, c], clipped[:, c], labels=[0, 1]) for c in range(6)]
    return (sum(per_label[:5]) + 2 * per_label[5]) / 7, per_label


def score(values, targets, ids, batch=32):
    metric = make_metric()
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        metric.update(values[part], targets[part], ids[part])
    return metric.compute()


def assert_equals_by_hand(values, targets, ids, batch=32):
    overall, per_label = by_hand(values, targets)
    found = score(values, targets, ids, batch)
    assert found["weighted_log_loss"] == pytest.approx(overall, abs=1e-12, rel=1e-12)
    for name, expected in zip(NAMES, per_label, strict=True):
        assert found[f"log_loss/{name}"] == pytest.approx(expected, abs=1e-12, rel=1e-12)
    assert list(found) == ["weighted_log_loss", *(f"log_loss/{name}" for name in NAMES)]


@pytest.mark.parametrize("count", [1, 2, 33, 1000])
def test_it_equals_scikit_learn_combined_by_hand(count):
    # 33 images in batches of 32: the last batch holds one.
    assert_equals_by_hand(*make_data(count))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_labels_of_one_class_equal_scikit_learn(value):
    values, targets, ids = make_data(50)
    assert_equals_by_hand(values, np.full_like(targets, value), ids)


def test_a_hundred_thousand_images_in_small_batches_keep_twelve_digits():
    assert_equals_by_hand(*make_data(100_000), batch=16)


def test_probabilities_of_exactly_0_and_1_are_clipped_as_the_competition_did():
    targets = np.array([[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]], dtype=np.float64)
    values = np.array([[0, 1, 1, 0, 0.5, 0.5], [0, 1, 1, 0, 0.5, 0.5]], dtype=np.float64)
    assert_equals_by_hand(values, targets, ["a", "b"])
    worst = score(np.ones((1, 6)), np.zeros((1, 6)), ["a"])["weighted_log_loss"]
    assert worst == pytest.approx(-math.log(1 - (1 - 1e-15)), rel=1e-12)
    best = score(np.ones((1, 6)), np.ones((1, 6)), ["a"])["weighted_log_loss"]
    assert 0 < best < 2e-15


def test_numbers_worked_out_by_hand():
    # One image, all labels negative but any; 0.25 everywhere: −ln 0.75 five times, −ln 0.25 with weight 2.
    found = score(np.full((1, 6), 0.25), np.array([[0, 0, 0, 0, 0, 1.0]]), ["a"])
    assert found["weighted_log_loss"] == pytest.approx((-5 * math.log(0.75) - 2 * math.log(0.25)) / 7, rel=1e-14)
    assert found["log_loss/any"] == pytest.approx(math.log(4), rel=1e-14)
    half = score(np.full((3, 6), 0.5), np.zeros((3, 6)), ["a", "b", "c"])
    assert half["weighted_log_loss"] == pytest.approx(0.6931, abs=5e-5)  # ln 2


@given(cuts=st.lists(st.integers(0, 40), max_size=8), seed=st.integers(0, 1000))
def test_any_cut_into_batches_gives_the_same(cuts, seed):
    values, targets, ids = make_data(40, seed)
    edges = [0, *sorted(cuts), 40]  # equal edges make empty batches
    metric = make_metric()
    for start, end in itertools.pairwise(edges):
        metric.update(values[start:end], targets[start:end], ids[start:end])
    whole = score(values, targets, ids, batch=40)
    assert metric.image_count == 40
    for name, value in metric.compute().items():
        assert value == pytest.approx(whole[name], rel=1e-13, abs=1e-15)


def test_missing_labels_count_nowhere_each_label_for_itself():
    values, targets, ids = make_data(60)
    missing = np.random.default_rng(1).random(targets.shape) < [0.0, 0.2, 0.5, 0.9, 0.5, 0.3]
    known, scale = ~missing, np.array(WEIGHTS)
    masked = np.where(missing, np.nan, targets)
    total = weights = 0.0
    found = score(values, masked, ids, batch=7)
    for c, name in enumerate(NAMES):
        rows = known[:, c]
        mean = log_loss(targets[rows, c], values[rows, c], labels=[0, 1])
        assert found[f"log_loss/{name}"] == pytest.approx(mean, rel=1e-12)
        total, weights = total + scale[c] * rows.sum() * mean, weights + scale[c] * rows.sum()
    assert found["weighted_log_loss"] == pytest.approx(total / weights, rel=1e-12)
    share = np.array([targets[known[:, c], c].mean() for c in range(6)])
    margin = 0.5 / (known.sum(axis=0) + 1)
    assert prevalences_of(masked) == pytest.approx(np.clip(share, margin, 1 - margin))
    constants = np.full(6, 0.3)
    by_metric = score(np.tile(constants, (60, 1)), masked, ids)["weighted_log_loss"]
    assert constant_predictor(constants, masked, WEIGHTS) == pytest.approx(by_metric, rel=1e-12)


def test_a_label_without_any_cell_is_withheld_and_weighs_nothing():
    values, targets, ids = make_data(40)
    targets[:, 1] = np.nan
    found = score(values, targets, ids)
    assert "log_loss/intraparenchymal" not in found
    assert not np.isnan(list(found.values())).any()
    others = [found[f"log_loss/{name}"] for name in NAMES if name != "intraparenchymal"]
    assert found["weighted_log_loss"] == pytest.approx((sum(others[:4]) + 2 * others[4]) / 6, rel=1e-12)
    assert prevalences_of(targets)[1] == 0.5
    assert np.isnan(mean_log_loss(np.full((3, 6), np.nan), WEIGHTS))


def test_where_all_labels_are_there_the_value_is_that_of_before_to_the_last_digit():
    for seed in range(20):
        values, targets, ids = make_data(101, seed)
        sums = binary_log_losses(values, targets).sum(axis=0) / 101
        assert score(values, targets, ids, batch=101)["weighted_log_loss"] == normalized_weights(WEIGHTS, 6) @ sums


def test_reset_forgets_everything():
    values, targets, ids = make_data(10)
    metric = make_metric()
    metric.update(values, targets, ids)
    metric.reset()
    metric.update(values[:1], targets[:1], ids[:1])
    assert metric.compute() == score(values[:1], targets[:1], ids[:1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_not_finite_names_image_and_class_and_is_not_counted(bad):
    values, targets, ids = make_data(10)
    values[7, 2] = bad
    metric = make_metric()
    with pytest.raises(WorkError, match=r"ID_000000007.*intraventricular") as caught:
        metric.update(values, targets, ids)
    assert "\n" not in str(caught.value)
    assert metric.image_count == 0


@pytest.mark.parametrize(
    ("values", "targets", "ids"),
    [
        (np.zeros((2, 5)), np.zeros((2, 5)), ["a", "b"]),
        (np.zeros((2, 6)), np.zeros((3, 6)), ["a", "b"]),
        (np.zeros((2, 6)), np.zeros((2, 6)), ["a"]),
        (np.zeros(6), np.zeros(6), ["a"]),
        (np.full((1, 6), 1.5), np.zeros((1, 6)), ["a"]),
        (np.full((1, 6), 0.5), np.full((1, 6), 2.0), ["a"]),
    ],
)
def test_shapes_that_differ_and_values_out_of_range_are_refused(values, targets, ids):
    with pytest.raises(ValueError, match=r"expected|must"):
        make_metric().update(values, targets, ids)


def test_nothing_counted_has_no_log_loss():
    with pytest.raises(ValueError, match="no labelled image"):
        make_metric().compute()


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1, 1, -2), (0,) * 6, (1, 1, 1, 1, 1, math.nan)])
def test_weights_that_make_no_mean_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        WeightedLogLoss(NAMES, weights)


def test_the_constant_predictor_at_the_real_prevalences_scores_what_the_data_notes_say():
    # Published: 674,258 stage-1 images and these positives score 0.2319. The loss of a constant is linear in the mean
    # target, so a single row of soft targets stands for all the images.
    images = 674_258
    prevalences = np.array([2_761, 32_564, 23_766, 32_122, 42_496, 97_103]) / images
    assert constant_predictor(prevalences, prevalences[None], WEIGHTS) == pytest.approx(0.2319, abs=1e-4)
    entropy = -(prevalences * np.log(prevalences) + (1 - prevalences) * np.log(1 - prevalences))
    expected = (entropy[:5].sum() + 2 * entropy[5]) / 7
    assert constant_predictor(prevalences, prevalences[None], WEIGHTS) == pytest.approx(expected, rel=1e-13)


def test_the_constant_predictor_equals_the_metric_of_constant_predictions():
    _, targets, ids = make_data(200)
    prevalences = np.linspace(0.05, 0.4, 6)
    found = score(np.tile(prevalences, (200, 1)), targets, ids)["weighted_log_loss"]
    assert constant_predictor(prevalences, targets, WEIGHTS) == pytest.approx(found, rel=1e-13)
    with pytest.raises(ValueError, match="expected"):
        constant_predictor(prevalences[:5], targets, WEIGHTS)
    with pytest.raises(ValueError, match="expected"):
        constant_predictor(prevalences, targets[:0], WEIGHTS)


def test_a_prevalence_of_0_is_clipped_and_not_infinite():
    assert math.isfinite(constant_predictor(np.zeros(6), np.ones((1, 6)), WEIGHTS))


@given(st.floats(-1000, 1000))
def test_the_sigmoid_is_stable_and_in_float64(logit):
    value = probabilities(np.float32(logit))
    assert value.dtype == np.float64
    x = float(np.float32(logit))
    expected = 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) if x > -700 else 0.0
    assert float(value) == pytest.approx(expected, rel=1e-13, abs=1e-300)


def test_the_sigmoid_keeps_nan_so_that_the_metric_can_name_it():
    assert np.isnan(probabilities([0.0, np.nan])).tolist() == [False, True]
    assert probabilities([[0.0]]).tolist() == [[0.5]]


def test_element_losses_have_the_shape_of_the_targets():
    assert binary_log_losses(np.full(6, 0.5), np.zeros((4, 6))).shape == (4, 6)
