"""Tests of common/optimizers.py: every row of the table, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import UsageError
from common.optimizers import OPTIMIZERS, build_optimizer, parameter_groups

CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def loss_of(model):
    generator = torch.Generator().manual_seed(1)
    return model(torch.randn(8, 1, 8, 8, generator=generator)).square().mean()


def test_every_row_is_named_and_has_an_expected_class():
    assert {name: row.name for name, row in OPTIMIZERS.items()} == {name: name for name in CLASSES}
    assert all(row.summary for row in OPTIMIZERS.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_torchs_own_with_the_given_rate_and_lowers_a_loss(name):
    model = make_model()
    optimizer = build_optimizer(name, model, lr=0.01, weight_decay=0.1)
    assert type(optimizer) is CLASSES[name]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    before = loss_of(model)
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model) < before / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_fits_whatever_the_decay_was(name):
    model = make_model()
    first = build_optimizer(name, model, lr=0.01, weight_decay=0.0)
    loss_of(model).backward()
    first.step()
    second = build_optimizer(name, model, lr=0.5, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == 0.01


def test_sgd_has_nesterov_momentum():
    group = build_optimizer("sgd", make_model(), lr=0.1, weight_decay=0.0).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_one_step_of_adamw_decays_weights_by_the_rate_and_leaves_biases_and_norms():
    model = make_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer("adamw", model, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_each_trainable_parameter_stands_in_exactly_one_group():
    model = make_model()
    model[0].weight.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_a_group_without_parameters_is_left_out():
    assert len(parameter_groups(nn.Linear(3, 2, bias=False), 0.1)) == 1


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match=r"--optim=adamv.*sgd, adam, adamw.*did you mean"):
        build_optimizer("adamv", make_model(), lr=0.1, weight_decay=0.0)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer("sgd", nn.ReLU(), lr=0.1, weight_decay=0.0)
