"""The store of blobs, in the files of one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from artifactd.kit.deferreds import RunInThread, Serial, uncancelled
from artifactd.oci.names import Digest
from artifactd.store.examine import Examination
from artifactd.store.files import PUBLISHED, FileOperations
from artifactd.store.folder import CopyLock, DataFolder, Reserve
from artifactd.store.publication import BlobTree, Forget, PublishedBlob, StagedBlob, Staging
from artifactd.store.quarantine import Quarantine

SHELVES = 256
"""The published blobs lie on so many shelves, by the first two digits of the encoded digest."""


class OpenBlob(Protocol):
    """
    A blob open for reading; its opener closes it.

    Its bytes may still be arriving (a fill): those before :attr:`available` may be read.

    :ivar size: in bytes; ``None`` as long as it is not known.
    :ivar on_failure: called by the reader when a read of :meth:`fileno` fails, so that the opener
        can look at the blob.
    :ivar on_close: called by the first :meth:`close`.
    """

    on_failure: Callable[[OSError], object] | None
    on_close: Callable[[], object] | None

    @property
    def size(self) -> int | None: ...

    @property
    def content(self) -> bytes | None:
        """
        All bytes, if they are in memory; :meth:`fileno` can't be used then.  Otherwise ``None``.
        """

    @property
    def available(self) -> int:
        """The offset before which the reader may read; never shrinks."""

    def wait(self, beyond: int) -> Deferred[None]:
        """
        Fires once :attr:`available` is above ``beyond``, or the blob is known to end there.
        May be cancelled.

        :raises OSError: if that will never be.
        """

    def fileno(self) -> int:
        """
        A descriptor for ``os.pread`` and ``os.sendfile``, to be asked for before each read.

        :raises OSError: if the blob was found damaged since it was opened.
        """

    def close(self) -> None:
        """Close the descriptor; further calls do nothing."""


class BlobStore:
    """
    Immutable bytes by digest, deduplicated over everything that is stored.

    Making one blocks; it is for the start.

    :ivar reserve: the file that is removed to let deletions go on when the disk is full.

    :raises OSError: if the folder can't be used.
    """

    _log = Logger()

    def __init__(
        self, folder: DataFolder, run: RunInThread, files: FileOperations | None = None
    ) -> None:
        files = files or FileOperations()
        self._run = run
        self._files = files
        self._root = folder.blobs
        self.quarantine = Quarantine(folder.quarantine, files)
        self._blobs = BlobTree(folder.blobs, self.quarantine, files)
        self.staging = Staging(folder.staging, self._blobs, files, run)
        self._copying = CopyLock(folder.path, files)
        self.reserve = Reserve(folder.path, files)

    async def require_room(self) -> None:
        """
        Call it before a push is taken, or anything is fetched into the store.

        :raises OSError: if the disk has so little room that only deleting goes on.
        """
        if not self.reserve.is_held():
            await self._run(self.reserve.refill)

    async def is_staged(self, digest: Digest) -> bool:
        """
        Whether any process has staged ``digest``, from a fill or an upload, and has neither
        committed its row yet nor given up.
        """
        return await self._run(self.staging.is_held, digest)

    async def open(self, digest: Digest) -> PublishedBlob | None:
        """Open a blob; ``None`` if there is none.  :raises OSError: if it can't be read."""
        return await uncancelled(self._run(self._blobs.open, digest), _close)

    async def read(self, digest: Digest) -> bytes | None:
        """
        Read all bytes of a small blob (a manifest); ``None`` if there is none.

        :raises Damaged: if its bytes do not have ``digest`` any more.
        :raises OSError: if it can't be read.
        """
        return await self._run(self.read_now, digest)

    def read_now(self, digest: Digest, most: int | None = None) -> bytes | None:
        """
        The same as :meth:`read`, for a caller in a thread that reads several: it blocks.

        :param most: bytes; ``None`` is returned for a blob that has more.
        """
        return self._blobs.read(digest, most)

    async def stage(self, digest: Digest, content: bytes) -> StagedBlob:
        """Write and sync ``content``, whose digest the caller has computed, without showing it."""
        adding = self._run(self.staging.add, digest, content)
        return await uncancelled(adding, StagedBlob.abandon)

    async def publish(self, digest: Digest, content: bytes) -> StagedBlob:
        """
        Stage and publish ``content`` in one turn of a thread.

        :returns: the staged blob; await its ``publish`` to learn whether the publication succeeded.
        :raises OSError: if it can't be staged.
        """
        adding = self._run(lambda: self.staging.add(digest, content).publish_now())
        return await uncancelled(adding, StagedBlob.abandon)

    def remove(self, digest: Digest) -> None:
        """
        Remove a blob's bytes, if they are here; open descriptors can still be read.

        Blocks; called in the catalog's thread by
        :meth:`artifactd.catalog.catalog.Catalog.forget_blob`.

        :raises OSError: if it can't be done now, for example while the store is being copied.
        """
        with self._copying.kept_out():
            self._blobs.remove(digest)

    def is_there(self, digest: Digest) -> bool:
        """Whether anything is published under ``digest``.  Blocks."""
        return self._blobs.is_there(digest)

    async def examine(self, digest: Digest, size: int | None = None) -> Examination | None:
        """
        Begin to read a blob to see whether its bytes are right; ``None`` if there is none.

        :param size: the bytes it should have: a blob of another size is not read.
        :raises OSError: if it can't be opened.
        """
        beginning = self._run(
            Examination.begin,
            digest,
            size,
            self._blobs,
            self._files,
            Serial(self._run),
            self.staging.is_held,
        )
        return await uncancelled(beginning, _close_examined)

    async def make_durable(self, digest: Digest) -> None:
        """
        Sync the bytes published under ``digest`` and their names, and make them readable.

        :raises OSError: if it can't be done; FileNotFoundError: if there are none.
        """
        await self._run(self._make_durable, digest)

    def _make_durable(self, digest: Digest) -> None:
        with (
            self._root.subdirectory(digest.algorithm) as algorithm,
            algorithm.subdirectory(digest.encoded[:2]) as directory,
        ):
            fd, _ = directory.open_file(digest.encoded)
            try:
                # A quarantine that was cut short may have left it unreadable.
                self._files.set_mode(fd, PUBLISHED)
                self._files.sync(fd)
            finally:
                os.close(fd)
            self._files.sync(directory.fd)
            self._files.sync(algorithm.fd)

    async def expired(self, before: float) -> Sequence[tuple[str, Digest]]:
        """
        The files quarantined before ``before``, in seconds since the epoch, and the digests that
        they should have.
        """
        return await self._run(self.quarantine.expired, before)

    async def examine_expired(self, name: str, digest: Digest) -> Examination:
        """Begin to read a quarantined file once more.  :raises OSError: if it can't be opened."""
        beginning = self._run(
            Examination.again,
            digest,
            self.quarantine.directory,
            name,
            self._blobs,
            self._files,
            Serial(self._run),
            self.staging.is_held,
        )
        return await uncancelled(beginning, Examination.close)

    async def stage_expired(self, name: str, digest: Digest) -> StagedBlob:
        """Stage a quarantined file whose bytes are right after all; it stays in quarantine, too."""
        adding = self._run(self.staging.link_in, self.quarantine.directory, name, digest)
        return await uncancelled(adding, StagedBlob.abandon)

    async def remove_expired(self, name: str) -> None:
        """Remove a quarantined file and its record."""
        await self._run(self.quarantine.remove, name)

    async def left(self) -> Sequence[Digest]:
        """The digests of what :meth:`sweep` would remove."""
        return await self._run(self.staging.left)

    async def sweep(self, forget: Forget) -> Sequence[Digest]:
        """
        Remove the staged files of processes that have died.  Returns their digests.

        :param forget: :meth:`artifactd.catalog.catalog.Catalog.forget_blob`.
        """
        swept = []
        for name in await self._run(self.staging.names):
            try:
                taken = self._run(self.staging.take_over, name)
                staged = await uncancelled(taken, _abandon)
                if staged is not None:
                    await staged.withdraw(forget)
                    swept.append(staged.digest)
            except OSError as error:
                self._log.warn("staged file {name} left alone: {error}", name=name, error=error)
        return swept

    async def published(self, shelf: int, before: float) -> Sequence[tuple[Digest, int]]:
        """
        The digests published on one of the :data:`SHELVES` before ``before``, in seconds since the
        epoch, and their sizes in bytes, whether the catalog lists them or not.
        """
        return await self._run(self._blobs.published, shelf, before)

    async def check_writable(self) -> None:
        """:raises OSError: if nothing can be written, or nothing but deletions."""
        await self.require_room()
        await self._run(self.staging.check_writable)

    def close(self) -> None:
        """Close the directories."""
        self._blobs.close()
        self._copying.close()


def _close(blob: PublishedBlob | None) -> None:
    if blob is not None:
        blob.close()


def _close_examined(examination: Examination | None) -> None:
    if examination is not None:
        examination.close()


def _abandon(staged: StagedBlob | None) -> None:
    if staged is not None:
        staged.abandon()
