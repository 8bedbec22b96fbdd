"""
``fills``: blobs that are coming.

``<algorithm>-<encoded>`` has the bytes, one after the other; beside it lie what the upstream has
told (``fillinfo.py``) and the extents (``extents.py``).  The file is claimed by locking it (flock);
who removes what nobody has claimed has it locked, too, for an instant.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from attrs import frozen

from artifactd.oci.digest import Digest
from artifactd.storage.extents import ExtentFile
from artifactd.storage.files import Directory, FileOperations, is_sealed
from artifactd.storage.fillfile import FilesystemFillView, FillFile
from artifactd.storage.fillfiles import FillFiles, blob_name, blob_of
from artifactd.storage.growing import FillInfo
from artifactd.storage.hashing import RunningDigest

# How long somebody who claims waits, once, for somebody who is removing.
_INSTANT = 0.001


@frozen
class FillDirectory:
    """
    The fills.  All methods block and raise OSError.

    :param pause: waits so many seconds, in the thread.
    :param booted: when the machine has started, in seconds since the epoch.
    """

    directory: Directory
    files: FillFiles
    _operations: FileOperations
    _pause: Callable[[float], None] = time.sleep
    _booted: float = 0.0

    def claim(self, digest: Digest, create: bool) -> tuple[FillFile, FillInfo | None] | None:
        """A fill, locked, and what is known of it; ``None`` as ``FillStore.claim`` says."""
        blob = blob_name(digest)
        fd = self._claim(blob, create)
        if fd is None:
            return None
        try:
            info, running = self.files.info(blob), RunningDigest(digest.algorithm)
            size = self._trusted_size(fd)
        except BaseException:
            os.close(fd)
            raise
        file = FillFile(blob, fd, size, self._operations, running, self.directory, self.files)
        return file, info

    def _trusted_size(self, fd: int) -> int:
        """
        Bytes of a locked fill.  One that was last written to before the machine started is emptied:
        the power may have failed, and its bytes, which nobody has verified, have been spoilt.
        """
        status = os.fstat(fd)
        if status.st_size and status.st_mtime < self._booted:
            self._operations.truncate(fd, 0)
            return 0
        return status.st_size

    def view(self, digest: Digest) -> tuple[FilesystemFillView, FillInfo | None] | None:
        """A fill to look at, and what is known of it; ``None`` if there is none."""
        blob = blob_name(digest)
        try:
            fd, status = self.directory.open_file(blob)
        except FileNotFoundError:
            return None
        view = FilesystemFillView(fd, self.directory, blob, status)
        try:
            if not is_sealed(status):
                return view, self.files.info(blob)
        except BaseException:
            view.close()
            raise
        view.close()  # published, as _claim() says; or just removed
        return None

    def add_extent(self, digest: Digest, first: int, info: FillInfo) -> ExtentFile:
        """Begin a part; ``info`` is kept unless more is known."""
        blob = blob_name(digest)
        known = self.files.info(blob)
        if known is None or known.size is None:
            self.files.describe(blob, info)
        return self.files.extents.begin(blob, first)

    def stale(self, before: float) -> dict[str, list[str]]:
        """The blobs of which no file was written to after ``before``, and their files' names."""
        groups: dict[str, list[str]] = {}
        for name in self.directory.names():
            if blob := blob_of(name):
                groups.setdefault(blob, []).append(name)
        return {blob: names for blob, names in groups.items() if self._is_stale(names, before)}

    def remove_stale(self, blob: str, names: list[str], before: float) -> bool:
        """Remove one of those, if it still is and nobody has claimed it; whether it went."""
        return self._remove(blob, lambda: self._is_stale(names, before), names)

    def discard(self, digest: Digest) -> None:
        """Remove what there is of a blob, unless somebody has claimed its fill."""
        self._remove(blob_name(digest), lambda: True)

    def _claim(self, blob: str, create: bool) -> int | None:
        for attempt in range(3):
            try:
                if is_sealed(self.directory.status(blob)):
                    self._remove(blob, lambda: True)
                return self._lock(blob, os.O_RDWR)
            except FileNotFoundError:
                if not create:
                    return None
                with suppress(FileExistsError):
                    os.close(self._operations.create(self.directory.fd, blob))
            except BlockingIOError:
                if attempt:
                    return None
                self._pause(_INSTANT)
        return None

    def _lock(self, blob: str, flags: int) -> int:
        """
        Open and lock a fill.

        :raises FileNotFoundError: if there is none.
        :raises BlockingIOError: if somebody has locked it.
        """
        fd, status = self.directory.open_file(blob, flags)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self.directory.holds(blob, status):
                raise FileNotFoundError(blob)  # staged or removed in this moment
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _remove(self, blob: str, condition: Callable[[], bool], names: Iterable[str] = ()) -> bool:
        fd = None
        try:
            with suppress(FileNotFoundError):
                fd = self._lock(blob, os.O_RDONLY)
            is_wanted = condition()
            if is_wanted:
                self.files.drop(blob, names, fill=fd is not None)
            return is_wanted
        except BlockingIOError:
            return False
        finally:
            if fd is not None:
                os.close(fd)

    def _is_stale(self, names: Iterable[str], before: float) -> bool:
        return all(self._written(name) <= before for name in names)

    def _written(self, name: str) -> float:
        try:
            return self.directory.status(name).st_mtime
        except FileNotFoundError:
            return 0.0  # it went in this moment
        except OSError:
            return float("inf")  # not ours: left alone
