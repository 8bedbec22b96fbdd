"""Files that decide who may do what, or what is trusted."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class Untrusted(ValueError):
    """Others could have written the file.  The message says so, and what to do."""


def read_trusted(path: Path, limit: int = -1) -> bytes:
    """
    Read a file, or at most ``limit`` bytes of it.  Blocks.

    :raises Untrusted: if everybody may write it, or a group may that this process is not in.
    :raises OSError: if it can't be read.
    """
    with path.open("rb") as file:
        check_trusted(os.fstat(file.fileno()))
        return file.read(limit)


def check_trusted(status: os.stat_result) -> None:
    """:raises Untrusted: if everybody may write it, or a group may that this process is not in."""
    mode = stat.S_IMODE(status.st_mode)
    own = {os.getegid(), *os.getgroups()}  # of a Kubernetes volume it is one of the latter
    foreign = mode & stat.S_IWGRP and status.st_gid not in own
    # A pipe or a device is no file that somebody could have changed.
    if stat.S_ISREG(status.st_mode) and (mode & stat.S_IWOTH or foreign):
        raise Untrusted(f"others may write it (mode {mode:04o}): chmod go-w")


def replace_trusted(path: Path, change: Callable[[bytes | None], bytes]) -> bool:
    """
    Replace the content of a file while no other process does so by this function.  Blocks.

    Readers find all of the old content or all of the new one, also after a crash.  The file keeps
    its mode and its owner; a new one is for this user alone (0600).  Of a symbolic link, the file
    behind it is replaced.

    :param change: is given the present content (``None``: there is no file), and returns the new
        one.  If it raises, the file stays as it is.
    :returns: whether the file is a new one.
    :raises Untrusted: as :func:`read_trusted` does.
    :raises OSError: if it can't be read or replaced, or this user can't give it to its owner.
    """
    target = Path(os.path.realpath(path))
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The folder is locked, not the file, since another one takes the file's place.
        fcntl.flock(folder, fcntl.LOCK_EX)
        before, status = None, None
        with suppress(FileNotFoundError):
            before, status = read_trusted(target), os.stat(target)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no regular file")
        content = change(before)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)  # left by a process that was killed
        try:
            _write(new, content, status)
            new.rename(target)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)
    return status is None


def _write(path: Path, content: bytes, like: os.stat_result | None) -> None:
    """Make a file of that content, with the mode and owner of ``like``, and sync it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as file:
        if like is not None:
            own = os.fstat(fd)
            if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
                try:
                    os.fchown(fd, like.st_uid, like.st_gid)
                except PermissionError:
                    raise PermissionError(
                        "only root and the owner of the file may change it, so that it stays theirs"
                    ) from None
            os.fchmod(fd, stat.S_IMODE(like.st_mode))
        file.write(content)
        file.flush()
        os.fsync(fd)
