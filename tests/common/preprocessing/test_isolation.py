"""common/preprocessing/isolation.py and workers.py: real processes that crash, hang, eat memory and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import WorkError
from common.preprocessing import workers
from common.preprocessing.isolation import CallFailed, Process, Processes
from common.preprocessing.pseudonyms import Pseudonyms
from common.preprocessing.records import ImageForm, Task
from common.waiting import StartFailed
from tests import PROJECT
from tests.dicom_files import head, new_ct, write_ct

PSEUDONYMS = Pseudonyms(b"0" * 32, public=".*")
HU = ImageForm(0, (), "int16")
FOREVER = 600.0


def add(one: int, other: int) -> int:
    return one + other


def fail(message: str) -> None:
    raise WorkError(message)


def allocate(size: int) -> int:
    return len(np.ones(size, dtype=np.uint8))


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def kill_itself(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


def identity() -> int:
    return os.getpid()


@pytest.fixture
def process():
    made = Process(("tests.common.preprocessing.test_isolation",), memory_bytes=2**28)
    yield made
    if not made.connection.closed:
        made.close()


def test_a_call_returns_what_the_function_returns_in_another_process(process: Process) -> None:
    assert process.call(add, FOREVER, 2, other=3) == 5
    assert process.call(identity, FOREVER) == process.process.pid != os.getpid()


def test_what_the_function_raises_comes_back_and_the_process_lives_on(process: Process) -> None:
    with pytest.raises(WorkError, match="the disk is full"):
        process.call(fail, FOREVER, "the disk is full")
    assert process.call(add, FOREVER, 1, 1) == 2


def test_memory_beyond_the_limit_is_an_error_there_and_nothing_here(process: Process) -> None:
    assert process.call(allocate, FOREVER, 2**27) == 2**27
    with pytest.raises(MemoryError):
        process.call(allocate, FOREVER, 2**29)
    assert process.call(add, FOREVER, 1, 1) == 2


@pytest.mark.parametrize(
    ("number", "reason", "part"), [(signal.SIGSEGV, "crashed", "SIGSEGV"), (signal.SIGKILL, "memory", "killed")]
)
def test_a_process_that_dies_fails_the_call_with_its_reason(
    process: Process, number: int, reason: str, part: str
) -> None:
    with pytest.raises(CallFailed, match=part) as caught:
        process.call(kill_itself, FOREVER, number)
    assert caught.value.reason == reason
    assert process.process.returncode == -number


def test_a_call_that_takes_too_long_is_ended_with_its_process(process: Process) -> None:
    with pytest.raises(CallFailed) as caught:
        process.call(sleep, 0.05, FOREVER)
    assert caught.value.reason == "timeout"
    assert process.process.returncode == -signal.SIGKILL


def test_a_process_that_cannot_start_is_one_line_with_its_own_last_words() -> None:
    with pytest.raises(StartFailed) as caught:
        Process(("no_such_module",))
    assert "reads files can't be started (ModuleNotFoundError: No module named 'no_such_module')" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_process_starts_also_where_the_user_allows_it_less_memory() -> None:
    """As under ulimit -v, whose limit no process can raise."""
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n"
        "from common.preprocessing.isolation import Process\n"
        "print(Process().call(len, 600.0, 'four'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_processes_are_kept_for_the_next_call_and_dead_ones_are_not() -> None:
    processes = Processes("numpy")
    with processes.borrow() as one:
        first = one.process.pid
    with processes.borrow() as one:
        assert one.process.pid == first
        with pytest.raises(CallFailed):
            one.call(kill_itself, FOREVER, signal.SIGSEGV)
    with processes.borrow() as one:
        assert one.process.pid != first
        assert one.fresh
    processes.close()
    assert processes.idle == []
    assert one.process.returncode is not None


def test_stopping_ends_calls_under_way() -> None:
    processes = Processes("numpy")
    begun, reasons = threading.Event(), []

    def wait() -> None:
        with processes.borrow() as one:
            begun.set()
            try:
                one.call(sleep, FOREVER, FOREVER)
            except CallFailed as error:
                reasons.append(error.reason)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    processes.stop()
    thread.join()
    assert reasons == ["memory"]  # it was killed


def test_a_process_ends_when_the_one_it_works_for_is_killed() -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from common.preprocessing.isolation import Process\n"
        "print(Process().process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        pid = int(caller.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        caller.kill()
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.01)  # the test hangs, and fails, where it doesn't


# --- files ------------------------------------------------------------------------------------------------------------


class Trap(type(Path())):
    """The path of a file that does to its reader what a broken decoder would."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if "segfault" in self.name:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif "hang" in self.name:
            time.sleep(FOREVER)
        elif "hungry" in self.name:
            np.ones(2**40, dtype=np.uint8)
        elif "killed" in self.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().stat(follow_symlinks=follow_symlinks)


def tasks_for(folder: Path, names: list[str]) -> list[Task]:
    (folder / "images").mkdir()
    for number, name in enumerate(names):
        write_ct(folder / name, new_ct(head(number), intercept=0))
    return [Task(name, name, "train", 1, 1, Trap(folder / name), folder / "images") for name in names]


@pytest.mark.parametrize("jobs", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_only_the_files_that_kill_hang_or_eat_memory_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(workers, "FILE_SECONDS", 5.0)  # a thousand times what a good file needs
    names = [f"good_{number:02d}" for number in range(12)]
    names[3:3], names[7:7], names[9:9], names[10:10] = ["segfault"], ["hang"], ["hungry"], ["killed"]
    tasks = tasks_for(tmp_path, names)
    records = {
        record.source_id: record for part in workers.convert_files(tasks, HU, jobs, PSEUDONYMS) for record in part
    }
    assert sorted(records) == sorted(names)
    reasons = {name: record.reason for name, record in records.items() if record.reason}
    assert reasons == {"segfault": "crashed", "hang": "timeout", "hungry": "memory", "killed": "memory"}
    for number, name in enumerate(names):
        if name.startswith("good"):
            np.testing.assert_array_equal(np.load(tmp_path / "images" / f"{name}.npy"), head(number))


def test_an_image_that_cannot_be_written_ends_the_work(tmp_path: Path) -> None:
    tasks = tasks_for(tmp_path, ["good_1", "good_2"])
    (tmp_path / "images").rmdir()
    with pytest.raises(WorkError, match="cannot be written"):
        list(workers.convert_files(tasks, HU, 1, PSEUDONYMS))
