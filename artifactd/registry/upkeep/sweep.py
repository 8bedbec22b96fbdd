"""Sweeping: removing abandoned uploads and fills, and the remains of dead processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from functools import partial

from attrs import define, field
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import nothing, session_key
from artifactd.kit.janitor import pages
from artifactd.store.blobs import BlobStore
from artifactd.store.fills import FillStores
from artifactd.store.uploads import UploadMissing, UploadStore

_log = Logger()

NEWBORN = 60.0
"""Seconds for which what has no row yet is left alone."""
_PAGE = 1000


class Remains(StrEnum):
    """What is swept."""

    UPLOAD = "upload"
    """An upload session that nothing was written to for too long, or half of one."""
    BLOB = "blob"
    """The bytes of a blob whose row is gone."""
    STAGED = "staged"
    """A staged file of a process that has died."""
    FILL = "fill"
    """A fill that no client wants any more."""


@define
class Sweep:
    """
    Removes idle upload sessions, what pushes in one request have left, sessions of an older release
    that have no bytes, notes of the ends of expired sessions, abandoned fills, and blobs whose
    eviction or purge was cut short by the death of its process.

    :param upload_timeout: seconds without a write after which an upload or a fill is abandoned.
    :param now: seconds since the epoch.
    :param removes: whether files are removed too; false on a copy of the catalog, for a dry run.
    :param report: called with the kind and the name of each thing removed.
    """

    catalog: Catalog
    blobs: BlobStore
    uploads: UploadStore
    fills: FillStores
    upload_timeout: float
    now: Callable[[], float] = time.time
    removes: bool = True
    report: Callable[[Remains, str], None] = lambda *_: None
    _count: int = field(default=0, init=False)

    async def run(self) -> int:
        """
        Sweep once.  Safe in any number of processes at once.

        Returns how many uploads and files were removed.
        """
        self._count = 0
        await self._idle_uploads()
        await self._uploads_without_bytes()
        await self._expired_uploads()
        await self._dropped_blobs()
        await self._staged()
        await self._fills()
        if self.removes:
            with suppress(OSError):  # each push is told of a full disk
                await self.blobs.require_room()
            if self._count:
                _log.info(
                    "swept {swept} abandoned uploads, fills, blobs and staged files",
                    swept=self._count,
                )
        return self._count

    def _swept(self, kind: Remains, name: object) -> None:
        self._count += 1
        self.report(kind, str(name))

    async def _idle_uploads(self) -> None:
        abandoned = frozenset(await self.uploads.idle(self.upload_timeout))
        for upload_id in await self.uploads.idle(min(NEWBORN, self.upload_timeout)):
            if upload_id in abandoned or await self._lacks_session(upload_id):
                if self.removes:
                    # The bytes first, which needs no room on the disk.
                    await self.uploads.discard(upload_id)
                await self.catalog.end_upload(upload_id)
                self._swept(Remains.UPLOAD, upload_id)

    async def _lacks_session(self, upload_id: str) -> bool:
        """Whether a push in one request has left it, or a session that has lost its row."""
        return session_key(upload_id) is None and await self.catalog.upload(upload_id) is None

    async def _uploads_without_bytes(self) -> None:
        async for records in pages(self.catalog.uploads, "", lambda record: record.id, _PAGE):
            for record in records:
                if record.started > self.now() - NEWBORN:
                    continue
                try:
                    await self.uploads.offset(record.id)
                except UploadMissing:
                    if await self.catalog.end_upload(record.id):
                        self._swept(Remains.UPLOAD, record.id)
                except OSError as error:
                    _log.warn("upload {id} left alone: {error}", id=record.id, error=error)

    async def _expired_uploads(self) -> None:
        """Forget the ends of sessions that could not be begun any more anyway."""
        before = max(self.now() - self.upload_timeout, 0)
        while await self.catalog.forget_ended_uploads(before, _PAGE) == _PAGE:
            pass

    async def _dropped_blobs(self) -> None:
        async for digests in pages(self.catalog.dropped_blobs, "", str, _PAGE):
            for digest in digests:
                unlink = partial(self.blobs.remove, digest) if self.removes else nothing
                try:
                    if await self.catalog.forget_blob(digest, unlink):
                        self._swept(Remains.BLOB, digest)
                except OSError as error:
                    _log.warn("blob {digest} left alone: {error}", digest=digest, error=error)

    async def _staged(self) -> None:
        sweeping = self.blobs.sweep(self.catalog.forget_blob) if self.removes else self.blobs.left()
        for digest in await sweeping:
            self._swept(Remains.STAGED, digest)

    async def _fills(self) -> None:
        sweep = self.fills.sweep if self.removes else self.fills.stale
        for name in await sweep(self.upload_timeout):
            self._swept(Remains.FILL, name)
