"""Damaged blobs: no longer served, moved to quarantine, and restored where a right copy is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.repair import Holder, RepairCatalog
from artifactd.kit.deferreds import SingleFlight, Stopped
from artifactd.oci.errors import RegistryError
from artifactd.oci.names import Digest
from artifactd.registry.content import Contents, publish
from artifactd.registry.metrics import DamageCounters
from artifactd.store.blobs import BlobStore
from artifactd.store.examine import Examination
from artifactd.store.publication import StagedBlob

_log = Logger()

GONE = "its file is gone"
HOLDERS = 20  # images that a message about one digest names
_LOOKED_AT = 64  # suspected blobs that are read in the background at the same time

Refetch = Callable[[Holder, Digest], Awaitable[None]]
"""Fetches a digest again for an image of an upstream.  Raises RegistryError, OSError, Stopped."""


async def _nothing(holder: Holder, digest: Digest) -> None:
    """Do nothing: there is no upstream."""


@define(eq=False)
class Damage:
    """
    Examines blobs that could not be read, quarantines damaged ones, and restores them.

    A blob of a pushed image is restored from memory or by another push, never from an upstream;
    a blob of an upstream's image is also fetched again, under that image's name and by its digest.

    :ivar heals: whether to restore a lost blob at once.
    :ivar refetch: fetches a digest again from an upstream.
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
        Read a whole blob, and quarantine it if its bytes do not have its digest.

        Returns what is wrong with it, as text; ``None``: nothing.

        :param size: the bytes that its row states, if that is known; the row is corrected if the
            file has the right digest and another size.
        :raises OSError: if the blob cannot be read.
        """
        return await self._inspections.join(digest, lambda: self._inspect(digest, size))

    def suspect(self, digest: Digest) -> None:
        """Have a blob that could not be read inspected (:meth:`inspect`) in the background."""
        if digest not in self._background and len(self._background) < _LOOKED_AT:
            self._begin(digest, self._suspected(digest))

    async def quarantine(self, examination: Examination) -> bool:
        """
        Mark the blob damaged and move it to quarantine: it answers 404 from now on.

        Returns whether it was still in place.

        :raises OSError: if the file cannot be moved; it is not served all the same.
        """
        digest, flaw = examination.digest, examination.flaw
        # The row first: a row never points at bytes that are not there.
        if not await self.repairs.lose_blob(digest, examination.is_published, flaw or ""):
            return False
        moved = await self.repairs.take_out(digest, examination.quarantine)
        if moved:
            await self._lost(digest, flaw or "")
        return moved

    async def expire(self, name: str, examination: Examination) -> None:
        """
        Remove a file from quarantine after reading it once more.

        If its bytes are right after all, and the blob is still lost, publish it again first.

        :raises OSError, RegistryError: if that fails; the file stays in quarantine.
        """
        digest = examination.digest
        if examination.is_unreadable:
            return _log.warn("{name} stays in quarantine: {flaw}", name=name, flaw=examination.flaw)
        if examination.flaw is None and await self.repairs.is_lost(digest):
            await self._restore(await self.blobs.stage_expired(name, digest), "quarantine")
        return await self.blobs.remove_expired(name)

    async def missing(self, digest: Digest) -> bool:
        """Mark a listed blob lost if its file is gone.  Returns whether it was marked."""

        def is_gone() -> bool:
            return not self.blobs.is_there(digest)

        if not await self.repairs.is_absent(digest, lambda: self.blobs.is_there(digest)):
            return False
        lost = await self.repairs.lose_blob(digest, is_gone, GONE)
        if lost:
            await self._lost(digest, GONE)
        return lost

    async def stop(self) -> None:
        """Begin no more work, and wait until the work in the background has ended."""
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
                _log.failure("examining or restoring {digest} failed", digest=digest)

        working = Deferred.fromCoroutine(run())
        if working.called:
            return
        self._background[digest] = working

        def ended(_: object) -> None:
            del self._background[digest]

        working.addBoth(ended)
