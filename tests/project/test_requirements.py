"""requirements*.txt, constraints.txt and setup.sh: what may be installed, and what is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tests import PROJECT

EXACT = {"albumentations", "neptune-client"}  # the last ones under their licence, and of a service that has closed


def read(name: str) -> dict[str, Requirement]:
    lines = (PROJECT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {one.name: one for one in found}


def test_requirements_are_ranges_that_leave_a_machines_own_torch_and_constraints_pin_each_within_them() -> None:
    needed, pinned = read("requirements.txt"), read("constraints.txt")
    assert needed.keys() == pinned.keys()
    for name, one in needed.items():
        (limit,) = one.specifier
        (pin,) = pinned[name].specifier
        assert pin.operator == "=="
        assert limit.operator == ("==" if name in EXACT else ">=")
        assert Version(limit.version) <= Version(pin.version)
    assert Version("2.9.1") in needed["torch"].specifier  # what a notebook machine had when this was written
    assert Version("2.9.1") < Version(next(iter(pinned["torch"].specifier)).version)


def test_setup_installs_the_pins_and_again_where_they_change(tmp_path: Path) -> None:
    for name in ("setup.sh", "requirements.txt", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >>calls\n')
    python.chmod(0o755)

    def set_up() -> list[str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        subprocess.run(
            ["bash", "-c", "source ./setup.sh; set_up requirements.txt"], cwd=tmp_path, check=True, capture_output=True
        )
        return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []

    (call,) = set_up()
    assert call.endswith("-c constraints.txt -r requirements.txt")
    assert set_up() == []
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("wheel==0.45\n")
    assert len(set_up()) == 1
    assert set_up() == []
