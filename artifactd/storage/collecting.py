"""Who may collect: one process of all that use a data folder, and none while a copy is made."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifactd.storage.files import PRIVATE

_COLLECTOR = "collector.lock"
_HOLD = "hold.lock"


class FolderCollectionLock:
    """
    A :class:`artifactd.storage.interfaces.CollectionLock` of the data folder at ``path``.

    Two files there are locked (flock), so that what a process held ends with it: one by whoever
    collects, the other shared by all who hold collection off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._claimed: tuple[int, int] | None = None

    def claim(self) -> bool:
        """Be the one who collects, until :meth:`release`; whether nobody else does.  Blocks."""
        # Two threads may come here at once: the lock alone decides, which is a descriptor's.
        collector = _open(self._path / _COLLECTOR)
        try:
            if not _lock(collector, fcntl.LOCK_EX):
                os.close(collector)
                return False
            self._claimed = collector, _open(self._path / _HOLD)
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
def collection_held(path: Path) -> Iterator[None]:
    """
    Hold off all collection in the data folder at ``path``.  Blocks until a step that is under way
    has ended.

    :raises OSError: if it can't be done.
    """
    fd = _open(path / _HOLD)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
