"""Tests of common/datasets/loaders.py: what becomes of the loading processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.datasets.batch import LoadingFailed
from common.datasets.loaders import PRELOADED, make_loader
from common.datasets.samplers import SequentialSampler
from tests import PROJECT

TRAINER = """
import sys

import psutil

from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from tests.common.datasets.test_loaders import Numbers

if __name__ == "__main__":
    loader = make_loader(Numbers(), SequentialSampler(8, 0), 2, 2, drop_last=False, seed=0)
    batches = iter(loader)
    next(batches)
    print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
    if sys.stdin.read():
        list(batches)
    raise ValueError("a fault")
"""


SHORT_OF_SHARED_MEMORY = """
import sys
from contextlib import suppress

from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from common.cli.command import command
from tests.common.datasets.test_loaders import Pictures

@command
def main():
    loader = make_loader(Pictures(), SequentialSampler(40, 0), 2, 2, drop_last=False, seed=0)
    total, kept = 0, []
    for _ in range(2):
        for number, batch in enumerate(loader):
            if "fill" in sys.argv:
                kept.append(batch)  # what it frees would be taken again
            assert batch.image_id == [str(2 * number), str(2 * number + 1)], batch.image_id
            total += int(batch.inputs["image"].sum())
            if "fill" in sys.argv and number == 2:
                with suppress(OSError), open("/dev/shm/filled", "wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
    print(total)

if __name__ == "__main__":
    main()
"""


FEW = """
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from common.cli.command import command
from tests.common.datasets.test_loaders import Numbers

@command
def main():
    list(make_loader(Numbers(), SequentialSampler(8, 0), 2, 4, drop_last=False, seed=0))

if __name__ == "__main__":
    main()
"""


class Pictures:
    """Forty pictures of a megabyte, each of its own number."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, key: object) -> object:
        import numpy as np

        from common.datasets.images import Sample

        value = key if isinstance(key, int) else key[0]
        picture = np.full((1, 512, 512), value, np.float32)
        return Sample(image_id=str(value), image=picture, target=None, size=(512, 512))


class Numbers:
    """Eight images of one pixel."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: object) -> object:
        import numpy as np

        from common.datasets.images import Sample

        return Sample(image_id=str(key), image=np.zeros((1, 1, 1), np.float32), target=None, size=(1, 1))


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that loads by two workers, tells all its processes' ids, loads the rest if stdin says so, and fails."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    with subprocess.Popen(
        [sys.executable, tmp_path / "trainer.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"},
    ) as trainer:
        yield trainer
        trainer.kill()


def processes_of(trainer: subprocess.Popen) -> list[psutil.Process]:
    processes = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
    assert len(processes) >= 3  # the fork server and its two workers
    return processes


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 300  # it takes a moment; without the guard they never end
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < deadline, [process for process in processes if process.is_running()]
        time.sleep(0.05)


def test_no_worker_outlives_a_killed_trainer(trainer: subprocess.Popen) -> None:
    processes = processes_of(trainer)
    trainer.send_signal(signal.SIGKILL)
    wait_for_the_end_of(processes)


@pytest.mark.parametrize("stuck", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_trainer_that_fails_while_its_traceback_holds_the_loader_ends(trainer: subprocess.Popen, stuck: bool) -> None:
    processes = processes_of(trainer)
    ids = {process.pid for process in processes}
    for worker in (process for process in processes if stuck and process.ppid() in ids):
        worker.suspend()
    _, errors = trainer.communicate(timeout=300)  # without the guard it never ends
    assert trainer.returncode == 1
    assert errors.splitlines()[-1] == "ValueError: a fault"
    wait_for_the_end_of(processes)


def test_a_loading_process_that_is_killed_is_one_error_that_says_what_to_do(trainer: subprocess.Popen) -> None:
    processes = processes_of(trainer)
    ids = {process.pid for process in processes}
    for worker in (process for process in processes if process.ppid() in ids):
        worker.kill()
    _, errors = trainer.communicate("load the rest", timeout=300)
    assert errors.splitlines()[-1].startswith(
        "common.datasets.batch.LoadingFailed: a process that loads images was killed"
    )


def test_loading_processes_that_hang_are_one_error_that_says_who_waits_for_whom() -> None:
    loader = make_loader(Numbers(), SequentialSampler(8, 0), 2, 1, drop_last=False, seed=0)
    assert len(list(loader)) == 4
    (worker,) = (psutil.Process(process.pid) for process in loader._iterator._workers)
    worker.suspend()
    loader.limit_s = 0.1
    with pytest.raises(LoadingFailed) as caught:  # torch would wait for good
        list(loader)
    assert str(caught.value) == (
        "the run waits for a batch of 1 loading processes: no progress for 0.1 seconds; they were ended: look at the "
        "disk that the images lie on, and start again"
    )
    wait_for_the_end_of([worker])


def test_loading_processes_that_cannot_start_are_one_line() -> None:
    """The fork server starts no process beyond the user's limit, as in a container whose processes are counted."""
    uid = "123456"  # root itself has no limit
    caller = ["setpriv", f"--reuid={uid}", "--clear-groups", "--inh-caps=+dac_override,+dac_read_search"]
    caller += ["--ambient-caps=+dac_override,+dac_read_search", "prlimit", "--nproc=3"]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    try:
        allowed = subprocess.run([*caller, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no other user can be had here ({error})")
    if allowed.returncode:
        pytest.skip(f"no other user can be had here ({allowed.stderr.strip()})")
    done = subprocess.run(
        [*caller, sys.executable, "-c", FEW], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: 4 processes that load images can't be started (")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("fault", "lines"),
    [
        ("BlockingIOError(11, 'Resource temporarily unavailable')", ["Resource temporarily unavailable"]),
        ("MemoryError()", ["no memory is left"]),
        ("ValueError('ours')", []),
    ],
)
def test_a_fork_server_that_the_machine_denies_something_says_it_in_a_line(fault: str, lines: list[str]) -> None:
    """It ends with its main module's error, as this process does; a fault of ours keeps its traceback."""
    code = f"import importlib; importlib.import_module({PRELOADED[0]!r}); raise {fault}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=False)
    said = [f"the process that starts loading processes: {line}" for line in lines]
    assert done.stderr.splitlines() == said if lines else done.stderr.startswith("Traceback")


def with_shared_memory(megabytes: int, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Load the pictures in a mount namespace whose /dev/shm has so much space; skip where there can be none."""
    mount = ["unshare", "--mount", "sh", "-ec", f'mount -t tmpfs -o size={megabytes}m shm /dev/shm\n"$@"', "sh"]
    try:
        allowed = subprocess.run([*mount, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount namespaces here ({error})")
    if allowed.returncode:
        pytest.skip(f"no mount namespaces here ({allowed.stderr.strip()})")
    (tmp_path / "loading.py").write_text(SHORT_OF_SHARED_MEMORY)
    return subprocess.run(
        [*mount, sys.executable, str(tmp_path / "loading.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,  # without the check it never ends
        check=False,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
    )


@pytest.mark.parametrize("megabytes", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (8, 64))])
def test_with_little_shared_memory_the_same_batches_come_through_pipes_with_a_line(tmp_path: Path, megabytes) -> None:
    done = with_shared_memory(megabytes, tmp_path)
    assert done.stdout.split() == [str(2 * sum(range(40)) * 512 * 512)], done.stderr
    lines = done.stderr.splitlines()
    if megabytes == 64:
        assert lines == []
    else:
        assert len(lines) == 1, lines
        (line,) = lines
        assert "/dev/shm has " in line
        assert "through pipes, which takes longer; more space (docker run --shm-size=1g)" in line


def test_shared_memory_that_others_fill_later_ends_the_run_with_a_line(tmp_path: Path) -> None:
    done = with_shared_memory(64, tmp_path, "fill")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: a process that loads images found no space in /dev/shm: give it more (docker run --shm-size=8g), or "
        "let fewer processes load (--n_jobs), and start again"
    ], done.stderr
