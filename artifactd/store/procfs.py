"""Mounted filesystems, held locks and the boot time, from ``/proc``; proc(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

MOUNTINFO = Path("/proc/self/mountinfo")
LOCKS = Path("/proc/locks")
PROC = Path("/proc")
STAT = PROC / "stat"

WORKER = "artifactd.daemon.worker"
"""The module that a worker runs, as its command line has it."""

MEMORY_FILESYSTEMS = frozenset({"ramfs", "tmpfs"})
NETWORK_FILESYSTEMS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.ceph-fuse",
        "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.moosefs",
        "fuse.mfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs",
        "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs",
    }
)  # fmt: skip
"""Types of filesystems on which flock, shared memory or fsync may not work across hosts."""


@frozen
class _Mount:
    device: str
    point: str
    type: str


def filesystem_type(path: Path, mountinfo: str) -> str | None:
    """
    Return the type of the filesystem that ``path`` is on; ``None`` if ``mountinfo`` lacks it.

    :param path: absolute, without symbolic links.
    """
    number = path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    mounts = list(_mounts(mountinfo))
    for mount in mounts:
        if mount.device == device:
            return mount.type
    # Some filesystems (btrfs, overlay) give their files a device of their own.
    above = [m for m in mounts if path.is_relative_to(m.point)]
    # Of several mounts on one point the last one is visible.
    deepest = max(enumerate(above), key=lambda m: (len(m[1].point), m[0]), default=None)
    return deepest[1].type if deepest else None


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    # id parent major:minor root point options [tags…] - type source options
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if separator and len(fields) > 4:
            yield _Mount(fields[2], _unescape(fields[4]), types[0])


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def boot_time(stat: Path = STAT) -> float:
    """
    Return when the machine started, in seconds since the epoch; 0.0 if ``/proc`` does not tell.
    """
    try:
        times = [line.split()[1] for line in stat.read_text().splitlines() if line[:6] == "btime "]
    except (OSError, IndexError):
        return 0.0
    return float(times[0]) if times else 0.0


def daemon_of(pid: int, proc: Path = PROC) -> int:
    """
    Return the process to stop so that a process ends for good: for a worker its supervisor, which
    would start another one.
    """
    try:
        arguments = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        # pid (name) state parent ...: the name may have any characters
        parent = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return pid
    # A worker whose supervisor has been killed ends by itself.
    return parent if WORKER.encode() in arguments and parent > 1 else pid


def lock_holders(file: os.stat_result, locks: str) -> set[int]:
    """Return the ids of the processes that hold a flock on ``file``, as far as they are visible."""
    # n: FLOCK ADVISORY READ|WRITE pid major:minor:inode start end; "->" marks one that waits
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    return {
        int(fields[4])
        for fields in (line.split() for line in locks.splitlines())
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == device
    }
