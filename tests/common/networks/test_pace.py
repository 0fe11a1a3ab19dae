"""common/networks/pace.py: a pace is measured by a clock that is handed in, and a time has room for some iterations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.networks import pace as module
from common.networks.pace import MEASURED, WARM_UP, Pace, measure_pace
from tests.common.networks.test_network import Recorder, ThreeClasses, build


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def timed(monkeypatch: pytest.MonkeyPatch, *, iteration: float, first: float, batch: float) -> Clock:
    """Let each iteration and each batch of a validation take so long; the very first iteration takes ``first`` more."""
    clock = Clock()
    train, predict = ThreeClasses.training_step, ThreeClasses.prediction_step

    def training_step(network, model, inputs):
        clock.now += iteration + first * (network.iteration == 0)
        return train(network, model, inputs)

    def prediction_step(network, model, inputs):
        clock.now += batch
        return predict(network, model, inputs)

    monkeypatch.setattr(ThreeClasses, "training_step", training_step)
    monkeypatch.setattr(ThreeClasses, "prediction_step", prediction_step)
    return clock


@pytest.mark.parametrize("seconds", [0.0, 30.0])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_iteration_validation_and_what_the_first_iterations_take_longer_are_told_apart(
    monkeypatch, accumulation, seconds
) -> None:
    clock = timed(monkeypatch, iteration=2.0, first=7.0, batch=0.5)
    recorder = Recorder()
    network = build(accumulation_step=accumulation, iteration_num=12, iteration_valid=12, callbacks=[recorder])
    assert measure_pace(network, seconds, clock) == Pace(iteration=2.0, validation=3 * 0.5, warm_up=7.0)
    assert network.iteration >= (WARM_UP + MEASURED) * accumulation
    assert recorder.events == []
    if not seconds:
        assert network.iteration == (WARM_UP + MEASURED) * accumulation  # no more than it must


def test_a_long_validation_is_measured_in_part(monkeypatch) -> None:
    clock = timed(monkeypatch, iteration=1.0, first=0.0, batch=40.0)
    began, seen = clock.now, []
    monkeypatch.setattr(module, "MEASURED", 1)
    monkeypatch.setattr(module, "WARM_UP", 1)
    network = build()
    network.predict_by_each = lambda batches, models: [
        seen.append(network.prediction_step(network.model, batch)) for batch in batches
    ]
    assert measure_pace(network, 1.0, clock).validation == 3 * 40.0
    assert len(seen) == 1 + 1  # one to start, one measured, of three
    assert clock.now - began == 2 * 1.0 + 2 * 40.0


@given(
    st.floats(1e-3, 1e2),
    st.floats(0, 1e4),
    st.floats(0, 1e3),
    st.floats(0, 1e6),
    st.integers(1, 8),
    st.integers(1, 50),
)
def test_the_iterations_fill_the_time_and_no_more(iteration, validation, warm_up, seconds, multiple, intervals) -> None:
    pace, interval = Pace(iteration, validation, warm_up), multiple * intervals
    number = pace.iterations(seconds, interval, multiple)
    assert number % multiple == 0
    slack = 1e-9 * (seconds + warm_up)
    if number:
        assert pace.seconds(number, interval) <= seconds + slack
    assert pace.seconds(number + multiple, interval) > seconds - slack - 1e-9


def test_validations_count_where_the_interval_ends_and_at_the_end() -> None:
    pace = Pace(iteration=1.0, validation=10.0, warm_up=5.0)
    assert [pace.seconds(number, 100) for number in (1, 100, 101, 200)] == [16.0, 115.0, 126.0, 225.0]
    assert [pace.iterations(time, 100) for time in (15.9, 16.0, 115.0, 125.9, 126.0)] == [0, 1, 100, 100, 101]
