"""common/waiting.py: real processes that hang, hold a lock, don't start and are killed."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.trackers.bounded import within
from common.waiting import (
    Stalled,
    StartFailed,
    Watchdog,
    activity,
    end_process,
    lock_file,
    run_to_end,
    start_process,
    wait_for,
)

# Deaf to SIGTERM, with a child that holds its stdout as loading processes do.
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def run(code: str) -> subprocess.Popen:
    command = [sys.executable, "-c", code]
    return start_process(command, "a test", stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_wait_lasts_as_long_as_something_moves_and_ends_with_a_line() -> None:
    seen = iter([*range(200), *[200] * 10**6])
    looks: list[int] = []

    def progress() -> int:
        looks.append(next(seen))
        return looks[-1]

    with pytest.raises(Stalled, match=r"^a sweep waits for a run: no progress for 0.04 seconds$"):
        wait_for(
            lambda seconds: time.sleep(seconds) is not None, "a sweep waits for a run", limit_s=0.04, progress=progress
        )
    assert 200 in looks  # 200 looks of a twentieth of the limit are ten limits


def test_a_process_shows_that_it_works_and_one_that_waits_shows_nothing() -> None:
    busy, idle = run("while True: pass"), run("import time; time.sleep(600)")
    before = activity(busy.pid)
    while activity(busy.pid) == before:
        time.sleep(0.05)
    assert activity(idle.pid) == activity(idle.pid)
    for process in (busy, idle):
        process.kill()
        process.wait()
        assert activity(process.pid) == (0, 0)


def test_a_run_that_hangs_is_ended_with_what_it_started() -> None:
    process = run(DEAF)
    child = psutil.Process(int(process.stdout.readline()))
    with pytest.raises(Stalled, match=r"^a test waits: no progress for 0.2 seconds; it was killed$"):
        run_to_end(process, "a test waits", limit_s=0.2)
    assert process.returncode == -9
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_a_run_that_ends_gives_what_it_printed_and_one_told_to_end_does() -> None:
    assert run_to_end(run("print('a', 'b', sep=chr(10))"), "a test waits") == "a\nb\n"
    process = run("import time; print(1, flush=True); time.sleep(600)")
    process.stdout.readline()
    assert end_process(process)
    assert process.returncode == -15


def test_a_call_that_blocks_is_ended_by_what_it_waits_for() -> None:
    process = run("import time; time.sleep(600)")
    with Watchdog("a test waits for a word", process.kill, 0.1) as watchdog, pytest.raises(Stalled, match="for a word"):
        watchdog.wait(lambda: int(process.stdout.readline()))
    with Watchdog("", process.kill, 600.0) as watchdog:
        assert watchdog.wait(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            watchdog.wait(lambda: 1 / 0)
    process.wait()


def test_a_lock_that_another_keeps_is_waited_for_no_longer_than_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as one, (tmp_path / "lock").open("a") as other:
        lock_file(one, "free")
        with pytest.raises(Stalled, match="for the leaderboard"):
            lock_file(other, "this waits for the leaderboard", limit_s=0.1)
        fcntl.flock(one, fcntl.LOCK_UN)
        lock_file(other, "free again")


def test_a_process_that_cannot_start_is_named_with_the_systems_words() -> None:
    with pytest.raises(StartFailed, match=r"^a helper can't be started \(No such file or directory\)"):
        start_process(["/nowhere/python"], "a helper")


def test_a_tracker_that_does_not_answer_is_no_error_of_the_run() -> None:
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.0, lambda: time.sleep(0.5))
