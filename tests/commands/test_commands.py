"""train.sh and test.sh as a person starts them: in a fresh clone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from common.errors import EXIT_RESUMABLE, EXIT_USAGE, EXIT_WORK
from tests import PROJECT

NEEDED_BYTES = 12 * 10**9
QUICK = [
    "--net_model=resnet10t",
    "--data_image_size=32",
    "--tr_iteration_num=4",
    "--tr_iteration_valid=4",
    "--tr_report=0",
]


def bash(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )


def clone(target: Path) -> Path:
    """The commit that is checked out, without what git does not have."""
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(target)], check=True)
    return target


@pytest.mark.slow
def test_train_sh_goes_from_a_fresh_clone_to_a_model_and_a_submission(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < NEEDED_BYTES:
        pytest.skip(f"an environment and a phantom need {NEEDED_BYTES / 1e9:.0f} GB of disk, {free / 1e9:.1f} are free")
    project = clone(tmp_path / "clone")
    first = bash(project, "train.sh", "--tr_iteration_num=100", "--tr_iteration_valid=100")
    assert first.returncode == 0, first.stderr[-2000:]
    lines = first.stdout.splitlines()[-3:]
    assert lines[0].split() == ["experiment", "output/results/1"]
    value, constant = map(float, re.fullmatch(r".*loss +([\d.]+), constant predictor ([\d.]+)", lines[1]).groups())
    assert value <= 0.8 * constant
    submission = project / lines[2].split()[-1]
    sample = pd.read_csv(project / "input/phantom/stage_2_sample_submission.csv")
    assert pd.read_csv(submission)["ID"].tolist() == sample["ID"].tolist()
    assert "Making the environment" in first.stderr

    info = project / "input/datasets/phantom/dataset.json"
    made = info.stat().st_mtime_ns
    second = bash(project, "train.sh", *QUICK)
    assert second.returncode == 0, second.stderr[-2000:]
    assert second.stdout.splitlines()[-3].split() == ["experiment", "output/results/2"]
    assert "Making the environment" not in second.stderr
    assert info.stat().st_mtime_ns == made


@pytest.mark.slow
def test_train_sh_takes_competition_data_where_there_is_some_and_makes_no_phantom(
    tmp_path: Path, small_dataset
) -> None:
    project = clone(tmp_path / "clone")
    (project / ".venv").symlink_to(PROJECT / ".venv")
    data = project / "input" / "rsna-intracranial-hemorrhage-detection"
    shutil.copytree(small_dataset.source, data)
    (data / "stage_2_train").rename(data / "stage_1_train_images")
    (data / "stage_2_train.csv").rename(data / "stage_1_train.csv")
    (data / "stage_2_test").rename(data / "stage_1_test_images")
    (data / "stage_2_sample_submission.csv").rename(data / "stage_1_sample_submission.csv")
    result = bash(project, "train.sh", *QUICK, "--tr_batch_size=8")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (project / "input/datasets/rsna/dataset.json").is_file()
    assert not (project / "input/phantom").exists()


@pytest.mark.slow
def test_test_sh_lints_and_runs_the_tests_that_are_named(tmp_path: Path) -> None:
    project = clone(tmp_path / "clone")
    (project / ".venv").symlink_to(PROJECT / ".venv")
    result = bash(project, "test.sh", "tests/common/evaluation/test_metrics.py")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "passed" in result.stdout
    (project / "common" / "bad.py").write_text("import os\n")
    assert bash(project, "test.sh", "tests/common/evaluation/test_metrics.py").returncode != 0


def test_a_wrong_flag_ends_train_sh_before_any_data_is_made(tmp_path: Path) -> None:
    result = bash(PROJECT, "train.sh", "--tr_batch_sise=3", f"--data_input_folder={tmp_path / 'input'}")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: unknown option --tr_batch_sise; did you mean '--tr_batch_size'?"
    assert not (tmp_path / "input").exists()


@pytest.mark.parametrize(
    "arguments", [["--list=optim"], ["sweep", "no.yaml"], ["sweep", "g.yaml"], ["plan", "--hours=0"]]
)
def test_what_no_experiment_can_come_of_ends_train_sh_before_any_data_is_made(tmp_path: Path, arguments) -> None:
    project = clone(tmp_path / "clone")
    (project / ".venv").symlink_to(PROJECT / ".venv")
    (project / "g.yaml").write_text("grid: {optim_lrr: [1]}")
    result = bash(project, "train.sh", *arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert not (project / "input/phantom").exists()


def test_train_sh_without_a_flag_has_one_experiment(tmp_path: Path) -> None:
    project = clone(tmp_path / "clone")
    (project / ".venv").symlink_to(PROJECT / ".venv")
    result = bash(project, "train.sh", "--dry-run")
    assert result.returncode == 0, result.stderr[-2000:]
    (line,) = result.stdout.splitlines()
    assert line.split() == ["python", "train.py", "--data_dataset=phantom", "--output_dir=output/results"]
    first = result.stderr.splitlines()[0]
    assert first.startswith("No competition data (stage_2_train/ and stage_2_train.csv, or stage 1's) in input or")
    assert first.endswith("a phantom, stands in for it")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_train_sh_alone_ends_the_conversion_too(tmp_path: Path, number) -> None:
    project = clone(tmp_path / "clone")
    (project / ".venv").symlink_to(PROJECT / ".venv")
    for name, then in (("rsna_phantom.py", ""), ("preprocessing.py", "time.sleep(600)")):
        code = f"import os, pathlib, time; pathlib.Path('{name}.pid').write_text(str(os.getpid())); {then}"
        (project / name).write_text(code)
    run = subprocess.Popen(["bash", "train.sh"], cwd=project, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        file = project / "preprocessing.py.pid"
        while not file.exists() or not file.read_text():
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(number)
        assert run.wait(timeout=60) == EXIT_RESUMABLE
        assert not Path(f"/proc/{file.read_text()}").exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def test_train_sh_explains_itself() -> None:
    result = bash(PROJECT, "train.sh", "--help")
    assert result.returncode == 0
    own = result.stdout[: result.stdout.index("\n\nusage: ")]
    assert "bash train.sh --net_model=resnet34" in own
    script = (PROJECT / "train.sh").read_text()
    cases = re.findall(r"^ *([-\w| ]+)\)(?: |$)", script[: script.index("set_up requirements.txt\n\n# Which")], re.M)
    words = [word for case in cases for word in case.split(" | ")]
    assert {"sweep", "plan", "dashboard", "notebook", "--dry-run", "--help"} <= set(words)
    missing = [word for word in words if word != "-h" and not re.search(rf"bash train.sh {word}\b", own)]
    assert not missing, missing
    for code in (EXIT_WORK, EXIT_USAGE, EXIT_RESUMABLE):
        assert re.search(rf"Exit codes:[^.]*\b{code} ", own)
    used = re.findall(r"\$\{(PYTHON|TRACKIO_DIR)\b", script + (PROJECT / "setup.sh").read_text())
    assert set(used) == {"PYTHON", "TRACKIO_DIR"}
    assert all(name in own for name in used)
    assert "--tr_iteration_num" in result.stdout[len(own) :]


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
def test_a_python_that_is_missing_or_too_old_is_one_line_that_says_what_to_install(script: str, tmp_path: Path) -> None:
    shutil.copy(PROJECT / script, tmp_path)
    shutil.copy(PROJECT / "setup.sh", tmp_path)
    old = tmp_path / "oldpython"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n')
    old.chmod(0o755)
    missing = bash(tmp_path, script, PYTHON="nopython")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert "apt-get install" in missing.stderr
    outdated = bash(tmp_path, script, PYTHON=str(old))
    assert (outdated.returncode, len(outdated.stderr.splitlines())) == (1, 1)
    assert "Python 3.9.2 is too old" in outdated.stderr
