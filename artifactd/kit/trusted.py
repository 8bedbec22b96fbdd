"""Reading files that decide who may do what, or what is trusted."""

from __future__ import annotations

import os
import stat
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
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        own = {os.getegid(), *os.getgroups()}  # of a Kubernetes volume it is one of the latter
        foreign = mode & stat.S_IWGRP and status.st_gid not in own
        # A pipe or a device is no file that somebody could have changed.
        if stat.S_ISREG(status.st_mode) and (mode & stat.S_IWOTH or foreign):
            raise Untrusted(f"others may write it (mode {mode:04o}): chmod go-w")
        return file.read(limit)
