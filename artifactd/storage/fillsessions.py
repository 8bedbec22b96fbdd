"""Fills and extents in the reactor's world, while bytes arrive for them."""

from __future__ import annotations

import errno
import os
from functools import partial

from attrs import define, field
from twisted.internet.interfaces import IProducer

from artifactd.oci.digest import Digest
from artifactd.storage.appended import AppendedFile, hashed
from artifactd.storage.blobs import FilesystemStagedBlob
from artifactd.storage.extents import ExtentFile
from artifactd.storage.files import Directory, OpenFile
from artifactd.storage.fillfile import FillFile
from artifactd.storage.flow import FileConsumer
from artifactd.storage.growing import FillInfo
from artifactd.storage.staging import Staging

GATHER = 512 * 1024
"""Bytes before a thread is worth its while; somebody waits for them, so not for long."""

EXTENT = 1024 * 1024
"""Bytes of an extent from which on it is worth asking the upstream only for what comes before."""


@define(eq=False)
class FilesystemFillSession(FileConsumer[FillFile]):
    """A claimed fill (:class:`artifactd.storage.growing.FillSession`)."""

    # A turn to a thread and back takes about as long as writing a MiB: one stream has to be fast.
    high_water = 8 * 1024 * 1024
    low_water = 4 * 1024 * 1024

    _digest: Digest
    _directory: Directory
    _staging: Staging
    info: FillInfo | None
    _catching_up: bool = field(default=False, init=False)

    # -- Appender

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """``IConsumer``; until its first bytes come, those found at the claim are hashed."""
        super().registerProducer(producer, streaming)
        self._pump()

    def reader(self) -> OpenFile:
        """The file, open for reading once more."""
        return _reader(self._directory, self._file)

    # -- FillSession

    async def describe(self, info: FillInfo) -> None:
        """Keep ``info`` for whoever follows the fill, or takes it over."""
        await self._threads.run(partial(self._file.describe, info))
        self.info = info

    def restart(self) -> None:
        """What is written next is the blob from its first byte again: it is compared."""
        self._file.restart()
        self._position = 0

    @property
    def compared(self) -> bool:
        """Whether, since the last :meth:`restart`, all bytes have come that were here before."""
        return self._file.compared

    async def take_extents(self, until: int | None) -> int:
        """Append what lies at :attr:`offset` in the extents; how many bytes, at most 16 MiB."""
        await self.flush()
        try:
            return await self._threads.run(
                partial(self._file.take_extents, until), lambda _: self._took()
            )
        finally:
            self._took()

    async def next_extent(self) -> int | None:
        """Where the first extent of some length (1 MiB) behind :attr:`offset` begins, or None."""
        return await self._threads.run(partial(self._file.next_extent, EXTENT))

    async def computed(self) -> Digest:
        """The digest of all bytes, read back only where they weren't hashed as they came."""
        await self.flush()
        return await hashed(self._file, self._file.running, self._threads)

    async def stage(self) -> FilesystemStagedBlob:
        """Sync the bytes and turn them into a staged blob; drop what was kept beside them."""
        await self.flush()
        return await self._threads.run(
            partial(self._file.stage, self._staging, self._digest), FilesystemStagedBlob.abandon
        )

    async def discard(self) -> None:
        """Remove the bytes and all that is kept beside them; followers see ``FAILED``."""
        await self._threads.run(self._file.discard)

    # -- threads

    def _took(self) -> None:
        self.offset = self._position = self._file.size
        self._tell_growth(self._file.size)

    def _pump(self) -> None:
        super()._pump()
        if self._catching_up or self._in_thread or self._closed or self._producer is None:
            return
        if self._file.running.length < self._file.size:
            self._catching_up = True
            turn = self._threads.run(partial(self._file.catch_up, self._file.running))
            # What can't be read now is tried once more by computed(), which says so.
            turn.addCallbacks(self._caught_up, lambda _: None)

    def _caught_up(self, _: None) -> None:
        self._catching_up = False
        self._pump()


@define(eq=False)
class FilesystemExtentSession(FileConsumer[ExtentFile]):
    """A part on its way into the extents (:class:`artifactd.storage.growing.ExtentSession`)."""

    _directory: Directory

    def reader(self) -> OpenFile:
        """The extents, open for reading once more."""
        return _reader(self._directory, self._file)

    async def record(self) -> None:
        """:meth:`flush`, sync, and remember that the bytes up to :attr:`written` are here."""
        await self.flush()
        await self._threads.run(self._file.record)


def _reader(directory: Directory, file: AppendedFile) -> OpenFile:
    """Another description of ``file``: one that shared its own would keep its lock, too."""
    fd, status = directory.open_file(file.name)
    if not os.path.samestat(status, os.fstat(file.fd)):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no longer there", file.name)
    return OpenFile(fd)
