"""`bash train.sh dashboard` in a real browser while real runs write: live, exact, several at once, no internet."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from common.errors import EXIT_RESUMABLE
from common.trackers.jsonl import FILE_NAME, read_metrics
from tests import PROJECT
from tests.browser import BROWSER, Page, browser
from tests.run_driver import free_port
from tests.runs import ENVIRONMENT

WAIT_S = 180.0  # before a test gives up; it never waits longer than it has to
LOSS, VALID = "train/loss", "valid/weighted_log_loss"
ENDLESS = [
    "--net_model=test_resnet",
    "--tr_iteration_num=1000000",  # a signal ends it when all has been seen
    "--tr_iteration_valid=40",
    "--tr_iteration_log=5",
    "--tr_batch_size=2",
    "--data_image_size=32",
    "--n_jobs=1",
    "--tr_report=0",
    "--trackers=trackio",
]
OTHERS = ("TRACKIO_", "GRADIO_")
CLEAN = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(OTHERS)}


@contextmanager
def process(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen]:
    """A command in a group of its own, of which nothing is left afterwards; what it says goes to a file."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**CLEAN, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(timeout=WAIT_S)


def wait_until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.2)


def logged(folder: Path, metric: str) -> dict[int, float]:
    """A metric's values by iteration, from metrics.jsonl as far as it is written."""
    points = read_metrics(folder / FILE_NAME) if (folder / FILE_NAME).exists() else []
    return {int(point["iteration"]): point[metric] for point in points if metric in point}


def plot(metric: str) -> str:
    return f"document.querySelector('.plot-container[data-metric=\"{metric}\"]')"


def drawn(page: Page, metric: str) -> dict[str, dict[int, float]]:
    """By run, the values of a metric's plot, which the page hands out as CSV: what it draws, from its own memory."""
    text = page.evaluate(
        "new Promise(done => { const make = URL.createObjectURL; URL.createObjectURL = blob => {"
        "URL.createObjectURL = make; blob.text().then(done); return make(blob); };"
        f"{plot(metric)}.querySelector('button[title*=CSV]').click(); }})"
    )
    runs: dict[str, dict[int, float]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        runs.setdefault(row["run"], {})[int(row["step"])] = float(row[metric])
    return runs


def visible(page: Page, metric: str) -> set[str]:
    """The runs of which a metric's plot has a line: some pixels in about the colour that its legend shows."""
    counts = page.evaluate(
        f"""(() => {{
            const plot = {plot(metric)}, canvas = plot.querySelector("canvas"), found = {{}};
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            for (const item of plot.querySelectorAll(".legend-item")) {{
                const dot = getComputedStyle(item.querySelector(".legend-dot")).backgroundColor;
                const [red, green, blue] = dot.match(/\\d+/g).map(Number);
                let count = 0;
                for (let at = 0; at < pixels.length; at += 4)
                    count += Math.hypot(pixels[at] - red, pixels[at + 1] - green, pixels[at + 2] - blue) < 30;
                found[item.textContent.trim()] = count;
            }}
            return found;
        }})()"""
    )
    return {name for name, count in counts.items() if count > 50}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (apt-get install chromium)")
def test_curves_of_two_runs_grow_in_the_browser_without_a_reload(tmp_path: Path, small_dataset) -> None:
    pytest.importorskip("trackio")
    results, said, port = tmp_path / "results", tmp_path / "dashboard.log", free_port()
    train = [sys.executable, "train.py", *small_dataset.flags, *ENDLESS, f"--output_dir={results}"]
    dashboard = ["bash", "train.sh", "dashboard", str(results)]
    # The page must not open in a browser of whoever runs the tests.
    variables = {"GRADIO_SERVER_PORT": str(port), "BROWSER": "true", "PYTHONUNBUFFERED": "1"}
    with process([*train, "--experiment_id=first"], tmp_path / "first.log") as first:
        wait_until(lambda: len(logged(results / "first", VALID)) > 1, "two validations of the first run")
        with process(dashboard, said, **variables), browser(tmp_path / "profile") as page:
            wait_until(lambda: "launched at" in said.read_text(), "the dashboard")
            page.open(f"http://127.0.0.1:{port}/?project=results")
            for metric in (VALID, LOSS):  # what is out of sight is not drawn
                page.wait_for(f"{plot(metric)}?.scrollIntoView() || !!{plot(metric)}?.querySelector('canvas')")
            before = drawn(page, LOSS)
            assert len(before["first"]) > 1
            assert before["first"].items() <= logged(results / "first", LOSS).items()
            assert page.evaluate("document.querySelector('.plot-container').dataset.metric") == VALID

            with process([*train, "--experiment_id=second", "--seed=1"], tmp_path / "second.log") as second:
                runs = {"first": first, "second": second}
                wait_until(lambda: len(drawn(page, LOSS).get("second", {})) > 3, "the second run's curve")
                wait_until(lambda: visible(page, LOSS) == runs.keys(), "two curves in the plot")
                for name, run in runs.items():
                    run.send_signal(signal.SIGTERM)
                    assert run.wait(timeout=WAIT_S) == EXIT_RESUMABLE, (tmp_path / f"{name}.log").read_text()
                for metric in (LOSS, VALID):
                    whole = {name: logged(results / name, metric) for name in runs}
                    whole = {name: values for name, values in whole.items() if values}
                    wait_until(lambda whole=whole, metric=metric: drawn(page, metric) == whole, f"all of {metric}")
            assert len(drawn(page, LOSS)["first"]) > len(before["first"])
            assert page.loads == 1
            asked = {urlsplit(address) for address in page.requests}
            assert {address.hostname for address in asked if address.scheme != "data"} == {"127.0.0.1"}
