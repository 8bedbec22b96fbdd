"""Who may collect: one process of all that use a data folder, and none while a copy is made."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifactd.storage.files import Directory, FileOperations

_COLLECTOR = "collector.lock"
_HOLD = "hold.lock"
_COPY = "copy.lock"


class FolderCollectionLock:
    """
    A :class:`artifactd.storage.interfaces.CollectionLock` of the data folder at ``path``.

    Two files there are locked (flock), so that what a process held ends with it: one by whoever
    collects, the other shared by all who hold collection off.
    """

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        self._path = path
        self._files = files or FileOperations()
        self._claimed: tuple[int, int] | None = None

    def claim(self) -> bool:
        """Be the one who collects, until :meth:`release`; whether nobody else does.  Blocks."""
        # Two threads may come here at once: the lock alone decides, which is a descriptor's.
        collector = _open(self._path, _COLLECTOR, self._files)
        try:
            if not _lock(collector, fcntl.LOCK_EX):
                os.close(collector)
                return False
            self._claimed = collector, _open(self._path, _HOLD, self._files)
        except BaseException:
            os.close(collector)
            raise
        return True

    def release(self) -> None:
        """Let others collect."""
        claimed, self._claimed = self._claimed, None
        for fd in claimed or ():
            os.close(fd)

    @contextmanager
    def step(self) -> Iterator[bool]:
        """Whether collection may go on by one step, during which nobody can hold it off."""
        assert self._claimed is not None, "not claimed"
        _, hold = self._claimed
        try:
            yield _lock(hold, fcntl.LOCK_EX)
        finally:
            fcntl.flock(hold, fcntl.LOCK_UN)


@contextmanager
def collection_held(path: Path, files: FileOperations | None = None) -> Iterator[None]:
    """
    Hold off all collection in the data folder at ``path``, and whatever else removes bytes from
    it.  Blocks until a step that is under way has ended.

    :raises OSError: if it can't be done.
    """
    held: list[int] = []
    files = files or FileOperations()
    try:
        for name in (_HOLD, _COPY):
            held.append(_open(path, name, files))
            fcntl.flock(held[-1], fcntl.LOCK_SH)
        yield
    finally:
        for fd in held:
            os.close(fd)


class CopyLock:
    """Keeps bytes from being removed from the data folder at ``path`` while it is copied."""

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        self._path = path
        self._files = files or FileOperations()
        self._fd = -1

    @contextmanager
    def kept_out(self) -> Iterator[None]:
        """
        Keep whoever would begin to copy waiting.  Blocks; only in the catalog's thread, inside its
        write transaction: two who remove would keep each other out.

        :raises OSError: (EBUSY) if a copy is being made.
        """
        if self._fd < 0:
            self._fd = _open(self._path, _COPY, self._files)
        if not _lock(self._fd, fcntl.LOCK_EX):
            raise OSError(errno.EBUSY, "the store is being copied")
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open(path: Path, name: str, files: FileOperations) -> int:
    with Directory.open(path) as folder:
        return folder.ensure_file(name, files)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
