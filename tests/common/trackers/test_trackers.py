"""common/trackers: metrics.jsonl is exact and survives a kill; Neptune never delays or ends a run or names the user."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import random
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError, WorkError
from common.trackers.bounded import within
from common.trackers.jsonl import JsonlTracker, read_metrics
from common.trackers.neptune import FILE_LIMIT_BYTES, NeptuneTracker, probe, server_address
from common.trackers.table import build_trackers, check_trackers
from common.trackers.tracker import TrackerGroup
from tests import PROJECT

FIGURE = "<!DOCTYPE html><title>ROC</title>"
BOUND_S = 60.0  # generous: what is tested is that minutes of waiting (61 s, 15 min) don't happen, not a speed


class Recorder:
    """A tracker that notes its calls, and raises in one of them where asked to."""

    def __init__(self, fails_in: str = "", error: Exception | None = None) -> None:
        self.calls = []
        self.fails_in = fails_in
        self.error = error

    def note(self, *call) -> None:
        self.calls.append(call)
        if call[0] == self.fails_in:
            raise self.error

    def start(self, experiment_id, folder, config) -> None:
        self.note("start", experiment_id, folder, config)

    def view(self) -> str:
        return "" if self.fails_in else f"look at {id(self)}"

    def log(self, metrics, iteration, step) -> None:
        self.note("log", metrics, iteration, step)

    def log_figure(self, name, html) -> None:
        self.note("log_figure", name, html)

    def log_file(self, path) -> None:
        self.note("log_file", path)

    def finish(self, status) -> None:
        self.note("finish", status)


def report(tracker, folder: Path) -> None:
    """A small run as a network reports it."""
    tracker.start("1", folder, {"seed": 1})
    tracker.log({"valid/weighted_log_loss": 0.5}, 4, 2)
    tracker.log({"valid/weighted_log_loss": 0.25}, 8, 4)
    tracker.log_figure("roc", FIGURE)
    tracker.log_file(folder / "a.txt")
    tracker.finish("finished")


# --- several at once


def test_every_tracker_gets_every_call_in_order(tmp_path):
    recorders = [Recorder(), Recorder()]
    report(TrackerGroup(recorders), tmp_path)
    expected = [
        ("start", "1", tmp_path, {"seed": 1}),
        ("log", {"valid/weighted_log_loss": 0.5}, 4, 2),
        ("log", {"valid/weighted_log_loss": 0.25}, 8, 4),
        ("log_figure", "roc", FIGURE),
        ("log_file", tmp_path / "a.txt"),
        ("finish", "finished"),
    ]
    assert [recorder.calls for recorder in recorders] == [expected, expected]


@pytest.mark.parametrize("event", ["start", "log", "log_figure", "log_file", "finish"])
def test_a_tracker_that_raises_is_warned_about_once_left_out_and_released(tmp_path, caplog, event):
    broken, sound = Recorder(event, OSError("no route\nto host")), Recorder()
    with caplog.at_level(logging.WARNING):
        report(TrackerGroup([broken, sound]), tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"Recorder failed in {event} and is left out from here on (OSError: no route); metrics.jsonl has everything"
    ]
    assert [call[0] for call in broken.calls].count(event) == 1
    assert broken.calls[-1] == ("finish", "failed" if event != "finish" else "finished")
    assert len(sound.calls) == 6


def test_a_tracker_that_cannot_even_be_released_does_not_end_the_run(tmp_path):
    class Broken(Recorder):
        def note(self, *call) -> None:
            raise RuntimeError

    sound = Recorder()
    report(TrackerGroup([Broken(), sound]), tmp_path)
    assert len(sound.calls) == 6


def test_ground_truth_that_cannot_be_written_ends_the_run_after_the_others_were_served(tmp_path):
    recorder = Recorder()
    group = TrackerGroup([Recorder("log", WorkError("metrics.jsonl: cannot be written")), recorder])
    with pytest.raises(WorkError, match=r"metrics\.jsonl: cannot be written"):
        report(group, tmp_path)
    assert [call[0] for call in recorder.calls] == ["start", "log"]


def test_the_example_of_a_tracker_is_chosen_by_its_path_and_works(tmp_path):
    name = "examples.tracker.CSV"
    check_trackers([name])
    report(TrackerGroup(build_trackers([name], {})), tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "".join(
        f"{iteration},{step},valid/weighted_log_loss,{value}\n"
        for iteration, step, value in ((4, 2, 0.5), (8, 4, 0.25))
    )


def test_each_tracker_that_has_started_says_how_to_see_it(tmp_path):
    recorders = [Recorder(), Recorder("start", OSError("no")), Recorder()]
    group = TrackerGroup([JsonlTracker(), *recorders])
    group.start("1", tmp_path, {})
    assert group.view() == f"look at {id(recorders[0])}\nlook at {id(recorders[2])}"
    group.finish("finished")


# --- metrics.jsonl


def test_each_point_is_one_line_of_json_that_is_there_at_once(tmp_path):
    tracker = JsonlTracker()
    tracker.start("1", tmp_path, {})
    before = time.time()
    tracker.log({"valid/weighted_log_loss": 1 / 3, "lr": np.float32(0.1), "loss": torch.tensor(2)}, 4, 2)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line.endswith("}\n")
    point = json.loads(line)
    assert list(point) == ["iteration", "step", "time", "valid/weighted_log_loss", "lr", "loss"]
    assert before - 1 < point.pop("time") < time.time() + 1
    expected = {"iteration": 4, "step": 2, "valid/weighted_log_loss": 1 / 3, "lr": float(np.float32(0.1)), "loss": 2.0}
    assert point == expected
    assert '"loss": 2.0' in line
    tracker.log({}, 8, 4)
    tracker.finish("finished")
    assert [point["iteration"] for point in read_metrics(tmp_path / "metrics.jsonl")] == [4, 8]


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text('aä/_ "\\\n', max_size=6), st.floats(), max_size=4))
def test_values_read_back_to_the_bit_and_what_is_not_finite_is_null(tmp_path_factory, metrics):
    folder = tmp_path_factory.mktemp("jsonl")
    tracker = JsonlTracker()
    tracker.start("1", folder, {})
    tracker.log(metrics, 1, 1)
    tracker.finish("finished")
    (point,) = read_metrics(folder / "metrics.jsonl")
    back = {name: None if value is None else value.hex() for name, value in point.items() if name in metrics}
    assert back == {name: value.hex() if math.isfinite(value) else None for name, value in metrics.items()}


def test_a_metric_cannot_take_the_name_of_the_point(tmp_path):
    tracker = JsonlTracker()
    tracker.start("1", tmp_path, {})
    with pytest.raises(ValueError, match="can't be named step"):
        tracker.log({"step": 1.0}, 1, 1)


def test_a_second_start_appends(tmp_path):
    for iteration in (1, 2):
        tracker = JsonlTracker()
        tracker.start("1", tmp_path, {})
        tracker.log({"loss": 0.5}, iteration, iteration)
        tracker.finish("finished")
    assert [point["iteration"] for point in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    tracker = JsonlTracker()
    tracker.start("1", tmp_path, {})
    with pytest.raises(WorkError, match=r"metrics\.jsonl: cannot be written \(No space left on device\); make space"):
        tracker.log({"loss": 0.5}, 1, 1)
    tracker.finish("failed")


def test_a_folder_that_is_gone_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(WorkError, match=r"metrics\.jsonl: cannot be written"):
        JsonlTracker().start("1", tmp_path / "gone", {})


WRITER = """
import sys
from pathlib import Path
from typing import Any
from common.trackers.jsonl import JsonlTracker
tracker = JsonlTracker()
tracker.start("1", Path(sys.argv[1]), {})
for iteration in range(1, 10**9):
    tracker.log({"loss": 1 / iteration}, iteration, iteration)
    print(iteration, flush=True)
"""


def test_a_kill_loses_no_point_that_was_logged(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(500):
        last = process.stdout.readline()
    process.kill()
    rest = process.stdout.read().split()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    points = read_metrics(tmp_path / "metrics.jsonl")
    assert len(points) >= int(rest[-1] if rest else last)
    assert all(point["loss"] == 1 / number for number, point in enumerate(points, start=1))


def test_a_last_line_cut_anywhere_is_left_out(tmp_path):
    tracker = JsonlTracker()
    tracker.start("1", tmp_path, {})
    for iteration in (1, 2):
        tracker.log({"löss": 0.5}, iteration, iteration)
    tracker.finish("finished")
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        points = read_metrics(path)
        assert len(points) == (length >= first - 1) + (length >= len(whole) - 1)
    path.write_bytes(whole + b"\0\xff\0")  # what a lost power supply may leave
    assert len(read_metrics(path)) == 2


@pytest.mark.parametrize("line", ["", "{", "[1]", "7", "{'a': 1}"])
def test_any_other_broken_line_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"iteration": 1}}\n{line}\n{{"iteration": 2}}\n')
    with pytest.raises(WorkError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read_metrics(path)


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(UsageError, match=r"metrics\.jsonl: no such file"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_metrics(tmp_path / "metrics.jsonl") == []


# --- Neptune, offline


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A current folder that must stay empty, without any variable that neptune reads."""
    for name in list(os.environ):
        if name.startswith("NEPTUNE_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []
    assert not [name for name in os.environ if name == "NEPTUNE_DATA_DIRECTORY"]


def operations(experiment: Path) -> list[dict]:
    """The operations of the one offline run of an experiment."""
    (log,) = experiment.glob(".neptune/offline/run__*/data-*.log")
    return [json.loads(line)["obj"] for line in log.read_text().splitlines()]


def assigned(experiment: Path, path: str) -> object:
    (value,) = [op["value"] for op in operations(experiment) if "/".join(op["path"]) == path]
    return value


def series(experiment: Path, path: str) -> list[tuple[float, float]]:
    logs = [op for op in operations(experiment) if op["type"] == "LogFloats" and "/".join(op["path"]) == path]
    return [(value["step"], value["value"]) for op in logs for value in op["values"]]


def make_experiment(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "7"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("content of a file")
    return folder


def test_an_offline_run_reads_back_with_all_that_was_logged(tmp_path, elsewhere, capfd):
    folder = make_experiment(tmp_path)
    tracker = NeptuneTracker()
    random.seed(3)
    state, hook = random.getstate(), sys.excepthook
    tracker.start(
        "7", folder, {"seed": 1, "optim_lr": 1e-5, "tr_use_amp": False, "data_windows": [[40, 80]], "x": None}
    )
    assert random.getstate() == state  # else a tracked run would differ from one that isn't
    assert sys.excepthook is hook
    tracker.log({"valid/weighted_log_loss": 1 / 3, "valid/log_loss/any": 0.5, "bad": float("nan")}, 4, 2)
    tracker.log({"valid/weighted_log_loss": 0.25, "valid/log_loss/any": float("inf")}, 8, 4)
    tracker.log_figure("roc", FIGURE)
    tracker.log_file(folder / "a.txt")
    tracker.finish("finished")

    assert assigned(folder, "sys/name") == "7"
    assert assigned(folder, "status") == "finished"
    config = {
        name: assigned(folder, f"config/{name}") for name in ("seed", "optim_lr", "tr_use_amp", "data_windows", "x")
    }
    assert config == {"seed": 1, "optim_lr": 1e-5, "tr_use_amp": False, "data_windows": "[[40, 80]]", "x": "None"}
    assert series(folder, "valid/weighted_log_loss") == [(4, 1 / 3), (8, 0.25)]
    assert series(folder, "valid/log_loss/any") == [(4, 0.5)]
    assert series(folder, "step") == [(4, 2.0), (8, 4.0)]
    assert series(folder, "bad") == []
    copies = {path.suffix: path.read_text() for path in folder.glob(".neptune/offline/*/upload_path/*")}
    assert copies == {".html": FIGURE, ".txt": "content of a file"}
    assert capfd.readouterr() == ("", "")


def test_a_file_over_the_limit_is_left_out_without_an_error(tmp_path, elsewhere, caplog):
    folder = make_experiment(tmp_path)
    with (folder / "big.pt").open("wb") as file:
        file.truncate(FILE_LIMIT_BYTES + 1)
    tracker = NeptuneTracker()
    tracker.start("7", folder, {})
    with caplog.at_level(logging.INFO):
        tracker.log_file(folder / "big.pt")
    tracker.finish("finished")
    assert "big.pt is left out" in caplog.text
    assert list(folder.glob(".neptune/offline/*/upload_path/*")) == []


def test_a_failed_start_and_a_missing_one_can_be_finished(tmp_path, elsewhere):
    (tmp_path / "file").write_text("")
    tracker = NeptuneTracker()
    with pytest.raises(OSError, match=r"\.neptune"):
        tracker.start("7", tmp_path / "file", {})
    tracker.finish("failed")
    NeptuneTracker().finish("failed")


def test_a_run_goes_on_when_neptune_cannot_write(tmp_path, elsewhere, caplog):
    folder = make_experiment(tmp_path)
    (folder / ".neptune").write_text("a file in the way")
    report(TrackerGroup([NeptuneTracker(), JsonlTracker()]), folder)
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "NeptuneTracker failed in start and is left out" in caplog.text


CANARY_RUN = """
import os, platform, socket, sys
platform.node = socket.gethostname = lambda: "canaryhost"  # before anything can copy the names
from pathlib import Path
from typing import Any
from common.experiments.folder import create_experiment
from common.experiments.logfile import setup_logging
from common.trackers.jsonl import JsonlTracker
from common.trackers.neptune import NeptuneTracker
from common.trackers.table import build_trackers, check_trackers
from common.trackers.tracker import TrackerGroup
home = Path.home()
config = {"output_dir": "results", "data_input_folder": f"{home}/input", "net_weight_file": "/mnt/canaryuser/best.pt"}
experiment = create_experiment(Path("results"), None, config, ["python", f"{home}/train.py"])
with setup_logging(experiment.folder, console=False):
    tracker = TrackerGroup([JsonlTracker(), NeptuneTracker()])
    tracker.start(experiment.id, experiment.folder, config)
    tracker.log({"valid/weighted_log_loss": 0.5}, 1, 1)
    tracker.log_file(experiment.folder / "config.yaml")
    if len(sys.argv) > 1:
        os.kill(os.getpid(), 9)
    tracker.finish("finished")
"""


def run_canary(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    home = tmp_path / "canaryhome"
    home.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE_")}
    variables |= {"HOME": str(home), "LOGNAME": "canaryuser", "USER": "canaryuser", "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-c", CANARY_RUN, *arguments],
        cwd=work,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_file_of_a_run_names_user_host_or_home_and_the_console_stays_empty(tmp_path):
    result = run_canary(tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "train.log", "metrics.jsonl", "data-1.log"} <= {
        file.name for file in files
    }
    inside = tmp_path / "work" / "results" / "1"
    assert all(inside in file.parents for file in files)
    for file in files:
        # config.yaml is the exception, since --config must be able to read it; the tracker's copy is not.
        assert (b"canary" in file.read_bytes()) == (file == inside / "config.yaml"), file
        assert b"canary" not in str(file.relative_to(tmp_path)).encode()
    assert assigned(inside, "config/data_input_folder") == "~/input"
    assert assigned(inside, "config/net_weight_file") == "/mnt/<user>/best.pt"
    (copy,) = inside.glob(".neptune/offline/*/upload_path/*")
    assert "data_input_folder: ~/input" in copy.read_text()
    kinds = {op["type"] for op in operations(inside)}
    assert kinds == {"AssignString", "AssignBool", "LogFloats", "UploadFile", "UploadFileSet"}
    (sources,) = [op for op in operations(inside) if op["type"] == "UploadFileSet"]
    assert sources["file_globs"] == []
    assert not [op for op in operations(inside) if op["path"][0] == "monitoring"]


def test_a_killed_run_leaves_what_it_logged(tmp_path):
    assert run_canary(tmp_path, "kill").returncode == -signal.SIGKILL
    assert series(tmp_path / "work" / "results" / "1", "valid/weighted_log_loss") == [(1, 0.5)]


# --- Neptune, with a server


@contextmanager
def server(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server on this machine that gives each connection to ``answer``; yields its address."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has gone
            answer(connection, ended)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def silent(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(BOUND_S)


def reply(connection: socket.socket, status: str, body: bytes) -> None:
    connection.recv(65536)
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)


def not_found(connection: socket.socket, ended: threading.Event) -> None:
    reply(connection, "404 Not Found", b"{}")


def another_site(connection: socket.socket, ended: threading.Event) -> None:
    reply(connection, "200 OK", b"<html>hello</html>")


def dripping(connection: socket.socket, ended: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not ended.wait(0.05):
        connection.sendall(b" ")


class SilentAfterTheFirst:
    """Answers the first request with a swagger file and is silent on all others, as a server that dies half-way."""

    def __init__(self) -> None:
        self.requests = 0

    def __call__(self, connection: socket.socket, ended: threading.Event) -> None:
        self.requests += 1
        if self.requests == 1:
            reply(connection, "200 OK", b'{"swagger": "2.0"}')
        else:
            silent(connection, ended)


def token(address: str) -> str:
    return base64.b64encode(
        json.dumps({"api_address": address, "api_url": address, "api_key": "secret"}).encode()
    ).decode()


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def check_offline_with_one_warning(folder: Path, caplog, words: str) -> None:
    """A whole small run: it ends in time, is written offline, and says so in one line."""
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        report(TrackerGroup([NeptuneTracker(), JsonlTracker()]), folder)
    assert time.monotonic() - begin < BOUND_S
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 1
    assert messages[0].startswith("Neptune: no run on a server (")
    assert words in messages[0]
    assert messages[0].endswith("/results/7/.neptune")
    assert "\n" not in messages[0]
    assert "secret" not in messages[0]
    assert series(folder, "valid/weighted_log_loss") == [(4, 0.5), (8, 0.25)]
    assert len(read_metrics(folder / "metrics.jsonl")) == 2


@pytest.mark.parametrize(
    ("answer", "words"), [(silent, "TimeoutError"), (not_found, "404"), (another_site, "not a swagger")]
)
def test_a_server_that_gives_no_swagger_file_is_given_up(tmp_path, elsewhere, monkeypatch, caplog, answer, words):
    folder = make_experiment(tmp_path)
    monkeypatch.setenv("NEPTUNE_PROJECT", "team/heads")
    with server(answer) as address:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token(address))
        check_offline_with_one_warning(folder, caplog, words)


def test_a_server_that_refuses_is_given_up(tmp_path, elsewhere, monkeypatch, caplog):
    monkeypatch.setenv("NEPTUNE_PROJECT", "team/heads")
    monkeypatch.setenv("NEPTUNE_API_TOKEN", token(closed_port()))
    check_offline_with_one_warning(make_experiment(tmp_path), caplog, "refused")


def test_a_server_that_falls_silent_after_its_swagger_file_is_given_up(tmp_path, elsewhere, monkeypatch, caplog):
    folder = make_experiment(tmp_path)
    monkeypatch.setenv("NEPTUNE_PROJECT", "team/heads")
    answer = SilentAfterTheFirst()
    with server(answer) as address:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token(address))
        check_offline_with_one_warning(folder, caplog, "TimeoutError")
    assert answer.requests > 1


@pytest.mark.parametrize(
    ("value", "project", "words"),
    [
        ("no token", "team/heads", "NEPTUNE_API_TOKEN is not a Neptune token"),
        ("ANONYMOUS", "team/heads", "NEPTUNE_API_TOKEN is not a Neptune token"),
        (token("file:///etc"), "team/heads", "names no http(s) server"),
        (token("http://127.0.0.1:9"), "", "NEPTUNE_PROJECT is not set"),
    ],
)
def test_a_wrong_token_or_no_project_is_named(tmp_path, elsewhere, monkeypatch, caplog, value, project, words):
    monkeypatch.setenv("NEPTUNE_API_TOKEN", value)
    monkeypatch.setenv("NEPTUNE_PROJECT", project)
    check_offline_with_one_warning(make_experiment(tmp_path), caplog, words)


DYING = """
import sys, time
from pathlib import Path
from typing import Any
from common.experiments.logfile import setup_logging
from common.trackers.jsonl import JsonlTracker
from common.trackers.neptune import NeptuneTracker
from common.trackers.tracker import TrackerGroup
folder = Path(sys.argv[1])
with setup_logging(folder, console=False):
    neptune = NeptuneTracker()
    tracker = TrackerGroup([JsonlTracker(), neptune])
    tracker.start("7", folder, {"seed": 1})
    tracker.log({"valid/weighted_log_loss": 0.5}, 4, 2)
    neptune.run.wait()  # until the server has it
    print(tracker.view(), flush=True)
    sys.stdin.readline()  # meanwhile it dies
    tracker.log({"valid/weighted_log_loss": 0.25}, 8, 4)
    tracker.finish("finished")
"""


@pytest.mark.parametrize(
    "death",
    [
        pytest.param(None, marks=pytest.mark.slow),
        signal.SIGKILL,
        pytest.param(signal.SIGSTOP, marks=pytest.mark.slow),
    ],
    ids=["lives", "killed", "falls silent"],
)
def test_a_server_that_dies_half_way_costs_one_warning_and_what_it_did_not_take_stays_on_disk(tmp_path, death):
    folder, received = make_experiment(tmp_path), tmp_path / "received.jsonl"
    server = [sys.executable, str(PROJECT / "tests" / "neptune_server.py"), str(received)]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as neptune:
        try:
            address = f"http://127.0.0.1:{neptune.stdout.readline().strip()}"
            variables = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE_")}
            variables |= {
                "NEPTUNE_API_TOKEN": token(address),
                "NEPTUNE_PROJECT": "team/heads",
                "PYTHONPATH": str(PROJECT),
            }
            variables |= {"OAUTHLIB_INSECURE_TRANSPORT": "1"}  # neptune logs in by https only
            with subprocess.Popen(
                [sys.executable, "-c", DYING, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=variables,
                text=True,
            ) as run:
                assert run.stdout.readline() == f"neptune: {address}/team/heads/e/HEADS-1\n"
                if death is not None:
                    neptune.send_signal(death)
                _, said = run.communicate("\n", timeout=BOUND_S)
        finally:
            neptune.kill()
    assert run.returncode == 0
    assert [point["iteration"] for point in read_metrics(folder / "metrics.jsonl")] == [4, 8]
    values = [
        entry["value"]
        for operation in map(json.loads, received.read_text().splitlines())
        if operation["path"] == "valid/weighted_log_loss"
        for entry in operation["logFloats"]["entries"]
    ]
    if death is None:
        assert (values, said) == ([0.5, 0.25], "")
        return
    assert values == [0.5]
    (line,) = said.splitlines()
    assert line.startswith(
        f"WARNING: Neptune: 3 operations wait in {folder / '.neptune'}, the server did not take them;"
    )
    (kept,) = folder.glob(".neptune/async/*/data-*.log")
    last = [json.loads(text)["obj"] for text in kept.read_text().splitlines()][-3:]
    assert ["/".join(operation["path"]) for operation in last] == ["valid/weighted_log_loss", "step", "status"]
    assert last[0]["values"][0]["value"] == 0.25


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_too():
    with server(dripping) as address, pytest.raises(TimeoutError):
        probe(address, 0.5)


def test_a_server_with_a_swagger_file_passes():
    with server(SilentAfterTheFirst()) as address:
        probe(address, BOUND_S)


def test_the_address_is_the_url_of_the_token_or_its_address():
    def encode(document) -> str:
        return base64.b64encode(json.dumps(document).encode()).decode()

    assert server_address(encode({"api_address": "https://a.org"})) == "https://a.org"
    assert server_address(encode({"api_address": "https://a.org", "api_url": "https://b.org/"})) == "https://b.org"
    for document in ([], {}, "text", None, {"api_address": None}, {"api_address": ["x"]}):
        with pytest.raises(ValueError, match="NEPTUNE_API_TOKEN"):
            server_address(encode(document))


def test_bounded_work_returns_raises_or_is_left_with_its_late_result_discarded():
    assert within(BOUND_S, lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        within(BOUND_S, lambda: 1 / 0)
    release, discarded = threading.Event(), threading.Event()

    def late() -> str:
        release.wait(BOUND_S)
        return "late"

    with pytest.raises(TimeoutError):
        within(0.05, late, discard=lambda result: discarded.set() if result == "late" else None)
    release.set()
    assert discarded.wait(BOUND_S)


def test_an_unknown_tracker_or_one_that_is_not_installed_is_one_line(monkeypatch) -> None:
    with pytest.raises(UsageError, match=r"--trackers=tensorbord: unknown; .*did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--trackers=mlflow: its package is not installed; pip install mlflow-skinny"):
        check_trackers(["mlflow"])


def test_each_tracker_is_built_once_with_its_own_options() -> None:
    (tracker,) = build_trackers(["neptune", "neptune"], {"neptune": {"project": "a/b", "mode": "offline"}})
    assert (tracker.project, tracker.mode) == ("a/b", "offline")


def reported_by(tracker, folder: Path) -> None:
    """Some points of a run, one of them not a number."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    tracker.start("7", folder, {"optim_lr": 0.1, "output_dir": str(Path.home() / "results")})
    assert shlex.quote(str(folder.parent)) in tracker.view()
    for iteration, loss in ((10, 0.5), (20, math.nan), (30, 0.125)):
        tracker.log({"train/loss": loss, "valid/weighted_log_loss": 0.25}, iteration, iteration // 2)
    tracker.log_figure("roc", FIGURE)
    tracker.log_file(folder / "config.yaml")
    tracker.finish("finished")


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from common.trackers.tensorboard import TensorBoardTracker

    reported_by(TensorBoardTracker(), tmp_path / "results" / "7")
    events = EventAccumulator(str(tmp_path / "results" / "7" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 0.5), (30, 0.125)]
    assert [event.value for event in events.Scalars("step")] == [5, 10, 15]
    (path,) = (tmp_path / "results" / "7" / "tensorboard").iterdir()
    assert str(Path.home()).encode() not in path.read_bytes()
    assert re.fullmatch(r"events\.out\.tfevents\.\d{10}\.\d+", path.name)  # torch's own has the host's name
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0] for tag in events.Tags()["tensors"]}
    assert texts["status/text_summary"] == b"finished"
    assert b"| optim_lr | 0.1 |" in texts["options/text_summary"]


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probed:
        probed.bind(("127.0.0.1", 0))
        return int(probed.getsockname()[1])


def in_a_process(tracker: str, folder: Path, after: str, before: str = "") -> str:
    """Report by a tracker in a process of its own: these libraries read the environment when they are imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n{before}"
        "from pathlib import Path\n"
        "from common.trackers.table import build_trackers\n"
        "from tests.common.trackers.test_trackers import reported_by\n"
        f"reported_by(build_trackers([{tracker!r}], {{}})[0], Path({str(folder)!r}))\n" + after
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKIO", "MLFLOW"))}
    result = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_trackio_keeps_what_was_logged_beside_the_experiments_and_prints_nothing(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    assert in_a_process("trackio", tmp_path / "results" / "7", "print('reported')\n") == "reported\n"
    (database,) = (tmp_path / "results" / ".trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    logged = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    points = [(name, step, values.get("train/loss")) for name, step, values in logged if "roc" not in values]
    assert points == [("7", 10, 0.5), ("7", 20, None), ("7", 30, 0.125)]
    assert [step for _, step, values in logged if "roc" in values] == [30]
    (figure,) = tmp_path.glob("results/.trackio/**/*.html")
    assert figure.read_text() == FIGURE


def test_a_trackio_server_that_refuses_costs_a_warning_and_the_run_goes_to_files(tmp_path: Path, unused_port) -> None:
    pytest.importorskip("trackio")
    address = f"http://127.0.0.1:{unused_port}?write_token=s3cret"
    before = f"import os; os.environ['TRACKIO_SERVER_URL'] = {address!r}\n"
    said = in_a_process("trackio", tmp_path / "results" / "7", "print('reported')\n", before)
    assert said == "reported\n"
    (database,) = (tmp_path / "results" / ".trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from metrics").fetchone()[0] > 2


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}?write_token=s3cret", "127.0.0.1:{port}?write_token=s3cret"]
)
def test_what_is_wrong_with_a_trackio_servers_address_is_said_without_its_token(address, unused_port) -> None:
    from common.trackers.trackio import probe

    with pytest.raises((OSError, ValueError), match=r"refused|that is no http") as raised:
        probe(address.format(port=unused_port))
    assert "s3cret" not in str(raised.value)


def test_a_trackio_server_that_is_gone_at_the_end_costs_seconds_and_a_warning(tmp_path, monkeypatch, caplog) -> None:
    pytest.importorskip("trackio")
    from common.trackers.trackio import TrackioTracker

    class Waiting:
        def finish(self) -> None:
            released.wait()

    released = threading.Event()
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9?write_token=s3cret")
    monkeypatch.setattr("common.trackers.trackio.STOP_S", 0.2)
    tracker = TrackioTracker()
    tracker.run = Waiting()
    assert tracker.view() == "trackio: live curves are on the server that TRACKIO_SERVER_URL names"
    tracker.finish("finished")
    released.set()
    assert "trackio: the server did not take all within 0.2 s" in caplog.text


def test_mlflow_has_what_was_logged_and_how_the_run_ended(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    after = (
        "from mlflow.tracking import MlflowClient\n"
        f"client = MlflowClient(Path({str(tmp_path)!r}).joinpath('results', 'mlruns').as_uri())\n"
        "group = client.get_experiment_by_name('results')\n"
        "(run,) = client.search_runs([group.experiment_id])\n"
        "history = client.get_metric_history(run.info.run_id, 'train/loss')\n"
        "values = sorted((metric.step, metric.value) for metric in history)\n"
        "print(run.info.run_name, run.info.status, values, run.data.params['optim_lr'])\n"
        "print(sorted(item.path for item in client.list_artifacts(run.info.run_id)))\n"
    )
    said = in_a_process("mlflow", tmp_path / "results" / "7", after)
    assert said.splitlines() == ["7 FINISHED [(10, 0.5), (30, 0.125)] 0.1", "['config.yaml', 'figures']"]
    (figure,) = tmp_path.glob("results/mlruns/**/figures/roc.html")
    assert figure.read_text() == FIGURE


def test_an_mlflow_server_that_refuses_costs_a_warning_and_not_the_run(tmp_path: Path, monkeypatch, caplog) -> None:
    pytest.importorskip("mlflow")
    from common.trackers.mlflow import MlflowTracker

    with socket.socket() as probed:
        probed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probed.getsockname()[1]}")
    group = TrackerGroup([MlflowTracker()])
    began = time.monotonic()
    group.start("7", tmp_path, {})
    group.log({"train/loss": 1.0}, 1, 1)
    group.finish("finished")
    assert "MlflowTracker failed in start and is left out" in caplog.text
    assert time.monotonic() - began < BOUND_S


class MlflowAnswers(BaseHTTPRequestHandler):
    """Answers as an MLflow server does, until it is told to be silent; ``asked`` are the last parts of the paths."""

    asked: ClassVar[list[str]]
    silent: ClassVar[threading.Event]
    info: ClassVar = {
        "run_id": "a1",
        "run_uuid": "a1",
        "experiment_id": "1",
        "status": "RUNNING",
        "lifecycle_stage": "active",
    }

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.asked.append(name)
        if self.silent.is_set():
            time.sleep(4)  # longer than the 3 s that a request may take
            return
        known = {
            "get-by-name": {"experiment": {"experiment_id": "1", "name": "results"}},
            "create": {"run": {"info": self.info, "data": {}}},
            "update": {"run_info": self.info},
        }
        content = json.dumps(known.get(name, {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def mlflow_server(monkeypatch) -> Iterator[type[MlflowAnswers]]:
    """A server whose address has a password."""
    pytest.importorskip("mlflow")
    handler = type("Answers", (MlflowAnswers,), {"asked": [], "silent": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s3cret@127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


def test_an_mlflow_servers_address_is_never_printed_since_it_may_hold_a_password(
    mlflow_server, tmp_path: Path, capfd, caplog
) -> None:
    from common.trackers.mlflow import MlflowTracker

    group = TrackerGroup([MlflowTracker()])
    group.start("7", tmp_path, {"seed": 0})
    group.log({"train/loss": 1.0}, 1, 1)
    group.finish("finished")
    assert mlflow_server.asked == ["get-by-name", "create", "log-batch", "log-batch", "update"]
    mlflow_server.silent.set()
    group = TrackerGroup([MlflowTracker()])
    group.start("8", tmp_path, {})
    assert "MlflowTracker failed in start" in caplog.text
    assert "the server that MLFLOW_TRACKING_URI names: timed out" in caplog.text
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr())


def test_an_mlflow_server_that_falls_silent_half_way_holds_no_iteration_up(
    mlflow_server, tmp_path: Path, monkeypatch, caplog
) -> None:
    from common.trackers.mlflow import MlflowTracker

    waits: list[float] = []
    monkeypatch.setattr("common.trackers.mlflow.within", lambda seconds, work: waits.append(seconds))
    group = TrackerGroup([MlflowTracker()])
    group.start("7", tmp_path, {})
    mlflow_server.silent.set()
    end = time.monotonic() + BOUND_S
    while group.trackers:
        assert time.monotonic() < end
        group.log({"train/loss": 1.0}, 1, 1)
        time.sleep(0.05)
    assert waits == []
    assert "MlflowTracker failed in log" in caplog.text
    assert "s3cret" not in caplog.text
