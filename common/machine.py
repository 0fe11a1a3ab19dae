"""What this process may use of the machine: cores by affinity, quota and share, and memory by the container's limit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

# Read by joblib too: an environment variable with the most cores that a process and its children may use.
CORES_VARIABLE = "LOKY_MAX_CPU_COUNT"
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the cores that this process may use: by affinity, cgroup quota (docker's --cpus) and CORES_VARIABLE."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += [math.ceil(quota) for quota in _quotas()]
    share = os.environ.get(CORES_VARIABLE, "")
    if share.isdigit():
        limits.append(int(share))
    return max(1, min(limits))


def memory_limit() -> int | None:
    """Return the bytes that the container or job may use (docker's --memory), or None where only the machine limits."""
    limits = [int(text) for text in _texts("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min((limit for limit in limits if limit < machine), default=None)


def _quotas() -> Iterator[float]:
    """Yield the cores of each quota that holds here: processor time by the period that it is for."""
    for text in _texts("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def _texts(controller: str, name: str, name_v1: str) -> Iterator[str]:
    """Yield what a controller's file says in this process's group and in those above it, as of cgroup version 2.

    A container sees its own group as the root, whatever path the kernel names: what is not there is passed over.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, file = GROUPS, name
        elif controller in controllers.split(","):
            root, file = GROUPS / controller, name_v1
        else:
            continue
        place = root / path.lstrip("/")
        for folder in (place, *place.parents):
            try:
                text = (folder / file).read_text(encoding="ascii").strip()
                if file == "cpu.cfs_quota_us":
                    text += f" {(folder / 'cpu.cfs_period_us').read_text(encoding='ascii').strip()}"
            except (OSError, ValueError):
                text = ""
            yield text
            if folder == root:
                break
