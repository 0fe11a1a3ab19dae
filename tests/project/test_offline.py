"""Nothing leaves the machine: the main job with every tracker never even tries, also in its child processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import PROJECT
from tests.runs import ENVIRONMENT

TRACKERS = ("neptune", "trackio", "tensorboard", "mlflow")
SETTINGS = ("NEPTUNE_", "TRACKIO_", "GRADIO_", "MLFLOW_", "HF_", "DO_NOT_TRACK", "NO_ALBUMENTATIONS_UPDATE")
WATCH = """
import os, sys

HERE = ("127.", "::1", "localhost", "0.0.0.0")
NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex", "socket.gethostbyaddr")


def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        place = arguments[1]
        place = place[0] if isinstance(place, tuple) else None  # of a Unix socket: a path; of a connected one: None
    elif event in NAMES:
        place = arguments[0]
    else:
        return
    place = place.decode() if isinstance(place, bytes) else place
    if place is None or str(place).startswith(HERE):
        return
    with open(os.environ["WATCH_FILE"], "a") as file:
        file.write(f"{event} {place}\\n")
    raise OSError(f"{event} {place} is not allowed here")


sys.addaudithook(watch)
with open(os.environ["WATCH_FILE"] + ".processes", "a") as file:
    file.write(f"{os.getpid()}\\n")
"""

CALLS_HOME = """
import multiprocessing, socket, sys

def call():
    try:
        socket.create_connection(("example.org", 80))
    except OSError:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 80))

child = multiprocessing.get_context("fork").Process(target=call)
child.start()
child.join()
sys.exit(child.exitcode)
"""
TINY = [
    "--net_model=test_resnet",
    "--tr_iteration_num=4",
    "--tr_iteration_valid=2",
    "--tr_iteration_log=1",
    "--tr_batch_size=4",
    "--data_image_size=32",
    "--n_jobs=2",
]


def without_network() -> list[str]:
    """The start of a command line that runs the rest where there is no network at all; empty where that's forbidden."""
    command = [shutil.which("unshare") or "unshare", "--map-root-user", "--net"]
    try:
        works = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        works = False
    return command if works else []


@pytest.mark.slow
def test_the_main_job_with_every_tracker_asks_nobody_outside(tmp_path: Path, small_dataset) -> None:
    if not all(map(find_spec, TRACKERS)):  # importing them here would set off what they do at their import
        pytest.skip("a tracker is not installed: pip install -r requirements-trackers.txt")
    watch, home, results = tmp_path / "watch", tmp_path / "home", tmp_path / "results"
    watch.mkdir()
    home.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    attempts = tmp_path / "attempts"
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(SETTINGS)}
    environment |= {"PYTHONPATH": str(watch), "WATCH_FILE": str(attempts), "HOME": str(home)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        whole = [*without_network(), sys.executable, *command]
        return subprocess.run(whole, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)

    train = ["train.py", *small_dataset.flags, *TINY, f"--trackers={','.join(TRACKERS)}", f"--output_dir={results}"]
    jobs = (
        train,
        ["evaluate.py", "--experiment_id=1", f"--output_dir={results}"],
        ["predict.py", f"--net_weight_file={results / '1' / 'best.pt'}"],
    )
    for job in jobs:
        result = run(*job)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "is left out" not in result.stderr, result.stderr
    for pattern in (".trackio/*.db", "mlruns/*/*", "1/tensorboard/*", "1/.neptune/offline/*", "1/submission.csv"):
        assert list(results.glob(pattern)), pattern
    for place in ("mlruns", ".trackio", "1/.neptune"):  # the evaluation goes to a tracker, no slice of a patient does
        pages = [path.read_text() for path in (results / place).rglob("*.html")]
        assert len(pages) == 1
        assert "Precision and recall" in pages[0]
        assert "<img" not in pages[0]
    for place in ("mlruns", ".trackio", "1/tensorboard", "1/.neptune"):
        assert not [path for path in (results / place).rglob("*") if path.suffix in (".png", ".jpg", ".jpeg")]
    assert (results / "1" / "report.html").is_file()
    assert len((tmp_path / "attempts.processes").read_text().split()) > len(jobs)  # loaders are watched too
    assert not attempts.exists(), attempts.read_text()
    assert not list(home.iterdir())

    # That the watch sees what it must see, in a child's child too.
    assert run("-c", CALLS_HOME).returncode == 1
    assert attempts.read_text().splitlines() == ["socket.getaddrinfo example.org", "socket.connect 192.0.2.1"]
