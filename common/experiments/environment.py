"""Records what a person needs to repeat a command: package versions, git commit, platform, GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.machine import usable_cores
from common.privacy import anonymous

PROJECT_FOLDER = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pandas",
    "scikit-learn",
    "pydicom",
    "joblib",
    "neptune-client",
)
GIT_TIMEOUT_S = 10.0


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Return the contents of environment.json for this run of ``command``, without the names of user and host.

    This imports no package: versions come from the packages' metadata. The GPUs' names are None if torch isn't loaded.
    """
    return {
        "command": anonymous(shlex.join(command)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        **_git_state(PROJECT_FOLDER),
        "platform": anonymous(platform.platform()),
        "cpu_count": os.cpu_count(),
        "cpu_usable": usable_cores(),
        "gpus": _gpu_names(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any]:
    """Return ``git_commit`` and ``git_dirty`` of the checkout at ``folder``, or None for both without a checkout."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != folder:  # the project may lie as plain files in another repository
        return {"git_commit": None, "git_dirty": None}
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if commit is None or status is None else status != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it fails."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # hooks set GIT_DIR
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            env=variables,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _gpu_names() -> list[str] | None:
    torch = sys.modules.get("torch")
    return torch and [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
