"""Conversion by dask workers: real processes, one of them killed half-way, and what goes wrong in one line."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import preprocessing
from common.errors import UsageError
from common.preprocessing.scheduler import dask_cluster
from tests.rsna.prepare.test_dataset import JOURNAL, PROJECT, Source, contents, picture
from tests.runs import failure


@pytest.fixture
def address() -> str:
    """A port of this machine that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A dask process as its users start it, ended with the context; its working folder is not the project's."""
    started = subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.DEVNULL, cwd="/")
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def scheduler(address: str) -> Iterator[subprocess.Popen[bytes]]:
    port = address.rpartition(":")[2]
    return process("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")


def worker(address: str, threads: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    flags = ("--nthreads", str(threads), "--no-dashboard", "--no-nanny")
    return process("distributed.cli.dask_worker", address, *flags)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path / "source")
    for number in range(1200):
        patient, study = f"ID_{number % 40:08x}", f"ID_{number % 40:010x}"
        made.add(f"ID_{number:09x}", patient, stored=picture(number, 64, 64), study=study)
    return made


@pytest.mark.slow
def test_a_dask_worker_killed_half_way_loses_nothing(source: Source, tmp_path: Path, address: str) -> None:
    undisturbed = contents(source.run())
    command = [sys.executable, "preprocessing.py", *source.flags(), f"--data_input_folder={tmp_path / 'dask'}"]
    command += ["--pre_scheduler=dask", f"--pre_dask_address={address}"]
    folder = tmp_path / "dask/datasets/small"
    with ExitStack() as stack:
        stack.enter_context(scheduler(address))
        victim, _ = (stack.enter_context(worker(address)) for _ in range(2))
        run = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
        while run.poll() is None and not (folder / JOURNAL).exists():
            time.sleep(0.01)
        while run.poll() is None and (folder / JOURNAL).read_bytes().count(b"\n") < 300:
            time.sleep(0.01)
        victim.kill()
        half_way = (folder / JOURNAL).read_bytes().count(b"\n")
        errors = run.communicate()[1]
    assert run.returncode == 0, errors
    assert 300 <= half_way < 1200, "the worker was killed when all was done"
    assert contents(folder) == undisturbed


@pytest.mark.slow
def test_without_an_address_a_cluster_of_this_machine_does_the_same(source: Source, tmp_path: Path) -> None:
    folder = source.run()
    other = [f"--data_input_folder={tmp_path / 'dask'}", "--pre_scheduler=dask", "--n_jobs=2"]
    command = [sys.executable, "preprocessing.py", *source.flags(), *other]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "distributed" not in result.stderr
    assert contents(tmp_path / "dask/datasets/small") == contents(folder)


@pytest.mark.slow
def test_workers_that_cannot_do_the_work_are_one_line(address: str) -> None:
    expected = pytest.raises(UsageError, match="--nthreads 1")
    with scheduler(address), worker(address, threads=2), expected, dask_cluster(address, 1):
        pass


def test_a_scheduler_that_does_not_answer_is_one_line_before_anything_is_converted(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("common.preprocessing.scheduler.CONNECT_SECONDS", 1)
    source = Source(tmp_path / "source")
    for number in range(2):
        source.add(f"ID_{number}", f"ID_{number}")
    source.write_tables()
    with pytest.raises(SystemExit) as ended:
        preprocessing.main(source.flags("--pre_scheduler=dask", f"--pre_dask_address={address}"))
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --pre_dask_address={address}: no dask scheduler answers")
    assert not list(tmp_path.rglob("*.npy"))


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="pip install distributed"), dask_cluster(None, 1):
        pass


def test_an_address_without_dask_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs --pre_scheduler=dask" in failure(preprocessing.main, ["--pre_dask_address=tcp://localhost:1"], capsys)


def test_dask_is_imported_only_when_it_is_asked_for() -> None:
    code = "import sys, rsna.prepare.dataset; sys.exit('distributed' in sys.modules or 'dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
