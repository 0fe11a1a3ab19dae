from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.callbacks.callback import Callback
from common.callbacks.sample_losses import SampleLosses
from common.datasets.batch import Batch
from common.datasets.images import SampleKey
from common.datasets.samplers import HardExampleSampler, RandomSampler, SequentialSampler
from common.errors import UsageError, WorkError
from common.networks.network import Training
from common.training.losses import build_loss
from common.training.schedulers import build_schedule
from rsna_network import RSNANetwork

CPU = torch.device("cpu")
NAMES = ("a", "b", "any")
WEIGHTS = (1, 1, 2)


class Pictures:
    """Fixed random pictures (1, 4, 4) with three labels each; item i is always the same."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(count, 1, 4, 4, generator=generator)
        self.targets = (torch.rand(count, 3, generator=generator) < 0.4).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey | int) -> int:
        return key.index if isinstance(key, SampleKey) else key

    def collate(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        return Batch({"image": self.images[chosen]}, self.targets[chosen], [f"ID_{index}" for index in chosen])


def loader(pictures: Pictures, sampler: object, batch_size: int, drop_last: bool) -> DataLoader:
    return DataLoader(
        pictures,
        batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=pictures.collate,
        generator=torch.Generator().manual_seed(0),
    )


class ThreeClasses(RSNANetwork):
    """The task's network with classes of this test."""

    class_names = NAMES
    class_weights = WEIGHTS


def linear_model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def build(
    *,
    model: nn.Module | None = None,
    images: int = 24,
    batch_size: int = 4,
    iteration_num: int = 10,
    iteration_valid: int = 10,
    accumulation_step: int = 1,
    callbacks: Sequence[Callback] = (),
    shuffle: bool = True,
    lr: float = 0.1,
    sched: str = "cosine",
    sampler: object = None,
    fused: bool = False,
    **training_options,
) -> ThreeClasses:
    model = model or linear_model()
    pictures, valid = Pictures(images), Pictures(9)
    default_sampler = RandomSampler(images, 5) if shuffle else SequentialSampler(images, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=fused)
    steps = math.ceil(iteration_num / accumulation_step)
    training = Training(
        train_loader=loader(pictures, sampler or default_sampler, batch_size, drop_last=True),
        valid_loader=loader(valid, SequentialSampler(9, 5), 4, drop_last=False),
        optimizer=optimizer,
        schedule=build_schedule(sched, optimizer, steps),
        iteration_num=iteration_num,
        iteration_valid=iteration_valid,
        accumulation_step=accumulation_step,
        callbacks=callbacks,
        **training_options,
    )
    return ThreeClasses(model, CPU, training=training)


def weights(network: ThreeClasses) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.model.parameters()])


class Recorder(Callback):
    """Writes down every event with the counters at its time."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def on_train_begin(self, network) -> None:
        self.events.append(("train_begin", network.iteration, network.step))

    def on_epoch_begin(self, network) -> None:
        self.events.append(("epoch_begin", network.epoch))

    def on_iteration_end(self, network, output) -> None:
        assert network.model.training
        self.events.append(("iteration_end", network.iteration, network.step))

    def on_step_end(self, network) -> None:
        self.events.append(("step_end", network.iteration, network.step))

    def on_validation_end(self, network, metrics) -> None:
        self.events.append(("validation_end", network.iteration, network.step))

    def on_epoch_end(self, network) -> None:
        self.events.append(("epoch_end", network.iteration))

    def on_train_end(self, network) -> None:
        self.events.append(("train_end", network.iteration, network.step))

    def names(self, kind: str) -> list[tuple]:
        return [event[1:] for event in self.events if event[0] == kind]


def test_the_whole_sequence_of_events_is_the_documented_one() -> None:
    recorder = Recorder()
    # 8 images in batches of 4 are 2 iterations an epoch; groups of 2 and a last group of 1.
    build(images=9, iteration_num=5, iteration_valid=4, accumulation_step=2, callbacks=[recorder]).fit()
    assert recorder.events == [
        ("train_begin", 0, 0),
        ("epoch_begin", 0),
        ("iteration_end", 1, 0),
        ("step_end", 2, 1),
        ("iteration_end", 2, 1),
        ("epoch_end", 2),
        ("epoch_begin", 1),
        ("iteration_end", 3, 1),
        ("step_end", 4, 2),
        ("iteration_end", 4, 2),
        ("validation_end", 4, 2),
        ("epoch_end", 4),
        ("epoch_begin", 2),
        ("step_end", 5, 3),
        ("iteration_end", 5, 3),
        ("validation_end", 5, 3),
        ("epoch_end", 5),
        ("train_end", 5, 3),
    ]


@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(4, 30),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 5),
    iterations=st.integers(1, 25),
    interval=st.integers(1, 4),
)
def test_n_iterations_are_n_and_make_ceil_n_over_accumulation_steps(
    images, batch_size, accumulation, iterations, interval
) -> None:
    recorder = Recorder()
    network = build(
        images=images,
        batch_size=batch_size,
        iteration_num=iterations,
        iteration_valid=interval * accumulation,
        accumulation_step=accumulation,
        callbacks=[recorder],
    )
    network.fit()
    assert network.iteration == iterations
    assert network.step == math.ceil(iterations / accumulation)
    assert [event[0] for event in recorder.names("iteration_end")] == list(range(1, iterations + 1))
    due = [i for i in range(1, iterations + 1) if i % (interval * accumulation) == 0 or i == iterations]
    assert [event[0] for event in recorder.names("validation_end")] == due
    assert len(recorder.names("epoch_begin")) == math.ceil(iterations / (images // batch_size))


def test_two_accumulated_batches_of_4_equal_one_of_8() -> None:
    single = build(batch_size=8, iteration_num=10, iteration_valid=10)
    double = build(batch_size=4, iteration_num=20, iteration_valid=20, accumulation_step=2)
    single.fit()
    double.fit()
    assert single.step == double.step == 10
    torch.testing.assert_close(weights(double), weights(single), rtol=0, atol=1e-6)


def reference_loop(batches: list[list[int]], groups: list[list[int]], lrs: list[float]) -> Tensor:
    """The same mathematics by hand: for each group of batches the mean of the batches' mean losses, then SGD."""
    model, pictures = linear_model(), Pictures(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for group, lr in zip(groups, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        losses = []
        for position in group:
            chosen = batches[position]
            bce = nn.functional.binary_cross_entropy_with_logits(
                model(pictures.images[chosen]), pictures.targets[chosen], reduction="none"
            )
            losses.append((bce[:, 0] + bce[:, 1] + 2 * bce[:, 2]).mean() / 4)
        torch.stack(losses).mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_groups_run_across_epoch_ends_and_only_the_last_is_shorter() -> None:
    network = build(batch_size=5, iteration_num=11, iteration_valid=9, accumulation_step=3, shuffle=False)
    network.fit()
    epoch = [list(range(first, first + 5)) for first in (0, 5, 10, 15)]  # 24 images: 4 batches, 4 images left out
    batches = (epoch * 3)[:11]
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    lrs = [0.1 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    expected = reference_loop(batches, groups, lrs)
    torch.testing.assert_close(weights(network), expected, rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    first, second = build(model=linear_model(0.5)), build(model=linear_model(0.5))
    for network in (first, second):
        torch.manual_seed(1)
        network.fit()
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_a_run_continued_from_its_state_equals_one_in_one_go_to_the_bit(stop_at: int) -> None:
    class StopAt(Callback):
        def on_iteration_end(self, network, output) -> None:
            if network.iteration == stop_at:
                network.interrupt()

    options = {"iteration_num": 13, "iteration_valid": 2, "accumulation_step": 2}
    torch.manual_seed(1)
    whole = build(model=linear_model(0.5), callbacks=[Callback()], **options)
    whole.fit()

    torch.manual_seed(1)
    first = build(model=linear_model(0.5), callbacks=[StopAt()], **options)
    first.fit()
    assert first.iteration == stop_at
    state = first.state_dict()
    second = build(model=linear_model(0.5), callbacks=[Callback()], **options)
    second.load_state_dict(state)
    second.fit()
    assert (second.iteration, second.step) == (13, 7)
    assert torch.equal(weights(second), weights(whole))


def test_validation_sees_evaluation_mode_and_leaves_every_module_as_it_was() -> None:
    class ModeProbe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[bool, bool]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append((self.training, torch.is_grad_enabled()))
            return x

    probe, frozen = ModeProbe(), nn.BatchNorm1d(16)
    model = nn.Sequential(nn.Flatten(), probe, frozen, nn.Linear(16, 3))
    network = build(model=model, iteration_num=2, iteration_valid=2)
    network.model.train()
    frozen.eval()
    network.validate()
    assert probe.seen == [(False, False)] * 3
    assert model.training
    assert not frozen.training


def test_the_metric_covers_the_whole_fold_and_equals_scikit_learns() -> None:
    network = build(iteration_num=3, iteration_valid=3)
    network.fit()
    valid = Pictures(9)
    with torch.no_grad():
        logits = network.model.eval()(valid.images).double()
    p, y = torch.sigmoid(logits).numpy(), valid.targets.numpy()
    each = [log_loss(y[:, c], np.clip(p[:, c], 1e-15, 1 - 1e-15), labels=[0, 1]) for c in range(3)]
    metrics = network.validate()
    assert metrics["valid/weighted_log_loss"] == pytest.approx((each[0] + each[1] + 2 * each[2]) / 4, abs=1e-6)
    assert metrics["valid/log_loss/any"] == pytest.approx(each[2], abs=1e-6)
    assert network.valid_predictions["raw"].image_ids == [f"ID_{index}" for index in range(9)]


def test_the_training_loss_is_the_weighted_mean_of_scikit_learns_log_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator)
    targets = (torch.rand(50, 3, generator=generator) < 0.5).float()
    p = torch.sigmoid(logits.double()).numpy()
    each = [log_loss(targets[:, c].numpy(), p[:, c]) for c in range(3)]
    loss = build_loss("bce", {}, (1, 1, 2))(logits, targets)
    assert float(loss) == pytest.approx(each[0] / 4 + each[1] / 4 + each[2] / 2, abs=1e-6)


def test_should_stop_ends_the_run_after_the_current_iteration() -> None:
    class StopEarly(Callback):
        def on_iteration_end(self, network, output) -> None:
            network.should_stop = network.iteration == 3

    recorder = Recorder()
    network = build(callbacks=[StopEarly(), recorder], iteration_num=100, iteration_valid=50)
    network.fit()
    assert network.iteration == 3
    assert recorder.events[-1] == ("train_end", 3, 3)


def test_a_prediction_that_is_not_finite_names_its_image() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.zeros(len(x), 3)
            logits[-1, 1] = float("nan")
            return logits

    network = ThreeClasses(Broken(), CPU)
    pictures = Pictures(9)
    with pytest.raises(WorkError, match="ID_3 "):
        network.predict(loader(pictures, SequentialSampler(9, 0), 4, drop_last=False))


def test_float16_on_a_cpu_is_refused_by_the_flags_name() -> None:
    with pytest.raises(UsageError, match="--tr_amp_dtype=float16"):
        ThreeClasses(linear_model(), CPU, amp_dtype=torch.float16)


def test_bfloat16_computes_layers_in_bfloat16_and_the_loss_in_float32() -> None:
    network = build()
    network = ThreeClasses(network.model, CPU, amp_dtype=torch.bfloat16, training=network.training)
    outputs = []

    class Watch(Callback):
        def on_iteration_end(self, network, output) -> None:
            outputs.append((output.logits.dtype, output.loss.dtype))

    network.training = Training(**{**vars(network.training), "callbacks": [Watch()]})
    network.fit()
    assert set(outputs) == {(torch.bfloat16, torch.float32)}
    assert network.valid_predictions["raw"].logits.dtype == np.float32


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(UsageError, match="--tr_batch_size=30"):
        build(images=24, batch_size=30).fit()


def test_an_image_set_without_images_is_refused() -> None:
    with pytest.raises(WorkError, match="no image"):
        ThreeClasses(linear_model(), CPU).predict([])


def test_a_plateau_schedule_hears_of_each_validation() -> None:
    network = build(lr=0.0, iteration_num=10, iteration_valid=2, sched="plateau", monitor="valid/weighted_log_loss")
    network.fit()
    # A rate of 0 never gets better: the first value is the best, three more end the patience of two.
    assert network.training.schedule.state_dict()["level"] == pytest.approx(0.1)


def test_a_hard_example_sampler_hears_each_images_loss() -> None:
    sampler = HardExampleSampler([f"ID_{index}" for index in range(24)], 1.0, 0.0, 5)
    network = build(lr=0.0, iteration_num=7, sampler=sampler, callbacks=[SampleLosses(torch.tensor([0.25, 0.25, 0.5]))])
    network.fit()
    pictures = Pictures(24)
    with torch.no_grad():
        p = torch.sigmoid(network.model.eval()(pictures.images).double()).numpy()
    y = pictures.targets.numpy()
    each = -(y * np.log(p) + (1 - y) * np.log(1 - p)) @ [0.25, 0.25, 0.5]
    np.testing.assert_allclose(sampler.state_dict()["losses"].numpy(), each, rtol=1e-5)
