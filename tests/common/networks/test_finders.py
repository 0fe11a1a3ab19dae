"""Tests of common/networks/finders.py and common/models/facts.py."""

from __future__ import annotations

import weakref
import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn

from common.callbacks.callback import Callback
from common.datasets.batch import Batch
from common.errors import WorkError
from common.models.facts import measure_model, normalizes_single_values
from common.models.freezing import freeze, train_mode
from common.networks.averages import ExponentialAverage
from common.networks.finders import RateCurve, find_batch_size, find_learning_rate, rate_picture
from common.networks.guard import StepGuard
from tests.common.networks.test_network import Pictures, build, linear_model, weights


def normed_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def test_a_run_after_the_search_for_a_rate_is_the_run_without_it_to_the_bit() -> None:
    torch.manual_seed(1)
    plain = build(model=normed_model(), callbacks=[Callback()])
    plain.fit()
    torch.manual_seed(1)
    searched = build(model=normed_model(), callbacks=[Callback()])
    state = torch.get_rng_state()
    find_learning_rate(searched, steps=60)
    assert torch.equal(torch.get_rng_state(), state)
    searched.fit()
    assert torch.equal(weights(searched), weights(plain))


def test_the_suggested_rate_lowers_the_loss_more_than_a_hundredth_of_it() -> None:
    curve = find_learning_rate(build(), steps=100)
    assert curve.rates[0] == pytest.approx(1e-6)
    assert curve.rates == sorted(curve.rates)
    assert curve.rates[0] < curve.suggestion < curve.rates[-1]

    def final_loss(lr: float) -> float:
        network = build(lr=lr, iteration_num=60, iteration_valid=60, sched="constant")
        network.fit()
        batch = Pictures(24).collate(range(24))
        return float(network.training_step(network.model.eval(), batch).loss.detach())

    assert final_loss(curve.suggestion) < final_loss(curve.suggestion / 100)


def test_a_loss_that_falls_at_no_rate_is_reported() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3) * 30 + 0 * self.weight

    model = Constant()
    network = build(model=model, images=4)
    with pytest.raises(WorkError, match="--tr_lr_find: the loss fell at no rate"):
        find_learning_rate(network, steps=30)


def test_the_picture_has_a_point_for_each_rate_and_names_the_suggestion() -> None:
    curve = find_learning_rate(build(), steps=40)
    picture = ElementTree.fromstring(rate_picture(curve))
    line = picture.find("{*}polyline")
    assert len(line.get("points").split()) == len(curve.rates)
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert f"--optim_lr={curve.suggestion:.2g}" in texts


class Hungry(nn.Module):
    """Takes at most so many images in training, and in evaluation, as a full GPU does."""

    def __init__(self, most: int, most_in_evaluation: int = 1000) -> None:
        super().__init__()
        self.inner, self.most, self.most_in_evaluation = linear_model(), most, most_in_evaluation

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > (self.most if self.training else self.most_in_evaluation):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


@pytest.mark.parametrize(("most", "limit", "found"), [(5, 100, 4), (8, 100, 8), (100, 24, 16), (2, 100, 2), (1, 1, 1)])
def test_the_largest_power_of_two_that_fits_is_found_and_nothing_is_changed(most: int, limit: int, found: int) -> None:
    network = build(model=Hungry(most))
    before = weights(network).clone()
    assert find_batch_size(network, limit) == found
    assert torch.equal(weights(network), before)


def test_a_batch_that_validates_no_more_is_none_that_fits() -> None:
    assert find_batch_size(build(model=Hungry(100, most_in_evaluation=9)), 100) == 8


def test_the_averages_take_room_too_and_are_put_back() -> None:
    model = Hungry(100)
    average = ExponentialAverage(model, 0.9)
    average.model.most_in_evaluation = 5  # there is less left for the second of two models
    network = build(model=model, averages={"ema": average})
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    assert find_batch_size(network, 100) == 4
    assert not average.started(10)
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_room_is_left_for_the_batches_that_are_on_their_way() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    class Full(nn.Module):
        """A device for 64 images, which are counted while they lie on it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = linear_model()

        def forward(self, x: Tensor) -> Tensor:
            if sum(map(len, alive)) > 64:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(x)

    network = build(model=Full())

    def prepare(batch: Batch) -> Batch:
        ready = replace(batch, inputs={"image": batch.inputs["image"].clone()})
        alive.add(ready.inputs["image"])
        return ready

    network.prepare_batch = prepare
    assert find_batch_size(network, 1000) == 16  # of three batches at a time


def test_a_model_with_batch_norms_over_single_values_is_no_fault() -> None:
    assert find_batch_size(build(model=normed_model()), 16) == 16


def test_where_not_even_two_images_fit_it_is_said() -> None:
    with pytest.raises(WorkError, match="not even two images"):
        find_batch_size(build(model=Hungry(1)), 8)


def test_a_scaler_that_must_come_down_first_spoils_no_momentum() -> None:
    """Fused SGD takes its momentum from memory as it lies there where its first step is left out."""

    def searched(fused: bool) -> RateCurve:
        network = build(fused=fused)
        network.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        loss, training = network.loss, network.training
        network.loss = lambda logits, targets: 100 * loss(logits, targets)  # the first scaled gradients are infinite
        network.guard = StepGuard(training.optimizer, network.scaler, late=True, clip_norm=0, mode="stop", limit=0)
        return find_learning_rate(network, steps=40)

    torch.use_deterministic_algorithms(True)  # fills memory that nothing was written to with NaN
    try:
        assert searched(True).losses == pytest.approx(searched(False).losses, rel=1e-4)
    finally:
        torch.use_deterministic_algorithms(False)


def test_operations_parameters_and_kept_bytes_of_a_small_model_are_as_counted_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    facts = measure_model(model, torch.ones(1, 1, 4, 4))
    assert facts.parameters == facts.trainable == 16 * 8 + 8 + 8 * 3 + 3
    assert facts.flops == 2 * (16 * 8 + 8 * 3)
    assert facts.weight_bytes == 4 * facts.parameters
    # Kept for the backward pass: the first layer's input and the ReLU's output, which is the second layer's input.
    assert facts.activation_bytes == 4 * (16 + 8)
    assert facts.training_bytes(10, moments=2) == 4 * facts.weight_bytes + 10 * facts.activation_bytes


def test_the_operations_of_a_resnet18_are_the_published_ones() -> None:
    model = timm.create_model("resnet18")
    for parameter in model.fc.parameters():
        parameter.requires_grad_(False)
    model.train()
    state = torch.get_rng_state()
    facts = measure_model(model, torch.zeros(1, 3, 224, 224))
    assert facts.flops == pytest.approx(2 * 1.82e9, rel=0.01)  # 1.82 G multiply-adds in timm's results table
    assert facts.parameters == 11_689_512
    assert facts.trainable == 11_689_512 - 513_000
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("resnet10t", "none"),
        ("resnet10t", "norms"),
        ("test_efficientnet", "none"),
        ("test_convnext", "none"),
        ("test_vit", "none"),
    ],
)
def test_batch_norms_over_single_values_are_found_where_torch_refuses_them(name: str, size: int, frozen: str) -> None:
    options = {"img_size": size} if name == "test_vit" else {}
    model = timm.create_model(name, num_classes=6, **options)
    freeze(model, frozen)
    picture = torch.zeros(1, 3, size, size)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = normalizes_single_values(model, picture)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    train_mode(model)
    refused = pytest.raises(ValueError, match="more than 1 value per channel")
    with refused if found else nullcontext():
        model(picture)
