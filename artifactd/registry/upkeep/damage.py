"""What is wrong in the store: never served, kept apart, and had again where that can be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.repair import Holder, RepairCatalog
from artifactd.kit.deferreds import SingleFlight, Stopped
from artifactd.oci.digest import Digest
from artifactd.oci.errors import RegistryError
from artifactd.registry.content import Contents, publish
from artifactd.registry.metrics import DamageCounters
from artifactd.store.interfaces import BlobStore, Examination, StagedBlob

_log = Logger()

GONE = "its file is gone"
HOLDERS = 20  # named of one digest
_LOOKED_AT = 64  # in the background, at the same time

Refetch = Callable[[Holder, Digest], Awaitable[None]]
"""Gets a digest again under an image of an upstream; raises RegistryError, OSError, Stopped."""


async def _nothing(holder: Holder, digest: Digest) -> None:
    """There is no upstream."""


@define(eq=False)
class Damage:
    """
    Looks into what could not be read, and sees to what is damaged.

    Bytes for a name that was pushed here come from a push or from another copy alone: what is
    fetched again is so under the name of an upstream's image, and by its digest.

    :ivar heals: whether what is lost is had again at once.
    :ivar refetch: how from an upstream.
    """

    repairs: RepairCatalog
    catalog: Catalog
    blobs: BlobStore
    contents: Contents
    counters: DamageCounters
    heals: bool = True
    refetch: Refetch = _nothing
    _inspections: SingleFlight[Digest, str | None] = field(factory=SingleFlight, init=False)
    _background: dict[Digest, Deferred[None]] = field(factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)

    async def inspect(self, digest: Digest, size: int | None = None) -> str | None:
        """
        Read all of a blob, and quarantine it if it is not right; what is wrong with it.

        :param size: what its row says that it has, in bytes, if that is known: put right if the
            bytes have their digest and are more or fewer.
        :raises OSError: if it can't be looked at.
        """
        return await self._inspections.join(digest, lambda: self._inspect(digest, size))

    def suspect(self, digest: Digest) -> None:
        """Reading it has failed: :meth:`inspect` it in the background."""
        if digest not in self._background and len(self._background) < _LOOKED_AT:
            self._begin(digest, self._suspected(digest))

    async def quarantine(self, examination: Examination) -> bool:
        """
        It is damaged: to nobody it is here from now on, and it is moved away; whether it still was.

        :raises OSError: if it can't be moved; it is not served nevertheless.
        """
        digest, flaw = examination.digest, examination.flaw
        # The row first: a row never points at bytes that are not there.
        if not await self.repairs.lose_blob(digest, examination.is_published):
            return False
        moved = await self.repairs.take_out(digest, examination.quarantine)
        if moved:
            await self._lost(digest, flaw or "")
        return moved

    async def expire(self, name: str, examination: Examination) -> None:
        """
        Remove a quarantined file that was read once more; if it is right after all, and its bytes
        are still lost, it is published again before.

        :raises OSError, RegistryError: if that can't be done; it is in quarantine nevertheless.
        """
        digest = examination.digest
        if examination.is_unreadable:
            return _log.warn("{name} stays in quarantine: {flaw}", name=name, flaw=examination.flaw)
        if examination.flaw is None and await self.repairs.is_lost(digest):
            await self._restore(await self.blobs.stage_expired(name, digest), "quarantine")
        return await self.blobs.remove_expired(name)

    async def missing(self, digest: Digest) -> bool:
        """Nothing was found of it: note that, if it is listed; whether it is so."""

        def is_so() -> bool:
            return not self.blobs.is_there(digest)

        if not await self.repairs.is_absent(digest, lambda: self.blobs.is_there(digest)):
            return False
        lost = await self.repairs.lose_blob(digest, is_so)
        if lost:
            await self._lost(digest, GONE)
        return lost

    async def stop(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        self._stopping = True
        await DeferredList(list(self._background.values()))

    async def _inspect(self, digest: Digest, size: int | None) -> str | None:
        examination = await self.blobs.examine(digest)
        if examination is None:
            return GONE if await self.missing(digest) else None
        try:
            while await examination.step():
                if self._stopping:
                    return None
            if examination.flaw is not None:
                await self.quarantine(examination)
            elif size not in (None, examination.size):
                await self.repairs.correct_size(digest, examination.size)
                _log.warn(
                    "{digest} is right, and has {size} bytes: its row said {wrong}",
                    digest=digest,
                    size=examination.size,
                    wrong=size,
                )
            return examination.flaw
        finally:
            examination.close()

    async def _suspected(self, digest: Digest) -> None:
        try:
            flaw = await self.inspect(digest)
        except OSError as error:
            _log.error("{digest} can't be looked at: {error}", digest=digest, error=error)
        else:
            if flaw is None:
                _log.warn("{digest} could not be read, and can be now", digest=digest)

    async def _lost(self, digest: Digest, flaw: str) -> None:
        holders = await self.repairs.holders(digest, HOLDERS)
        self.counters.damaged.inc()
        _log.error(
            "{digest} is damaged: {flaw}; held by {holders}",
            digest=digest,
            flaw=flaw,
            holders=", ".join(sorted({str(holder.image) for holder in holders})) or "nobody",
        )
        if self.heals and not self._stopping and holders:
            healing = self._heal(digest, holders)
            if digest in self._background:
                await healing
            else:
                self._begin(digest, healing)

    async def _heal(self, digest: Digest, holders: Sequence[Holder]) -> None:
        content = self.contents.kept(digest)
        if content is not None:
            return await self._restore(await self.blobs.stage(digest, content), "memory")
        for holder in holders:
            if not holder.is_remote:
                continue
            try:
                await self.refetch(holder, digest)
            except (RegistryError, OSError, Stopped) as error:
                _log.warn(
                    "{image}@{digest} is fetched again when it is wanted: {error}",
                    image=holder.image,
                    digest=digest,
                    error=error,
                )
            else:
                return self._healed(digest, "upstream")
        pushed = sorted({str(holder.image) for holder in holders if not holder.is_remote})
        if pushed:
            _log.error(
                "{digest} is lost: push {images} again", digest=digest, images=", ".join(pushed)
            )
        return None

    async def _restore(self, staged: StagedBlob, source: str) -> None:
        digest = staged.digest
        await publish(
            staged,
            self.catalog,
            lambda: self.repairs.restore_blob(digest, staged.confirm, staged.release),
        )
        self._healed(digest, source)

    def _healed(self, digest: Digest, source: str) -> None:
        self.counters.healed.labels(source).inc()
        _log.info("{digest} is whole again, from {source}", digest=digest, source=source)

    def _begin(self, digest: Digest, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:
                _log.failure("what is damaged of {digest} was not seen to", digest=digest)

        # One thing to look after at a time: what is begun twice for a digest ends with the later.
        working = Deferred.fromCoroutine(run())
        if working.called:
            return
        self._background[digest] = working

        def ended(_: object) -> None:
            del self._background[digest]

        working.addBoth(ended)
