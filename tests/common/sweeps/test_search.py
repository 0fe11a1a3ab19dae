"""common/sweeps/search.py: trials of a quick stand-in for train.py; a killed process loses none."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import sweep
from common.errors import UsageError, WorkError
from tests import PROJECT

pytest.importorskip("optuna")

from optuna.trial import TrialState

from common.reports.summary import read_summaries
from common.sweeps.search import BEST_FILE, JOURNAL, Search, Space, _host, open_study, read_space, retry_dead
from tests.runs import failure

SPACE = {"optim_lr": {"low": 1e-4, "high": 1e-1, "log": True}, "optim": ["adamw", "sgd"]}
FAKE = """
import json, math, signal, sys, time
from pathlib import Path
flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
folder = Path(flags["output_dir"]) / flags["experiment_id"]
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text("x: 1")
loss = abs(math.log10(float(flags["optim_lr"])) + 2) + (flags["optim"] == "sgd")
for iteration in (1, 2, 3):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"iteration": iteration, "valid/weighted_log_loss": loss + 1 / iteration}) + chr(10))
    time.sleep(60 if loss > 1.5 and "lags" in flags else float(flags.get("slow", 0)))
if flags.get("fail") == "1":
    sys.exit(1)
(folder / "status.json").write_text('{"status": "finished"}')
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(FAKE)
    return tmp_path


def make_search(root: Path, **base) -> Search:
    return Search(Space("s", base, SPACE), root / "s", "weighted_log_loss", root, [], lambda flags: None)


def test_the_best_options_are_found_written_and_shown(root: Path) -> None:
    page = make_search(root).run(6, seed=1)
    study = open_study(root / "s", 1)
    complete = {trial.number: trial for trial in study.trials if trial.state.name == "COMPLETE"}
    best = min(complete.values(), key=lambda trial: trial.value)
    assert len([trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]) == 6
    assert yaml.safe_load((root / "s" / BEST_FILE).read_text()) == best.params
    values = {one.name: one.best[0] for one in read_summaries(root / "s", "weighted_log_loss")}
    assert best.value == min(values.values())
    assert best.user_attrs["experiment"] in page.read_text()
    assert make_search(root).run(6, seed=1) == page  # nothing is left to do
    assert len(open_study(root / "s", 1).trials) == len(study.trials)


def test_a_trial_that_lags_behind_is_pruned(root: Path) -> None:
    search = Search(
        Space("s", {"lags": 1}, {**SPACE, "optim": ["adamw"]}),
        root / "s",
        "weighted_log_loss",
        root,
        [],
        lambda f: None,
    )
    study = open_study(root / "s", 0)
    for rate in (0.01, 0.011, 0.009, 0.0101, 1e-4):
        study.enqueue_trial({"optim_lr": rate, "optim": "adamw"})
    search.run(5, seed=0)
    states = [trial.state.name for trial in open_study(root / "s", 0).trials]
    assert states == ["COMPLETE"] * 4 + ["PRUNED"]


def test_two_processes_share_a_search_and_the_trial_of_a_killed_one_is_tried_again(root: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from pathlib import Path\n"
        "from tests.common.sweeps.test_search import make_search\n"
        f"make_search(Path({str(root)!r}), slow=0.3).run(5, seed=3)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    while not (root / "s" / "trial_0000" / "metrics.jsonl").exists() or not (root / "s" / "trial_0001").exists():
        time.sleep(0.05)
        assert processes[0].poll() is None
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    assert processes[1].wait() == 0
    trials = open_study(root / "s", 3).trials
    ended = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(ended) == 5
    (lost,) = [trial for trial in trials if trial.state.name == "FAIL"]
    again = [trial for trial in ended if trial.user_attrs["experiment"] == lost.user_attrs["experiment"]]
    assert [trial.params for trial in again] == [lost.params]


def test_the_trial_of_a_killed_search_saves_its_state_and_ends(root: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from pathlib import Path\n"
        "from tests.common.sweeps.test_search import make_search\n"
        f"make_search(Path({str(root)!r}), slow=600).run(1, seed=3)\n"
    )
    search = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while not (root / "s" / "trial_0000" / "metrics.jsonl").exists():
        time.sleep(0.05)
        assert search.poll() is None
    search.send_signal(signal.SIGKILL)
    search.communicate(timeout=300)  # ends when no process holds the pipe any more


def test_half_a_line_that_a_full_disk_left_in_the_journal_does_not_end_the_search(root: Path) -> None:
    make_search(root).run(1, seed=0)
    with (root / "s" / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code":4,"worker_id":"a')
    make_search(root).run(2, seed=0)
    assert len(open_study(root / "s", 0).trials) == 2


CREATED = '{"op_code":0,"worker_id":"w","study_name":"s","directions":[1]}'
TRIAL = '{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":"2026-01-01T00:00:00"}'


def attribute(value: str) -> str:
    return f'{{"op_code":8,"worker_id":"w","trial_id":0,"user_attr":{value}}}'


HOSTILE = {
    "endless": (None, "larger than"),
    "a line without end": (["[" + "1, " * 300_000 + "1]"], "line 1: more than"),
    "millions of values": ([CREATED, *[attribute('{"a":[' + "[]," * 80_000 + "1]}")] * 30], "more than .* values"),
    "deep": ([CREATED, '{"op_code":' + "[" * 90_000], "line 2: nested"),
    "deep within a text": (
        [CREATED, '{"op_code":5,"worker_id":"w","trial_id":0,"distribution":"' + "[" * 90_000 + '"}'],
        "line 2: nested",
    ),
    "not finite": ([CREATED, '{"op_code":7,"trial_id":0,"step":1,"intermediate_value":1e999}'], "line 2"),
    "no objects": (["[]"], "line 1: not an entry"),
    "an operation that there isn't": (['{"op_code":99,"worker_id":"w"}'], "no journal"),
    "a distribution that there isn't": (
        [CREATED, TRIAL, '{"op_code":5,"worker_id":"w","trial_id":0,"param_name":"a","param_value_internal":1,'
         '"distribution":"{\\"name\\": \\"os.system\\", \\"attributes\\": {}}"}'],
        "no journal",
    ),
    "a study of two values": ([CREATED.replace("[1]", "[1,1]")], "several values"),
    "a name that leaves the folder": ([CREATED, TRIAL, attribute('{"experiment":"../../x"}')], "--experiment_id"),
    "a list for a name": ([CREATED, TRIAL, attribute('{"experiment":["x"]}')], "--experiment_id"),
    "an owner without a name": ([CREATED, TRIAL, attribute('{"owner":{"host":"1","pid":1,"started":1.5}}')], "owner"),
    "a word for an owner": ([CREATED, TRIAL, attribute('{"experiment":"a"}'), attribute('{"owner":"x"}')], "no j"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_journal_that_another_program_wrote_is_refused_in_a_line(root: Path, what: str) -> None:
    lines, said = HOSTILE[what]
    (root / "s").mkdir()
    with (root / "s" / JOURNAL).open("wb") as file:
        if lines is None:
            file.truncate(9 * 10**11)  # a hole, it takes no disk
        else:
            file.write("".join(f"{line}\n" for line in lines).encode())
    with pytest.raises(WorkError, match=said) as caught:
        make_search(root).run(1, seed=0)
    assert str(caught.value).startswith(f"{root / 's' / JOURNAL}: no journal of a search by this program (")
    assert "\n" not in str(caught.value)
    if lines is not None:
        assert (root / "s" / JOURNAL).read_text().startswith("\n".join(lines))
    assert [path.name for path in (root / "s").iterdir() if path.is_dir()] == []


def test_a_dead_trial_that_two_processes_find_at_once_is_tried_again_once(root: Path, monkeypatch) -> None:
    studies = [open_study(root / "s", 0) for _ in range(2)]
    trial = studies[0].ask()
    trial.set_user_attr("experiment", "trial_0000")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = {"host": _host(), "pid": process.pid, "started": 0.0}
    process.wait()
    trial.set_user_attr("owner", owner)
    found = studies[1].get_trials(deepcopy=True, states=(TrialState.RUNNING,))
    retry_dead(studies[0])
    monkeypatch.setattr(studies[1], "get_trials", lambda **_: found)  # as they were when it looked
    retry_dead(studies[1])
    states = [trial.state.name for trial in open_study(root / "s", 0).trials]
    assert states == ["FAIL", "WAITING"]


def test_trials_that_all_fail_end_the_search(root: Path) -> None:
    with pytest.raises(WorkError, match="3 trials failed one after the other"):
        make_search(root, fail=1).run(5, seed=0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("space: {}", "expected 'space:"),
        ("space: {seed: [1]}\nbase: 3", "expected 'space:"),
        ("space: {optim_lr: 1}", "space, optim_lr: give a list"),
        ("space: {optim_lr: {low: 1, high: 0}}", "low below high"),
        (f"space: {{seed: {list(range(1000))}}}", "space, seed: 1,000 choices; at most 100"),
        ("space: {optim_lr: {low: 1e-4, high: 1e-2}}", "write 1.0e-3, not 1e-3"),
        ("space: {optim_lr: {low: 0.1, high: 1, hig: 2}}", "space, optim_lr: give a list"),
        ("space: {optim_lr: {low: 0, high: 1, log: true}}", "log: true needs a low above 0, and no step"),
        ("space: {optim_lr: {low: 1, high: 9, log: true, step: 1}}", "log: true needs a low above 0, and no step"),
        ("space: {optim_lr: {low: 1, high: 9, log: maybe}}", "log must be true or false"),
        ("space: {seed: {low: 1, high: 9, step: 0}}", "step must be a whole number above 0"),
        ("space: {seed: {low: 1, high: 9, step: 0.5}}", "step must be a whole number above 0"),
        ("space: {net_drop: {low: 0.0, high: 0.5, step: -0.1}}", "step must be a number above 0"),
        ("space: {net_drop: {low: false, high: true}}", "low and high must be numbers"),
    ],
)
def test_a_space_of_another_form_is_one_line(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_space(tmp_path / "s.yaml")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("space", "part"),
    [
        ("{optim: [adamw, nosuch]}", "s.yaml: --optim: 'nosuch' is not one of"),
        ("{optim_lrr: [1, 2]}", "s.yaml: unknown option --optim_lrr"),
        ("{net_drop: {low: 0.0, high: 1.5}}", "s.yaml: --net_drop"),
    ],
)
def test_a_choice_that_train_py_would_refuse_ends_the_search_before_anything_is_written(
    tmp_path: Path, capsys, space: str, part: str
) -> None:
    (tmp_path / "s.yaml").write_text(f"space: {space}")
    assert part in failure(
        sweep.main, [f"--space={tmp_path / 's.yaml'}", f"--output_dir={tmp_path / 'results'}", "--trials=1"], capsys
    )
    assert not (tmp_path / "results").exists()


def test_the_page_links_reports_and_sorts_by_the_numbers(root: Path) -> None:
    search = make_search(root)
    study = open_study(root / "s", 0)
    for number, value in enumerate((10.5, 9.5, None)):
        trial = study.ask()
        trial.set_user_attr("experiment", f"trial_{number}")
        search.space.suggest(trial)
        study.tell(trial, value, state=None if value else TrialState.FAIL)
    (root / "s" / "trial_1").mkdir()
    (root / "s" / "trial_1" / "report.html").touch()
    html = search.write_results(study).read_text()
    assert re.findall(r"<th scope='row'>(?:<a[^>]*>)?(trial_\d)", html) == ["trial_1", "trial_0", "trial_2"]
    assert '<a href="trial_1/report.html">trial_1</a>' in html
    assert "3 trials: 2 complete, 1 fail" in html
    assert not re.search(r"<td>\d\.\d{9,}</td>", html)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="a small disk can't be mounted here (unshare -rm)",
)
def test_a_full_disk_ends_a_search_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("space: {optim: [adamw, sgd]}")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size=64k tmpfs {disk}
        head -c 100000 /dev/zero > {disk}/taken
        {sys.executable} sweep.py --space={tmp_path}/s.yaml --output_dir={disk} --trials=1
    """
    command = ["unshare", "-rm", "bash", "-c", script]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1] == f"error: {disk}/s: the disk is full; make space and start again"
    assert "Traceback" not in result.stderr
