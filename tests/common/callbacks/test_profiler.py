"""common/callbacks/profiler.py: a trace of some iterations and a table that adds up."""

from __future__ import annotations

import json
from pathlib import Path

from common.callbacks.profiler import PHASES, Profiler
from tests.common.networks.test_network import build


def test_the_asked_iterations_are_traced_and_the_phases_add_up_to_the_iteration(tmp_path: Path, capsys) -> None:
    build(iteration_num=10, accumulation_step=2, callbacks=[Profiler(tmp_path, 4)]).fit()
    trace = json.loads((tmp_path / "profile.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("phase: forward") == names.count("phase: backward") == 4
    assert names.count("phase: step") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line[:20].strip() for line in lines] == ["phase", *PHASES, "the rest", "iteration"]
    host = [float(line[20:30]) for line in lines[1:]]
    assert all(value >= 0 for value in host[:-2])
    assert sum(host[:-1]) - host[-1] < 0.05  # rounding to 0.01 ms


def test_a_run_shorter_than_the_trace_ends_without_one(tmp_path: Path) -> None:
    build(iteration_num=4, iteration_valid=4, callbacks=[Profiler(tmp_path, 4)]).fit()
    assert not (tmp_path / "profile.json").exists()
