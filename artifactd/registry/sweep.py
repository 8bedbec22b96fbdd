"""Sweeping: what clients and dead processes have left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from attrs import define, field
from twisted.logger import Logger

from artifactd.catalog.records import Catalog
from artifactd.store.fills import FillStore
from artifactd.store.interfaces import BlobStore, UploadMissing, UploadStore

# An upload's bytes come into being just before its row; younger ones are left alone.
_NEWBORN = 60.0
_PAGE = 1000


@define
class Sweep:
    """
    Removes idle upload sessions, staged bytes without a session, sessions without bytes, blobs that
    were evicted or purged by a process that died over it, and what has come of blobs that nobody
    fetches any more.

    :param upload_timeout: seconds after which an upload, or a fill, that nobody writes to is
        abandoned.
    """

    catalog: Catalog
    blobs: BlobStore
    uploads: UploadStore
    fills: FillStore
    upload_timeout: float
    now: Callable[[], float] = time.time
    _log: Logger = field(factory=Logger, init=False)

    async def run(self) -> int:
        """Sweep once; how many uploads and files went.  Safe in any number of processes at once."""
        swept = await self._uploads() + await self._records()
        swept += await self._dropped()
        swept += await self.blobs.sweep(self.catalog.forget_blob)
        swept += await self.fills.sweep(self.upload_timeout)
        if swept:
            self._log.info(
                "swept {swept} abandoned uploads, fills, blobs and staged files", swept=swept
            )
        return swept

    async def _uploads(self) -> int:
        swept = 0
        abandoned = frozenset(await self.uploads.idle(self.upload_timeout))
        for upload_id in await self.uploads.idle(min(_NEWBORN, self.upload_timeout)):
            if upload_id in abandoned or await self.catalog.upload(upload_id) is None:
                # The row first: a row never points at bytes that are not there.
                await self.catalog.delete_upload(upload_id)
                await self.uploads.discard(upload_id)
                swept += 1
        return swept

    async def _dropped(self) -> int:
        swept, after = 0, ""
        while digests := await self.catalog.dropped_blobs(after, _PAGE):
            after = str(digests[-1])
            for digest in digests:
                try:
                    unlink = partial(self.blobs.remove, digest)
                    swept += await self.catalog.forget_blob(digest, unlink)
                except OSError as error:
                    self._log.warn("blob {digest} left alone: {error}", digest=digest, error=error)
        return swept

    async def _records(self) -> int:
        swept, after = 0, ""
        while records := await self.catalog.uploads(after, _PAGE):
            after = records[-1].id
            for record in records:
                if record.started > self.now() - _NEWBORN:
                    continue
                try:
                    await self.uploads.offset(record.id)
                except UploadMissing:
                    swept += await self.catalog.delete_upload(record.id)
                except OSError as error:
                    self._log.warn("upload {id} left alone: {error}", id=record.id, error=error)
        return swept
