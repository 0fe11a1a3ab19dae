"""Work is never lost: Ctrl-C, SIGKILL at random moments, a full disk; real processes, real signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rsna.prepare.test_dataset import JOURNAL, PROJECT, Source, contents, picture


@pytest.fixture
def source(tmp_path: Path) -> Source:
    made = Source(tmp_path / "source")
    for number in range(600):
        made.add(f"ID_{number:04x}", f"ID_{number % 40}", stored=picture(number, 96, 96), study=f"ID_a{number % 40}")
    made.write_tables()
    return made


def command(source: Source, *more: str) -> list[str]:
    return [sys.executable, str(PROJECT / "preprocessing.py"), *source.flags("--n_jobs=2", *more)]


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False], ids=["from the keyboard", "to the main process"])
def test_ctrl_c_stops_cleanly_says_how_to_go_on_and_leaves_no_process(source: Source, to_all: bool) -> None:
    folder = source.folder.parent / "input/datasets/small"
    for _ in range(20):  # until the signal comes before the end, which a busy machine may miss
        run = subprocess.Popen(
            command(source),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell's job tests this
        )
        while run.poll() is None and not (
            (folder / JOURNAL).exists() and (folder / JOURNAL).read_bytes().count(b"\n") > 60
        ):
            time.sleep(0.01)
        if run.poll() is None:
            (os.killpg if to_all else os.kill)(run.pid, signal.SIGINT)
        errors = run.communicate()[1]  # ends only when no process holds the pipe
        if run.returncode != 0:
            break
        shutil.rmtree(folder)
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert "start the same command again to go on" in errors
    assert not (folder / "dataset.json").exists()
    done = (folder / JOURNAL).read_bytes().count(b"\n") - 1
    again = subprocess.run(command(source), capture_output=True, text=True, check=True)
    assert f"600 files, {600 - done} of them to convert" in again.stderr
    assert not [path.name for path in folder.rglob("*.tmp")]


@pytest.mark.slow
def test_killed_at_random_moments_the_dataset_ends_with_the_same_bytes() -> None:
    script = [sys.executable, str(PROJECT / "benchmarks/kills.py"), "--kills=8", "--studies=12"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 kills" in result.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="a small disk can't be mounted here (unshare -rm)",
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_after_space_is_made(source: Source, tmp_path: Path) -> None:
    """In a mount namespace of its own: a disk of 16 MB that a file fills during the run."""
    undisturbed = contents(source.run())
    disk = tmp_path / "disk"
    disk.mkdir()
    key = source.folder.parent / "input" / "pseudonyms.key"  # with another all ids would be others
    flags = " ".join(command(source, f"--data_input_folder={disk}", f"--pseudonym_key={key}"))
    script = f"""
        mount -t tmpfs -o size=16m tmpfs {disk}
        {flags} & run=$!
        while [ ! -s {disk}/datasets/small/{JOURNAL} ]; do sleep 0.01; done
        head -c 16000000 /dev/zero > {disk}/taken 2>/dev/null
        wait $run; echo first $?
        find {disk} -name '*.tmp' | wc -l
        rm {disk}/taken
        {flags}; echo second $?
        cp -r {disk}/datasets/small {tmp_path}/result
    """
    result = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    assert lines[0] == "first 1", result.stdout + result.stderr
    assert lines[1] == "0"
    assert "second 0" in lines
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the disk is full" in errors[0]
    assert "Traceback" not in result.stderr
    assert contents(tmp_path / "result") == undisturbed
