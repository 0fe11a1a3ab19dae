"""Tests of common/training/schedulers.py: every row of the table, and each against torch's own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from common.errors import UsageError
from common.training.schedulers import SCHEDULES, build_schedule, in_steps

BASE_LR = 0.3
# Options that bring every row's own curve out; the bare row is tested beside it.
VARIED = {
    "constant": {"sched_warmup": 7.0},
    "step": {"sched_step": 11.0, "sched_gamma": 0.5, "sched_warmup": 3.0},
    "multistep": {"sched_milestones": (0.2, 30.0, 90.0), "sched_gamma": 0.3},
    "cosine": {"sched_cycles": 3, "sched_cycle_length": 2.0, "sched_cycle_height": 0.7, "sched_min": 0.01},
    "onecycle": {"sched_warmup": 20.0, "sched_start": 0.1, "sched_min": 0.001},
    "poly": {"sched_power": 0.9, "sched_warmup": 0.1, "sched_min": 0.05},
    "plateau": {"sched_warmup": 5.0, "sched_patience": 1},
}
CASES = [(name, values) for name in SCHEDULES for values in ({}, VARIED[name])]


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


def torch_rates(scheduler, total):
    """The same of one of torch's schedulers, stepped as its documentation says."""
    found = []
    for _ in range(total):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("name", "values"), CASES)
@pytest.mark.parametrize("total", [1, 2, 19, 20, 100])
def test_every_schedule_is_a_closed_formula_of_the_step(name, values, total):
    if values.get("sched_warmup", 0) >= total:
        values = {**values, "sched_warmup": 0.5}
    walked = rates(build_schedule(name, make_optimizer(), total, values), total)
    for step, expected in enumerate(walked):
        resumed = build_schedule(name, make_optimizer(), total, values)
        resumed.on_step(step)
        assert resumed.lr == expected


@pytest.mark.parametrize(("name", "values"), CASES)
def test_every_schedule_keeps_rates_positive_and_at_most_the_initial_one(name, values):
    found = rates(build_schedule(name, make_optimizer(), 200, values), 200)
    assert all(0 < rate <= BASE_LR * (1 + 1e-12) for rate in found)
    assert max(found) == pytest.approx(BASE_LR)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_every_schedule_scales_all_groups_alike(name, values):
    optimizer = make_optimizer()
    schedule = build_schedule(name, optimizer, 100, values)
    for step in range(101):
        schedule.on_step(step)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 10, rel=1e-12)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_the_saved_state_of_every_schedule_goes_on_with_the_same_rates(name, values):
    first = build_schedule(name, make_optimizer(), 100, values)
    first.on_step(40)
    for metric in (0.5, 0.6, 0.7, 0.8):
        first.on_metric(metric)
    state = first.state_dict()
    second = build_schedule(name, make_optimizer(lr=7.0), 100, values)
    second.load_state_dict(state)
    assert second.lr == first.lr
    assert second.state_dict() == state
    for schedule in (first, second):
        schedule.on_metric(0.9)
        schedule.on_metric(0.9)
        schedule.on_step(60)
    assert second.lr == first.lr


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "plateau"])
def test_a_metric_changes_no_rate_of_a_schedule_of_steps(name):
    schedule = build_schedule(name, make_optimizer(), 100)
    schedule.on_step(50)
    before = schedule.lr
    for _ in range(9):
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


def with_warmup(reference, after, warmup):
    """torch's own way of a linear warm-up before another scheduler."""
    start = lr_scheduler.LinearLR(reference, start_factor=1 / warmup, total_iters=warmup - 1)
    return lr_scheduler.SequentialLR(reference, [start, after], milestones=[warmup])


@pytest.mark.parametrize("total", [40, 100, 333])
def test_the_cosine_equals_torchs_linear_and_cosine_schedulers_in_sequence(total):
    warmup, reference = total // 20, make_optimizer()
    after = lr_scheduler.CosineAnnealingLR(reference, T_max=total - warmup, eta_min=0)
    expected = torch_rates(with_warmup(reference, after, warmup), total + 1)
    found = rates(build_schedule("cosine", make_optimizer(), total), total + 1)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("growth", [1, 2])
def test_cosine_restarts_equal_torchs_warm_restarts(growth):
    total = 105 if growth == 1 else 15 * 7
    reference = make_optimizer()
    first = 35 if growth == 1 else 15
    torchs = lr_scheduler.CosineAnnealingWarmRestarts(reference, T_0=first, T_mult=growth, eta_min=0)
    values = {"sched_warmup": 0.0, "sched_cycles": 3, "sched_cycle_length": float(growth)}
    found = rates(build_schedule("cosine", make_optimizer(), total, values), total)
    assert found == pytest.approx(torch_rates(torchs, total), rel=1e-9, abs=1e-12)


def test_steps_equal_torchs_step_scheduler():
    reference = make_optimizer()
    expected = torch_rates(lr_scheduler.StepLR(reference, step_size=13, gamma=0.4), 60)
    values = {"sched_step": 13.0, "sched_gamma": 0.4}
    assert rates(build_schedule("step", make_optimizer(), 60, values), 60) == pytest.approx(expected)


def test_milestones_equal_torchs_multi_step_scheduler_in_steps_and_in_shares():
    reference = make_optimizer()
    expected = torch_rates(lr_scheduler.MultiStepLR(reference, milestones=[20, 50], gamma=0.2), 80)
    for milestones in ((20.0, 50.0), (0.25, 0.625)):
        values = {"sched_milestones": milestones, "sched_gamma": 0.2}
        assert rates(build_schedule("multistep", make_optimizer(), 80, values), 80) == pytest.approx(expected)


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
def test_the_polynomial_equals_torchs_with_its_warm_up(power):
    reference = make_optimizer()
    after = lr_scheduler.PolynomialLR(reference, total_iters=90, power=power)
    expected = torch_rates(with_warmup(reference, after, 10), 100)
    values = {"sched_warmup": 10.0, "sched_power": power}
    assert rates(build_schedule("poly", make_optimizer(), 100, values), 100) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("total", [10, 100, 333])
def test_one_cycle_equals_torchs(total):
    reference = make_optimizer()
    torchs = lr_scheduler.OneCycleLR(reference, max_lr=BASE_LR, total_steps=total, cycle_momentum=False)
    expected = [torchs.optimizer.param_groups[0]["lr"]]
    for _ in range(total - 1):  # torch refuses a step after the last
        reference.step()
        torchs.step()
        expected.append(reference.param_groups[0]["lr"])
    assert rates(build_schedule("onecycle", make_optimizer(), total), total) == pytest.approx(expected, rel=1e-9)


@given(
    metrics=st.lists(st.floats(0.01, 2), min_size=1, max_size=30),
    patience=st.integers(0, 4),
    gamma=st.sampled_from([0.1, 0.5]),
    lowest=st.sampled_from([0.0, 0.2]),
)
def test_the_plateau_equals_torchs(metrics, patience, gamma, lowest):
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    torchs = lr_scheduler.ReduceLROnPlateau(
        reference, factor=gamma, patience=patience, threshold=1e-4, min_lr=lowest * BASE_LR, eps=0
    )
    values = {"sched_gamma": gamma, "sched_patience": patience, "sched_min": lowest}
    ours = build_schedule("plateau", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR), 100, values)
    for step, metric in enumerate(metrics):
        ours.on_step(step + 1)
        torchs.step(metric)
        ours.on_metric(metric)
        assert ours.lr == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12)


def test_the_cosine_in_numbers_worked_out_by_hand():
    schedule = build_schedule("cosine", make_optimizer(), 100)  # 5 steps of warm-up, 95 of cosine
    found = rates(schedule, 100)
    assert found[:6] == pytest.approx([BASE_LR * part for part in (0.2, 0.4, 0.6, 0.8, 1, 1)])
    assert found[5 + 19] == pytest.approx(BASE_LR * (1 + math.cos(math.pi / 5)) / 2)
    assert schedule.lr == pytest.approx(0, abs=1e-15)
    schedule.on_step(150)
    assert schedule.lr == pytest.approx(0, abs=1e-15)


@given(total=st.integers(1, 500), name=st.sampled_from(["cosine", "poly", "onecycle"]))
def test_a_single_cycle_rises_once_and_then_falls(total, name):
    found = rates(build_schedule(name, make_optimizer(), total), total)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


@given(share=st.integers(0, 99), total=st.integers(1, 10_000))
def test_a_share_of_the_run_is_rounded_down_exactly(share, total):
    assert in_steps(share / 100, total) == share * total // 100


def test_the_constant_rate_stays():
    assert rates(build_schedule("constant", make_optimizer(), 30), 30) == [BASE_LR] * 30


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_option_that_a_schedule_does_not_know_is_refused(name):
    every = {key: value for row in SCHEDULES.values() for key, value in row.parameters.items()}
    for option, value in every.items():
        if option not in SCHEDULES[name].parameters:
            with pytest.raises(UsageError, match=rf"^--{option}: --sched={name} doesn't know it; it knows --sched_"):
                build_schedule(name, make_optimizer(), 10, {option: value})


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match=r"--sched=cosin:.*constant, .*cosine.*did you mean 'cosine'"):
        build_schedule("cosin", make_optimizer(), 10)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(UsageError, match=r"--sched_warmup=10: is not below the run's 10 optimizer steps"):
        build_schedule("cosine", make_optimizer(), 10, {"sched_warmup": 10.0})


def test_milestones_that_do_not_rise_are_refused():
    with pytest.raises(UsageError, match=r"--sched_milestones=0.5,0.5: must rise"):
        build_schedule("multistep", make_optimizer(), 10, {"sched_milestones": (0.5, 0.5)})


def test_numbers_that_make_no_run_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        build_schedule("cosine", make_optimizer(), 0)
    with pytest.raises(ValueError, match="negative"):
        build_schedule("cosine", make_optimizer(), 10).on_step(-1)
    one_group = build_schedule("constant", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 10)
    with pytest.raises(ValueError, match="parameter groups"):
        one_group.load_state_dict(build_schedule("constant", make_optimizer(), 10).state_dict())
