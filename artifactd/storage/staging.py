"""
``staging/<algorithm>-<encoded>.<id>``: verified bytes without a row yet.

A staged file is locked (flock) by whoever is publishing it; one that nobody has locked was left by
a process that died.
"""

from __future__ import annotations

import fcntl
import os
import re
from uuid import uuid4

from attrs import frozen

from artifactd.kit.deferreds import RunInThread, Serial
from artifactd.oci.digest import Digest
from artifactd.oci.errors import DigestInvalid
from artifactd.storage.blobs import BlobTree, FilesystemStagedBlob
from artifactd.storage.files import PUBLISHED, Directory, FileOperations, write_all

_STAGED = re.compile(r"(?P<algorithm>[a-z0-9]+)-(?P<encoded>[0-9a-f]+)\.[0-9a-f-]+")
# Of a check of the disk, or of a backup into this folder; what is in use can't be seen here, for
# the one is quick and the other keeps every daemon out.
_PASSING = re.compile(r"probe\.[0-9a-f-]+|backup\.(?:blob|catalog)|\.backup\.catalog\.partial")


def staged_name(digest: Digest, staging_id: str) -> str:
    """The name of a staged file; ``staging_id`` is what sets it apart from others, a UUID."""
    return f"{digest.algorithm}-{digest.encoded}.{staging_id}"


@frozen
class Staging:
    """The staged files.  All methods block and raise OSError."""

    _directory: Directory
    _blobs: BlobTree
    _files: FileOperations
    _run: RunInThread

    def move_in(self, source: Directory, name: str, digest: Digest, staging_id: str) -> str:
        """
        Move a locked file in that lies in ``source``; its new name, for :meth:`synced`.

        It is synced afterwards: what can't be synced must never be tried again, for the second
        fsync would succeed although the first has lost the bytes; and a crash in between leaves
        nothing half-done under the old name.

        :raises FileNotFoundError: if it is no longer there.
        """
        # Neither directory is synced: after a crash the file has one name or the other, or both,
        # and each has its sweep.
        staged = staged_name(digest, staging_id)
        self._files.rename(source.fd, name, self._directory.fd, staged)
        return staged

    def add(self, digest: Digest, content: bytes) -> FilesystemStagedBlob:
        """Write and sync ``content``, which ``digest`` is of."""
        name, fd = self._create(digest)
        try:
            write_all(self._files, fd, [content], 0)
        except BaseException:
            self._drop(name, fd)
            raise
        return self.synced(digest, name, fd)

    def link_in(self, source: Directory, name: str, digest: Digest) -> FilesystemStagedBlob:
        """
        Stage a file of ``source`` whose bytes were just seen to be right; it stays there, too.

        :raises BlockingIOError: if somebody does so already.
        """
        fd, _ = source.open_sealed(name, self._files)
        staged = staged_name(digest, str(uuid4()))
        try:
            # Before it has the name, so that no sweep takes it for a dead process's.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._files.link(source.fd, name, self._directory.fd, staged)
        except BaseException:
            os.close(fd)
            raise
        return self.synced(digest, staged, fd)

    def names(self) -> list[str]:
        """Of all that is there."""
        return self._directory.names()

    def is_held(self, digest: Digest) -> bool:
        """Whether somebody who lives has a staged file of ``digest``."""
        mine = staged_name(digest, "")
        return any(self._is_locked(name) for name in self.names() if name.startswith(mine))

    def _is_locked(self, name: str) -> bool:
        try:
            fd, _ = self._directory.open_file(name)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def take_over(self, name: str) -> FilesystemStagedBlob | None:
        """
        What a dead process has left under ``name``; ``None`` if its process lives, or it is gone,
        or it isn't ours.
        """
        if _PASSING.fullmatch(name):
            self._files.unlink(self._directory.fd, name)
            return None
        digest = _staged_digest(name)
        if digest is None:
            return None
        try:
            fd, status = self._directory.open_file(name)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if not self._directory.holds(name, status):
            os.close(fd)
            return None
        return self._staged_blob(digest, name, fd)

    def check_writable(self) -> None:
        """Create, sync and remove a small file."""
        name = f"probe.{uuid4()}"
        fd = self._files.create(self._directory.fd, name)
        try:
            write_all(self._files, fd, [b"artifactd\n"], 0)
            self._files.sync(fd)
        finally:
            os.close(fd)
            self._files.unlink(self._directory.fd, name)

    def _create(self, digest: Digest) -> tuple[str, int]:
        while True:
            name = staged_name(digest, str(uuid4()))
            fd = self._files.create(self._directory.fd, name)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return name, fd
            os.close(fd)  # a sweep has come between creating and locking

    def synced(self, digest: Digest, name: str, fd: int) -> FilesystemStagedBlob:
        """
        The staged blob of a file that is here; what can't be synced is removed.

        :param fd: open on it; the staged blob's from now on, or closed.
        """
        try:
            self._files.set_mode(fd, PUBLISHED)
            self._files.sync(fd)
        except BaseException:
            self._drop(name, fd)
            raise
        return self._staged_blob(digest, name, fd)

    def _drop(self, name: str, fd: int) -> None:
        try:
            self._files.unlink(self._directory.fd, name)
        finally:
            os.close(fd)

    def _staged_blob(self, digest: Digest, name: str, fd: int) -> FilesystemStagedBlob:
        status = os.fstat(fd)
        return FilesystemStagedBlob(
            digest,
            status.st_size,
            name,
            fd,
            status,
            self._directory,
            self._blobs,
            self._files,
            Serial(self._run),
        )


def _staged_digest(name: str) -> Digest | None:
    match = _STAGED.fullmatch(name)
    if match is None:
        return None
    try:
        return Digest.parse(f"{match['algorithm']}:{match['encoded']}")
    except DigestInvalid:
        return None
