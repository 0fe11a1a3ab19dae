"""common/cli/interruption.py: which signals a run hears, and what becomes of one whose terminal is closed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from common.cli.interruption import heard_signals
from common.reports.record import read_record
from tests import PROJECT
from tests.conftest import SmallDataset
from tests.runs import ENVIRONMENT

ENDLESS = [
    "--net_model=test_resnet",
    "--data_image_size=32",
    "--tr_batch_size=4",
    "--tr_iteration_num=1000000",
    "--tr_iteration_valid=1000000",
    "--tr_iteration_log=1",
    "--tr_checkpoint_minutes=0",
    "--experiment_id=endless",
]


@contextmanager
def terminal(*command: str) -> Iterator[subprocess.Popen]:
    """A process that leads the session of a terminal, which is closed when the context ends."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    closing = threading.Event()
    reader = threading.Thread(target=read_on, args=(ours, closing))
    reader.start()
    try:
        yield process
    finally:
        closing.set()
        reader.join()  # it would keep the terminal open
        os.close(ours)


def take_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_on(terminal: int, closing: threading.Event) -> None:
    with suppress(OSError):  # the process has ended
        while not closing.is_set():
            if select.select([terminal], [], [], 0.1)[0]:
                os.read(terminal, 4096)


@pytest.mark.parametrize("script", ["train.py", pytest.param("sweep.py", marks=pytest.mark.slow)])
def test_a_run_whose_terminal_is_closed_saves_its_state_and_ends(
    script: str, small_dataset: SmallDataset, tmp_path: Path
) -> None:
    flags = [*small_dataset.flags, *ENDLESS, f"--output_dir={tmp_path}"]
    if script == "sweep.py":
        (tmp_path / "lines.txt").write_text(" ".join(flags))
        flags = [f"--lines={tmp_path / 'lines.txt'}", f"--output_dir={tmp_path}"]
    folder = tmp_path / "endless"
    with terminal(sys.executable, str(PROJECT / script), *flags) as process:
        while not (folder / "metrics.jsonl").is_file() or not (folder / "metrics.jsonl").stat().st_size:
            assert process.poll() is None
            time.sleep(0.05)
        processes = [process, *psutil.Process(process.pid).children(recursive=True)]
    for one in processes:
        one.wait(timeout=300)
    assert process.returncode == 75
    assert (folder / "last.pt").is_file()
    assert read_record(folder).status == "interrupted"
    assert f"--tr_resume={folder / 'last.pt'}" in (folder / "train.log").read_text().splitlines()[-1]


def test_under_nohup_a_lost_terminal_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in heard_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in heard_signals()
        assert signal.SIGTERM in heard_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
