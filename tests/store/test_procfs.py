"""Reading what Linux tells of mounts and locks."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.store.procfs import (
    LOCKS,
    MOUNTINFO,
    WORKER,
    boot_time,
    daemon_of,
    filesystem_type,
    lock_holders,
)


def mount(point: str, kind: str, device: str = "0:999") -> str:
    """A line of mountinfo."""
    return f"36 35 {device} / {point} rw,noatime shared:1 master:2 - {kind} source rw\n"


class BootTests(SynchronousTestCase):
    def test_it_is_before_now_and_where_it_can_not_be_told_long_ago(self) -> None:
        self.assertTrue(0 < boot_time() < time.time())
        stat = Path(self.mktemp())
        self.assertEqual(boot_time(stat), 0.0)
        stat.write_text("cpu 1 2\nbtime 17\n")
        self.assertEqual(boot_time(stat), 17.0)


class FilesystemTypeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()
        number = self.path.stat().st_dev
        self.device = f"{os.major(number)}:{os.minor(number)}"

    def test_the_device_decides(self) -> None:
        mounts = mount(str(self.path), "nfs") + mount("/elsewhere", "ext4", self.device)
        self.assertEqual("ext4", filesystem_type(self.path, mounts))

    def test_without_the_device_the_deepest_mount_above_does(self) -> None:
        mounts = mount("/", "ext4") + mount(str(self.path.parent), "nfs4") + mount("/x", "cifs")
        self.assertEqual("nfs4", filesystem_type(self.path, mounts))

    def test_a_mount_with_the_same_beginning_is_not_above(self) -> None:
        mounts = mount("/", "ext4") + mount(str(self.path)[:-1], "nfs")
        self.assertEqual("ext4", filesystem_type(self.path, mounts))

    def test_of_two_mounts_on_one_point_the_later_is_seen(self) -> None:
        self.assertEqual("nfs", filesystem_type(self.path, mount("/", "ext4") + mount("/", "nfs")))

    def test_a_blank_in_a_name_is_written_in_octal(self) -> None:
        path = self.path / "my data"
        path.mkdir()
        mounts = mount("/", "ext4") + mount(str(path).replace(" ", r"\040"), "nfs")
        self.assertEqual("nfs", filesystem_type(path, mounts))

    def test_lines_that_make_no_sense_tell_nothing(self) -> None:
        self.assertIsNone(filesystem_type(self.path, "\nnonsense\n1 2 - nfs\n"))

    def test_this_machine_tells(self) -> None:
        self.assertIsNotNone(filesystem_type(self.path.resolve(), MOUNTINFO.read_text()))


class LockHolderTests(SynchronousTestCase):
    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.touch()
        self.fd = os.open(path, os.O_RDWR)
        self.addCleanup(os.close, self.fd)
        self.status = os.fstat(self.fd)

    def line(self, pid: int, kind: str = "FLOCK  ADVISORY ", device: int | None = None) -> str:
        number = self.status.st_dev if device is None else device
        place = f"{os.major(number):02x}:{os.minor(number):02x}:{self.status.st_ino}"
        return f"1: {kind} READ  {pid} {place} 0 EOF\n"

    def test_all_who_hold_a_flock_are_told(self) -> None:
        self.assertEqual({11, 22}, lock_holders(self.status, self.line(11) + self.line(22)))

    def test_other_locks_and_other_files_do_not_count(self) -> None:
        other = self.line(3, device=os.makedev(77, 7))
        locks = self.line(1, "POSIX  ADVISORY ") + self.line(2, "-> FLOCK  ADVISORY ") + other
        self.assertEqual(set(), lock_holders(self.status, locks + "nonsense\n"))

    def test_this_machine_tells_who_holds_a_lock(self) -> None:
        self.assertNotIn(os.getpid(), lock_holders(self.status, LOCKS.read_text()))
        fcntl.flock(self.fd, fcntl.LOCK_SH)
        self.assertIn(os.getpid(), lock_holders(self.status, LOCKS.read_text()))


class DaemonTests(SynchronousTestCase):
    def told(self, arguments: list[str], parent: int) -> int:
        """Which process is to be stopped so that the one with the id 7 ends."""
        proc = Path(self.mktemp())
        (proc / "7").mkdir(parents=True)
        (proc / "7" / "cmdline").write_text("\0".join([*arguments, ""]))
        (proc / "7" / "stat").write_text(f"7 (py) th (on) S {parent} 7 7 0 -1\n")
        return daemon_of(7, proc)

    def test_of_a_worker_it_is_the_supervisor(self) -> None:
        self.assertEqual(self.told(["python", "-P", "-m", WORKER, "/etc/a.toml"], 5), 5)

    def test_a_worker_without_a_supervisor_is_one_itself(self) -> None:
        self.assertEqual(self.told(["python", "-P", "-m", WORKER], 1), 7)

    def test_so_is_every_other_process(self) -> None:
        self.assertEqual(self.told(["twistd", "-n", "artifactd"], 5), 7)
        self.assertEqual(daemon_of(7, Path(self.mktemp())), 7)
