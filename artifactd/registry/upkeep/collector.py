"""Garbage collection beside running pushes, pulls and fills; docs/garbage-collection.md."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.garbage import Collected, Garbage, GarbageCatalog
from artifactd.catalog.repair import RepairCatalog
from artifactd.kit.deferreds import RunInThread, Stopped
from artifactd.kit.janitor import PAGE, Pace, batches
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.metrics import CollectionCounters
from artifactd.registry.mirror.eviction import forget
from artifactd.registry.upkeep.retention import Retention, Verdict
from artifactd.settings.settings import LocalSettings, Settings
from artifactd.store.blobs import SHELVES, BlobStore
from artifactd.store.examine import ScrubLock
from artifactd.store.folder import CollectionLock

_log = Logger()


_Collect = Callable[[], Awaitable[Sequence[Collected]]]


class NotNow(Exception):
    """Garbage collection cannot start or go on; the message gives the reason in one line."""


class Busy(NotNow):
    """Another process collects garbage: once it has ended, this one can."""


@define(eq=False)
class Collector:
    """
    Removes garbage page by page, and drops the tags that the retention does not keep.

    :param settings: ``grace``, ``lease``, ``gc_rate``, and ``untagged`` of the local repositories.
    :param clock: measures the pauses.
    :param now: seconds since the epoch.
    :param removes: whether files are removed too; false on a copy of the catalog, for a dry run.
    :param report: called with each item removed.
    :param at_once: collect what was deleted before its grace period and its leases are over.
    :param only: collect nothing but what was deleted from this image; needs ``at_once``.
    :param repairs: checks the catalog: right bytes may seem to be garbage by damaged rows.
    :param scrub: tells what the last scrub has found wrong with it.
    """

    catalog: Catalog
    garbage: GarbageCatalog
    repairs: RepairCatalog
    retention: Retention
    blobs: BlobStore
    lock: CollectionLock
    scrub: ScrubLock
    settings: Settings
    run_in_thread: RunInThread
    clock: IReactorTime
    counters: CollectionCounters
    now: Callable[[], float] = time.time
    removes: bool = True
    report: Callable[[Collected], None] = lambda _: None
    at_once: bool = False
    only: ImageName | None = None
    _pace: Pace = field(init=False)
    _count: int = field(default=0, init=False)
    _freed: int = field(default=0, init=False)
    _is_checked: bool = field(default=False, init=False)
    _wrong: str = field(default="", init=False)  # with the catalog, for as long as it is open

    @_pace.default
    def _(self) -> Pace:
        return Pace(self.clock)

    def __attrs_post_init__(self) -> None:
        counters = self.counters.retention
        for repository in self.retention.judges:
            for counter in (counters.judged, counters.kept, counters.dropped):
                counter.labels(repository)  # is told as 0 then, so that its first rise is seen

    async def run(self, shelves: Iterable[int] = range(SHELVES)) -> None:
        """
        Collect once everything that may go now.

        :param shelves: the shelves of the store whose files are compared with the catalog.
        :raises Busy: if another process collects.
        :raises NotNow: if a backup is being made, the catalog is damaged, or :meth:`stop` was
            called; what was removed before stays removed.
        """
        await self._alone(lambda: self._collect(shelves))

    async def retain(self, images: Callable[[str], bool] | None = None) -> None:
        """
        Drop once the tags that the retention does not keep, and nothing else.

        :param images: tells whether to judge an image, by its canonical name; ``None``: all.
        :raises NotNow: as :meth:`run`.
        """
        await self._alone(lambda: self._retain(images))

    async def _alone(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` while no other process collects."""
        if not await self.run_in_thread(self.lock.claim):
            raise Busy("another process collects garbage at this time: try again later")
        started, self._count, self._freed = self.clock.seconds(), 0, 0
        self._is_checked = False
        try:
            if self.settings.scrub_rate:  # otherwise nothing finds out that it is right again
                self._refuse_damaged((await self.run_in_thread(self.scrub.look)).wrong)
            self._refuse_damaged(self._wrong)
            await work()
            self.counters.runs.inc()
        except Stopped:
            raise NotNow("the registry is shutting down: try again later") from None
        finally:
            self.lock.release()
            self.counters.seconds.inc(max(0.0, self.clock.seconds() - started))
            if self._count and self.removes:
                _log.info(
                    "collected {count} tags, links, manifests, blobs and files, {freed} bytes",
                    count=self._count,
                    freed=self._freed,
                )

    def _refuse_damaged(self, wrong: str) -> None:
        if wrong:
            raise NotNow(f"the catalog is damaged ({wrong}): restore a backup")

    async def _collect(self, shelves: Iterable[int]) -> None:
        if self.only is not None:
            await self._image(self.only)
            return
        # Strays first: a dry run takes rows out of a copy of the catalog, which would make strays
        # of their files.
        for shelf in shelves:
            self._pace.check()
            await self._strays(shelf)
        await self._retain(None)
        await self._rows()
        if self.removes:
            await self._sizes()

    async def _retain(self, images: Callable[[str], bool] | None) -> None:
        counters = self.counters.retention
        async for page in self.retention.judged(images):
            to_drop = [each for each in page if not each.kept]
            if page:
                repository = page[0].image.repository
                counters.judged.labels(repository).inc(len(page))
                counters.kept.labels(repository).inc(len(page) - len(to_drop))
            for verdicts in batches(to_drop):
                await self._step(partial(self._drop, verdicts))
            await self._pace.spend(len(page), self.settings.gc_rate)
        if images is None:
            for repository in self.retention.judges:
                counters.last_run.labels(repository).set(self.now())

    async def _drop(self, verdicts: Sequence[Verdict]) -> Sequence[Collected]:
        image = verdicts[0].image
        dropped = await self.retention.drop(image, verdicts)
        self.counters.retention.dropped.labels(image.repository).inc(len(dropped))
        return [
            Collected(Garbage.RETENTION, image, use.name, 0, max(use.pushed, use.pulled))
            for use in dropped
        ]

    def stop(self) -> None:
        """Make :meth:`run` raise NotNow: at once from a pause, else after the page under way."""
        self._pace.stop()
        self.repairs.stop()

    async def _image(self, image: ImageName) -> None:
        """Collect what was deleted from one image, and the bytes that nothing needs then."""
        garbage, loosened = self.garbage, set[str]()
        for step in (
            partial(garbage.collect_orphaned, inf, PAGE, image),
            partial(garbage.collect_deleted, inf, PAGE, image, ends_leases=True),
        ):
            while collected := await self._step(step):
                loosened.update(each.name for each in collected)
        for batch in batches(sorted(loosened)):
            while await self._step(partial(self._bytes, inf, batch)):
                pass

    async def _rows(self) -> None:
        settings, garbage, now = self.settings, self.garbage, self.now()
        steps: list[_Collect] = []
        for name, repository in settings.repository.items():
            if isinstance(repository, LocalSettings) and repository.untagged.seconds is not None:
                # A client may have been told that the manifest is here, which is a lease.
                since = now - max(repository.untagged.seconds, settings.lease)
                steps.append(partial(garbage.collect_untagged, name, since, PAGE))
        # What is collected for it in this very run was deleted, too.
        before = inf if self.at_once else now - settings.grace
        steps += [
            partial(garbage.collect_orphaned, inf if self.at_once else now - settings.lease, PAGE),
            partial(garbage.collect_links, now - settings.lease, PAGE),
            partial(garbage.collect_deleted, before, PAGE, ends_leases=self.at_once),
            partial(self._bytes, before),
        ]
        for step in steps:
            while await self._step(step):
                pass

    async def _sizes(self) -> None:
        """Sum up what manifests hold that were brought back, repaired, or lost something."""
        while count := await self.garbage.note_sizes(PAGE):
            await self._pace.spend(count, self.settings.gc_rate)

    async def _bytes(
        self, before: float, among: Sequence[str] | None = None
    ) -> Sequence[Collected]:
        collected = await self.garbage.collect_bytes(before, PAGE, among)
        # Their rows are gone, and that is committed.
        await self._forget([Digest.parse(each.name) for each in collected])
        return collected

    async def _strays(self, shelf: int) -> None:
        now = self.now()
        published = await self.blobs.published(shelf, now - self.settings.grace)
        for batch in batches(published):
            sizes = dict(batch)
            await self._step(partial(self._unlisted, sizes, now))
            await self._pace.spend(len(sizes), self.settings.gc_rate)

    async def _unlisted(self, sizes: Mapping[Digest, int], now: float) -> Sequence[Collected]:
        strays = await self.garbage.unlisted(list(sizes))
        if strays and not self._is_checked:
            # They are rare: a process that was killed has left them.  One wrong bit in the catalog
            # makes one of any blob.
            self._wrong = await self.repairs.integrity_of("blob")
            if self._wrong:
                _log.critical("the catalog is damaged: {wrong}", wrong=self._wrong)
            self._refuse_damaged(self._wrong)
            self._is_checked = True
        await self._forget(strays)
        since = now - self.settings.grace
        return [
            Collected(Garbage.STRAY, None, str(digest), sizes[digest], since) for digest in strays
        ]

    async def _forget(self, digests: Sequence[Digest]) -> None:
        if self.removes:
            await forget(digests, self.catalog, self.blobs)

    async def _step(self, collect: _Collect) -> Sequence[Collected]:
        """Collect a page, count and report it, and pause.  Returns what it had."""
        self._pace.check()
        with self.lock.step() as free:
            if not free:
                raise NotNow("a backup is being made: try again later")
            collected = await collect()
        for each in collected:
            self.counters.collected.labels(each.why).inc()
            if each.why in (Garbage.BYTES, Garbage.STRAY):
                self.counters.bytes.inc(each.size)
                self._freed += each.size
            self.report(each)
        self._count += len(collected)
        await self._pace.spend(len(collected), self.settings.gc_rate)
        return collected
