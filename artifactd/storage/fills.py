"""Fills and extents in the files of one folder; architecture.md, "Pull-through: the fill"."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import RunInThread, Serial, outlive
from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.storage import procfs
from artifactd.storage.extents import ExtentFile, Extents
from artifactd.storage.files import FileOperations, OpenFile
from artifactd.storage.filesystem import FilesystemBlobStore
from artifactd.storage.filldirectory import FillDirectory
from artifactd.storage.fillfile import FilesystemFillView, FillFile
from artifactd.storage.fillfiles import FillFiles, blob_name
from artifactd.storage.fillsessions import (
    GATHER,
    FilesystemExtentSession,
    FilesystemFillSession,
)
from artifactd.storage.folder import DataFolder
from artifactd.storage.growing import FillInfo


class FilesystemFillStore:
    """
    Fills as files (:class:`artifactd.storage.growing.FillStore`).

    :param blobs: where the fills become blobs; of the same folder.
    :param clock: limits how long bytes may lie before they are written; without one each piece is
        written at once.
    :param now: the time in seconds since the epoch.
    :param pause: waits so many seconds, in a thread.
    """

    _log = Logger()

    def __init__(
        self,
        folder: DataFolder,
        run: RunInThread,
        blobs: FilesystemBlobStore,
        budget: BufferBudget,
        files: FileOperations | None = None,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        files = files or FileOperations()
        self._run = run
        self._staging = blobs.staging
        self._budget = budget
        self._now = now
        self._clock = clock
        self._gather = GATHER if clock is not None else 1
        extents = Extents(folder.fills, files)
        self._files = FillFiles(folder.fills, extents, files)
        self._fills = FillDirectory(folder.fills, self._files, files, pause, procfs.boot_time())

    async def claim(self, digest: Digest, *, create: bool = True) -> FilesystemFillSession | None:
        """
        Take the fill of ``digest``, as far as it has come; begin it if there is none.

        ``None`` if another process, or another claim of this one, has it; without ``create`` also
        if there is none.
        """
        claiming = self._run(self._fills.claim, digest, create)
        claimed = await outlive(claiming, _close_first)
        if claimed is None:
            return None
        file, info = claimed
        return FilesystemFillSession(
            file,
            self._budget,
            Serial(self._run),
            self._gather,
            digest,
            self._fills.directory,
            self._staging,
            info,
            clock=self._clock,
        )

    async def view(self, digest: Digest) -> tuple[FilesystemFillView, FillInfo | None] | None:
        """The fill of ``digest`` and what is known of it, or ``None`` if there is none."""
        viewing = self._run(self._fills.view, digest)
        return await outlive(viewing, _close_first)

    async def info(self, digest: Digest) -> FillInfo | None:
        """What is known of a blob that is coming, or of which there are extents."""
        return await self._run(self._files.info, blob_name(digest))

    async def is_staged(self, digest: Digest) -> bool:
        """Whether somebody has verified ``digest`` and is publishing it, or gives that up."""
        return await self._run(self._staging.is_held, digest)

    async def find_extent(self, digest: Digest, span: ByteRange) -> OpenFile | None:
        """A file that has the bytes ``span`` at their offsets, if the extents have all of them."""
        finding = self._run(self._files.extents.find, blob_name(digest), span)
        return await outlive(finding, _close)

    async def add_extent(
        self, digest: Digest, first: int, info: FillInfo
    ) -> FilesystemExtentSession:
        """Begin to keep a part of a blob, from the offset ``first`` on."""
        adding = self._run(self._fills.add_extent, digest, first, info)
        file = await outlive(adding, ExtentFile.close)
        threads = Serial(self._run)
        return FilesystemExtentSession(
            file, self._budget, threads, self._gather, self._fills.directory, clock=self._clock
        )

    async def discard(self, digest: Digest) -> None:
        """Remove what there is of a blob, unless somebody has claimed its fill."""
        await self._run(self._fills.discard, digest)

    async def sweep(self, seconds: float) -> int:
        """Remove what nobody has written to for ``seconds`` and nobody holds; how many blobs'."""
        swept, before = 0, self._now() - seconds
        for blob, names in (await self._run(self._fills.stale, before)).items():
            try:
                swept += await self._run(self._fills.remove_stale, blob, names, before)
            except OSError as error:
                self._log.warn("fill {blob} left alone: {error}", blob=blob, error=error)
        return swept


def _close(file: OpenFile | None) -> None:
    if file is not None:
        file.close()


def _close_first(found: tuple[OpenFile | FillFile, object] | None) -> None:
    if found is not None:
        found[0].close()
