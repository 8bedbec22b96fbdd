"""Files that are appended to: what arrives is written at the end, and hashed on the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from attrs import define, field

from artifactd.kit.deferreds import Serial
from artifactd.oci.digest import Digest
from artifactd.storage.blobs import FilesystemStagedBlob
from artifactd.storage.files import Directory, FileOperations, split
from artifactd.storage.hashing import RunningDigest
from artifactd.storage.staging import Staging

READ = 1024 * 1024
"""Bytes read back at once."""

TURN = 16 * READ
"""Bytes read back in one go before other work gets a turn in the thread."""

# More pieces than this cost more in calls than in being copied together.
_PIECES = 64


@define(eq=False)
class AppendedFile:
    """
    A file that grows at its end.  All methods block; one call at a time.

    :ivar name: in its directory.
    :ivar fd: open for reading and writing.
    :ivar size: the offset at which it ends.
    :ivar handed_over: ``fd`` is not ours to close any more.
    """

    name: str
    fd: int
    size: int
    _files: FileOperations
    handed_over: bool = field(default=False, init=False)

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """
        Write ``pieces``.

        :raises OSError: if not all could be written.  What was written stays.
        """
        if len(pieces) > _PIECES:
            pieces = [b"".join(pieces)]
        while pieces:
            written = self._files.write(self.fd, pieces, self.size)
            gone, pieces = split(pieces, written)
            self._appended(gone, written)

    def _appended(self, pieces: Sequence[bytes | memoryview], size: int) -> None:
        self.size += size

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


@define(eq=False)
class HashedFile(AppendedFile):
    """
    A file that grows, in a directory of the store, until it is staged or discarded; locked.

    :ivar running: the digest as far as it is known; at most over ``size`` bytes.
    :ivar ended: the file is not in its directory any more.
    """

    running: RunningDigest
    _directory: Directory
    ended: bool = field(default=False, init=False)

    def _appended(self, pieces: Sequence[bytes | memoryview], size: int) -> None:
        hashed_so_far = self.running.length == self.size
        self.size += size
        if hashed_so_far:
            for piece in pieces:
                self.running.update(piece)

    def catch_up(self, running: RunningDigest) -> None:
        """Let ``running`` go on over bytes read back: 16 MiB, or up to the end."""
        end = min(self.size, running.length + TURN)
        while running.length < end:
            running.update(self._read(min(READ, end - running.length), running.length))

    def is_there(self) -> bool:
        """Whether it has neither been staged nor discarded, by anybody."""
        return not self.ended and self._directory.holds(self.name, os.fstat(self.fd))

    def move(self, staging: Staging, digest: Digest, staging_id: str) -> FilesystemStagedBlob:
        """
        Move it to the staged files, with its lock.

        :param staging_id: sets it apart from others of that digest there, a UUID.
        :raises FileNotFoundError: if it is no longer there.
        """
        if not self.is_there():
            raise FileNotFoundError(errno.ENOENT, "no longer there", self.name)
        name = staging.move_in(self._directory, self.name, digest, staging_id)
        self.ended = self.handed_over = True
        return staging.synced(digest, name, self.fd)

    def _read(self, size: int, offset: int) -> bytes:
        piece = self._files.read(self.fd, size, offset)
        if not piece:
            raise OSError(errno.EIO, "shorter than it was", self.name)
        return piece


async def hashed(file: HashedFile, running: RunningDigest, threads: Serial) -> Digest:
    """
    The digest of all of ``file``, which nobody is writing to; reads what ``running`` has not seen.

    :raises OSError: if it can't be read.
    """
    while running.length < file.size:
        await threads.run(lambda: file.catch_up(running))
    return running.digest()
