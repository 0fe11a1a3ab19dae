"""Tests of common/evaluation/ensemble_fitting.py, against searches over every choice and scikit-learn's log loss."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from common.errors import WorkError
from common.evaluation.ensemble_choices import FITS
from common.evaluation.ensemble_fitting import (
    fit_nested,
    fit_weights,
    fit_weights_per_label,
    greedy_weights,
    logit_correlations,
    weighted_loss,
)
from common.evaluation.ensembling import build_link, weighted_mean

SCALE = np.array([0.25, 0.75])
LINKS = [("mean", None), ("logit", None), ("power", 0.5), ("power", 3.0)]


def made_up(members=2, images=400, seed=0):
    """Members with independent noise about the same true logits: the best mix uses them all."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(-1, 2, (images, 2))
    targets = (generator.random((images, 2)) < 1 / (1 + np.exp(-truth))).astype(float)
    noise = generator.normal(0, 1, (members, images, 2)) * np.arange(1, members + 1)[:, None, None]
    return 1 / (1 + np.exp(-truth - noise)), targets


def loss_by_hand(values, targets):
    return sum(share * log_loss(targets[:, c], values[:, c], labels=[0, 1]) for c, share in enumerate(SCALE))


@pytest.mark.parametrize(("method", "power"), LINKS)
def test_fitted_weights_are_as_good_as_the_best_of_a_fine_grid(method, power):
    stack, targets = made_up()
    link = build_link(method, power)
    weights = fit_weights(link.forward(stack), targets, link, SCALE)
    grid = [
        loss_by_hand(weighted_mean(link.forward(stack), np.array([share, 1 - share]), link), targets)
        for share in np.linspace(0, 1, 201)
    ]
    found = loss_by_hand(weighted_mean(link.forward(stack), weights, link), targets)
    assert found <= min(grid) + 1e-9
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()


@pytest.mark.parametrize(("method", "power"), LINKS)
def test_each_label_has_its_own_best_weights_drawn_to_the_shared_ones_by_its_number_of_images(method, power):
    """The oracle: a fine grid of each label's own weights, and of those of both labels."""
    stack, targets = made_up()
    stack[:, :, 1] = stack[::-1, :, 1]  # the member that is better at one label is worse at the other
    link = build_link(method, power)
    shares = np.linspace(0, 1, 1001)

    def losses(share, c):
        values = weighted_mean(link.forward(stack), np.array([share, 1 - share]), link)[:, c]
        return log_loss(targets[:, c], values, labels=[0, 1])

    table = np.array([[losses(share, c) for c in (0, 1)] for share in shares])
    own, shared = shares[table.argmin(axis=0)], shares[(table @ SCALE).argmin()]
    part = np.minimum(targets.sum(axis=0), (1 - targets).sum(axis=0))
    part = part / (part + 100)
    found = fit_weights_per_label(link.forward(stack), targets, link, SCALE)
    np.testing.assert_allclose(found[0], part * own + (1 - part) * shared, atol=2e-3)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-12)
    assert found[0, 0] > found[0, 1]


def test_a_label_that_no_image_has_or_of_which_nothing_is_known_takes_the_shared_weights():
    stack, targets = made_up()
    targets[:, 0] = 0
    targets[:50, 1] = np.nan
    link = build_link("logit")
    found = fit_weights_per_label(link.forward(stack), targets, link, SCALE)
    np.testing.assert_array_equal(found[:, 0], fit_weights(link.forward(stack), targets, link, SCALE))
    targets[:, 0] = np.nan
    found = fit_weights_per_label(link.forward(stack), targets, link, SCALE)
    np.testing.assert_allclose(
        found[:, 0], fit_weights(link.forward(stack)[:, 50:, 1:], targets[50:, 1:], link, np.ones(1)), atol=1e-4
    )


def test_greedy_selection_takes_the_member_that_lowers_the_loss_most_in_each_round():
    stack, targets = made_up(members=3, images=60)
    link = build_link("mean")
    taken, losses = [], []
    for _ in range(40):
        options = [loss_by_hand(stack[[*taken, one]].mean(axis=0), targets) for one in range(3)]
        taken.append(int(np.argmin(options)))
        losses.append(min(options))
    best = taken[: int(np.argmin(losses)) + 1]
    expected = np.bincount(best, minlength=3) / len(best)
    found = greedy_weights(stack, targets, link, SCALE)
    reached = loss_by_hand(weighted_mean(stack, found, link), targets)
    assert reached <= loss_by_hand(weighted_mean(stack, expected, link), targets) + 1e-12
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("method", FITS)
def test_predictions_of_an_outer_fold_come_from_weights_fitted_without_it(method):
    stack, targets = made_up(members=3)
    patients = np.repeat(np.arange(40), 10)
    link = build_link("logit")
    fitted = fit_nested(link.forward(stack), targets, patients, link, SCALE, method)
    assert fitted.fold_weights.shape in ((5, 3), (5, 3, 2))
    np.testing.assert_allclose(fitted.fold_weights.sum(axis=1), 1, atol=1e-12)
    changed = targets.copy()
    changed[patients == 7] = 1 - changed[patients == 7]
    other = fit_nested(link.forward(stack), changed, patients, link, SCALE, method)
    np.testing.assert_array_equal(fitted.predictions[patients == 7], other.predictions[patients == 7])


def test_the_score_of_fitted_weights_does_not_flatter_where_members_know_nothing():
    """Fifteen members of pure noise: fitted to the images they look better than what other patients then see."""
    generator = np.random.default_rng(1)
    stack = 1 / (1 + np.exp(-generator.normal(0, 1, (15, 150, 2))))
    targets = (generator.random((150, 2)) < 0.5).astype(float)
    link = build_link("mean")
    fitted = fit_nested(stack, targets, np.repeat(np.arange(50), 3), link, SCALE, "weights")
    flattering = weighted_loss(weighted_mean(stack, fitted.weights, link), targets, SCALE)
    assert weighted_loss(fitted.predictions, targets, SCALE) > flattering + 0.005


def test_one_patient_can_not_judge_weights():
    stack, targets = made_up(images=10)
    with pytest.raises(WorkError, match="one patient"):
        fit_nested(stack, targets, ["p"] * 10, build_link("mean"), SCALE, "weights")


def test_members_of_exact_zeros_and_ones_are_no_trouble():
    targets = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    stack = np.stack([targets, 1 - targets])
    for method, power in LINKS:
        link = build_link(method, power)
        weights = fit_weights(link.forward(stack), targets, link, SCALE)
        assert weights[0] > 0.99, (method, power)


def test_a_class_in_which_a_member_is_constant_is_left_out_of_the_correlations():
    stack, _ = made_up()
    logits = np.log(stack / (1 - stack))
    expected = np.mean([np.corrcoef(logits[0, :, c], logits[1, :, c])[0, 1] for c in range(2)])
    assert logit_correlations(stack)[0, 1] == pytest.approx(expected, rel=1e-12)
    stack[1, :, 0] = 0.5
    assert logit_correlations(stack)[0, 1] == pytest.approx(np.corrcoef(*logits[:, :, 1])[0, 1], rel=1e-12)
    assert np.isnan(logit_correlations(np.full((2, 5, 2), 0.5))).all()
