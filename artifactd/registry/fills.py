"""All fills of this process: who wants a blob that is not here joins one, or begins it."""

from __future__ import annotations

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime

from artifactd.catalog.records import Catalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.kit.deferreds import Stopped
from artifactd.oci.digest import Digest
from artifactd.registry.fill import Fill, FillRules
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.model import BlobFound, BlobWanted, Provenance
from artifactd.registry.progress import HELD
from artifactd.registry.source import BlobSource
from artifactd.store.fills import FillStore


@define(eq=False)
class Fills:
    """
    One fill per digest, whichever repository it was begun for.

    Nothing here is needed by another process: it finds the fill in the store.
    """

    store: FillStore
    catalog: Catalog
    remote: RemoteCatalog
    clock: IReactorTime
    _fills: dict[Digest, Fill] = field(factory=dict, init=False)
    _ended: dict[Digest, Deferred[None]] = field(factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)

    def find(self, digest: Digest) -> Fill | None:
        """The fill of ``digest`` that is under way in this process, or ``None``."""
        return self._fills.get(digest)

    def begin(
        self,
        source: BlobSource,
        counters: RepositoryCounters,
        rules: FillRules,
        *,
        lost: bool = False,
    ) -> Fill:
        """
        The fill of a blob; the one that is under way, if there is one.

        :param lost: there is a row of it, whose bytes are not here.
        """
        fill = self._fills.get(source.digest)
        if fill is None:
            if self._stopping:
                raise Stopped("the daemon is shutting down")
            fill = Fill(
                source, self.store, self.catalog, self.remote, counters, rules, self.clock, lost
            )
            self._fills[source.digest] = fill
            self._ended[source.digest] = ended = Deferred.fromCoroutine(fill.run())
            ended.addBoth(self._gone, source.digest)
        return fill

    def _gone(self, outcome: object, digest: Digest) -> object:
        del self._fills[digest]
        del self._ended[digest]
        return outcome

    async def ended(self, digest: Digest) -> None:
        """Wait until no fill of ``digest`` is under way in this process."""
        ended = self._ended.get(digest)
        if ended is not None:
            waiting: Deferred[None] = Deferred()
            ended.addBoth(lambda _: waiting.callback(None))
            await waiting

    async def found(self, fill: Fill, wanted: BlobWanted, provenance: Provenance) -> BlobFound:
        """
        What ``fill`` brings, as far as it is ``wanted``; fires as soon as it can be begun with.

        :raises Exception: what the fill fails with.
        :raises RangeNotSatisfiable: as ``wanted`` does.
        """
        fill.join()
        try:
            return await self._found(fill, wanted, provenance)
        finally:
            fill.leave()

    async def _found(self, fill: Fill, wanted: BlobWanted, provenance: Provenance) -> BlobFound:
        await fill.ready()
        size = fill.progress.size
        if size is None:
            if wanted.span is not None or wanted.patient:
                await fill.verified()
            else:
                await fill.larger(HELD)  # or it may be a small one
            size = fill.progress.size
        span = None if size is None else wanted.part(size)
        length = size if span is None else span.length
        hold = not (wanted.bounded and span is not None and span.first > 0)
        if hold and length is not None and length <= HELD:
            await fill.verified()
        if not (hold or fill.progress.verified):
            provenance = evolve(provenance, cache=f"{provenance.cache}; detail=unverified")
        return BlobFound(size, span, fill.follower(span, hold=hold), provenance)

    async def stop(self) -> None:
        """Leave all fills for later, and wait until they are left."""
        self._stopping = True
        for fill in list(self._fills.values()):
            fill.stop()
        await DeferredList(list(self._ended.values()), consumeErrors=True)
