"""common/experiments/folder.py: folders that no two runs share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError, WorkError
from common.experiments.folder import check_experiment_id, create_experiment, experiment_folder, plain
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
