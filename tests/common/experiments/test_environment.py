"""common/experiments/environment.py: what a run notes of its machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from common.experiments.environment import environment
from tests import PROJECT


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
        (folder / "common" / "experiments").mkdir(parents=True)
        for name in ("__init__", "machine", "privacy", "experiments/__init__", "experiments/environment"):
            shutil.copy(PROJECT / "common" / f"{name}.py", folder / "common" / f"{name}.py")
    code = (
        "import json, sys; from common.experiments.environment import environment; "
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
    (project / "common" / "__init__.py").write_text('"""Changed."""\n')
    record = run_environment(project, PATH=os.environ["PATH"])
    assert (record["git_commit"], record["git_dirty"]) == (commit, True)
    record = run_environment(project, PATH="/nonexistent")  # no git
    assert (record["git_commit"], record["git_dirty"]) == (None, None)
