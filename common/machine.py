"""Resources that this process may use: cores by affinity, quota and share, memory by the container's limit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

# An environment variable with the largest number of cores for a process and its children; joblib reads it too.
CORES_VARIABLE = "LOKY_MAX_CPU_COUNT"
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the number of cores that affinity, cgroup quota (docker's --cpus) and CORES_VARIABLE allow."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += [math.ceil(quota) for quota in _quotas()]
    share = os.environ.get(CORES_VARIABLE, "")
    if share.isdigit():
        limits.append(int(share))
    return max(1, min(limits))


def memory_limit() -> int | None:
    """Return the memory limit of the container or job in bytes (docker's --memory); None if there is none."""
    limits = [int(text) for text in _texts("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min((limit for limit in limits if limit < machine), default=None)


def _quotas() -> Iterator[float]:
    """Yield each cgroup quota in cores: processor time divided by its period."""
    for text in _texts("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def _texts(controller: str, name: str, name_v1: str) -> Iterator[str]:
    """Yield the content of a controller's file in this process's group and in all groups above, in version 2's form.

    A container sees its own group as the root, whatever path the kernel names. A missing file yields an empty text.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
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
