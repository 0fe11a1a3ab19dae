"""common/experiments/folder.py: folders that no two runs share, records without personal data, a log that ends."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError, WorkError
from common.experiments.folder import (
    anonymous,
    check_experiment_id,
    create_experiment,
    environment,
    experiment_folder,
    plain,
    setup_logging,
)
from tests import PROJECT

COMMAND = ["python", "train.py", "--seed=1"]


def create(output_dir: Path, experiment_id: str | None = None, **more):
    return create_experiment(output_dir, experiment_id, {"seed": 1}, COMMAND, **more)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the id and the folder


def test_experiments_are_numbered_from_one(tmp_path):
    output = tmp_path / "output" / "results"  # neither exists
    experiments = [create(output) for _ in range(3)]
    assert [experiment.id for experiment in experiments] == ["1", "2", "3"]
    assert [experiment.folder for experiment in experiments] == [output / "1", output / "2", output / "3"]
    assert names(output / "1") == {"config.yaml", "environment.json"}


def test_the_next_number_follows_the_highest_and_names_do_not_count(tmp_path):
    for name in ("2", "10", "baseline", "99x", "1.5", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file in the way")
    assert create(tmp_path).id == "12"


def test_a_name_is_taken_as_it_is_and_a_given_number_too(tmp_path):
    assert create(tmp_path, "resnet18_fold-0.v2").folder == tmp_path / "resnet18_fold-0.v2"
    assert create(tmp_path, "7").id == "7"
    assert create(tmp_path).id == "8"


def test_an_id_that_exists_is_refused_with_the_way_out_and_left_alone(tmp_path):
    create(tmp_path, "a")
    (tmp_path / "a" / "best.pt").write_text("weights")
    before = names(tmp_path / "a")
    with pytest.raises(UsageError, match=r"--experiment_id=a: exists in .*; choose another name, or leave") as caught:
        create(tmp_path, "a")
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "a") == before


@pytest.mark.parametrize("left", [[], [".environment.json.123.tmp"], ["environment.json", ".config.yaml.123.tmp"]])
def test_a_folder_whose_maker_was_killed_before_it_wrote_anything_is_taken(tmp_path, left):
    (tmp_path / "a").mkdir()
    for name in left:
        (tmp_path / "a" / name).write_text("half")
    assert create(tmp_path, "a").folder == tmp_path / "a"
    assert names(tmp_path / "a") == {"config.yaml", "environment.json"}


@pytest.mark.parametrize(
    "experiment_id",
    ["", ".", "..", "../x", "a/b", "/tmp/x", ".hidden", "a b", "ä", "a\n", "a\0b", "x" * 101, "a\\b", "~"],
)
def test_an_id_that_could_leave_the_folder_is_refused_before_anything_is_made(tmp_path, experiment_id):
    with pytest.raises(UsageError, match="--experiment_id=") as caught:
        create(tmp_path / "results", experiment_id)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["../out", "/etc", "a/../../out", "", ".", "a//b", "a/", "nothing", "a\0b"])
def test_an_experiment_that_is_not_below_the_results_is_not_found(tmp_path, name):
    for folder in ("results/a/b", "out"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no such experiment in .*; there are a"):
        experiment_folder(tmp_path / "results", name)


@pytest.mark.parametrize("name", ["1", "search/trial_0001", "search/cv/fold_0", "é#1 (copy)?"])
def test_an_experiment_is_found_by_the_name_that_the_leaderboard_shows(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    assert experiment_folder(tmp_path, name) == tmp_path / name


@settings(max_examples=200)
@given(st.text(max_size=12))
def test_whatever_id_is_allowed_stays_inside_the_folder(experiment_id):
    try:
        check_experiment_id(experiment_id)
    except UsageError:
        return
    path = Path(os.path.normpath(Path("/results") / experiment_id))
    assert path.parent == Path("/results")
    assert path.name == experiment_id


CLAIM = """
import sys
from pathlib import Path
from common.experiments.folder import create_experiment
sys.stdin.readline()  # all start at once
for _ in range(10):
    print(create_experiment(Path(sys.argv[1]), None, {"seed": 1}, ["x"]).id, flush=True)
"""


def test_of_many_processes_at_once_each_gets_numbers_of_its_own(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path / "results")],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert sorted(int(number) for numbers in outputs for number in numbers) == list(range(1, 81))
    assert all(
        names(tmp_path / "results" / str(number)) == {"config.yaml", "environment.json"} for number in range(1, 81)
    )


def test_of_many_processes_that_want_one_name_one_gets_it(tmp_path):
    code = CLAIM.replace("None", "'same'").replace("range(10)", "range(1)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [(process.communicate("\n"), process.returncode) for process in processes]
    assert sum(code == 0 for _, code in results) == 1
    assert sum("UsageError: --experiment_id=same: exists" in err for (_, err), _ in results) == 3


# --- what is in the way


def test_an_output_folder_that_is_a_file_is_refused_by_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(
            UsageError, match=rf"--output_dir={output}: {tmp_path}/file is a file, not a folder"
        ) as caught:
            create(output)
        assert "\n" not in str(caught.value)


def test_an_output_folder_that_takes_no_new_folders_is_a_usage_error():
    output = Path("/proc/results")  # for root too
    if not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(UsageError, match=r"--output_dir=/proc/results: cannot be written \(.+\)"):
        create(output)


def test_an_output_folder_without_write_permission_is_a_usage_error(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write everywhere")
    try:
        with pytest.raises(UsageError, match=r"cannot be written \(Permission denied\)"):
            create(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_too_little_free_space_is_found_before_anything_is_made(tmp_path):
    with pytest.raises(WorkError, match=r"the disk has [\d.]+ GB free, the run needs 1000000.00 GB; make space"):
        create(tmp_path / "new" / "results", free_bytes=10**15)
    assert names(tmp_path) == set()
    assert create(tmp_path, free_bytes=1000).id == "1"


def mounted(folder: Path, options: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_disk_and_a_read_only_one_are_one_line_and_leave_no_folder(tmp_path):
    disk = tmp_path / "disk"
    if not mounted(disk, "size=16k"):
        pytest.skip("mounting a small disk needs privileges")
    try:
        with (disk / "filling").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096) if shutil.disk_usage(disk).free else 0:
                pass
        with pytest.raises(WorkError, match="the disk is full; make space"):
            create(disk)
        assert names(disk) == {"filling"}
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UsageError, match=r"cannot be written \(Read-only file system\)"):
            create(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- what is written


def test_the_configuration_reads_back_with_plain_types(tmp_path):
    config = {
        "data_input_folder": Path("in put/ä"),
        "data_windows": ((40, 80), (80.5, 200)),
        "optim_lr": 1e-05,
        "seed": 1,
        "tr_use_amp": False,
        "experiment_id": None,
        "note": "1e-5",
    }
    experiment = create_experiment(tmp_path, None, config, COMMAND)
    back = yaml.safe_load((experiment.folder / "config.yaml").read_text(encoding="utf-8"))
    assert back == {**config, "data_input_folder": "in put/ä", "data_windows": [[40, 80], [80.5, 200]]}
    assert list(back) == list(config)
    assert type(back["optim_lr"]) is float
    assert type(back["note"]) is str


def test_a_value_that_is_not_plain_leaves_no_folder(tmp_path):
    with pytest.raises(TypeError, match="not device"):
        create_experiment(tmp_path, None, {"device": torch.device("cpu")}, COMMAND)
    assert names(tmp_path) == set()


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.text("abc_", max_size=5),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=20).filter(str.isprintable),
        max_size=4,
    )
)
def test_plain_values_stay_what_they_are_through_yaml(config):
    assert yaml.safe_load(yaml.safe_dump(plain(config), allow_unicode=True)) == config


def test_the_environment_names_versions_command_and_machine_type():
    record = environment(["python", "train.py", "--experiment_id=a b"])
    assert record["command"] == "python train.py '--experiment_id=a b'"
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert record["packages"]["albumentations"] == "2.0.8"
    assert record["cpu_count"] == os.cpu_count()
    assert 1 <= record["cpu_usable"] <= record["cpu_count"]
    assert record["gpus"] == [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["started"])
    json.dumps(record, allow_nan=False)


def run_environment(folder: Path, **variables: str) -> dict:
    """The record made by a copy of common/ in ``folder``, in a fresh process."""
    if not (folder / "common").exists():
        (folder / "common").mkdir(parents=True)
        for name in ("__init__", "console", "errors", "files", "foreign", "machine", "waiting", "experiment"):
            shutil.copy(PROJECT / "common" / f"{name}.py", folder / "common" / f"{name}.py")
    code = (
        "import json, sys; from common.experiments.folder import environment; "
        "record = environment(['x']); record['heavy'] = 'torch' in sys.modules or 'numpy' in sys.modules; "
        "print(json.dumps(record))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_the_commit_is_named_only_in_the_projects_own_checkout(tmp_path):
    project = tmp_path / "outer" / "project"
    record = run_environment(project)
    assert (record["git_commit"], record["git_dirty"]) == (None, None)
    assert record["gpus"] is None  # torch was not imported
    assert not record["heavy"]

    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")

    def git(folder: Path, *arguments: str) -> str:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    git(tmp_path / "outer", "init")
    assert run_environment(project)["git_commit"] is None  # plain files in another repository
    git(project, "init")
    assert run_environment(project)["git_commit"] is None  # no commit yet
    git(project, "add", ".")
    git(project, "commit", "-m", "first")
    commit = git(project, "rev-parse", "HEAD")
    (project / "untracked.txt").write_text("")
    record = run_environment(project, GIT_DIR=str(tmp_path / "outer" / ".git"))  # as in a git hook
    assert (record["git_commit"], record["git_dirty"]) == (commit, False)
    (project / "common" / "files.py").write_text('"""Changed."""\nwrite_json = write_text = None\n')
    record = run_environment(project, PATH=os.environ["PATH"])
    assert (record["git_commit"], record["git_dirty"]) == (commit, True)
    record = run_environment(project, PATH="/nonexistent")  # no git
    assert (record["git_commit"], record["git_dirty"]) == (None, None)


CANARY = """
import platform, socket
platform.node = socket.gethostname = lambda: "canaryhost"
from pathlib import Path
from common.experiments.folder import create_experiment
home = Path.home()
create_experiment(Path("results"), None, {"seed": 1}, [
    "python", f"{home}/code/train.py", f"--output_dir={home}/out", f"--config={home}",
    "--data_input_folder=/mnt/canaryuser/x", "--net_weight_file=/net/canaryhost/best.pt", f"{home}2/canaryuserdata",
])
"""


def test_neither_user_nor_host_nor_home_folder_is_recorded(tmp_path):
    home = tmp_path / "home" / "canaryhome"
    variables = {
        **os.environ,
        "HOME": str(home),
        "LOGNAME": "canaryuser",
        "USER": "canaryuser",
        "PYTHONPATH": str(PROJECT),
    }
    subprocess.run([sys.executable, "-c", CANARY], cwd=tmp_path, env=variables, check=True)
    text = (tmp_path / "results" / "1" / "environment.json").read_text()
    command = json.loads(text)["command"].split()
    assert command[1:3] == ["~/code/train.py", "--output_dir=~/out"]
    assert command[3:6] == [
        "--config=~",
        "--data_input_folder=/mnt/<user>/x",
        "--net_weight_file=/net/<host>/best.pt",
    ]
    assert command[6] == f"{home}2/canaryuserdata"  # other folders, which only begin alike
    rest = text.replace(command[6], "")
    assert "canary" not in rest


def test_words_that_are_no_part_of_a_path_are_left_alone(monkeypatch):
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "train")
    assert anonymous("python train.py --split=train --x=/train.py") == "python train.py --split=train --x=/train.py"
    assert anonymous("/home/train/x") == "/home/<user>/x"


# --- the log


def test_every_line_is_in_the_file_at_once_with_a_utc_time(tmp_path):
    with setup_logging(tmp_path, console=False):
        logging.getLogger("common.x").info("first ä")
        lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO common\.x: first ä", lines[0])


def test_the_console_gets_warnings_only_unless_all_is_asked_for(tmp_path, capsys):
    for console, expected in ((False, "WARNING: careful\n"), (True, "told\ncareful\n")):
        with setup_logging(tmp_path, console=console):
            logging.getLogger("x").debug("detail")
            logging.getLogger("x").info("told")
            logging.getLogger("x").warning("careful")
        out, err = capsys.readouterr()
        assert (out, err) == ("", expected)
    assert (tmp_path / "train.log").read_text().count("told") == 2


def test_a_second_run_in_the_process_writes_only_its_own_file(tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers), warnings.showwarning)
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        with setup_logging(tmp_path / name, console=True):
            logging.getLogger("x").info("run %s", name)
        assert (root.level, list(root.handlers), warnings.showwarning) == before
    logging.getLogger("x").warning("after")
    for name in ("1", "2"):
        text = (tmp_path / name / "train.log").read_text()
        assert text.count("\n") == 1
        assert text.endswith(f"run {name}\n")


def test_warnings_of_libraries_go_to_the_file_and_not_to_the_console(tmp_path, capsys):
    with setup_logging(tmp_path, console=False), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old argument", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
    assert "UserWarning: old argument" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WorkError("a.npy: cut"), "ERROR common.experiments.folder: a.npy: cut\n"),
        (ZeroDivisionError("by us"), "ZeroDivisionError: by us\n"),
        (KeyboardInterrupt(), "ERROR common.experiments.folder: interrupted (KeyboardInterrupt)\n"),
    ],
)
def test_what_ends_the_run_is_in_the_file_and_is_printed_by_others(tmp_path, capsys, error, words):
    def run() -> None:
        with setup_logging(tmp_path, console=True):
            raise error

    with pytest.raises(type(error)):
        run()
    text = (tmp_path / "train.log").read_text()
    assert text.endswith(words)
    assert ("Traceback" in text) == isinstance(error, ZeroDivisionError)
    assert capsys.readouterr().err == ""


def test_a_log_that_cannot_be_written_warns_once_and_the_run_goes_on(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "train.log").symlink_to("/dev/full")
    with setup_logging(tmp_path, console=False):
        for number in range(5):
            logging.getLogger("x").info("line %d", number)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "train.log: cannot be written (No space left on device), so it has gaps" in err
