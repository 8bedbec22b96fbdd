"""Manifests and tags of a remote repository: a tag is asked for again once it is not fresh."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from attrs import define, evolve, field
from cachetools import TTLCache
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import ManifestRecord
from artifactd.catalog.remote import CachedTag, RemoteCatalog
from artifactd.kit.deferreds import RunInThread, SingleFlight
from artifactd.oci.digest import Digest
from artifactd.oci.errors import DigestInvalid, ManifestInvalid, ManifestUnknown
from artifactd.oci.manifest import Manifest, ManifestBounds, read_manifest
from artifactd.oci.names import ImageName, Reference, Tag, matches
from artifactd.registry.content import parsed, publish
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.eviction import LastUsed
from artifactd.registry.mirror.refusals import Refusals, stale, translated
from artifactd.registry.model import HIT, ManifestFound, Provenance
from artifactd.settings.remote import RemoteSettings
from artifactd.store.blobs import BlobStore
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.interfaces import Upstream, UpstreamHead

_log = Logger()

# Tags that are asked for by GET alone since HEAD was wrong, and seconds for which they are.
_MISLED = 1024
_SECONDS_MISLED = 3600.0
_OFFLINE = "the upstream is not asked (offline)"


@define(eq=False)
class RemoteManifests:
    """
    The manifests of one upstream's images.

    :param refusals: the upstream's recent "not found" answers.
    :param now: seconds since the epoch.
    """

    upstream: Upstream
    catalog: Catalog
    remote: RemoteCatalog
    blobs: BlobStore
    last_used: LastUsed
    counters: RepositoryCounters
    settings: RemoteSettings
    refusals: Refusals
    run: RunInThread
    bounds: ManifestBounds
    now: Callable[[], float] = time.time
    _single_flight: SingleFlight[tuple[ImageName, Reference], ManifestFound] = field(
        factory=SingleFlight, init=False
    )
    # Tags that GET found to be another manifest than HEAD had said.
    _misled: TTLCache[tuple[ImageName, Tag], bool] = field(init=False)

    @_misled.default
    def _none_misled(self) -> TTLCache[tuple[ImageName, Tag], bool]:
        return TTLCache(_MISLED, _SECONDS_MISLED, self.now)

    async def get(self, image: ImageName, reference: Reference) -> ManifestFound:
        """Find a manifest: in the cache if it is fresh there, else upstream."""
        found = await self._get(image, reference)
        self.last_used.touch(image, found.record.digest)
        return found

    async def _get(self, image: ImageName, reference: Reference) -> ManifestFound:
        here = await self._here(image, reference)
        if isinstance(here, ManifestFound):
            return here
        if self.settings.offline:
            return self._offline(image, reference, here)
        key = image, reference
        joined = self._single_flight.under_way(key)
        started = self.now()
        found = await self._single_flight.join(key, lambda: self._ask(image, reference))
        if found.provenance is HIT:
            return found
        how = evolve(found.provenance, waited=max(self.now() - started, 0.0))
        if joined:
            self.counters.coalesced.inc()
            how = evolve(how, cache=f"{how.cache}; collapsed")
        if how.stale is not None:
            self.counters.stale.inc()
        return evolve(found, provenance=how)

    async def _here(
        self, image: ImageName, reference: Reference
    ) -> ManifestFound | CachedTag | None:
        """The cached manifest, or a cached tag that is not fresh, or None."""
        if isinstance(reference, Tag):
            cached = await self.remote.cached_tag(image, reference)
            if cached is None or not self._is_fresh(cached):
                return cached
            record: ManifestRecord | None = cached.record
        else:
            record = await self.catalog.manifest(image, reference)
        if record is None:
            return None
        self.counters.hits.inc()
        return ManifestFound(record, image, HIT)

    def _is_fresh(self, cached: CachedTag) -> bool:
        age = self.now() - cached.checked_at
        return 0 <= age < self._freshness

    def _offline(
        self, image: ImageName, reference: Reference, cached: CachedTag | None
    ) -> ManifestFound:
        if cached is None:
            raise ManifestUnknown(
                "this manifest is not cached, and the upstream is not asked (offline)",
                {"name": str(image), "reference": str(reference)},
            )
        self.counters.stale.inc()
        return ManifestFound(cached.record, image, stale(_OFFLINE))

    async def restore(self, image: ImageName, digest: Digest) -> None:
        """
        Fetch a manifest again whose bytes were lost, or evicted a moment ago.

        :raises RegistryError: if the upstream does not give it.
        """
        if self.settings.offline:
            self._offline(image, digest, None)
        try:
            await self._fetch(image, digest, digest)
        except UpstreamError as error:
            raise translated(
                error, ManifestUnknown, name=str(image), reference=str(digest)
            ) from error

    # -- the upstream is asked

    async def _ask(self, image: ImageName, reference: Reference) -> ManifestFound:
        # Looked up again: another request may have fetched it since the first look.
        cached = await self._here(image, reference)
        if isinstance(cached, ManifestFound):
            return cached
        refused: UpstreamError | None = self.refusals.of(image, reference)
        if refused is None:
            try:
                if cached is None or not isinstance(reference, Tag):
                    self.counters.misses.inc()
                    return await self._fetch(image, reference, reference)
                self.counters.revalidated.inc()
                return await self._revalidate(image, reference, cached)
            except UpstreamError as error:
                self.refusals.remember(image, reference, error)
                refused = error
        if cached is not None and self._may_be_stale(cached):
            _log.info(
                "{image}:{tag} is stale: {reason}",
                image=image,
                tag=reference,
                reason=refused.reason,
            )
            return ManifestFound(cached.record, image, stale(refused.reason, refused.status))
        told = translated(refused, ManifestUnknown, name=str(image), reference=str(reference))
        raise told from refused

    def _may_be_stale(self, cached: CachedTag) -> bool:
        if not self.settings.max_stale:
            return True
        return self.now() - cached.checked_at < self._freshness + self.settings.max_stale

    @property
    def _freshness(self) -> float:
        return self.settings.freshness * self.upstream.frugality()

    async def _revalidate(self, image: ImageName, tag: Tag, cached: CachedTag) -> ManifestFound:
        """Ask for a cached tag again: by HEAD, and by GET where that says nothing or is wrong."""
        told = await self._told(image, tag, cached.record)
        if told is None:
            return await self._revalidate_by_get(image, tag, cached)
        kept = await self._kept(image, tag, cached, told.digest)
        if kept is not None:
            return kept
        if await self.remote.point_tag(image, tag, told.digest):
            record = await self.catalog.manifest(image, told.digest)
            if record is not None:
                how = Provenance("cache", "fwd=stale; fwd-status=200")
                return ManifestFound(record, image, how)
        try:
            # Fetched by digest, so that a tag that moves meanwhile can't mix two answers.
            fetched = await self._download(image, told.digest)
            if _describes(told, fetched.media_type, len(fetched.content)):
                return await self._keep(image, tag, fetched)
        except (Missing, Unreachable) as error:
            if error.status is None:
                raise
        found = await self._revalidate_by_get(image, tag, cached)
        if found.record.digest != told.digest:
            self._misled[image, tag] = True
        return found

    async def _told(
        self, image: ImageName, tag: Tag, current: ManifestRecord
    ) -> UpstreamHead | None:
        """
        Ask by HEAD what ``tag`` is now; ``None``: only GET can tell.

        :param current: the cached manifest.
        """
        if (image, tag) in self._misled:
            return None
        told = await self.upstream.manifest_head(image.image, tag, current.digest)
        if told is None:
            return None
        record: ManifestRecord | None = current
        if told.digest != current.digest:
            record = await self.catalog.manifest(image, told.digest)
        if record is not None and not _describes(told, record.media_type, record.size):
            return None
        return told

    async def _revalidate_by_get(
        self, image: ImageName, tag: Tag, cached: CachedTag
    ) -> ManifestFound:
        fetched = await self._download(image, tag)
        kept = await self._kept(image, tag, cached, fetched.digest)
        return kept or await self._keep(image, tag, fetched)

    async def _kept(
        self, image: ImageName, tag: Tag, cached: CachedTag, digest: Digest
    ) -> ManifestFound | None:
        """
        The cached manifest if ``digest``, which the upstream names, is its own, or is not served
        yet; else None.
        """
        candidate, how = None, "fwd=stale; detail=confirmed"
        if digest != cached.record.digest:
            if self._held_back(image, tag, cached, digest) is None:
                return None
            candidate, how = digest, "fwd=stale; fwd-status=200; detail=cooldown"
        await self.remote.keep_tag(image, tag, candidate)
        return ManifestFound(cached.record, image, Provenance("cache", how))

    def _held_back(
        self, image: ImageName, tag: Tag, cached: CachedTag, digest: Digest
    ) -> float | None:
        """Seconds of cooldown left before ``digest`` is served; ``None``: serve it."""
        cooldown = self._cooldown_of(image, tag)
        if not cooldown:
            return None
        since = self.now()
        if cached.candidate == digest and cached.candidate_at is not None:
            since = cached.candidate_at
        left = since + cooldown - self.now()
        return left if left > 0 else None

    def _cooldown_of(self, image: ImageName, tag: Tag) -> float:
        """The cooldown of a tag: seconds for which a change of it is not served."""
        names = (image.image, f"{image.image}:{tag}")
        if any(matches(name, self.settings.cooldown_except) for name in names):
            return 0.0
        return self.settings.cooldown

    async def _fetch(
        self, image: ImageName, reference: Reference, wanted: Reference
    ) -> ManifestFound:
        """Fetch and cache a manifest, and point ``wanted`` at it if that is a tag."""
        manifest = await self._download(image, reference)
        return await self._keep(image, wanted if isinstance(wanted, Tag) else None, manifest)

    async def _download(self, image: ImageName, reference: Reference) -> Manifest:
        sent = await self.upstream.manifest(image.image, reference)
        digest = reference if isinstance(reference, Digest) else sent.digest
        try:
            read = partial(
                read_manifest, sent.content, sent.content_type, digest, bounds=self.bounds
            )
            return await parsed(self.run, sent.content, read)
        except DigestInvalid:
            self.counters.corrupt.inc()
            _log.error(
                "{upstream} sent wrong bytes for {image}@{digest}: nothing was kept",
                upstream=self.upstream.name,
                image=image,
                digest=digest,
            )
            problem = f"its bytes do not have the digest {digest}"
        except ManifestInvalid as error:
            problem = error.message
        # Treated as no answer: the cached manifest is served instead.
        told = (sent.content_type or "nothing")[:100]
        raise Unreachable(
            f"what {self.upstream.name} sent as {told} is not this manifest: {problem}", 200
        )

    async def _keep(self, image: ImageName, tag: Tag | None, manifest: Manifest) -> ManifestFound:
        await self.blobs.require_room()
        staged = await self.blobs.publish(manifest.digest, manifest.content)
        await publish(
            staged,
            self.catalog,
            lambda: self.remote.cache_manifest(
                image, manifest, tag, staged.confirm, staged.release
            ),
        )
        record = ManifestRecord(
            manifest.digest,
            len(manifest.content),
            manifest.media_type,
            manifest.artifact_type,
            manifest.subject,
            manifest.annotations,
        )
        how = Provenance("remote", "fwd=miss; fwd-status=200; stored")
        return ManifestFound(record, image, how)


def _describes(told: UpstreamHead, media_type: str, size: int) -> bool:
    """Whether what HEAD says of a digest is true of the manifest that has it."""
    return told.media_type in (None, media_type.lower()) and told.size in (None, size)
