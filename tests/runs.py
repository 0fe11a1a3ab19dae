"""Runs of train.py in other processes, and how two of them are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from common.checkpoint import load_checkpoint
from common.trackers.jsonl import read_metrics
from tests import PROJECT

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class Runs:
    """Starts runs in a process that has imported everything."""

    process: subprocess.Popen
    output_dir: Path
    flags: list[str]

    def __call__(self, *arguments: str, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"arguments": [*arguments], **request}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, name: str, *more: str, **request: Any) -> dict[str, Any]:
        return self(*self.flags, f"--experiment_id={name}", *more, **request)

    def go_on(self, name: str, *more: str, **request: Any) -> dict[str, Any]:
        return self(f"--tr_resume={name}", f"--output_dir={self.output_dir}", *more, **request)


@contextmanager
def open_runs(output_dir: Path, flags: list[str]) -> Iterator[Runs]:
    """Start the process; ``flags`` are those of every new run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.run_driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=ENVIRONMENT,
    )
    yield Runs(process, output_dir, [*flags, f"--output_dir={output_dir}"])
    process.stdin.close()
    process.wait(timeout=60)


def failure(
    main: Callable[..., Any], arguments: Iterable[object], capsys: pytest.CaptureFixture[str], code: int = 2
) -> str:
    """Run a command that must fail with ``code``. Return its error, the one line on stderr that is no remark."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert ended.value.code == code, lines
    assert len(errors) == 1, lines
    assert not any(line.startswith("Traceback") for line in lines)
    return errors[0]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):  # a NaN, the loss of an image that was not seen yet, equals a NaN
        same_kind = (one.shape, one.dtype) == (other.shape, other.dtype)
        return same_kind and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def points(folder: Path) -> list[dict[str, float | None]]:
    """The logged points without times and speeds."""
    return [
        {key: value for key, value in point.items() if key != "time" and not key.startswith("perf/")}
        for point in read_metrics(folder / "metrics.jsonl")
    ]


def assert_alike(folder: Path, whole: Path) -> None:
    """What was logged, the weights and the predictions are the same in both folders but for rounding."""
    for first, second in zip(points(folder), points(whole), strict=True):
        assert first == pytest.approx(second, abs=1e-5)
    one, other = (load_checkpoint(place / "last.pt")["model"] for place in (folder, whole))
    for key, value in other.items():
        torch.testing.assert_close(one[key], value, rtol=0, atol=1e-4, msg=key)
    tables = [pd.read_csv(place / "predictions_valid.csv", index_col="id") for place in (folder, whole)]
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-4)


def assert_same_run(folder: Path, whole: Path) -> None:
    """Everything but times, names and paths is the same in both folders, to the bit."""
    for name in ("last.pt", "best.pt"):
        one, other = load_checkpoint(folder / name), load_checkpoint(whole / name)
        for contents in (one, other):
            del contents["config"]
        different = [key for key in one if not equal(one[key], other[key])]
        assert not different, f"{name}: {different}"
    assert points(folder) == points(whole)
    assert (folder / "predictions_valid.csv").read_bytes() == (whole / "predictions_valid.csv").read_bytes()
    assert not list(folder.glob(".*.tmp"))
