"""How much of the machine this process may use: cores, and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def cores(cgroup: Path = CGROUP, cgroups: Path = CGROUPS) -> int:
    """
    Return how many cores this process may use, 1 or more: those that its affinity names, and no
    more than the quotas of its control groups give time for, rounded up.
    """
    count = len(os.sched_getaffinity(0))
    for group in _groups("cpu", cgroup, cgroups):
        # Microseconds in each period: "200000 100000", or "max 100000"; in two files, with -1 for
        # no limit, in version 1.
        quota, _, period = _text(group / "cpu.max").partition(" ")
        quota = quota or _text(group / "cpu.cfs_quota_us")
        period = period or _text(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            count = min(count, -(-int(quota) // int(period)))
    return max(count, 1)


def memory(cgroup: Path = CGROUP, cgroups: Path = CGROUPS) -> int:
    """
    Return how many bytes of memory this process may use: the machine's, and no more than its
    control groups allow.
    """
    least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _groups("memory", cgroup, cgroups):
        limit = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes")
        if limit.isdecimal():
            least = min(least, int(limit))
    return least


def _groups(controller: str, cgroup: Path, cgroups: Path) -> Iterator[Path]:
    """
    The folders of the control group of this process and of those that it is in: of version 2, and
    of version 1 those of the controller.  cgroups(7)
    """
    for line in _text(cgroup).splitlines():
        # "0::/system.slice/artifactd.service", "1:cpu,cpuacct:/artifactd"
        _, controllers, path = line.split(":", 2)
        root = cgroups / controller if controllers else cgroups
        # In a container the root may be its own group, whatever the path is.
        group = root / path.lstrip("/")
        if not controllers or controller in controllers.split(","):
            yield from (each for each in (group, *group.parents) if each.is_relative_to(root))


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
