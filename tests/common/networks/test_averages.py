"""Tests of common/networks/averages.py: against the formulas by hand and torch's own weight averaging."""

from __future__ import annotations

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.errors import UsageError
from common.networks.averages import EqualAverage, ExponentialAverage, move
from common.networks.averaging import build_averages
from tests.common.networks.test_network import Recorder, build, linear_model, weights


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class WeightRecorder(Recorder):
    """Keeps the weights after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def on_step_end(self, network) -> None:
        self.weights.append(flat(network.model).double())


def run(average, model: nn.Module, steps: int = 10) -> WeightRecorder:
    recorder = WeightRecorder()
    build(model=model, iteration_num=steps, averages={"a": average}, callbacks=[recorder]).fit()
    return recorder


@pytest.mark.parametrize("decay", [0.5, 0.7, 0.999])
def test_the_exponential_average_is_the_formula_with_its_warm_up(decay: float) -> None:
    model = linear_model()
    average = ExponentialAverage(model, decay)
    assert not average.started(0)
    recorder = run(average, model)
    expected = None
    for number, current in enumerate(recorder.weights, start=1):
        d = min(decay, 1 - number ** (-2 / 3))
        expected = current if expected is None else d * expected + (1 - d) * current
    torch.testing.assert_close(flat(average.model).double(), expected, rtol=0, atol=1e-6)
    assert not average.started(0)
    assert average.started(1)


@pytest.mark.parametrize("first", [1, 4, 10])
def test_the_equal_average_is_the_mean_of_the_weights_from_its_first_step_on(first: int) -> None:
    model = linear_model()
    average = EqualAverage(model, first)
    recorder = run(average, model)
    expected = torch.stack(recorder.weights[first - 1 :]).mean(dim=0)
    torch.testing.assert_close(flat(average.model).double(), expected, rtol=0, atol=1e-6)


def test_both_equal_the_averages_of_timm_and_torch_buffers_included() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    ours = [ExponentialAverage(model, 0.7), EqualAverage(model, 1)]
    theirs = [ModelEmaV3(model, 0.7, use_warmup=True, warmup_power=2 / 3), AveragedModel(model, use_buffers=True)]
    for step in range(1, 8):
        with torch.no_grad():
            model[2].weight += torch.randn(3, 16, generator=torch.Generator().manual_seed(step))
        model(torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(step)))
        for average in ours:
            average.update(model, step)
        theirs[0].update(model, step)
        theirs[1].update_parameters(model)
    for our, other in zip(ours, theirs, strict=True):
        for key, value in other.module.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(our.model.state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1.0, 0.63, 0.5, 0.48, 1 / 3, 0.001])
def test_where_the_device_alone_knows_whether_an_update_landed_the_average_is_lerps_to_the_bit(share, dtype) -> None:
    """Tensors of many sizes, so that the kernels' full vectors and what is left of them are seen."""
    torch.manual_seed(0)
    own, current = ([torch.randn(size).to(dtype) for size in (1, 3, 17, 64, 1000)] for _ in range(2))
    expected = [torch.lerp(mine, other, share) for mine, other in zip(own, current, strict=True)]
    before = [tensor.clone() for tensor in own]
    move(own, current, share, torch.tensor(False))
    assert all(map(torch.equal, own, before))
    move(own, current, share, torch.tensor(True))
    assert all(map(torch.equal, own, expected))


def test_the_equal_average_averages_running_statistics_and_copies_counters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    average, means = EqualAverage(model, 1), []
    for step in range(1, 6):
        model(torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(step)))
        average.update(model, step)
        means.append(model[1].running_mean.clone())
    torch.testing.assert_close(average.model[1].running_mean, torch.stack(means).mean(dim=0))


def test_averages_are_validated_under_their_names_once_they_have_begun() -> None:
    model = linear_model()
    averages = build_averages(model, 8, {"ema": True, "swa": True}, {"tr_swa_start": 0.5})
    seen = []

    class Names(Recorder):
        def on_validation_end(self, network, metrics) -> None:
            seen.append({key.split("/")[0] for key in metrics})

    build(model=model, iteration_num=8, iteration_valid=4, averages=averages, callbacks=[Names()]).fit()
    assert seen == [{"valid", "valid_ema"}, {"valid", "valid_ema", "valid_swa"}]


def test_a_continued_run_has_the_same_averages_to_the_bit() -> None:
    class StopAt(Recorder):
        def on_validation_end(self, network, metrics) -> None:
            network.should_stop = network.iteration == 6

    def network(callbacks):
        model = linear_model(0.5)
        averages = build_averages(model, 12, {"ema": True, "swa": True}, {"tr_swa_start": 0.3})
        return build(model=model, iteration_num=12, iteration_valid=2, averages=averages, callbacks=callbacks)

    torch.manual_seed(1)
    whole = network([Recorder()])
    whole.fit()
    torch.manual_seed(1)
    first = network([StopAt()])
    first.fit()
    state = first.state_dict()
    second = network([Recorder()])
    second.load_state_dict(state)
    second.should_stop = False
    second.fit()
    assert torch.equal(weights(whole), weights(second))
    for name, average in whole.training.averages.items():
        assert torch.equal(flat(average.model), flat(second.training.averages[name].model)), name


def test_averages_take_no_part_in_training() -> None:
    plain, averaged = linear_model(), linear_model()
    build(model=plain).fit()
    averages = build_averages(averaged, 10, {"ema": True, "swa": True}, {})
    build(model=averaged, averages=averages).fit()
    assert torch.equal(flat(plain), flat(averaged))
    assert not any(parameter.requires_grad for average in averages.values() for parameter in average.model.parameters())


@pytest.mark.parametrize(("option", "name"), [("tr_ema_decay", "ema"), ("tr_swa_start", "swa")])
def test_an_option_of_an_average_that_is_not_asked_for_is_refused(option: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} needs --tr_{name}=1"):
        build_averages(linear_model(), 10, {"ema": False, "swa": False}, {option: 0.5})
