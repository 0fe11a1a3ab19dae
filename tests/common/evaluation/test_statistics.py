"""Tests of common/evaluation/statistics.py, against scikit-learn and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, log_loss, precision_recall_curve

from common.evaluation.metrics import WeightedLogLoss, constant_predictor
from common.evaluation.statistics import CONSTANT_ROW, label_table, member_table

NAMES = ("first", "second", "any")
WEIGHTS = (1, 1, 2)
PREVALENCES = (0.1, 0.2, 0.3)


def make_data(count=60, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, 3)) < 0.4).astype(np.int8)
    values = np.clip(0.3 * targets + rng.random((count, 3)) * 0.7, 0, 1)
    return np.round(values, 1), targets  # rounded, so that there are ties


def table_of(values, targets):
    return label_table(values, targets, NAMES, WEIGHTS, PREVALENCES)


def pairs_won(values, targets):
    """AUROC by its meaning: the share of (positive, negative) pairs in the right order, a tie counting half."""
    positive, negative = values[targets == 1], values[targets == 0]
    wins = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
    return wins / (len(positive) * len(negative))


def precision_steps(values, targets):
    """Average precision by its definition: Σ (recall step) · precision over the thresholds, from the highest."""
    total, recall_before = 0.0, 0.0
    for threshold in np.unique(values)[::-1]:
        chosen = values >= threshold
        precision = targets[chosen].mean()
        recall = targets[chosen].sum() / targets.sum()
        total += (recall - recall_before) * precision
        recall_before = recall
    return total


@given(seed=st.integers(0, 300))
def test_each_label_equals_independent_formulas(seed):
    values, targets = make_data(seed=seed)
    table = table_of(values, targets)
    clipped = np.clip(values, 1e-15, 1 - 1e-15)
    for c, name in enumerate(NAMES):
        row = table.loc[name]
        assert row["log_loss"] == pytest.approx(log_loss(targets[:, c], clipped[:, c], labels=[0, 1]), rel=1e-12)
        constant = np.full(len(values), PREVALENCES[c])
        assert row["constant_log_loss"] == pytest.approx(log_loss(targets[:, c], constant, labels=[0, 1]), rel=1e-12)
        assert row["auroc"] == pytest.approx(pairs_won(values[:, c], targets[:, c]), rel=1e-12)
        assert row["average_precision"] == pytest.approx(precision_steps(values[:, c], targets[:, c]), rel=1e-12)


def test_average_precision_is_not_the_trapezoid_under_the_curve():
    values, targets = make_data()
    precision, recall, _ = precision_recall_curve(targets[:, 0], values[:, 0])
    assert table_of(values, targets).loc["first", "average_precision"] != pytest.approx(
        auc(recall, precision), rel=1e-6
    )


def test_the_weighted_row_holds_the_weighted_averages_and_agrees_with_the_metric():
    values, targets = make_data()
    table = table_of(values, targets)
    for column in ("log_loss", "constant_log_loss", "auroc", "average_precision"):
        first, second, both = (table.loc[name, column] for name in NAMES)
        assert table.loc["weighted", column] == pytest.approx((first + second + 2 * both) / 4, rel=1e-12)
    metric = WeightedLogLoss(NAMES, WEIGHTS)
    metric.update(values, targets, [str(i) for i in range(len(values))])
    assert table.loc["weighted", "log_loss"] == pytest.approx(metric.compute()["weighted_log_loss"], rel=1e-14)
    constant = constant_predictor(PREVALENCES, targets, WEIGHTS)
    assert table.loc["weighted", "constant_log_loss"] == pytest.approx(constant, rel=1e-14)


def test_positives_and_images_are_whole_numbers():
    targets = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]])
    table = table_of(np.full((4, 3), 0.5), targets)
    assert table["positives"].tolist() == [2, 1, 2, 3]
    assert table["images"].tolist() == [4, 4, 4, 4]
    assert (table.dtypes[["positives", "images"]] == np.int64).all()


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_of_one_class_has_no_auroc_and_a_log_loss(value):
    values, targets = make_data()
    targets[:, 1] = value
    table = table_of(values, targets)
    assert table.loc["second", ["auroc", "average_precision"]].isna().all()
    assert table.loc["weighted", ["auroc", "average_precision"]].isna().all()
    assert table.loc["first", ["auroc", "average_precision"]].notna().all()
    assert table[["log_loss", "constant_log_loss"]].notna().all(axis=None)


def test_one_image_is_enough():
    table = table_of([[0.2, 0.4, 0.9]], [[0, 0, 1]])
    assert table.loc["any", "log_loss"] == pytest.approx(-np.log(0.9))
    assert table["auroc"].isna().all()


@pytest.mark.parametrize(
    ("values", "targets", "prevalences"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), PREVALENCES),
        (np.zeros((2, 3)), np.zeros((3, 3)), PREVALENCES),
        (np.zeros((2, 4)), np.zeros((2, 4)), PREVALENCES),
        (np.zeros((2, 3)), np.zeros((2, 3)), (0.1, 0.2)),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), PREVALENCES),
        (np.full((2, 3), 1.1), np.zeros((2, 3)), PREVALENCES),
        (np.full((2, 3), 0.5), np.full((2, 3), 0.5), PREVALENCES),
    ],
)
def test_what_makes_no_table_is_refused(values, targets, prevalences):
    with pytest.raises(ValueError, match=r"expected|must"):
        label_table(values, targets, NAMES, WEIGHTS, prevalences)


def test_members_stand_in_order_above_the_constant_predictor():
    values, targets = make_data()
    table = member_table({"a.csv": values, "b.csv": 1 - values}, targets, NAMES, WEIGHTS, PREVALENCES)
    assert list(table.index) == ["a.csv", "b.csv", CONSTANT_ROW]
    assert list(table.columns) == ["weighted", *NAMES]
    single = table_of(1 - values, targets)
    assert table.loc["b.csv"].to_dict() == pytest.approx(single["log_loss"].to_dict(), rel=1e-14)
    assert table.loc[CONSTANT_ROW].to_dict() == pytest.approx(single["constant_log_loss"].to_dict(), rel=1e-14)
