"""
Publication: how staged bytes become a published blob.

``blobs/<algorithm>/<first two digits>/<encoded>`` is a published blob;
``staging/<algorithm>-<encoded>.<id>`` has verified bytes that no row lists yet. docs/durability.md
gives the order of the steps.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import isawaitable
from typing import Self
from uuid import uuid4

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed

from artifactd.kit.deferreds import RunInThread, Serial
from artifactd.oci.errors import DigestInvalid
from artifactd.oci.names import Algorithm, Digest
from artifactd.store.files import (
    PUBLISHED,
    QUARANTINED,
    Directory,
    FileOperations,
    read_all,
    write_all,
)
from artifactd.store.quarantine import Quarantine

Forget = Callable[[Digest, Callable[[], None]], object]
"""``Catalog.forget_blob``: may call its second argument; may return an awaitable."""


class Damaged(OSError):
    """The bytes published under a digest do not have it."""


@define(eq=False)
class PublishedBlob:
    """A blob of the store, open for reading (:class:`artifactd.store.blobs.OpenBlob`)."""

    size: int
    _fd: int
    on_failure: Callable[[OSError], object] | None = field(default=None, init=False)
    on_close: Callable[[], object] | None = field(default=None, init=False)

    @property
    def content(self) -> None:
        """``None``: the bytes are in a file."""

    @property
    def available(self) -> int:
        """The size: all bytes are here."""
        return self.size

    def wait(self, beyond: int) -> Deferred[None]:
        """Fires at once."""
        return succeed(None)

    def fileno(self) -> int:
        """
        A descriptor for ``os.pread`` and ``os.sendfile``, to be asked for before each read.

        :raises OSError: if any process has found the blob damaged since it was opened.
        """
        if self._fd >= 0 and stat.S_IMODE(os.fstat(self._fd).st_mode) == QUARANTINED:
            raise OSError(errno.EIO, "the blob was found damaged while it was read")
        return self._fd

    def close(self) -> None:
        """Close the descriptor; further calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            if self.on_close is not None:
                self.on_close()


class BlobTree:
    """The published blobs.  All methods block and raise OSError."""

    def __init__(self, blobs: Directory, quarantine: Quarantine, files: FileOperations) -> None:
        self._files = files
        self._quarantine = quarantine
        self._algorithms = {name: blobs.ensure(name, files) for name in Algorithm}
        # Fan-out directories whose own entries this process knows to be on disk.
        self._durable: set[tuple[Algorithm, str]] = set()

    def open(self, digest: Digest) -> PublishedBlob | None:
        """Open a blob; ``None`` if there is none."""
        try:
            with self._fan_out(digest) as directory:
                fd, status = directory.open_file(digest.encoded)
        except FileNotFoundError:
            return None
        return PublishedBlob(status.st_size, fd)

    def open_to_examine(self, digest: Digest) -> tuple[int, os.stat_result] | None:
        """
        Open the file published under ``digest`` for reading, even if its mode forbids that, and
        return its status too.

        A process that was killed while it quarantined a file leaves it with the mode 0000.
        """
        try:
            with self._fan_out(digest) as directory:
                return directory.open_sealed(digest.encoded, self._files)
        except FileNotFoundError:
            return None

    def read(self, digest: Digest, most: int | None = None) -> bytes | None:
        """
        Read all bytes of a small blob; ``None`` if there is none, or it has more than ``most``.

        :raises Damaged: if they have another digest.
        """
        blob = self.open(digest)
        if blob is None:
            return None
        try:
            if most is not None and blob.size > most:
                return None
            content = read_all(self._files, blob.fileno(), blob.size)
        finally:
            blob.close()
        if Digest.of(content, digest.algorithm) != digest:
            raise Damaged(errno.EIO, "its bytes do not have its digest", str(digest))
        return content

    def publish(self, staging: Directory, name: str, digest: Digest, file: os.stat_result) -> None:
        """
        Publish ``file``, which is staged as ``name``, under its digest, durably.

        A file that has the name already is replaced: it was right once, but this one was hashed
        just now.
        """
        with self._durable_fan_out(digest) as directory:
            while True:
                with suppress(FileExistsError):
                    self._files.link(staging.fd, name, directory.fd, digest.encoded)
                try:
                    published = directory.status(digest.encoded)
                except FileNotFoundError:
                    continue  # there was one, and it was withdrawn in this moment
                if os.path.samestat(published, file):
                    break
                if published.st_size != file.st_size:
                    # Provably damaged.
                    with suppress(FileNotFoundError):  # another push has replaced it already
                        flaw = f"it has {published.st_size} bytes instead of {file.st_size}"
                        self._quarantine.keep(directory, digest, flaw, time.time(), published)
                self._replace(staging, name, directory, digest)
                break
            # Even if another process has linked it: that may not have synced it yet.
            self._files.sync(directory.fd)

    def _replace(self, staging: Directory, name: str, directory: Directory, digest: Digest) -> None:
        # A second name is renamed: the first one stays until the row is committed.
        second = f"{name}-0"
        with suppress(FileExistsError):  # of an attempt that failed: the same file
            self._files.link(staging.fd, name, staging.fd, second)
        try:
            self._files.rename(staging.fd, second, directory.fd, digest.encoded)
        except OSError:
            self._files.unlink(staging.fd, second)
            raise

    def quarantine(self, digest: Digest, flaw: str, file: os.stat_result) -> bool:
        """
        Move ``file`` to quarantine if it is the one published under ``digest``.  Returns whether it
        was.

        Call it inside a write transaction of the catalog.
        """
        try:
            with self._fan_out(digest, os.O_RDONLY) as directory:
                self._quarantine.keep(directory, digest, flaw, time.time(), file)
                # A push that renames its file to here between this check and the unlink loses
                # that name, and nothing else: the mode was set through a descriptor of the damaged
                # file, and the staged name stays until there is a row.  To write the row the push
                # waits for this transaction to end, and its ``confirm`` publishes the file again.
                if directory.holds(digest.encoded, file):
                    self._files.unlink(directory.fd, digest.encoded)
                    self._files.sync(directory.fd)
        except FileNotFoundError:
            return False
        return True

    def is_there(self, digest: Digest) -> bool:
        """Whether anything is published under ``digest``."""
        try:
            with self._fan_out(digest) as directory:
                directory.status(digest.encoded)
        except FileNotFoundError:
            return False
        return True

    def holds(self, digest: Digest, file: os.stat_result) -> bool:
        """Whether ``file`` is the one published under ``digest``."""
        try:
            with self._fan_out(digest) as directory:
                return directory.holds(digest.encoded, file)
        except FileNotFoundError:
            return False

    def unlink(self, digest: Digest, file: os.stat_result) -> None:
        """Remove the published name if it is ``file``'s, and not that of another push."""
        with suppress(FileNotFoundError), self._fan_out(digest) as directory:
            if directory.holds(digest.encoded, file):
                self._files.unlink(directory.fd, digest.encoded)

    def remove(self, digest: Digest) -> None:
        """Remove the published name, whichever push made it."""
        with suppress(FileNotFoundError), self._fan_out(digest) as directory:
            self._files.unlink(directory.fd, digest.encoded)

    def published(self, shelf: int, before: float) -> list[tuple[Digest, int]]:
        """
        The digests and sizes in bytes on one shelf.  Left out are files whose last change of name
        or mode (ctime) is not before ``before``, in seconds since the epoch.
        """
        found: list[tuple[Digest, int]] = []
        for algorithm, directory in self._algorithms.items():
            with suppress(FileNotFoundError), directory.subdirectory(f"{shelf:02x}") as names:
                found += _published(algorithm, names, before)
        return found

    def close(self) -> None:
        """Close the directories."""
        for directory in self._algorithms.values():
            directory.close()

    def _fan_out(self, digest: Digest, flags: int = os.O_PATH) -> Directory:
        return self._algorithms[digest.algorithm].subdirectory(digest.encoded[:2], flags)

    def _durable_fan_out(self, digest: Digest) -> Directory:
        algorithm, name = digest.algorithm, digest.encoded[:2]
        if (algorithm, name) in self._durable:
            return self._algorithms[algorithm].subdirectory(name)
        directory = self._algorithms[algorithm].ensure(name, self._files)
        self._durable.add((algorithm, name))
        return directory


def _published(
    algorithm: Algorithm, directory: Directory, before: float
) -> Iterator[tuple[Digest, int]]:
    for name in directory.names():
        # Files that artifactd did not put there are left alone.
        with suppress(DigestInvalid, OSError):
            digest, status = Digest.parse(f"{algorithm}:{name}"), directory.status(name)
            if status.st_ctime < before:
                yield digest, status.st_size


@define(eq=False)
class StagedBlob:
    """
    Verified, synced bytes on their way to being a blob: a file in ``staging``.

    The order that no crash and no concurrent deletion can break (docs/durability.md): ``publish``;
    then, inside the catalog's write transaction that inserts the row, ``confirm``; after the
    commit, in the same thread, ``release``.  If the transaction fails, ``withdraw``.

    The file is locked (flock) until then: a sweep removes only staged files that are not locked.
    """

    digest: Digest
    size: int
    _name: str
    _fd: int
    _file: os.stat_result
    _staging: Directory
    _blobs: BlobTree
    _files: FileOperations
    _threads: Serial
    # The exception of publish_now(): it is never called again, since a second fsync would succeed.
    _failure: Exception | None = field(default=None, init=False)
    _tried: bool = field(default=False, init=False)

    def publish_now(self) -> Self:
        """Do the work of :meth:`publish`, which raises the error if that failed.  Blocks."""
        self._tried = True
        try:
            self._publish()
        except Exception as error:
            self._failure = error
        return self

    async def publish(self) -> None:
        """
        Make the bytes visible under their digest, durably, and keep the staged copy.

        :raises OSError: if that fails; the caller withdraws the blob then.
        """
        if not self._tried:
            await self._threads.run(self._publish)
        elif self._failure is not None:
            raise self._failure

    def confirm(self) -> None:
        """
        Check that the published name is still there, and publish again if it is not.

        Blocks; called in the catalog's thread, inside its write transaction.
        """
        # The name may be that of another push's file by now, which may not be durable yet.
        if not self._blobs.holds(self.digest, self._file):
            self._publish()

    def release(self) -> None:
        """
        Drop the staged copy: the row is committed.  Blocks; called in the catalog's thread.

        :raises OSError: if it can't be dropped; a sweep will do it.
        """
        try:
            self._files.unlink(self._staging.fd, self._name)
        finally:
            self.abandon()

    async def withdraw(self, forget: Forget) -> None:
        """
        Drop the staged copy because the row could not be written.

        :param forget: :meth:`artifactd.catalog.catalog.Catalog.forget_blob`, which decides whether
            the published name goes too.  If it fails, both are left to the next sweep.
        """
        # A thread may still be publishing for a caller that was cancelled.
        await self._threads.idle()
        try:
            forgotten = forget(self.digest, self._unlink_published)
            if isawaitable(forgotten):
                await forgotten
        except BaseException:
            await self._threads.run(self.abandon)
            raise
        await self._threads.run(self.release)

    def abandon(self) -> None:
        """Unlock the staged file and leave it to the next sweep.  Further calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _publish(self) -> None:
        self._blobs.publish(self._staging, self._name, self.digest, self._file)

    def _unlink_published(self) -> None:
        self._blobs.unlink(self.digest, self._file)


_STAGED = re.compile(r"(?P<algorithm>[a-z0-9]+)-(?P<encoded>[0-9a-f]+)\.[0-9a-f-]+")
# Names of files that a check of the disk, or a backup into this folder, has left.  A sweep never
# meets one in use: the check takes an instant, and a backup keeps every daemon out.
_PASSING = re.compile(
    r"probe\.[0-9a-f-]+|backup\.(?:blob|catalog(?:-wal|-shm)?)|\.backup\.catalog\.partial"
)


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

    def move_in(self, source: Directory, name: str, digest: Digest, fd: int) -> str:
        """
        Move a locked file of ``source`` into staging.  Returns its new name, for :meth:`synced`.

        It is synced after the move, not before: an fsync that failed must never be tried again,
        since the second one would succeed although the first has lost the bytes; and a crash in
        between leaves nothing half-done under the old name.

        :param fd: open on it.
        :raises FileNotFoundError: if it is no longer there.
        """
        # Neither directory is synced: after a crash the file has either name or both, and each is
        # swept.
        staged = staged_name(digest, str(uuid4()))
        self._files.rename(source.fd, name, self._directory.fd, staged)
        if not self._directory.holds(staged, os.fstat(fd)):
            # The file was discarded, and another one has taken its name, in this moment.
            self._files.unlink(self._directory.fd, staged)
            raise FileNotFoundError(errno.ENOENT, "no longer there", name)
        return staged

    def add(self, digest: Digest, content: bytes) -> StagedBlob:
        """Write and sync ``content``, which has ``digest``."""
        name, fd = self._create(digest)
        try:
            write_all(self._files, fd, [content], 0)
        except BaseException:
            self._drop(name, fd)
            raise
        return self.synced(digest, name, fd)

    def link_in(self, source: Directory, name: str, digest: Digest) -> StagedBlob:
        """
        Stage a file of ``source`` whose bytes were just verified; it stays there, too.

        :raises BlockingIOError: if another process is staging it.
        """
        fd, _ = source.open_sealed(name, self._files)
        staged = staged_name(digest, str(uuid4()))
        try:
            # Locked before it has the name, so that no sweep takes it for a dead process's.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._files.link(source.fd, name, self._directory.fd, staged)
        except BaseException:
            os.close(fd)
            raise
        return self.synced(digest, staged, fd)

    def names(self) -> list[str]:
        """The names of all files there."""
        return self._directory.names()

    def left(self) -> list[Digest]:
        """The digests of the staged files of processes that have died."""
        left = []
        for name in self.names():
            digest = _staged_digest(name)
            with suppress(OSError):  # gone, or not made by artifactd
                if digest is not None and not self._directory.is_locked(name):
                    left.append(digest)
        return left

    def is_held(self, digest: Digest) -> bool:
        """Whether a living process has a staged file of ``digest``."""
        mine = staged_name(digest, "")
        for name in self.names():
            with suppress(FileNotFoundError):
                if name.startswith(mine) and self._directory.is_locked(name):
                    return True
        return False

    def take_over(self, name: str) -> StagedBlob | None:
        """
        Lock a staged file that a dead process has left.

        ``None`` if its process lives, the file is gone, or artifactd did not make it.
        """
        if _PASSING.fullmatch(name):
            self._files.unlink(self._directory.fd, name)
            return None
        digest = _staged_digest(name)
        if digest is None:
            return None
        with suppress(FileNotFoundError, BlockingIOError):
            fd, _ = self._directory.open_locked(name)
            return self._staged_blob(digest, name, fd)
        return None

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

    def synced(self, digest: Digest, name: str, fd: int) -> StagedBlob:
        """
        Sync a staged file and make it read-only; one that can't be synced is removed.

        :param fd: open on it; the staged blob closes it.
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

    def _staged_blob(self, digest: Digest, name: str, fd: int) -> StagedBlob:
        status = os.fstat(fd)
        return StagedBlob(
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
