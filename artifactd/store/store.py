"""Blobs and uploads in the files of one folder; architecture.md, rules 1 to 6."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from twisted.logger import Logger

from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import RunInThread, Serial, uncancelled
from artifactd.oci.digest import Algorithm, Digest
from artifactd.store.blobs import BlobTree, FilesystemBlob, FilesystemStagedBlob, Forget, Staging
from artifactd.store.examine import FilesystemExamination
from artifactd.store.files import PUBLISHED, FileOperations
from artifactd.store.folder import CopyLock, DataFolder
from artifactd.store.intake import BATCH, RunningDigests
from artifactd.store.quarantine import Quarantine
from artifactd.store.uploads import FilesystemUploadSession, UploadDirectory, UploadFile


class FilesystemBlobStore:
    """
    Blobs as files (:class:`artifactd.store.interfaces.BlobStore`).

    Making one blocks; it is for the start.

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

    async def open(self, digest: Digest) -> FilesystemBlob | None:
        """The blob, or ``None`` if there is none.  :raises OSError: if it can't be read."""
        return await uncancelled(self._run(self._blobs.open, digest), _close)

    async def read(self, digest: Digest) -> bytes | None:
        """All verified bytes of a small blob (a manifest), or ``None``."""
        return await self._run(self._blobs.read, digest)

    async def stage(self, digest: Digest, content: bytes) -> FilesystemStagedBlob:
        """Write and sync ``content``, whose digest the caller has computed, without showing it."""
        adding = self._run(self.staging.add, digest, content)
        return await uncancelled(adding, FilesystemStagedBlob.abandon)

    def remove(self, digest: Digest) -> None:
        """Remove a blob's bytes, if they are here.  Blocks."""
        with self._copying.kept_out():
            self._blobs.remove(digest)

    def is_there(self, digest: Digest) -> bool:
        """Whether anything is published under ``digest``.  Blocks."""
        return self._blobs.is_there(digest)

    async def examine(
        self, digest: Digest, size: int | None = None
    ) -> FilesystemExamination | None:
        """Begin to read a blob to see whether its bytes are right; ``None`` if there is none."""
        beginning = self._run(
            FilesystemExamination.begin,
            digest,
            size,
            self._blobs,
            self._files,
            Serial(self._run),
            self.staging.is_held,
        )
        return await uncancelled(beginning, _close_examined)

    async def make_durable(self, digest: Digest) -> None:
        """See that what is published under ``digest`` is on disk, and so are its names."""
        await self._run(self._make_durable, digest)

    def _make_durable(self, digest: Digest) -> None:
        with (
            self._root.subdirectory(digest.algorithm) as algorithm,
            algorithm.subdirectory(digest.encoded[:2]) as directory,
        ):
            fd, _ = directory.open_file(digest.encoded)
            try:
                # A quarantine that was cut short may have taken it away.
                self._files.set_mode(fd, PUBLISHED)
                self._files.sync(fd)
            finally:
                os.close(fd)
            self._files.sync(directory.fd)
            self._files.sync(algorithm.fd)

    async def expired(self, before: float) -> Sequence[tuple[str, Digest]]:
        """What was quarantined before ``before``: names, and what they should have been."""
        return await self._run(self.quarantine.expired, before)

    async def examine_expired(self, name: str, digest: Digest) -> FilesystemExamination:
        """Begin to read a quarantined file once more."""
        beginning = self._run(
            FilesystemExamination.again,
            digest,
            self.quarantine.directory,
            name,
            self._blobs,
            self._files,
            Serial(self._run),
            self.staging.is_held,
        )
        return await uncancelled(beginning, FilesystemExamination.close)

    async def stage_expired(self, name: str, digest: Digest) -> FilesystemStagedBlob:
        """Stage a quarantined file that is right, to be published again."""
        adding = self._run(self.staging.link_in, self.quarantine.directory, name, digest)
        return await uncancelled(adding, FilesystemStagedBlob.abandon)

    async def remove_expired(self, name: str) -> None:
        """Remove a quarantined file and its record."""
        await self._run(self.quarantine.remove, name)

    async def sweep(self, forget: Forget) -> int:
        """Remove what dead processes left staged; how many files went."""
        swept = 0
        for name in await self._run(self.staging.names):
            try:
                taken = self._run(self.staging.take_over, name)
                staged = await uncancelled(taken, _abandon)
                if staged is not None:
                    await staged.withdraw(forget)
                    swept += 1
            except OSError as error:
                self._log.warn("staged file {name} left alone: {error}", name=name, error=error)
        return swept

    async def published(self, shelf: int, before: float) -> Sequence[tuple[Digest, int]]:
        """What is published on one shelf, and was before ``before``."""
        return await self._run(self._blobs.published, shelf, before)

    async def check_writable(self) -> None:
        """:raises OSError: if nothing can be written."""
        await self._run(self.staging.check_writable)

    def close(self) -> None:
        """Close what is held open."""
        self._blobs.close()
        self._copying.close()


class FilesystemUploadStore:
    """
    Uploads as files (:class:`artifactd.store.interfaces.UploadStore`).

    :param blobs: where the uploads become blobs; of the same folder.
    :param now: the time in seconds since the epoch.
    """

    def __init__(
        self,
        folder: DataFolder,
        run: RunInThread,
        blobs: FilesystemBlobStore,
        budget: BufferBudget,
        files: FileOperations | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._files = files or FileOperations()
        self._run = run
        self._staging = blobs.staging
        self._budget = budget
        self._now = now
        self._uploads = UploadDirectory(folder.uploads, self._files)
        self._digests = RunningDigests()

    def create(self, upload_id: str) -> None:
        """
        Begin an empty upload.  Blocks.

        :raises FileExistsError: if there is one of that id.
        :raises ValueError: if ``upload_id`` is no UUID in lower case.
        """
        self._uploads.create(upload_id)

    async def begin(self, upload_id: str, algorithm: Algorithm) -> FilesystemUploadSession:
        """:meth:`create` and :meth:`claim`, for an upload that needs no row."""
        return await self._claim(self._uploads.begin, upload_id, algorithm)

    async def claim(self, upload_id: str, algorithm: Algorithm) -> FilesystemUploadSession:
        """
        Take the upload for writing, to be hashed with ``algorithm``.

        :raises UploadMissing: if there is no such upload.
        :raises UploadBusy: if somebody else holds it.
        """
        return await self._claim(self._uploads.claim, upload_id, algorithm)

    async def _claim(
        self,
        claim: Callable[[str], tuple[int, int]],
        upload_id: str,
        algorithm: Algorithm,
    ) -> FilesystemUploadSession:
        claiming = self._run(claim, upload_id)
        fd, size = await uncancelled(claiming, lambda claimed: os.close(claimed[0]))
        running = self._digests.take(upload_id, algorithm, size)
        directory = self._uploads.directory
        file = UploadFile(upload_id, fd, size, self._files, running, directory)
        return FilesystemUploadSession(
            file, self._budget, Serial(self._run), BATCH, self._staging, self._digests
        )

    async def offset(self, upload_id: str) -> int:
        """Bytes staged so far.  :raises UploadMissing: if there is no such upload."""
        return await self._run(self._uploads.size, upload_id)

    async def discard(self, upload_id: str) -> None:
        """Remove the upload, whoever holds it.  Does nothing if there is none."""
        self._digests.forget(upload_id)
        await self._run(self._uploads.discard, upload_id)

    async def idle(self, seconds: float) -> Iterable[str]:
        """The ids of uploads that nobody has written to for ``seconds`` and nobody holds."""
        return await self._run(partial(self._uploads.idle, self._now() - seconds))


def _close(blob: FilesystemBlob | None) -> None:
    if blob is not None:
        blob.close()


def _close_examined(examination: FilesystemExamination | None) -> None:
    if examination is not None:
        examination.close()


def _abandon(staged: FilesystemStagedBlob | None) -> None:
    if staged is not None:
        staged.abandon()
