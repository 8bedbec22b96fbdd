"""Reading stored blobs again to find damage, for scrubbing and fsck."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec
from attrs import define, field

from artifactd.kit.deferreds import Serial
from artifactd.oci.names import Digest
from artifactd.store.files import PUBLISHED, Directory, DutyLock, FileOperations, write_all
from artifactd.store.publication import BlobTree

_PIECE = 1 << 20  # bytes read in one turn of a thread


@define(eq=False)
class Examination:
    """
    A blob of the store that is being read and hashed piece by piece; :meth:`close` ends it.

    :ivar size: the size of its file in bytes when it was opened.
    :ivar flaw: what is wrong, once :meth:`step` has reached the end; ``None``: nothing.
    :ivar is_unreadable: whether the flaw is an error of the disk, which may pass.
    """

    digest: Digest
    size: int
    _fd: int
    _file: os.stat_result
    _blobs: BlobTree
    _files: FileOperations
    _threads: Serial
    _is_held: Callable[[Digest], bool]
    _hash: Any = field(init=False)
    _offset: int = field(default=0, init=False)
    flaw: str | None = field(default=None, init=False)
    is_unreadable: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._hash = hashlib.new(self.digest.algorithm)

    @classmethod
    def begin(
        cls,
        digest: Digest,
        size: int | None,
        blobs: BlobTree,
        files: FileOperations,
        threads: Serial,
        is_held: Callable[[Digest], bool],
    ) -> Self | None:
        """
        Open the file published under ``digest``; ``None`` if there is none.  Blocks.

        :param size: the bytes it should have.
        """
        opened = blobs.open_to_examine(digest)
        if opened is None:
            return None
        fd, status = opened
        # Without read-ahead: bytes that it brought into the page cache would look as if other
        # readers had.  Some filesystems, such as tmpfs, ignore this advice.
        files.expect_no_reading_on(fd)
        self = cls(digest, status.st_size, fd, status, blobs, files, threads, is_held)
        if size is not None and status.st_size != size:
            self.flaw = f"it has {status.st_size} bytes instead of {size}"
        return self

    @classmethod
    def again(
        cls,
        digest: Digest,
        quarantine: Directory,
        name: str,
        blobs: BlobTree,
        files: FileOperations,
        threads: Serial,
        is_held: Callable[[Digest], bool],
    ) -> Self:
        """Open the file ``name`` of the quarantine.  Blocks."""
        fd, status = quarantine.open_sealed(name, files)
        files.expect_no_reading_on(fd)
        return cls(digest, status.st_size, fd, status, blobs, files, threads, is_held)

    async def step(self) -> int:
        """Read and hash the next piece, in a thread.  Returns its size in bytes; 0 at the end."""
        return await self._threads.run(self._step)

    def is_published(self) -> bool:
        """
        Whether the file that was read is still the published one.

        Blocks; call it in the catalog's thread, inside its write transaction.
        """
        return self._blobs.holds(self.digest, self._file)

    def quarantine(self) -> bool:
        """
        Move the file that was read into quarantine, durably, with a record of its flaw.

        Every process that has the file open stops sending it.  Blocks; call it in the catalog's
        thread, inside its write transaction.

        :returns: whether it was moved; ``False`` if another file is published by now.
        :raises OSError: if it can't be moved.
        """
        if not self.is_published():
            return False
        if os.fstat(self._fd).st_nlink > 1 and self._is_held(self.digest):
            return False  # it is being published
        assert self.flaw is not None, "nothing is wrong with it"
        return self._blobs.quarantine(self.digest, self.flaw, self._file)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        # In the queue of threads, behind the one that may still be reading.
        self._threads.run(self._close)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _step(self) -> int:
        if self.flaw is not None:
            return 0
        try:
            piece = self._read()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.is_unreadable = True
            self.flaw = f"byte {self._offset} and those behind it can't be read: {error.strerror}"
            return 0
        if piece:
            self._offset += len(piece)
            self._hash.update(piece)
        elif self._hash.hexdigest() != self.digest.encoded:
            self.flaw = f"its {self._offset} bytes do not have its digest"
        else:
            self._unseal()
        return len(piece)

    def _unseal(self) -> None:
        # A process was killed while it quarantined this file, whose bytes are right.
        if not self._file.st_mode & stat.S_IRUSR and self.is_published():
            self._files.set_mode(self._fd, PUBLISHED)

    def _read(self) -> bytes:
        cached = self._files.read_cached(self._fd, _PIECE, self._offset)
        if cached:
            return cached
        try:
            piece = self._files.read(self._fd, _PIECE, self._offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            piece = self._files.read(self._fd, _PIECE, self._offset)  # a cable may be loose
        self._files.drop_cached(self._fd, self._offset, len(piece))
        return piece


_FILE = "scrub.lock"
_MOST = 4096  # bytes of a position


class ScrubPosition(msgspec.Struct, frozen=True):
    """
    How far a round of scrubbing has come.  Times are in seconds since the epoch.

    :ivar shelf: the shelf of the store to go on with; ``SHELVES`` once all are done.
    :ivar after: the text of the last digest done on that shelf; empty before the first.
    :ivar ended: when the round before this one ended; 0.0 if there was none.
    :ivar wrong: what was wrong with the catalog when it was last checked; empty if nothing was.
    """

    shelf: int = 0
    after: str = ""
    ended: float = 0.0
    wrong: str = ""


class ScrubLock(DutyLock):
    """
    Lets one of the processes on the data folder at ``path`` scrub it at a time, and keeps the
    position of the scrub in the lock's file.
    """

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        super().__init__(path, _FILE, files)

    def read(self) -> ScrubPosition:
        """Read the position to go on at; the beginning if none can be read.  Blocks."""
        return _position(os.pread(self._fd, _MOST, 0))

    def look(self) -> ScrubPosition:
        """
        Read the position as :meth:`read` does, while any process may have the lock.  Blocks.

        :raises OSError: if the file can't be read.
        """
        try:
            with Directory.open(self._path) as folder:
                fd, _ = folder.open_file(_FILE)
        except FileNotFoundError:
            return ScrubPosition()  # nothing has been scrubbed yet
        try:
            return _position(os.pread(fd, _MOST, 0))
        finally:
            os.close(fd)

    def write(self, position: ScrubPosition) -> None:
        """Remember ``position``; after a crash an older one may be read.  Blocks."""
        # Not synced: after a power loss some blobs are read once more.
        text = msgspec.json.encode(position)
        # One that looks meanwhile shall find one or the other.
        write_all(self._files, self._fd, [text.ljust(_MOST)], 0)


def _position(content: bytes) -> ScrubPosition:
    try:
        return msgspec.json.decode(content, type=ScrubPosition)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ScrubPosition()  # new; or torn by a crash
