"""Garbage collection, while pushes, pulls and fills go on; docs/garbage-collection.md."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.garbage import Collected, Garbage, GarbageCatalog
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.digest import Digest
from artifactd.registry.metrics import CollectionCounters
from artifactd.registry.mirror.eviction import forget
from artifactd.store.fills import FillStore
from artifactd.store.interfaces import (
    SHELVES,
    BlobStore,
    CollectionLock,
    UploadMissing,
    UploadStore,
)

_log = Logger()

# More in one transaction would keep others from writing for longer.
_PAGE = 64


class NotNow(Exception):
    """Why collection does not go on; the message says it in one line."""


@frozen
class CollectionRules:
    """
    :ivar grace: seconds for which what was deleted can be brought back, and for which bytes stay
        that nothing refers to.
    :ivar lease: seconds for which what a client was told of stays although nothing holds it.
    :ivar untagged: seconds after which untagged manifests go, by repository; not in others.
    :ivar rate: rows and files per second that are looked at or taken away; 0: no limit.
    """

    grace: float
    lease: float
    untagged: Mapping[str, float] = field(factory=dict)
    rate: int = 0


@define(eq=False)
class Collector:
    """
    Takes away what is of no use, a page at a time.

    :param clock: of its pauses.
    :param now: seconds since the epoch.
    :param removes: whether bytes go too, or only rows: those of a copy of the catalog.
    :param report: told of all that goes.
    """

    catalog: Catalog
    garbage: GarbageCatalog
    blobs: BlobStore
    lock: CollectionLock
    rules: CollectionRules
    run_in_thread: RunInThread
    clock: IReactorTime
    counters: CollectionCounters
    now: Callable[[], float] = time.time
    removes: bool = True
    report: Callable[[Collected], None] = lambda _: None
    _stopped: bool = field(default=False, init=False)
    _pausing: Deferred[None] | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)
    _freed: int = field(default=0, init=False)

    async def run(self, shelves: Iterable[int] = range(SHELVES)) -> None:
        """
        Collect once, all that can go now.

        :param shelves: those of the store whose files are compared with the catalog.
        :raises NotNow: if another process collects, or a backup is made; what has gone till then
            is gone.
        """
        if not await self.run_in_thread(self.lock.claim):
            raise NotNow("another process collects garbage at this time")
        started, self._count, self._freed = self.clock.seconds(), 0, 0
        try:
            # First: what goes out of a copy of the catalog is no stray.
            for shelf in shelves:
                self._check_stopped()
                await self._strays(shelf)
            await self._rows()
            self.counters.runs.inc()
        finally:
            self.lock.release()
            self.counters.seconds.inc(max(0.0, self.clock.seconds() - started))
            if self._count and self.removes:
                _log.info(
                    "collected {count} links, manifests, blobs and files, {freed} bytes",
                    count=self._count,
                    freed=self._freed,
                )

    def stop(self) -> None:
        """Go no further; the run ends at once, or with the step that is under way."""
        self._stopped = True
        if self._pausing is not None:
            self._pausing.cancel()

    async def _rows(self) -> None:
        rules, garbage, now = self.rules, self.garbage, self.now()
        for repository, seconds in rules.untagged.items():
            # A client may have been told of one, as of a blob.
            since = now - max(seconds, rules.lease)
            while await self._step(partial(garbage.collect_untagged, repository, since, _PAGE)):
                pass
        while await self._step(partial(garbage.collect_links, now - rules.lease, _PAGE)):
            pass
        while await self._step(partial(garbage.collect_deleted, now - rules.grace, _PAGE)):
            pass
        while await self._step(partial(self._bytes, now - rules.grace)):
            pass

    async def _bytes(self, before: float) -> Sequence[Collected]:
        collected = await self.garbage.collect_bytes(before, _PAGE)
        # Their rows are gone, and that is committed.
        await self._forget([Digest.parse(each.name) for each in collected])
        return collected

    async def _strays(self, shelf: int) -> None:
        now = self.now()
        found = await self.blobs.published(shelf, now - self.rules.grace)
        for start in range(0, len(found), _PAGE):
            sizes = dict(found[start : start + _PAGE])
            await self._step(partial(self._unlisted, sizes, now))
            await self._pause(len(sizes))

    async def _unlisted(self, sizes: Mapping[Digest, int], now: float) -> Sequence[Collected]:
        strays = await self.garbage.unlisted(list(sizes))
        await self._forget(strays)
        return [
            Collected(Garbage.STRAY, None, str(digest), sizes[digest], now - self.rules.grace)
            for digest in strays
        ]

    async def _forget(self, digests: Sequence[Digest]) -> None:
        if self.removes:
            await forget(digests, self.catalog, self.blobs)

    async def _step(self, collect: Callable[[], Awaitable[Sequence[Collected]]]) -> int:
        """How much went in it."""
        self._check_stopped()
        with self.lock.step() as free:
            if not free:
                raise NotNow("a backup is being made")
            collected = await collect()
        for each in collected:
            self.counters.collected.labels(each.why).inc()
            if each.why in (Garbage.BYTES, Garbage.STRAY):
                self.counters.bytes.inc(each.size)
                self._freed += each.size
            self.report(each)
        self._count += len(collected)
        await self._pause(len(collected))
        return len(collected)

    def _check_stopped(self) -> None:
        if self._stopped:
            raise NotNow("the registry is shutting down")

    async def _pause(self, count: int) -> None:
        if not (self.rules.rate and count):
            return
        self._pausing = deferLater(self.clock, count / self.rules.rate, lambda: None)
        try:
            await self._pausing
        except CancelledError:
            self._check_stopped()
            raise
        finally:
            self._pausing = None


# Sweeping: what clients and dead processes have left behind.

# An upload's bytes come into being just before its row; younger ones are left alone.
_NEWBORN = 60.0
_SWEEP_PAGE = 1000


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
        while digests := await self.catalog.dropped_blobs(after, _SWEEP_PAGE):
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
        while records := await self.catalog.uploads(after, _SWEEP_PAGE):
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
