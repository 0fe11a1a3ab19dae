"""benchmarks/gpu_check.py: its table on a machine without a GPU, and on one with (tests marked gpu) its checks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import PROJECT

SCRIPT = PROJECT / "benchmarks" / "gpu_check.py"


def load_script():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # its dataclasses look for it
    spec.loader.exec_module(module)
    return module


gpu_check = load_script()


@pytest.mark.parametrize(
    ("script", "limit_s", "state", "part"),
    [
        ("print('much'); print('all is well')", 60, "ok", "all is well"),
        ("raise AssertionError('the losses differ')", 60, "FAULT", "the losses differ"),
        ("import os; os.kill(os.getpid(), 11)", 60, "FAULT", "signal 11"),
        ("import time; print('begun', flush=True); time.sleep(600)", 1, "FAULT", "did not end within 1 s"),
    ],
)
def test_a_check_that_fails_dies_or_hangs_is_a_line_of_the_table(tmp_path, script, limit_s, state, part) -> None:
    outcome = gpu_check.run_process([sys.executable, "-c", script], os.environ, limit_s, tmp_path / "log.txt")
    assert outcome.state == state
    assert part in outcome.note
    assert state in gpu_check.row("name", outcome)
    assert ("--- name" in gpu_check.report_text({"name": outcome})) == (state == "FAULT")


def test_what_needs_a_gpu_or_two_is_skipped_with_a_word(tmp_path) -> None:
    memory, two = gpu_check.CHECKS["memory"], gpu_check.CHECKS["two_gpus"]
    assert gpu_check.outcome_of(memory, tmp_path, 0).note == "needs a GPU: a pretended one can't do it"
    assert gpu_check.outcome_of(two, tmp_path, 1).state == "skipped"


def test_a_trace_with_gaps_and_overlaps_is_as_busy_as_its_kernels() -> None:
    spans = [(0, 10, "kernel"), (5, 10, "gpu_memcpy"), (30, 10, "kernel"), (0, 100, "cpu_op")]
    events = [{"ph": "X", "cat": kind, "ts": start, "dur": length} for start, length, kind in spans]
    assert gpu_check.busy_share(events) == 25 / 40  # 0 to 15 and 30 to 40, of 0 to 40
    with pytest.raises(AssertionError, match="no kernel"):
        gpu_check.busy_share(events[3:])


@pytest.mark.parametrize(("flags", "part"), [(["--only=nothing"], "no check 'nothing'"), (["--folder=."], "not empty")])
def test_a_mistake_is_told_before_anything_is_made(flags: list[str], part: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(flags)
    assert part in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_gpu_the_checks_run_on_a_pretended_one_and_say_so(tmp_path: Path) -> None:
    names = "environment,waits,transforms,memory"
    command = [sys.executable, str(SCRIPT), f"--folder={tmp_path / 'new'}", f"--only={names}"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = found.stdout.splitlines()
    assert "torch sees no GPU here: the checks run on a pretended one" in lines[0]
    states = {line.split()[0]: line.split()[1] for line in lines[1:5]}
    assert states == {"environment": "ok", "waits": "ok", "transforms": "ok", "memory": "skipped"}, found.stdout
    assert found.returncode == 0
    assert "Pretended GPU" in (tmp_path / "new" / "report.txt").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu_check")
    gpu_check.make_data(folder / "data", gpu_check.STUDIES, gpu_check.SIZE)
    return folder


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", gpu_check.CHECKS)
def test_on_a_gpu_the_check_passes(folder: Path, name: str) -> None:
    outcome = gpu_check.outcome_of(gpu_check.CHECKS[name], folder, gpu_check.gpu_count())
    if outcome.state == "skipped":
        pytest.skip(outcome.note)
    assert outcome.state == "ok", outcome.output
