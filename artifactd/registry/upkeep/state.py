"""How collection, scrubbing and repair do, for an operator who looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from artifactd.catalog.garbage import Garbage
from artifactd.catalog.repair import LostBlob, RepairCatalog
from artifactd.kit.deferreds import RunInThread
from artifactd.registry.metrics import Counters
from artifactd.store.blobs import SHELVES
from artifactd.store.examine import ScrubLock

_LOST = 100  # digests


@frozen
class UpkeepState:
    """
    What has been done, counted over all processes since the daemon started, and what is damaged.

    :ivar collections: runs of the collector.
    :ivar collected: how many things it took away, by why.
    :ivar freed: bytes that it took out of the store.
    :ivar scrubbed: bytes that were read again.
    :ivar scrub_share: how much of the round under way is done, from 0 to 1.
    :ivar scrub_ended: when the last round ended, in seconds since the epoch; ``None``: none has.
    :ivar damaged: blobs and manifests that were found damaged.
    :ivar lost: those that are lost now: at most 100.
    """

    collections: int
    collected: Mapping[str, int]
    freed: int
    scrubbed: int
    scrub_share: float
    scrub_ended: float | None
    damaged: int
    lost: Sequence[LostBlob]


@frozen
class Upkeep:
    """Tells how upkeep does."""

    counters: Counters
    repairs: RepairCatalog
    scrub: ScrubLock
    run: RunInThread

    async def state(self) -> UpkeepState:
        """:raises OSError: if the position of the scrubber can't be read."""
        position = await self.run(self.scrub.look)
        lost = await self.repairs.lost(_LOST)
        counters = self.counters
        collection, damage = counters.collection, counters.damage
        collected = {str(why): collection.collected.labels(str(why)) for why in Garbage}
        sums = counters.metrics.tallies.sums()
        return UpkeepState(
            collections=int(collection.runs.of(sums)),
            collected={why: int(number.of(sums)) for why, number in collected.items()},
            freed=int(collection.bytes.of(sums)),
            scrubbed=int(damage.scrubbed.of(sums)),
            scrub_share=position.shelf / SHELVES,
            scrub_ended=position.ended or None,
            damaged=int(damage.damaged.of(sums)),
            lost=lost,
        )
