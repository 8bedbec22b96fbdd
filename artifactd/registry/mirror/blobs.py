"""Blobs of a remote repository."""

from __future__ import annotations

from typing import Literal

from attrs import define, evolve, field
from cachetools import TTLCache
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.kit.deferreds import SingleFlight, Stopped
from artifactd.oci.errors import BadGateway, BlobUnknown, Unavailable
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.content import Lost, Stored
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.eviction import LastUsed
from artifactd.registry.mirror.fill import AlreadyHere, Corrupt, Fills, FillSource
from artifactd.registry.mirror.foreign import ForeignLayers
from artifactd.registry.mirror.range_cache import NoRanges, Parts
from artifactd.registry.mirror.refusals import translated
from artifactd.registry.model import HIT, BlobFound, BlobWanted, Provenance
from artifactd.settings.remote import RemoteSettings
from artifactd.store.fills import FillInfo
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import UpstreamError
from artifactd.upstream.interfaces import Upstream

_log = Logger()

_ADMITTED = 4096
_LOOKS = 3  # for bytes that another request may have just brought


@define(eq=False)
class RemoteBlobs:
    """
    The blobs of one upstream's images: from the store, or from a fill.

    :ivar foreign: finds what the upstream lacks elsewhere; ``None``: it isn't looked for.

    For ``freshness`` seconds the upstream's answer that an image has a blob also counts for another
    range of the blob, or another HEAD.
    """

    upstream: Upstream
    catalog: Catalog
    remote: RemoteCatalog
    stored: Stored
    fills: Fills
    parts: Parts
    last_used: LastUsed
    counters: RepositoryCounters
    settings: RemoteSettings
    clock: IReactorTime
    foreign: ForeignLayers | None = None
    _admitted: TTLCache[tuple[ImageName, Digest], int | None] = field(init=False)
    _checks: SingleFlight[tuple[ImageName, Digest], int | None] = field(
        factory=SingleFlight, init=False
    )

    @_admitted.default
    def _none_admitted(self) -> TTLCache[tuple[ImageName, Digest], int | None]:
        return TTLCache(_ADMITTED, self.settings.freshness, self.clock.seconds)

    async def get(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        """Open a blob: from the store if ``image`` holds it there, else from the upstream."""
        size = await self.catalog.blob_size(image, digest)
        if size is not None:
            found = await self._here(image, digest, size, wanted, HIT)
            if found is not None:
                self.counters.hits.inc()
                return found
        if self.settings.offline:
            raise BlobUnknown(
                "this blob is not cached, and the upstream is not asked (offline)",
                {"digest": str(digest)},
            )
        started = self.clock.seconds()
        try:
            found = await self._found(image, digest, wanted)
        except UpstreamError as error:
            raise translated(error, BlobUnknown, digest=str(digest)) from error
        except Corrupt as error:
            raise BadGateway(
                "the upstream sent wrong bytes, which were not kept: try again",
                {"digest": str(digest), "reason": str(error)},
            ) from error
        except Stopped:
            raise Unavailable("the registry is shutting down: try again") from None
        waited = self.clock.seconds() - started
        return evolve(found, provenance=evolve(found.provenance, waited=waited))

    async def whole(self, image: ImageName, digest: Digest) -> bool:
        """
        Fetch a whole blob into the store and wait for it.  Returns whether ``image`` holds it then.

        :raises RegistryError: if the upstream does not give it.
        """
        found = await self.get(image, digest, BlobWanted())
        try:
            await self.fills.ended(digest)
            await self.fills.ended(digest, image)
        finally:
            # Not before: a fill may stop when its last follower leaves.
            if found.body is not None:
                found.body.close()
        return await self.catalog.blob_size(image, digest) is not None

    async def _here(
        self, image: ImageName, digest: Digest, size: int, wanted: BlobWanted, how: Provenance
    ) -> BlobFound | None:
        """Open a blob that ``image`` holds; ``None`` if it was lost or evicted a moment ago."""
        try:
            found = await self.stored.blob(image, digest, size, wanted, how)
        except Lost as error:
            _log.warn("the blob is fetched again: {error}", error=error)
            return None
        return self._read(image, digest, found)

    def _read(self, image: ImageName, digest: Digest, found: BlobFound) -> BlobFound:
        """Count the bytes of ``found``; until its body is closed, the blob is in use."""
        if found.body is not None:
            found.body.on_close = self.last_used.begin(image, digest)
            length = found.size if found.span is None else found.span.length
            self.counters.client_bytes.inc(length or 0)
        return found

    # -- blobs that are not here under this name

    async def _found(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        """Get a blob from the upstream, or from where the image's manifests say that it is."""
        try:
            return await self._fetch(FillSource(self.upstream, image, digest), wanted)
        except Missing as error:
            if self.foreign is None or error.status not in (404, 410):
                raise
            source = await self.foreign.source(self.upstream, image, digest)
            if source is None:
                raise
        return await self._fetch_alone(source, wanted)

    async def _fetch_alone(self, source: FillSource, wanted: BlobWanted) -> BlobFound:
        """
        Get a blob whose bytes belong to the image alone: nothing is shared with other images, in
        neither direction, since the source is not the upstream.
        """
        image, digest = source.image, source.digest
        if wanted.head:
            size = await source.check(None)
            how = Provenance("remote", "fwd=miss; fwd-status=200", verified=False)
            return BlobFound(size, None, None, how)
        while True:
            joined = self.fills.find(digest, image) is not None
            fill = self.fills.begin(source, self.counters, self.settings)
            if not fill.stopped:
                (self.counters.coalesced if joined else self.counters.misses).inc()
                try:
                    found = await self.fills.found(fill, wanted, _miss(joined))
                    return self._read(image, digest, found)
                except Stopped as error:
                    if not (joined or isinstance(error, AlreadyHere)):
                        raise
            await self.fills.ended(digest, image)
            size = await self.catalog.blob_size(image, digest)
            here = None if size is None else await self._here(image, digest, size, wanted, HIT)
            if here is not None:
                return here

    async def _fetch(self, source: FillSource, wanted: BlobWanted) -> BlobFound:
        if wanted.head or wanted.bounded:
            if self.fills.find(source.digest) is None:
                shared = await self._share(source, wanted)
                if shared is not None:
                    return shared
            if wanted.head:
                size = await self._check(source)
                how = Provenance("remote", "fwd=miss; fwd-status=200", verified=False)
                return BlobFound(size, None, None, how)
            part = await self._part(source, wanted)
            if part is not None:
                return self._read(source.image, source.digest, part)
        return await self._follow(source, wanted)

    async def _share(self, source: FillSource, wanted: BlobWanted) -> BlobFound | None:
        """
        Link a blob that another image of this repository holds to this one, if the upstream
        confirms that it may.

        Returns ``None`` if this upstream has not sent the bytes, or they were lost, or the upstream
        names another size: then only the bytes can tell.
        """
        stored = await self._stored_size(source)
        if stored is None or await self._check(source) not in (None, stored):
            return None
        size = await self.remote.link_blob(source.image, source.digest)
        if size is None:
            return None
        how = Provenance("cache", "fwd=request; fwd-status=200; detail=shared")
        return await self._here(source.image, source.digest, size, wanted, how)

    async def _follow(self, source: FillSource, wanted: BlobWanted) -> BlobFound:
        """Follow the fill of a blob; begin one if none is under way."""
        digest = source.digest
        while True:
            fill = self.fills.find(digest)
            joined = fill is not None
            if fill is None:
                # A fill may just have ended, and a second one would fetch all of it again.
                listed = await self._stored_size(source) is not None
                shared = await self._share(source, wanted) if listed else None
                if shared is not None:
                    return shared
                if self.fills.find(digest) is not None:
                    continue  # another request has begun one meanwhile
                fill = self.fills.begin(source, self.counters, self.settings, lost=listed)
            elif fill.stopped:
                await self.fills.ended(digest)
                continue
            elif source.image not in fill.images:
                told = await self._check(source)
                await fill.begun()
                if self.fills.find(digest) is not fill:
                    continue  # it has ended meanwhile
                if told is not None and fill.progress.size not in (None, told):
                    await self.fills.ended(digest)  # only the bytes can tell
                    continue
                fill.images.add(source.image)
            (self.counters.coalesced if joined else self.counters.misses).inc()
            try:
                found = await self.fills.found(fill, wanted, _miss(joined))
            except AlreadyHere:
                await self.fills.ended(digest)
            except (Stopped, UpstreamError) as error:
                # An error under another image's name says nothing of this image.
                ours = fill.source.image == source.image
                if not joined or (ours and not isinstance(error, Stopped)):
                    raise
                await self.fills.ended(digest)
            else:
                return self._read(source.image, digest, found)

    async def _stored_size(self, source: FillSource) -> int | None:
        # The bytes that another repository has are none of this upstream's, whatever it says: it
        # has to send them, or else it could give away by digest what it does not have.
        return await self.remote.stored_size(source.image.repository, source.digest)

    async def _check(self, source: FillSource) -> int | None:
        """
        Ask the upstream for the size of a blob under this image's name; ``None``: it doesn't say.

        :raises UpstreamError: if the upstream does not let artifactd have the blob.
        """
        key = source.image, source.digest
        try:
            return self._admitted[key]
        except KeyError:
            return await self._checks.join(key, lambda: self._ask(source))

    async def _ask(self, source: FillSource) -> int | None:
        told = await source.check(await self._known_size(source))
        self._admitted[source.image, source.digest] = told
        return told

    async def _known_size(self, source: FillSource) -> int | None:
        """The size of a blob of which at least some bytes are here, or ``None``."""
        fill = self.fills.find(source.digest)
        if fill is not None and fill.progress.size is not None:
            return fill.progress.size
        stored = await self._stored_size(source)
        if stored is not None:
            return stored
        info = await self.fills.store.info(source.digest)
        return None if info is None else info.size

    async def _part(self, source: FillSource, wanted: BlobWanted) -> BlobFound | None:
        """
        Answer a bounded range without fetching the whole blob; ``None`` if only a fill can bring
        it.
        """
        size = await self._check(source)
        fill = self.fills.find(source.digest)
        if size is None:
            return None
        span = wanted.part(size)
        if span is None or span.first == 0:
            return None
        if fill is not None and fill.progress.size not in (None, size):
            return None
        if fill is not None and fill.progress.answered and fill.progress.written > span.last:
            return BlobFound(size, span, fill.follower(span, hold=False), _part_of("cache", "hit"))
        for _ in range(_LOOKS):
            ended = self.parts.ended
            # A part whose last byte is here is a hit, even if its session has not been closed yet.
            body = self.parts.under_way(source.digest, size, span)
            if body is None or body.available <= span.last:
                if body is not None:
                    body.close()
                body = await self.parts.stored(source.digest, size, span)
            if body is not None:
                self.counters.hits.inc()
                return BlobFound(size, span, body, _part_of("cache", "hit"))
            info = await self.fills.store.info(source.digest) or FillInfo(size)
            if info.size not in (None, size):
                return None
            body = self.parts.under_way(source.digest, size, span)
            if body is not None or self.parts.ended == ended:
                break  # otherwise the part that has ended meanwhile may be this one
        joined = body is not None or self.parts.is_asked_for(source, span)
        (self.counters.coalesced if joined else self.counters.misses).inc()
        if body is None:
            try:
                body = await self.parts.fetch(source, info, span)
            except NoRanges:
                return None
        if joined:
            how = _part_of("cache", "fwd=partial; collapsed")
        else:
            how = _part_of("remote", "fwd=partial; fwd-status=206; stored")
        return BlobFound(size, span, body, how)


def _miss(joined: bool) -> Provenance:
    return Provenance(
        "remote", "fwd=miss; collapsed" if joined else "fwd=miss; fwd-status=200; stored"
    )


def _part_of(source: Literal["cache", "remote"], status: str) -> Provenance:
    return Provenance(source, f"{status}; detail=unverified", verified=False)
