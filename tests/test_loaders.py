"""Tests of common/datasets/loaders.py: what becomes of the loading processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

PROJECT = Path(__file__).parent.parent
TRAINER = """
import sys

import psutil

from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from tests.test_loaders import Numbers

if __name__ == "__main__":
    loader = make_loader(Numbers(), SequentialSampler(8, 0), 2, 2, drop_last=False, seed=0)
    batches = iter(loader)
    next(batches)
    print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
    sys.stdin.read()
"""


class Numbers:
    """Eight images of one pixel."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: object) -> object:
        import numpy as np

        from common.datasets.images import Sample

        return Sample(image_id=str(key), image=np.zeros((1, 1, 1), np.float32), target=None, size=(1, 1))


def test_no_worker_outlives_a_killed_trainer(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, tmp_path / "trainer.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"},
    )
    with trainer:
        workers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
        assert len(workers) >= 3  # the fork server and its two workers
        trainer.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 300  # it takes a moment; without the guard they never end
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline, [worker for worker in workers if worker.is_running()]
        time.sleep(0.05)
