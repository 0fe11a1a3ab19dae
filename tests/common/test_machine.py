"""Tests of common/machine.py: cores and memory that a container or job may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest

from common import machine
from common.machine import memory_limit, usable_cores
from tests import PROJECT


@pytest.fixture
def groups(tmp_path: Path, monkeypatch) -> Path:
    """A made-up file system of cgroups on a machine of 8 cores and 16 GiB."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**22}.__getitem__)
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    return tmp_path


def write(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_without_limits_all_cores_are_used_and_the_machine_limits_the_memory(groups: Path) -> None:
    assert (usable_cores(), memory_limit()) == (8, None)  # not Linux
    (groups / "own").write_text("0::/\n")
    write(groups / "cgroup", cpu__max="max 100000", memory__max="max")
    assert (usable_cores(), memory_limit()) == (8, None)


def test_a_containers_quota_and_memory_limit_hold(groups: Path) -> None:
    (groups / "own").write_text("0::/\n")
    write(groups / "cgroup", cpu__max="250000 100000", memory__max=str(2**31))
    assert (usable_cores(), memory_limit()) == (3, 2**31)


def test_the_narrowest_of_the_groups_above_holds(groups: Path) -> None:
    # A Slurm step within its job, seen from outside.
    (groups / "own").write_text("0::/slurm/job_7/step_0\n")
    write(groups / "cgroup/slurm/job_7/step_0", cpu__max="max 100000", memory__max="max")
    write(groups / "cgroup/slurm/job_7", cpu__max="400000 100000", memory__max=str(2**33))
    write(groups / "cgroup/slurm", cpu__max="600000 100000", memory__max=str(2**34 - 1))
    assert (usable_cores(), memory_limit()) == (4, 2**33)


def test_limits_of_the_older_form_of_cgroups_hold_also_in_a_container(groups: Path) -> None:
    # The kernel names the path outside; the container has its own group at the top.
    (groups / "own").write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n")
    write(groups / "cgroup/cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    write(groups / "cgroup/memory", memory__limit_in_bytes=str(2**30))
    assert (usable_cores(), memory_limit()) == (1, 2**30)
    write(groups / "cgroup/cpu", cpu__cfs_quota_us="-1")
    write(groups / "cgroup/memory", memory__limit_in_bytes=str(2**63 - 4096))  # none
    assert (usable_cores(), memory_limit()) == (8, None)


def test_a_share_holds_for_children_and_never_widens(groups: Path, monkeypatch) -> None:
    for share, cores in (("2", 2), ("12", 8), ("0", 1), ("many", 8)):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", share)
        assert usable_cores() == cores


@pytest.fixture
def quota_group() -> Iterator[Path]:
    """A real group of half a core, where this machine allows one."""
    place = next((path for path in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")) if path.is_dir()), None)
    group = (place or Path("/nowhere")) / f"test_machine_{os.getpid()}"
    try:
        group.mkdir()
        file = group / "cpu.max"
        if file.exists():
            file.write_text("50000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no quota can be set here ({error})")
    yield group
    group.rmdir()


def test_a_real_quota_is_seen_wherever_the_group_lies(quota_group: Path) -> None:
    code = (
        f"import os; open({str(quota_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "from common.machine import usable_cores; import joblib; print(usable_cores(), joblib.cpu_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    ours, theirs = map(int, done.stdout.split())
    assert ours == 1
    assert ours <= theirs <= joblib.cpu_count()  # joblib looks at the top group alone
