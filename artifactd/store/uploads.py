"""The bytes of uploads: ``uploads/<id>``, whose size is the offset of the session."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import TypeVar

from attrs import define, field, frozen

from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import RunInThread, Serial, offer_nobody, uncancelled
from artifactd.kit.shared import Notes
from artifactd.oci.names import Algorithm, Digest
from artifactd.store.blobs import BlobStore
from artifactd.store.files import Directory, FileOperations, is_sealed, try_lock, unlock
from artifactd.store.folder import DataFolder
from artifactd.store.intake import (
    BATCH,
    READ,
    FileConsumer,
    HashedFile,
    Offer,
    RunningDigest,
    RunningDigests,
    Stamp,
    hashed,
)
from artifactd.store.publication import StagedBlob, Staging

_T = TypeVar("_T")


class UploadMissing(Exception):
    """There are no staged bytes under this id."""


class UploadRevoked(UploadMissing):
    """The upload has ended: none may begin under this id."""


class UploadBusy(Exception):
    """
    Another request, of this process or another, is writing to the upload.

    :ivar offset: bytes staged at the time of asking.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class UploadMisplaced(Exception):
    """
    Bytes do not belong at the end of the upload.

    :ivar offset: bytes staged.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class UploadsFull(Exception):
    """The owner of an upload has as many as it may have."""


UPLOAD_ID = re.compile(
    r"[0-9a-f]{32}|(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"(?:(?:\.(?P<owner>[0-9a-f]{16}))?\.(?P<seal>[0-9A-Za-z_-]{20,64}))?"
)
"""
The id of an upload: a UUID.  For a session it is followed by the owner, if it has one, and a seal.
"""

# A process that checks whether an upload is locked holds a shared lock for some microseconds.  A
# claim tries again at most this many times.
_LOOKS = 100
_LOOK_SECONDS = 0.001


def _lock(fd: int, pause: Callable[[float], None] = time.sleep) -> bool:
    """
    Lock the file of an upload unless another request has; a process that only looks
    (:meth:`UploadDirectory.idle`) holds a shared lock for an instant, and is waited for.
    """
    for _ in range(_LOOKS):
        if try_lock(fd):
            return True
        if not try_lock(fd, fcntl.LOCK_SH):
            return False
        unlock(fd)
        pause(_LOOK_SECONDS)
    return False


def _revoke(files: FileOperations, fd: int) -> None:
    # In this order: an empty file that may be written to would be taken for the same upload, of
    # whose bytes digests are remembered, when others have come in their place.
    files.set_mode(fd, stat.S_IRUSR)
    files.truncate(fd, 0)


@frozen
class UploadDirectory:
    """
    The files of uploads.  All methods block and raise OSError.

    :param pause: waits the given number of seconds, in the thread.
    """

    directory: Directory
    _files: FileOperations
    _pause: Callable[[float], None] = time.sleep

    def create(self, upload_id: str) -> None:
        """
        Make an empty upload.  It is not synced.

        :raises FileExistsError: if there is one of that id.
        :raises ValueError: if ``upload_id`` is not the id of an upload.
        """
        if not UPLOAD_ID.fullmatch(upload_id):
            raise ValueError(f"not the id of an upload: {upload_id!r}")
        os.close(self._files.create(self.directory.fd, upload_id))

    def claim(self, upload_id: str) -> tuple[int, int]:
        """
        Open and lock an upload.  Returns its descriptor and its size in bytes.

        :raises UploadMissing: if there is none.
        :raises UploadBusy: if another request has locked it.
        """
        self.size(upload_id)
        try:
            fd, status = self.directory.open_file(upload_id, os.O_RDWR)
        except FileNotFoundError:
            raise UploadMissing(upload_id) from None
        try:
            if not _lock(fd, self._pause):
                raise UploadBusy(os.fstat(fd).st_size)
            if not self.directory.holds(upload_id, status):
                raise UploadMissing(upload_id)
            return fd, os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise

    def size(self, upload_id: str) -> int:
        """
        The number of bytes staged.

        :raises UploadMissing: if there is no such upload.
        :raises UploadRevoked: if it was staged or revoked, and its file is there still.
        """
        if not UPLOAD_ID.fullmatch(upload_id):
            raise UploadMissing(upload_id)
        try:
            status = self.directory.status(upload_id)
        except FileNotFoundError:
            raise UploadMissing(upload_id) from None
        if is_sealed(status):
            raise UploadRevoked(upload_id)
        return status.st_size

    def is_there(self, upload_id: str) -> bool:
        """Whether there is anything under this id."""
        return os.access(upload_id, os.F_OK, dir_fd=self.directory.fd, follow_symlinks=False)

    def revoke(self, upload_id: str) -> None:
        """Do with an upload, if it is there, what :meth:`UploadFile.revoke` does."""
        try:
            fd, _ = self.claim(upload_id)
        except UploadMissing:
            return
        except UploadBusy:
            # Its holder may be publishing the file: it loses the name, and another file has it.
            self.discard(upload_id)
            try:
                self.create(upload_id)
                fd, _ = self.claim(upload_id)
            except (OSError, UploadMissing, UploadBusy):
                return  # there is no room on the disk, or it has just begun anew
        try:
            _revoke(self._files, fd)
        finally:
            os.close(fd)

    def discard(self, upload_id: str) -> None:
        """Remove an upload, if it is there."""
        if UPLOAD_ID.fullmatch(upload_id):
            self._files.unlink(self.directory.fd, upload_id)

    def idle(self, before: float) -> list[str]:
        """The ids of uploads last written to at ``before`` or earlier that are not locked."""
        return [name for name in self.directory.names() if self._is_idle(name, before)]

    def _is_idle(self, name: str, before: float) -> bool:
        if not UPLOAD_ID.fullmatch(name):
            return False
        try:
            written = self.directory.status(name).st_mtime
            return written <= before and not self.directory.is_locked(name)
        except OSError:
            return False  # gone, or not made by artifactd


def _owner_of(upload_id: str) -> str | None:
    found = UPLOAD_ID.fullmatch(upload_id)
    return None if found is None else found["owner"]


# Seconds for which the uploads that other processes begin are not noticed.
_COUNTED_EVERY = 1.0


class Owners:
    """
    Counts the uploads of each owner, and bounds them.  The files are the truth: their names say
    which owner has them.  They are listed once a second at most, unless an owner seems to have
    reached the limit; so processes that begin uploads in the same second may exceed it by those.

    :param most: uploads of one owner; 0: any number.
    :param seconds: the time, in seconds; never set back.
    """

    def __init__(
        self, uploads: UploadDirectory, most: int, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._uploads = uploads
        self._most = most
        self._seconds = seconds
        self._counts: Counter[str] = Counter()
        self._listed = -_COUNTED_EVERY
        self._lock = Lock()  # several threads begin uploads

    def seems_full(self, upload_id: str) -> bool:
        """Whether the owner of ``upload_id`` may have reached the limit.  Takes microseconds."""
        owner = self._bounded(upload_id)
        return owner is not None and self._counts[owner] >= self._most

    def require_room(self, upload_id: str) -> None:
        """:raises UploadsFull: if the owner of ``upload_id`` has reached the limit."""
        owner = self._bounded(upload_id)
        if owner is not None:
            with self._lock:
                self._require_room(owner)

    def create(self, upload_id: str) -> bool:
        """
        Make an upload.  Returns whether there was none.

        :raises UploadsFull: if its owner has reached the limit.
        """
        owner = self._bounded(upload_id)
        if owner is None:
            return self._create(upload_id)
        with self._lock:
            self._require_room(owner)
            made = self._create(upload_id)
            self._counts[owner] += made
            return made

    def _bounded(self, upload_id: str) -> str | None:
        """The owner of ``upload_id``; ``None``: it has none, or may have any number."""
        return _owner_of(upload_id) if self._most else None

    def _create(self, upload_id: str) -> bool:
        try:
            self._uploads.create(upload_id)
        except FileExistsError:
            return False
        return True

    def _require_room(self, owner: str) -> None:
        now = self._seconds()
        if now - self._listed >= _COUNTED_EVERY or self._counts[owner] >= self._most:
            names = self._uploads.directory.names()
            self._counts = Counter(filter(None, map(_owner_of, names)))
            self._listed = now
        if self._counts[owner] >= self._most:
            raise UploadsFull(owner)


def _stamp_of(fd: int) -> Stamp:
    status = os.fstat(fd)
    return status.st_ino, status.st_mtime_ns


@define(eq=False)
class UploadFile(HashedFile):
    """
    The file of a claimed upload.  All methods block; one call at a time.

    :ivar made: whether this claim has made it.  If it is empty when it is closed, it goes.
    """

    made: bool = field(default=False, kw_only=True)
    _claimed: int = field(init=False)
    _hashed_at_claim: RunningDigest = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._claimed, self._hashed_at_claim = self.size, self.running.copy()

    def cut(self, size: int) -> None:
        """
        Cut the file back to ``size`` bytes.

        :raises ValueError: if that is less than there was at the claim, or more than there is.
        """
        if not self._claimed <= size <= self.size:
            raise ValueError(f"can't cut {self.size} bytes back to {size}")
        self._files.truncate(self.fd, size)
        self.size = size
        self.running = self._hashed_at_claim.copy()

    @property
    def begun(self) -> bool:
        """
        Whether it was empty at the claim: made by it, or just before by a request of another
        process, which finds it locked now.
        """
        return not self._claimed

    @property
    def stamp(self) -> Stamp:
        """The present stamp of the file."""
        return _stamp_of(self.fd)

    def append_at(self, first: int | None, pieces: Sequence[bytes]) -> None:
        """
        Append ``pieces``.

        :param first: the offset at which they belong; ``None``: at the end.
        :raises UploadMisplaced: if that is not the end.
        :raises OSError: if not all could be written; the file is as it was then, unless it can't be
            cut either.
        """
        start = self.size
        if first is not None and first != start:
            raise UploadMisplaced(start)
        try:
            self.append(pieces)
        except OSError:
            self.cut(start)
            raise

    def published(self, staging: Staging, digest: Digest) -> StagedBlob | None:
        """
        Stage and publish the file if it has ``digest``; ``None`` if it has not, or if more bytes
        are still to be hashed than fit in one turn of a thread.

        :raises UploadMissing: if the file is no longer there.
        :raises OSError: if it can't be read or staged.
        """
        running = self.running
        if running.algorithm != digest.algorithm or self.size - running.length > READ:
            return None
        self.catch_up(running)
        return self.stage(staging, digest).publish_now() if running.digest() == digest else None

    def stage(self, staging: Staging, digest: Digest) -> StagedBlob:
        """Move the file to the staged ones.  :raises UploadMissing: if it is no longer there."""
        try:
            return self.move(staging, digest)
        except FileNotFoundError:
            raise UploadMissing(self.name) from None

    def release(self) -> None:
        """Unlock the file, which stays open: other requests may claim the upload."""
        unlock(self.fd)

    def reclaim(self) -> None:
        """
        Lock the file again.

        :raises UploadBusy: if another request has locked it.
        :raises UploadMissing: if the upload has ended meanwhile.
        :raises UploadMisplaced: if another request has appended to it meanwhile.
        """
        locked = _lock(self.fd)
        size = os.fstat(self.fd).st_size
        if not locked:
            raise UploadBusy(size)
        if not self.is_there():
            raise UploadMissing(self.name)
        if size != self.size:
            raise UploadMisplaced(size)

    def is_there(self) -> bool:
        """Whether the file has neither been staged, revoked nor discarded by any process."""
        return super().is_there() and not is_sealed(os.fstat(self.fd))

    def revoke(self) -> None:
        """
        Drop the bytes for good, which needs no room on the disk.  The empty file stays, so that no
        upload can begin under this id until it is discarded.
        """
        if self.is_there():
            _revoke(self._files, self.fd)
        self.ended = True

    def discard(self) -> None:
        """Remove the file."""
        if self.is_there():
            self._files.unlink(self._directory.fd, self.name)
        self.ended = True

    def close(self) -> None:
        """Close the file."""
        try:
            # The lock says that no other request has claimed it meanwhile, after release().
            if self.made and not os.fstat(self.fd).st_size and try_lock(self.fd):
                self.discard()
        finally:
            super().close()


@define(eq=False)
class UploadSession(FileConsumer[UploadFile]):
    """
    A claimed upload: no other request can write to it until :meth:`close`.

    An ``IConsumer``: one batch at a time is hashed and appended in a thread while the next one
    gathers.

    :ivar id: the id of the upload.
    :ivar offset: bytes staged when claimed, plus those written since, whether on disk yet or not.
    """

    _staging: Staging
    _digests: RunningDigests
    id: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.id = self._file.name

    @property
    def begun(self) -> bool:
        """See :attr:`UploadFile.begun`."""
        return self._file.begun

    async def release(self) -> None:
        """
        Write what was taken, and let other requests claim the upload until :meth:`reclaim`.

        :raises OSError: if something could not be written; the upload is still claimed then.
        """
        await self.flush()
        await self._threads.run(self._file.release)

    async def reclaim(self) -> None:
        """
        Claim the upload again, to go on where :meth:`release` left it.

        :raises UploadBusy, UploadMissing, UploadMisplaced: if another request is writing to it, has
            ended it, or has appended to it.
        """
        await self._threads.run(self._file.reclaim)

    async def rollback(self, offset: int) -> None:
        """Cut the staged bytes back to ``offset``, which is not before the offset at the claim."""
        await self._drained()
        await self._threads.run(partial(self._file.cut, offset))
        self.offset = self.written = self._position = offset

    async def digest(self, algorithm: Algorithm) -> Digest:
        """
        Return the digest of all staged bytes.

        Reads back only bytes that were not hashed with ``algorithm`` as they arrived, by this
        process or another one of the daemon.
        """
        await self.flush()
        running = self._file.running
        if running.algorithm != algorithm:
            running = RunningDigest(algorithm)
        if running.length < self._file.size:
            told = self._digests.told(self.id, algorithm, self._file.size, self._file.stamp)
            if told is not None:
                return told
        return await hashed(self._file, running, self._threads)

    async def stage(self, digest: Digest) -> StagedBlob:
        """
        Sync the bytes and turn them into a staged blob.  The upload no longer exists afterwards;
        :meth:`close` is still due.

        :param digest: the digest of the bytes, as :meth:`digest` returned it.
        :raises UploadMissing: if the upload was discarded meanwhile.
        """
        await self.flush()
        return await self._threads.run(
            partial(self._file.stage, self._staging, digest), StagedBlob.abandon
        )

    async def still_there(self) -> bool:
        """Whether the upload has not been discarded since it was claimed."""
        return await self._threads.run(self._file.is_there)

    async def revoke(self) -> None:
        """Do what :meth:`UploadStore.revoke` does."""
        await self._threads.run(self._file.revoke)

    async def discard(self) -> None:
        """Remove the staged bytes."""
        await self._threads.run(self._file.discard)

    async def _let_go(self) -> None:
        if not self._file.ended:
            self._digests.keep(self.id, self._file.running, self._file.stamp)
        await super()._let_go()


class UploadStore:
    """
    The staged bytes of uploads, by id; they survive the process.

    :param blobs: the store of the same folder, in which uploads become blobs.
    :param now: the time in seconds since the epoch.
    :param most: uploads of one owner (:class:`Owners`); 0: any number.
    :param offer: see :class:`artifactd.store.intake.HashedFile`.
    :param notes: see :class:`artifactd.store.intake.RunningDigests`.
    :param compute: see :class:`artifactd.kit.deferreds.Serial`.
    :ivar budget: the buffers of all transfers.
    :ivar require_room: of ``blobs``.
    """

    def __init__(
        self,
        folder: DataFolder,
        run: RunInThread,
        blobs: BlobStore,
        budget: BufferBudget,
        files: FileOperations | None = None,
        now: Callable[[], float] = time.time,
        most: int = 0,
        offer: Offer = offer_nobody,
        notes: Notes | None = None,
        compute: RunInThread | None = None,
    ) -> None:
        self._files = files or FileOperations()
        self._run, self._compute = run, compute
        self._offer = offer
        self._staging = blobs.staging
        self.require_room = blobs.require_room
        self.budget = budget
        self._now = now
        self._uploads = UploadDirectory(folder.uploads, self._files)
        self._owners = Owners(self._uploads, most)
        self._digests = RunningDigests(notes=notes)

    async def require_owners_room(self, upload_id: str) -> None:
        """
        Check, before a client is told the id of a new upload, that its owner may have one more.

        :raises UploadsFull: if the owner of ``upload_id`` has as many as it may have.
        """
        if self._owners.seems_full(upload_id):
            await self._run(self._owners.require_room, upload_id)

    async def claim(
        self, upload_id: str, algorithm: Algorithm, *, create: bool = False
    ) -> UploadSession:
        """
        Take the upload for writing, to be hashed with ``algorithm``.

        :param create: make it, if there is none.  One that is made and gets no byte is removed when
            the claim ends.
        :raises UploadMissing: if there is no such upload.
        :raises UploadBusy: if another request, of any process, holds it.
        :raises UploadsFull: if there is none, and its owner has as many as it may have.
        """
        claim = partial(self._open, upload_id, create=create)
        return self._session(await self._claimed(upload_id, algorithm, claim, UploadFile.close))

    async def append(
        self,
        upload_id: str,
        algorithm: Algorithm,
        pieces: Sequence[bytes],
        first: int | None,
        *,
        create: bool = False,
    ) -> tuple[int, bool]:
        """
        Claim the upload, append ``pieces``, check that it was not discarded meanwhile, and release
        the claim: all in one turn of a thread.

        :param first: the offset at which they belong; ``None``: at the end.
        :returns: the offset after them, in bytes; and :attr:`UploadFile.begun`.
        :raises UploadMissing, UploadBusy, UploadsFull: see :meth:`claim`, also for ``create``.
        :raises UploadMisplaced: if the upload does not end at ``first``; nothing is written.
        :raises OSError: if not all could be written; nothing is appended then.
        """

        def append(running: RunningDigest, stamp: Stamp | None) -> tuple[UploadFile, Stamp]:
            file = self._open(upload_id, running, stamp, create=create)
            try:
                file.append_at(first, pieces)
                if not file.is_there():
                    raise UploadMissing(upload_id)
                return file, file.stamp
            finally:
                file.close()

        file, stamp = await self._claimed(upload_id, algorithm, append)
        self._digests.keep(upload_id, file.running, stamp)
        return file.size, file.begun

    async def close(
        self,
        upload_id: str,
        algorithm: Algorithm,
        pieces: Sequence[bytes],
        first: int | None,
        digest: Digest,
        *,
        create: bool = False,
    ) -> tuple[UploadSession | None, StagedBlob | None]:
        """
        Claim the upload, append ``pieces``, and stage and publish the bytes if they have
        ``digest``: all in one turn of a thread.

        :param create: make it, if there is none; it is removed again if an exception is raised.
            None is made for ``pieces`` that have ``digest``: these are staged as they are.
        :returns: the claimed upload, ``None`` if none was made; and the staged blob: await its
            ``publish`` to learn whether the publication succeeded.  ``None`` instead of the blob if
            the bytes do not have ``digest``, or if too many are still to be hashed for one turn:
            the caller asks the session then.
        :raises UploadMissing, UploadBusy, UploadsFull, UploadMisplaced, OSError: see
            :meth:`append`.
        """

        def close(
            running: RunningDigest, stamp: Stamp | None
        ) -> tuple[UploadFile | None, StagedBlob | None]:
            if create and not first:
                whole = self._stage_whole(upload_id, b"".join(pieces), digest)
                if whole is not None:
                    return None, whole.publish_now()
            file = self._open(upload_id, running, stamp, create=create)
            try:
                file.append_at(first, pieces)
                return file, file.published(self._staging, digest)
            except BaseException:
                try:
                    if file.made:
                        file.discard()
                finally:
                    if not file.handed_over:
                        file.close()
                raise

        def abandoned(closed: tuple[UploadFile | None, StagedBlob | None]) -> None:
            file, staged = closed
            if staged is not None:
                staged.abandon()
            elif file is not None:
                file.close()

        file, staged = await self._claimed(upload_id, algorithm, close, abandoned)
        return None if file is None else self._session(file), staged

    def _stage_whole(self, upload_id: str, content: bytes, digest: Digest) -> StagedBlob | None:
        """
        Stage all the bytes of an upload that is not there.

        :returns: ``None`` if it is there, or if they do not have ``digest``.
        :raises UploadsFull, OSError: see :meth:`append`.
        """
        if self._uploads.is_there(upload_id) or Digest.of(content, digest.algorithm) != digest:
            return None
        self._owners.require_room(upload_id)
        return self._staging.add(digest, content)

    async def _claimed(
        self,
        upload_id: str,
        algorithm: Algorithm,
        work: Callable[[RunningDigest, Stamp | None], _T],
        abandoned: Callable[[_T], object] = lambda _: None,
    ) -> _T:
        """Run ``work``, which claims the upload, in a thread, with the hash state of the upload."""
        running, stamp = self._digests.take(upload_id, algorithm)
        try:
            return await uncancelled(self._run(work, running, stamp), abandoned)
        except (UploadBusy, UploadMisplaced):
            if stamp is not None:
                self._digests.keep(upload_id, running, stamp)
            raise

    def _open(
        self, upload_id: str, running: RunningDigest, stamp: Stamp | None, *, create: bool
    ) -> UploadFile:
        made = False
        try:
            fd, size = self._uploads.claim(upload_id)
        except UploadMissing:
            if not create:
                raise
            made = self._owners.create(upload_id)
            fd, size = self._uploads.claim(upload_id)
        if running.length > size or (stamp is not None and stamp != _stamp_of(fd)):
            running = RunningDigest(running.algorithm)
        directory = self._uploads.directory
        return UploadFile(
            upload_id, fd, size, self._files, running, directory, made=made, offer=self._offer
        )

    def _session(self, file: UploadFile) -> UploadSession:
        return UploadSession(
            file, self.budget, Serial(self._run, self._compute), BATCH, self._staging, self._digests
        )

    async def offset(self, upload_id: str) -> int:
        """Bytes staged so far.  :raises UploadMissing: if there is no such upload."""
        return await self._run(self._uploads.size, upload_id)

    async def revoke(self, upload_id: str) -> None:
        """
        Drop the bytes of an upload, claimed or not, for good: until it is discarded, there is
        none under its id, and none may begin.  Does nothing if there is none.
        """
        self._digests.forget(upload_id)
        await self._run(self._uploads.revoke, upload_id)

    async def discard(self, upload_id: str) -> None:
        """Remove the upload, claimed or not.  Does nothing if there is none."""
        self._digests.forget(upload_id)
        await self._run(self.discard_now, upload_id)

    def discard_now(self, upload_id: str) -> None:
        """Do what :meth:`discard` does, in this thread.  Blocks."""
        self._uploads.discard(upload_id)

    async def idle(self, seconds: float) -> Iterable[str]:
        """The ids of unclaimed uploads that were not written to for ``seconds``."""
        return await self._run(partial(self._uploads.idle, self._now() - seconds))
