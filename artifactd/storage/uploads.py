"""``uploads/<id>``: the bytes of an upload; its offset is the size of the file."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

from artifactd.oci.digest import Digest
from artifactd.storage.blobs import FilesystemStagedBlob
from artifactd.storage.files import Directory, FileOperations, split
from artifactd.storage.hashing import RunningDigest
from artifactd.storage.interfaces import UploadBusy, UploadMissing
from artifactd.storage.staging import Staging

_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Bytes read back at once, and in one go before other work gets a turn in the thread.
_READ = 1024 * 1024
_TURN = 16 * _READ
# More pieces than this cost more in calls than in being copied together.
_PIECES = 64
# A look at who holds an upload takes microseconds; this many of them are waited for.
_LOOKS = 100
_LOOK_SECONDS = 0.001


@frozen
class UploadDirectory:
    """
    The uploads.  All methods block and raise OSError.

    :param pause: waits so many seconds, in the thread.
    """

    directory: Directory
    _files: FileOperations
    _pause: Callable[[float], None] = time.sleep

    def create(self, upload_id: str) -> None:
        """
        An empty upload; durable with its first bytes.

        :raises FileExistsError: if there is one.
        :raises ValueError: if ``upload_id`` is no UUID in lower case.
        """
        if not _ID.fullmatch(upload_id):
            raise ValueError(f"not a UUID: {upload_id!r}")
        os.close(self._files.create(self.directory.fd, upload_id))

    def begin(self, upload_id: str) -> tuple[int, int]:
        """An empty upload, claimed: its descriptor and its size.  Errors as of :meth:`create`."""
        self.create(upload_id)
        return self.claim(upload_id)

    def claim(self, upload_id: str) -> tuple[int, int]:
        """
        Open and lock an upload: its descriptor and its size.

        :raises UploadMissing: if there is none.
        :raises UploadBusy: if somebody else has locked it.
        """
        self.size(upload_id)
        try:
            fd, status = self.directory.open_file(upload_id, os.O_RDWR)
        except FileNotFoundError:
            raise UploadMissing(upload_id) from None
        try:
            if not self._lock(fd):
                raise UploadBusy(os.fstat(fd).st_size)
            if not self.directory.holds(upload_id, status):
                raise UploadMissing(upload_id)
            return fd, os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise

    def size(self, upload_id: str) -> int:
        """Bytes staged.  :raises UploadMissing: if there is no such upload."""
        if not _ID.fullmatch(upload_id):
            raise UploadMissing(upload_id)
        try:
            status = self.directory.status(upload_id)
        except FileNotFoundError:
            raise UploadMissing(upload_id) from None
        if status.st_nlink != 1:
            # Published; a power cut has brought its old name back.  Nobody may write to it.
            raise UploadMissing(upload_id)
        return status.st_size

    def discard(self, upload_id: str) -> None:
        """Remove an upload, if it is there."""
        if _ID.fullmatch(upload_id):
            self._files.unlink(self.directory.fd, upload_id)

    def idle(self, before: float) -> list[str]:
        """The ids of those last written to at ``before`` or earlier that nobody has locked."""
        return [name for name in self.directory.names() if self._is_idle(name, before)]

    def _lock(self, fd: int) -> bool:
        """Lock a file unless somebody else has; whoever only looks (:meth:`idle`) is waited for."""
        for _ in range(_LOOKS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                pass
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            fcntl.flock(fd, fcntl.LOCK_UN)
            self._pause(_LOOK_SECONDS)
        return False

    def _is_idle(self, name: str, before: float) -> bool:
        if not _ID.fullmatch(name):
            return False
        try:
            if self.directory.status(name).st_mtime > before:
                return False
            fd, _ = self.directory.open_file(name)
        except OSError:
            return False  # gone, or not ours
        try:
            # Shared, so that a claim can tell it from another claim.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


@define(eq=False)
class UploadFile:
    """
    A claimed upload.  All methods block; one call at a time.

    :ivar size: bytes in the file.
    :ivar running: the digest as far as it is known; at most over ``size`` bytes.
    :ivar ended: the file is no upload any more.
    :ivar handed_over: nor is ``fd`` ours to close: a staged blob has it.
    """

    id: str
    fd: int
    size: int
    running: RunningDigest
    _directory: Directory
    _files: FileOperations
    ended: bool = field(default=False, init=False)
    handed_over: bool = field(default=False, init=False)
    _claimed: int = field(init=False)
    _hashed_at_claim: RunningDigest = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._claimed, self._hashed_at_claim = self.size, self.running.copy()

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """
        Write and hash ``pieces``.

        :raises OSError: if not all could be written.  What was written is hashed, and stays.
        """
        if len(pieces) > _PIECES:
            pieces = [b"".join(pieces)]
        while pieces:
            written = self._files.write(self.fd, pieces, self.size)
            hashed_so_far = self.running.length == self.size
            self.size += written
            gone, pieces = split(pieces, written)
            if hashed_so_far:
                for piece in gone:
                    self.running.update(piece)

    def catch_up(self, running: RunningDigest) -> None:
        """Let ``running`` go on over bytes read back: 16 MiB, or up to the end."""
        end = min(self.size, running.length + _TURN)
        while running.length < end:
            piece = self._files.read(self.fd, min(_READ, end - running.length), running.length)
            if not piece:
                raise OSError(errno.EIO, "the upload is shorter than it was", self.id)
            running.update(piece)

    def cut(self, size: int) -> None:
        """
        Cut back to ``size`` bytes.

        :raises ValueError: if that is less than there was at the claim, or more than there is.
        """
        if not self._claimed <= size <= self.size:
            raise ValueError(f"can't cut {self.size} bytes back to {size}")
        self._files.truncate(self.fd, size)
        self.size = size
        self.running = self._hashed_at_claim.copy()

    def is_there(self) -> bool:
        """Whether it has neither been staged nor discarded, by anybody."""
        return not self.ended and self._directory.holds(self.id, os.fstat(self.fd))

    def stage(self, staging: Staging, digest: Digest) -> FilesystemStagedBlob:
        """Move it to the staged files.  :raises UploadMissing: if it is no longer there."""
        if not self.is_there():
            raise UploadMissing(self.id)
        try:
            name = staging.move_in(self._directory, self.id, digest)
        except FileNotFoundError:
            raise UploadMissing(self.id) from None
        self.ended = self.handed_over = True
        return staging.synced(digest, name, self.fd)

    def discard(self) -> None:
        """Remove it."""
        if self.is_there():
            self._files.unlink(self._directory.fd, self.id)
        self.ended = True

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)
