"""What an iteration costs with --trackers=trackio and a running dashboard, beside one with metrics.jsonl alone.

python benchmarks/dashboard.py [--model=resnet18] [--size=96] [--batch=8] [--iterations=10] [--rounds=30]

Both train in this process, in turn, and log a line each --interval (10) iterations, as a run by --tr_iteration_log. The
dashboard runs all the time, and is asked for all points each second, as its page does. Aim: less than 1 %. The
processor time of all threads of the training process (in a round and the second after it, in which trackio writes what
it was given) says it also on a machine that others use, where the time that passes says little.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fit import cached_loader, fit_loop

PORT = "7871"
START_S = 60.0
ASK_S = 1.0
LINES, LINE_S, VALUES = 30, 0.6, 8  # so slowly that trackio writes each line on its own
WRITE_S = 1.0  # trackio sends what it has each half second
PLAIN, TRACKED = "metrics.jsonl", "and trackio, watched"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10, help="of a round of either kind")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--interval", type=int, default=10, help="iterations between two logged lines")
    options = parser.parse_args()

    import torch

    from common.trackers.jsonl import JsonlTracker
    from common.trackers.tracker import TrackerGroup
    from common.trackers.trackio import TrackioTracker

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}; {options.model}, {options.size} pixels, batches of {options.batch}")
    loader = cached_loader(options, device)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        groups = {PLAIN: TrackerGroup([JsonlTracker()]), TRACKED: TrackerGroup([JsonlTracker(), TrackioTracker()])}
        for number, group in enumerate(groups.values()):
            (results / str(number)).mkdir(parents=True)
            group.start(str(number), results / str(number), vars(options))
        runs = {kind: fit_loop(options, device, loader, callbacks(group, options)) for kind, group in groups.items()}
        with watched_dashboard(results) as process:
            wall, processor = measure(runs, options)
            lines = {kind: line_milliseconds(group) for kind, group in groups.items()}
            seconds = process_seconds(process)
        for group in groups.values():
            group.finish("finished")
    report("an iteration", wall)
    report("its processor time", processor)
    share = (lines[TRACKED] - lines[PLAIN]) / options.interval / statistics.median(processor[PLAIN])
    said = ", ".join(f"{kind} {milliseconds:.2f} ms" for kind, milliseconds in lines.items())
    print(f"processor time of a line, all threads: {said}; the difference is {share:.2%} of an iteration's")
    print(f"the dashboard itself: {seconds:.1f} s of processor time in all")


def callbacks(tracker: object, options: argparse.Namespace) -> tuple[object, ...]:
    """Return what logs in a real run."""
    from common.callbacks.metric_logger import MetricLogger
    from common.callbacks.telemetry import Telemetry

    telemetry = Telemetry()
    return telemetry, MetricLogger(tracker, options.interval, telemetry)


def measure(runs: dict[str, Callable[[], None]], options: argparse.Namespace) -> tuple[dict, dict]:
    """Return milliseconds of an iteration and of its processor time, a value for each round; the order turns."""
    import torch

    wall: dict[str, list[float]] = {kind: [] for kind in runs}
    processor: dict[str, list[float]] = {kind: [] for kind in runs}
    for number in range(options.rounds + 1):
        for kind in runs if number % 2 else reversed(runs):
            begun, used = time.perf_counter(), time.process_time()
            runs[kind]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up
                wall[kind].append(1000 * (time.perf_counter() - begun) / options.iterations)
                time.sleep(WRITE_S)
                processor[kind].append(1000 * (time.process_time() - used) / options.iterations)
    return wall, processor


def line_milliseconds(tracker: object) -> float:
    """Return the processor time of a logged line, where nothing else goes on."""
    values = {f"train/value_{number}": 0.123456789 + number for number in range(VALUES)}
    used = time.process_time()
    for number in range(LINES):
        tracker.log(values, 10**6 + number, number)
        time.sleep(LINE_S)
    time.sleep(WRITE_S)
    return 1000 * (time.process_time() - used) / LINES


@contextmanager
def watched_dashboard(results: Path) -> Iterator[subprocess.Popen]:
    """Run what ``bash train.sh dashboard`` runs, and ask it each second, both in processes of their own."""
    place = {"TRACKIO_DIR": str(results / ".trackio"), "GRADIO_SERVER_PORT": PORT, "BROWSER": "true"}
    command = [sys.executable, "-m", "trackio.cli", "show", "--project", results.name]
    process = subprocess.Popen(command, env={**os.environ, **place}, stdout=subprocess.DEVNULL)
    viewer = multiprocessing.get_context("spawn").Process(target=ask_each_second, args=(results.name,), daemon=True)
    try:
        end = time.monotonic() + START_S
        while not answers(results.name):
            if time.monotonic() > end:
                sys.exit(f"no dashboard on port {PORT} within {START_S:g} s")
            time.sleep(0.2)
        viewer.start()
        yield process
        if viewer.exitcode is not None:
            sys.exit("the dashboard stopped answering")
        viewer.terminate()
    finally:
        process.terminate()
        process.wait()


def ask(project: str, name: str, **values: object) -> list:
    """Return what the dashboard answers."""
    body = json.dumps({"project": project, **values}).encode()
    address = f"http://127.0.0.1:{PORT}/api/{name}"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_S) as answer:
        return json.loads(answer.read())["data"]


def answers(project: str) -> bool:
    """Return whether there is a dashboard by now."""
    try:
        ask(project, "get_runs_for_project")
    except OSError:
        return False
    return True


def ask_each_second(project: str) -> None:
    """Be the page that somebody looks at."""
    while True:
        runs = ask(project, "get_runs_for_project")
        ask(project, "get_logs_batch", runs=[{"run": run["name"], "run_id": run["id"]} for run in runs])
        time.sleep(ASK_S)


def process_seconds(process: subprocess.Popen) -> float:
    """Return the processor time that a process has taken."""
    import psutil

    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def report(what: str, values: dict[str, list[float]]) -> None:
    """Print medians and the ratio of each round."""
    ratios = [one / other for one, other in zip(values[TRACKED], values[PLAIN], strict=True)]
    middle = ", ".join(f"{kind} {statistics.median(times):.2f} ms" for kind, times in values.items())
    low, high = statistics.quantiles(ratios, n=4)[::2]
    print(f"{what}: {middle}; ratio {statistics.median(ratios):.4f} (quartiles {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
