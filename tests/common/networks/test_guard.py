"""common/networks/guard.py: no update from a number that is not finite, whatever the optimizer."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from common.callbacks.callback import Callback
from common.callbacks.metric_logger import MetricLogger
from common.callbacks.telemetry import Telemetry
from common.errors import WorkError
from common.networks.averaging import build_averages
from common.networks.guard import Evidence, StepGuard, suspects
from common.networks.network import AbstractNetwork
from common.trackers.jsonl import JsonlTracker, read_metrics
from tests.common.networks.test_network import build, linear_model, weights

NAN = float("nan")


class Poison(nn.Module):
    """Multiplies by NaN in the forward passes whose numbers (from 1) are given; ``backward_only``: in the gradient."""

    def __init__(self, passes: set[int], backward_only: bool = False) -> None:
        super().__init__()
        self.passes = passes
        self.backward_only = backward_only
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.count += 1
        if self.count not in self.passes:
            return x * 1.0
        if not self.backward_only:
            return torch.cat([x[:1] * NAN, x[1:]])  # the batch's first image alone
        x.register_hook(lambda gradient: gradient * NAN)
        return x * 1.0


def poisoned(passes: set[int], backward_only: bool = False, **options):
    return build(model=nn.Sequential(linear_model(), Poison(passes, backward_only)), shuffle=False, **options)


def test_a_loss_that_is_not_finite_ends_the_run_naming_iteration_and_image_and_changes_no_weight() -> None:
    network = poisoned({3}, iteration_num=10)
    before = []

    class Keep(Callback):
        def on_step_end(self, network) -> None:
            before.append(weights(network))

    network.training = type(network.training)(**{**vars(network.training), "callbacks": [Keep()]})
    with pytest.raises(WorkError, match=r"the loss of iteration 3 is not finite; images: ID_8; lower --optim_lr"):
        network.fit()
    assert torch.equal(weights(network), before[-1])
    assert network.step == len(before) == 2


def test_a_gradient_that_is_not_finite_ends_the_run_naming_the_groups_images() -> None:
    network = poisoned({4}, backward_only=True, iteration_num=10, accumulation_step=2)
    match = "the gradient of iteration 3 to 4 is not finite; images: ID_8, ID_9, .*, ID_15; "
    with pytest.raises(WorkError, match=match):
        network.fit()


def test_skipping_leaves_the_update_out_and_equals_a_run_that_never_saw_the_batch(caplog) -> None:
    network = poisoned({3}, iteration_num=4, nonfinite="skip")
    network.fit()
    assert (network.iteration, network.step, network.guard.nonfinite_skips) == (4, 3, 1)
    assert "iteration 3 is not finite; images: ID_8; its update is skipped (1 of 10)" in caplog.text

    model, pictures = linear_model(), network.training.train_loader.dataset
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in (0, 1, 3):  # the schedule goes by attempts
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + torch.cos(torch.tensor(torch.pi * batch / 4)).item()) / 2
        chosen = list(range(4 * batch, 4 * batch + 4))
        bce = nn.functional.binary_cross_entropy_with_logits(
            model(pictures.images[chosen]), pictures.targets[chosen], reduction="none"
        )
        optimizer.zero_grad()
        ((bce[:, 0] + bce[:, 1] + 2 * bce[:, 2]).mean() / 4).backward()
        optimizer.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    torch.testing.assert_close(weights(network), expected, rtol=0, atol=1e-6)


def test_a_skipped_batch_leaves_no_trace_in_running_statistics() -> None:
    """Its NaN would stay in them for ever, and in every validation."""
    model = nn.Sequential(nn.Flatten(), Poison({3}), nn.BatchNorm1d(16), nn.Linear(16, 3))
    network = build(model=model, shuffle=False, iteration_num=4, nonfinite="skip")
    network.fit()  # validates at its end
    norm, images = nn.BatchNorm1d(16), network.training.train_loader.dataset.images
    for batch in (0, 1, 3):
        norm(images[4 * batch : 4 * batch + 4].flatten(1))
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(getattr(model[2], name), buffer, msg=name)


def test_a_decision_taken_on_the_device_moves_averages_and_counters_as_one_of_the_host_does() -> None:
    """On a GPU the host learns of a skip only at the next update; fused kernels on the CPU go the same way."""

    def run(late: bool) -> AbstractNetwork:
        torch.manual_seed(4)
        model = nn.Sequential(nn.Flatten(), Poison({1, 4, 5}), nn.BatchNorm1d(16), nn.Linear(16, 3))
        averages = build_averages(model, 8, {"ema": True, "swa": True}, {"tr_swa_start": 0.2})
        network = build(model=model, shuffle=False, iteration_num=8, nonfinite="skip", averages=averages, fused=True)
        network.guard.late = late
        network.fit()
        return network

    early, late = run(late=False), run(late=True)
    assert (early.step, early.guard.nonfinite_skips) == (late.step, late.guard.nonfinite_skips) == (5, 3)
    assert torch.equal(weights(early), weights(late))
    for name, average in early.training.averages.items():
        other = late.training.averages[name]
        assert average.before == other.before
        for key, value in average.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[key], value, rtol=0, atol=1e-6, msg=f"{name} {key}")


def test_the_logged_loss_is_the_mean_of_the_finite_ones_beside_the_count_of_skips(tmp_path) -> None:
    losses, tracker = [], JsonlTracker()

    class Losses(Callback):
        def on_iteration_end(self, network, output) -> None:
            losses.append(float(output.loss.detach()))

    tracker.start("1", tmp_path, {})
    logger = MetricLogger(tracker, 4, Telemetry())
    poisoned({2, 5, 6, 7, 8}, iteration_num=12, nonfinite="skip", callbacks=[Losses(), logger]).fit()
    first, second, third = [point for point in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in point]
    assert first["train/loss"] == pytest.approx((losses[0] + losses[2] + losses[3]) / 3)
    assert second["train/loss"] is None  # not one was finite
    assert third["train/loss"] == pytest.approx(sum(losses[8:]) / 4)
    assert [point["train/nonfinite_skips"] for point in (first, second, third)] == [1, 5, 5]
    assert [point["step"] for point in (first, second, third)] == [3, 3, 7]


def test_skipping_ends_above_its_limit() -> None:
    network = poisoned({2, 3, 5}, iteration_num=10, nonfinite="skip", nonfinite_limit=2)
    with pytest.raises(WorkError, match=r"iteration 5 .*3 updates were skipped and --tr_nonfinite_limit=2"):
        network.fit()


def test_clipping_scales_all_gradients_by_their_common_norm() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    guard = make_guard(optimizer, clip_norm=1.3)
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    guard.attempt(evidence(1.0))
    assert float(guard.gradient_norm) == 13.0
    torch.testing.assert_close(torch.cat([*parameters]).detach(), torch.tensor([-0.3, -0.4, -1.2]), atol=1e-6, rtol=0)


def make_guard(optimizer, *, late: bool = False, clip_norm: float = 0.0, mode: str = "skip") -> StepGuard:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return StepGuard(optimizer, scaler, late=late, clip_norm=clip_norm, mode=mode, limit=10)


def evidence(loss: float, iteration: int = 1) -> list[Evidence]:
    return [Evidence(iteration, ["ID_0"], torch.tensor(loss), torch.zeros(1, 3))]


@pytest.mark.parametrize(
    "optimizer_class", [torch.optim.AdamW, torch.optim.Adam, lambda p, **more: torch.optim.SGD(p, 0.1, 0.9, **more)]
)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_late_decision_skips_exactly_what_an_early_one_skips(optimizer_class, fused, bad) -> None:
    """With fused kernels the device decides, as on a GPU; its weights and moments equal those of a run that waits."""

    def run(late: bool) -> tuple[list[Tensor], list[bool]]:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(5))
        optimizer = optimizer_class([parameter], fused=fused)
        guard = make_guard(optimizer, late=late)
        landed = []
        for step in range(4):
            gradient = torch.randn(5)
            parameter.grad = gradient * NAN if step == bad else gradient
            guard.attempt(evidence(1.0, step + 1))
            landed.append(guard.settle())
        state = optimizer.state[parameter]
        return [parameter.detach(), *(value for value in state.values() if isinstance(value, Tensor))], landed

    (early, first), (late, second) = run(False), run(True)
    assert first == second == [step != bad for step in range(4)]
    assert all(torch.isfinite(value).all() for value in late)
    for one, other in zip(early, late, strict=True):
        assert torch.equal(one, other)


def test_what_a_scaler_skips_is_counted_apart_and_lowers_the_scale() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = StepGuard(optimizer, scaler, late=False, clip_norm=0.0, mode="stop", limit=0)
    landed = []
    for gradient in (1.0, NAN, 1.0):
        scaler.scale(parameter.sum()).backward()
        parameter.grad = torch.full((3,), 4 * gradient)
        guard.attempt(evidence(1.0))
        landed.append(guard.settle())
        parameter.grad = None
    assert landed == [True, False, True]
    assert (guard.scaler_skips, guard.nonfinite_skips, scaler.get_scale()) == (1, 0, 2.0)
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.7, 0.7, 0.7]))  # 1 - 0.1 - 0.1 · 4 / 2


@pytest.mark.parametrize("late", [False, True])
def test_under_a_scaler_too_a_loss_that_is_not_finite_counts_where_the_gradient_is_finite(late) -> None:
    """A float16 logit that overflowed has a gradient of 1 or 0: the scaler alone would let that land."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = StepGuard(optimizer, scaler, late=late, clip_norm=0.0, mode="skip", limit=5)
    landed = []
    for loss in (float("inf"), 1.0, float("inf"), 1.0):
        scaler.scale(parameter.sum()).backward()
        guard.attempt(evidence(loss))
        landed.append(guard.settle())
        parameter.grad = None
    assert landed == [False, True, False, True]
    assert (guard.scaler_skips, guard.nonfinite_skips) == (0, 2)
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 1 - 0.1 - 0.19))


def test_a_scaler_that_never_finds_a_finite_gradient_ends_the_run() -> None:
    parameter = nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu")
    guard = StepGuard(torch.optim.SGD([parameter], lr=0.1), scaler, late=False, clip_norm=0.0, mode="stop", limit=0)

    def try_often() -> None:
        for iteration in range(1, 40):
            scaler.scale(parameter.sum()).backward()
            parameter.grad = torch.full((3,), NAN)
            guard.attempt(evidence(1.0, iteration))
            guard.settle()

    with pytest.raises(WorkError, match=r"31 updates in a row .* up to iteration 31; use --tr_amp_dtype=bfloat16"):
        try_often()


def test_many_suspects_are_named_in_part() -> None:
    item = Evidence(1, [f"ID_{i}" for i in range(11)], torch.tensor(NAN), torch.zeros(11, 3))
    assert suspects([item]).endswith("ID_7 and 3 more")


def test_averages_are_updated_after_each_update_that_landed_and_validated_beside_the_raw_weights(caplog) -> None:
    class Copy:
        """The weights of the update before, as an average might hold them."""

        def started(self, step: int) -> bool:
            return step > 0

        def __init__(self) -> None:
            self.model = nn.Sequential(linear_model(), Poison(set()))
            self.steps: list[int] = []

        def update(self, model: nn.Module, step: int, landed: Tensor | None = None) -> None:
            assert landed is None
            self.model.load_state_dict(model.state_dict())
            self.steps.append(step)

        def state_dict(self) -> dict:
            return {"model": self.model.state_dict(), "steps": self.steps}

        def load_state_dict(self, state) -> None:
            self.steps = list(state["steps"])

    caplog.set_level(logging.ERROR)
    average = Copy()
    network = poisoned({3}, iteration_num=6, nonfinite="skip", averages={"ema": average})
    network.fit()
    assert average.steps == [1, 2, 3, 4, 5]
    metrics = network.validate()
    assert metrics["valid_ema/weighted_log_loss"] == metrics["valid/weighted_log_loss"]
    assert set(network.valid_predictions) == {"raw", "ema"}
    assert network.state_dict()["averages"]["ema"]["steps"] == [1, 2, 3, 4, 5]
