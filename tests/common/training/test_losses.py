"""Tests of common/training/losses.py: every loss against scikit-learn, torchvision or arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torchvision.ops import sigmoid_focal_loss

from common.errors import UsageError
from common.training.losses import LOSSES, LossRow, build_loss
from tests.common.networks.test_network import Pictures, build

WEIGHTS = (1, 1, 2)


def data(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(count, 3, generator=generator), (torch.rand(count, 3, generator=generator) < 0.3).float()


def test_the_default_is_the_competitions_weighted_log_loss() -> None:
    logits, targets = data()
    p = torch.sigmoid(logits.double()).numpy()
    each = [log_loss(targets[:, c].numpy(), p[:, c]) for c in range(3)]
    loss = build_loss("bce", {}, WEIGHTS)(logits, targets)
    assert float(loss) == pytest.approx((each[0] + each[1] + 2 * each[2]) / 4, abs=1e-6)


def test_label_weights_replace_the_metrics() -> None:
    logits, targets = data()
    p = torch.sigmoid(logits.double()).numpy()
    each = [log_loss(targets[:, c].numpy(), p[:, c]) for c in range(3)]
    loss = build_loss("bce", {"loss_label_weights": (0.0, 3.0, 1.0)}, WEIGHTS)(logits, targets)
    assert float(loss) == pytest.approx(0.75 * each[1] + 0.25 * each[2], abs=1e-6)


@pytest.mark.parametrize("numbers", [(4.0,), (2.0, 1.0, 5.0)])
def test_positive_weights_multiply_the_part_of_the_positives(numbers: tuple[float, ...]) -> None:
    logits, targets = data()
    p, y = torch.sigmoid(logits.double()).numpy(), targets.numpy()
    each = -(np.array(numbers) * y * np.log(p) + (1 - y) * np.log(1 - p))
    loss = build_loss("bce", {"loss_positive_weights": numbers}, WEIGHTS)(logits, targets)
    assert float(loss) == pytest.approx(float((each @ [0.25, 0.25, 0.5]).mean()), rel=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_is_torchvisions(gamma: float, alpha: float) -> None:
    logits, targets = data()
    expected = sigmoid_focal_loss(logits, targets, alpha, gamma) @ torch.tensor([0.25, 0.25, 0.5])
    loss = build_loss("focal", {"loss_gamma": gamma, "loss_alpha": alpha}, WEIGHTS)(logits, targets)
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_smoothing_draws_every_target_towards_one_half(name: str) -> None:
    logits, targets = data()
    smooth = build_loss(name, {"loss_smoothing": 0.1}, WEIGHTS)(logits, targets)
    by_hand = build_loss(name, {}, WEIGHTS)(logits, torch.where(targets == 1, 0.95, 0.05))
    assert float(smooth) == pytest.approx(float(by_hand), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_finite_gradients_where_the_logits_are_extreme(name: str) -> None:
    logits = torch.tensor([[-1e4, 0.0, 1e4], [1e4, 50.0, -1e4]], requires_grad=True)
    build_loss(name, {}, WEIGHTS)(logits, torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("given", [{}, {"loss_smoothing": 0.1}])
@pytest.mark.parametrize("name", LOSSES)
def test_a_missing_label_adds_no_loss_and_no_gradient(name: str, given: dict[str, float]) -> None:
    logits, targets = data()
    missing = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    logits.requires_grad_()
    loss = build_loss(name, given, WEIGHTS)
    masked = loss(logits, targets.masked_fill(missing, torch.nan))
    masked.backward()
    assert (logits.grad[missing] == 0).all()
    assert (logits.grad[~missing] != 0).all()
    total = 0.0
    for label, weight in enumerate(WEIGHTS):  # each label counts as much as in a batch without gaps
        alone = build_loss(name, given | {"loss_label_weights": tuple(float(label == c) for c in range(3))}, WEIGHTS)
        rows = ~missing[:, label]
        total += weight / 4 * float(alone(logits[rows].detach(), targets[rows])) * int(rows.sum()) / len(rows)
    assert float(masked.detach()) == pytest.approx(total, rel=1e-5)


def test_batches_with_missing_labels_accumulate_to_one_large_batch() -> None:
    logits, targets = data(8)
    targets[:5, 1] = torch.nan
    targets[4:] = torch.nan
    loss = build_loss("bce", {}, WEIGHTS)
    parts = [float(loss(logits[start : start + 2], targets[start : start + 2])) for start in range(0, 8, 2)]
    assert parts[3] == 0
    assert sum(parts) / 4 == pytest.approx(float(loss(logits, targets)), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 0.5, 0.99, 1.0, 2.0])
def test_a_focal_gradient_is_the_slope_at_every_logit(gamma: float, smoothing: float) -> None:
    """From -200 to 200, where float32 knows no probability but 0 and 1; the slope is taken in 200 decimal digits."""
    import mpmath

    mpmath.mp.dps = 200
    places = [-200.0, -104.0, -90.0, -20.0, -3.0, 0.0, 3.0, 17.0, 20.0, 90.0, 104.0, 200.0]

    def exact(x: mpmath.mpf, hard: float) -> mpmath.mpf:
        y = hard * (1 - mpmath.mpf(smoothing)) + mpmath.mpf(smoothing) / 2
        p = 1 / (1 + mpmath.exp(-x))
        return -(y * mpmath.log(p) + (1 - y) * mpmath.log(1 - p)) * (y * (1 - p) + (1 - y) * p) ** gamma

    for hard in (0.0, 1.0):
        logits = torch.tensor([places], requires_grad=True)
        loss = build_loss("focal", {"loss_gamma": gamma, "loss_smoothing": smoothing}, (1,) * len(places))
        (loss(logits, torch.full_like(logits, hard)) * len(places)).backward()
        slopes = [float(mpmath.diff(lambda x, y=hard: exact(x, y), place)) for place in places]
        np.testing.assert_allclose(logits.grad[0].numpy(), slopes, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("values", [{}, {"loss": "focal"}, {"loss_label_weights": (9.0, 1.0, 0.0)}])
def test_the_metric_never_changes_with_the_loss(values: dict) -> None:
    network = build()
    loss = build_loss(values.pop("loss", "bce"), values, WEIGHTS)
    other = type(network)(network.model, network.device, training=network.training, loss=loss)
    assert other.validate() == network.validate()
    pictures = Pictures(4)
    batch = pictures.collate(range(4))
    if values:
        ours, theirs = (each.training_step(network.model, batch).loss.detach() for each in (network, other))
        assert float(ours) != float(theirs)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("focl", {}, "--loss=focl: unknown; .*did you mean 'focal'"),
        ("bce", {"loss_gamma": 2.0}, "--loss_gamma: --loss=bce doesn't know it; it knows --loss_label_weights"),
        ("focal", {"loss_positive_weights": (2.0,)}, "--loss_positive_weights: --loss=focal doesn't know it"),
        ("bce", {"loss_label_weights": (1.0, 2.0)}, "--loss_label_weights has 2 numbers for 3 labels"),
        ("bce", {"loss_positive_weights": (1.0, 2.0)}, "--loss_positive_weights has 2 numbers for 3 labels"),
        ("bce", {"loss_label_weights": (0.0,)}, "--loss_label_weights must not all be 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_loss(name, values, WEIGHTS)


def test_a_loss_that_knows_no_options_gets_the_metrics_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    squares = LossRow("plain", "squares", build=lambda *_: lambda logits, targets: (logits - targets) ** 2)
    monkeypatch.setitem(LOSSES, "plain", squares)
    found = build_loss("plain", {}, (1.0, 3.0))(torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2))
    assert found.item() == pytest.approx((4.0 + 3 * 1.0) / 4)
