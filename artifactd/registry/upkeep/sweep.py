"""Sweeping: removing abandoned uploads and fills, and the remains of dead processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from attrs import define
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.kit.janitor import pages
from artifactd.store.blobs import BlobStore
from artifactd.store.fills import FillStores
from artifactd.store.uploads import UploadMissing, UploadStore

_log = Logger()

NEWBORN = 60.0
"""Seconds for which an upload may have bytes but no row: a session's bytes are made first."""
_PAGE = 1000


@define
class Sweep:
    """
    Removes idle upload sessions, staged bytes without a session, sessions without bytes, abandoned
    fills, and blobs whose eviction or purge was cut short by the death of its process.

    :param upload_timeout: seconds without a write after which an upload or a fill is abandoned.
    :param now: seconds since the epoch.
    """

    catalog: Catalog
    blobs: BlobStore
    uploads: UploadStore
    fills: FillStores
    upload_timeout: float
    now: Callable[[], float] = time.time

    async def run(self) -> int:
        """
        Sweep once.  Safe in any number of processes at once.

        Returns how many uploads and files were removed.
        """
        swept = await self._idle_uploads() + await self._uploads_without_bytes()
        swept += await self._dropped_blobs()
        swept += await self.blobs.sweep(self.catalog.forget_blob)
        swept += await self.fills.sweep(self.upload_timeout)
        with suppress(OSError):  # each push is told of a full disk
            await self.blobs.require_room()
        if swept:
            _log.info("swept {swept} abandoned uploads, fills, blobs and staged files", swept=swept)
        return swept

    async def _idle_uploads(self) -> int:
        swept = 0
        abandoned = frozenset(await self.uploads.idle(self.upload_timeout))
        for upload_id in await self.uploads.idle(min(NEWBORN, self.upload_timeout)):
            if upload_id in abandoned or await self.catalog.upload(upload_id) is None:
                # The bytes first, which needs no room on the disk and ends the session.
                await self.uploads.discard(upload_id)
                await self.catalog.delete_upload(upload_id)
                swept += 1
        return swept

    async def _uploads_without_bytes(self) -> int:
        swept = 0
        async for records in pages(self.catalog.uploads, "", lambda record: record.id, _PAGE):
            for record in records:
                if record.started > self.now() - NEWBORN:
                    continue
                try:
                    await self.uploads.offset(record.id)
                except UploadMissing:
                    swept += await self.catalog.delete_upload(record.id)
                except OSError as error:
                    _log.warn("upload {id} left alone: {error}", id=record.id, error=error)
        return swept

    async def _dropped_blobs(self) -> int:
        swept = 0
        async for digests in pages(self.catalog.dropped_blobs, "", str, _PAGE):
            for digest in digests:
                try:
                    unlink = partial(self.blobs.remove, digest)
                    swept += await self.catalog.forget_blob(digest, unlink)
                except OSError as error:
                    _log.warn("blob {digest} left alone: {error}", digest=digest, error=error)
        return swept
