"""How much of the machine this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.machine import cores, memory


class MachineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cgroups = Path(self.mktemp())
        self.cgroup = self.cgroups / "self"
        self.patch(os, "sched_getaffinity", lambda pid: set(range(8)))
        self.patch(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 1 << 20))

    def write(self, membership: str, **limits: str) -> None:
        """Let the process be in groups; ``limits`` are the files below the root of all groups."""
        self.cgroups.mkdir(exist_ok=True)
        self.cgroup.write_text(membership)
        for path, text in limits.items():
            file = self.cgroups / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")

    def cores(self) -> int:
        return cores(self.cgroup, self.cgroups)

    def memory(self) -> int:
        return memory(self.cgroup, self.cgroups)

    def test_without_control_groups_all_of_it(self) -> None:
        self.assertEqual((self.cores(), self.memory()), (8, 4 << 30))

    def test_no_limit(self) -> None:
        self.write("0::/a\n", **{"a/cpu.max": "max 100000", "a/memory.max": "max"})
        self.assertEqual((self.cores(), self.memory()), (8, 4 << 30))

    def test_a_quota_is_rounded_up_and_is_never_nothing(self) -> None:
        for quota, expected in (("200000", 2), ("150000", 2), ("50000", 1), ("900000", 8)):
            self.write("0::/a\n", **{"a/cpu.max": f"{quota} 100000"})
            self.assertEqual(self.cores(), expected, quota)

    def test_the_least_limit_of_all_groups_around_counts(self) -> None:
        self.write(
            "0::/a/b\n",
            **{"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"},
            **{"a/b/memory.max": str(1 << 30), "a/memory.max": "max"},
        )
        self.assertEqual((self.cores(), self.memory()), (3, 1 << 30))

    def test_in_a_container_the_root_is_its_own_group(self) -> None:
        for membership in ("0::/\n", "0::/docker/1\n", "0::/../../other\n"):
            self.write(membership, **{"cpu.max": "200000 100000"})
            self.assertEqual(self.cores(), 2, membership)

    def test_version_1_has_a_folder_for_each_controller(self) -> None:
        self.write(
            "4:memory:/a\n1:cpu,cpuacct:/a\n0::/\n",
            **{"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"},
            **{"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            **{"memory/a/memory.limit_in_bytes": str(1 << 29)},
        )
        self.assertEqual((self.cores(), self.memory()), (3, 1 << 29))
