"""Tests of common/schedulers.py: every row of the table, and the cosine against torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.schedulers import SCHEDULES, CosineSchedule, build_schedule

BASE_LR = 0.3


def make_optimizer(lr=BASE_LR):
    weight = torch.nn.Parameter(torch.zeros(2))
    bias = torch.nn.Parameter(torch.zeros(1))
    return torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": lr / 10}], lr=lr)


def rates(schedule, total):
    """The learning rate that each step of a run is made with."""
    found = []
    for step in range(total):
        found.append(schedule.lr)
        schedule.on_step(step + 1)
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 19, 20, 100])
def test_every_schedule_is_a_closed_formula_of_the_step(name, total):
    walked = rates(build_schedule(name, make_optimizer(), total), total)
    for step, expected in enumerate(walked):
        resumed = build_schedule(name, make_optimizer(), total)
        resumed.on_step(step)
        assert resumed.lr == expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_keeps_rates_positive_and_at_most_the_initial_one(name):
    found = rates(build_schedule(name, make_optimizer(), 200), 200)
    assert all(0 < rate <= BASE_LR for rate in found)
    assert max(found) == BASE_LR


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_scales_all_groups_alike(name):
    optimizer = make_optimizer()
    schedule = build_schedule(name, optimizer, 100)
    for step in range(101):
        schedule.on_step(step)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 10, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_saved_state_of_every_schedule_goes_on_with_the_same_rates(name):
    first = build_schedule(name, make_optimizer(), 100)
    first.on_step(40)
    state = first.state_dict()
    second = build_schedule(name, make_optimizer(lr=7.0), 100)
    second.load_state_dict(state)
    assert second.lr == first.lr
    assert second.state_dict() == state
    for schedule in (first, second):
        schedule.on_step(60)
    assert second.lr == first.lr


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_metric_changes_no_rate_of_a_schedule_of_steps(name):
    schedule = build_schedule(name, make_optimizer(), 100)
    schedule.on_step(50)
    before = schedule.lr
    schedule.on_metric(0.5)
    assert schedule.lr == before


def test_a_schedule_made_after_the_optimizer_was_loaded_knows_the_initial_rate():
    optimizer = make_optimizer()
    build_schedule("cosine", optimizer, 100).on_step(80)
    loaded = make_optimizer(lr=1.0)
    loaded.load_state_dict(optimizer.state_dict())
    schedule = build_schedule("cosine", loaded, 100)
    schedule.on_step(80)
    assert schedule.lr == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("total", [40, 100, 333])
def test_the_cosine_equals_torchs_linear_and_cosine_schedulers_in_sequence(total):
    warmup = total // 20
    reference = make_optimizer()
    torchs = torch.optim.lr_scheduler.SequentialLR(
        reference,
        [
            torch.optim.lr_scheduler.LinearLR(reference, start_factor=1 / warmup, total_iters=warmup - 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=total - warmup),
        ],
        milestones=[warmup],
    )
    expected = []
    for _ in range(total + 1):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        torchs.step()
    found = rates(CosineSchedule(make_optimizer(), total), total + 1)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_cosine_in_numbers_worked_out_by_hand():
    schedule = CosineSchedule(make_optimizer(), 100)  # 5 steps of warm-up, 95 of cosine
    found = rates(schedule, 100)
    assert found[:6] == pytest.approx([BASE_LR * part for part in (0.2, 0.4, 0.6, 0.8, 1, 1)])
    assert found[5 + 19] == pytest.approx(BASE_LR * (1 + math.cos(math.pi / 5)) / 2)
    assert schedule.lr == pytest.approx(0, abs=1e-15)
    schedule.on_step(150)
    assert schedule.lr == pytest.approx(0, abs=1e-15)


@given(total=st.integers(1, 500))
def test_the_cosine_rises_once_and_then_falls(total):
    found = rates(CosineSchedule(make_optimizer(), total), total)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert max(found) == BASE_LR


def test_the_constant_rate_stays():
    assert rates(build_schedule("constant", make_optimizer(), 30), 30) == [BASE_LR] * 30


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match=r"--sched=cosin:.*constant, cosine.*did you mean 'cosine'"):
        build_schedule("cosin", make_optimizer(), 10)


def test_numbers_that_make_no_run_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        build_schedule("cosine", make_optimizer(), 0)
    with pytest.raises(ValueError, match="negative"):
        build_schedule("cosine", make_optimizer(), 10).on_step(-1)
    one_group = build_schedule("constant", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 10)
    with pytest.raises(ValueError, match="parameter groups"):
        one_group.load_state_dict(build_schedule("constant", make_optimizer(), 10).state_dict())
