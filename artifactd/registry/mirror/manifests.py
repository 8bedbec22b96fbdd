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
from artifactd.oci.errors import DigestInvalid, ManifestInvalid, ManifestUnknown
from artifactd.oci.manifest import Manifest, ManifestBounds, read_manifest
from artifactd.oci.names import Digest, ImageName, Reference, Tag, matches
from artifactd.registry.content import parsed, publish
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.eviction import LastUsed
from artifactd.registry.mirror.refusals import Refusals, stale, translated
from artifactd.registry.mirror.stale import Overdue, StaleTag, StaleTags
from artifactd.registry.mirror.told import ToldTags
from artifactd.registry.model import HIT, ManifestFound, Provenance
from artifactd.settings.remote import RemoteSettings
from artifactd.store.blobs import BlobStore
from artifactd.upstream.errors import Missing, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
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
    :param stale: is told of the tags that are answered past their freshness.
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
    stale: StaleTags = field(factory=StaleTags)
    overdue: Overdue = field(init=False)
    # Requests, and whether HEAD will do: GET's outcome answers both.
    _single_flight: SingleFlight[tuple[ImageName, Reference, bool], ManifestFound] = field(
        factory=SingleFlight, init=False
    )
    _told: ToldTags = field(init=False)
    # Whether the last HEAD was of use; if not, none is made for a GET that could do without.
    _head_helps: bool = field(default=True, init=False)
    # Tags that HEAD had said to be a manifest that GET does not give.
    _misled: TTLCache[tuple[ImageName, Tag], bool] = field(init=False)

    @overdue.default
    def _not_overdue(self) -> Overdue:
        return Overdue(self.refusals.clock, self.settings.stale_after)

    @_told.default
    def _none_told(self) -> ToldTags:
        return ToldTags(self.settings.freshness, self.now)

    @_misled.default
    def _none_misled(self) -> TTLCache[tuple[ImageName, Tag], bool]:
        return TTLCache(_MISLED, _SECONDS_MISLED, self.now)

    async def get(
        self, image: ImageName, reference: Reference, *, head: bool = False
    ) -> ManifestFound:
        """
        Find a manifest: in the cache if it is fresh there, else upstream.

        :param head: whether only what it is is wanted: of a tag that is not cached, or has moved,
            the upstream is asked that by HEAD, which Docker Hub does not count.
        """
        found = await self._get(image, reference, head=head)
        if found.provenance.verified:
            self.last_used.touch(image, found.record.digest)
        return found

    async def _get(self, image: ImageName, reference: Reference, *, head: bool) -> ManifestFound:
        here = await self._here(image, reference)
        if isinstance(here, ManifestFound):
            return here
        if self.settings.offline:
            return self._offline(image, reference, here)
        if head and isinstance(reference, Tag):
            told = self._told.fresh(image, reference)
            if told is not None:
                self.counters.hits.inc()
                return ManifestFound(told, image, Provenance("cache", "hit", verified=False))
        head = head and not self._single_flight.under_way((image, reference, False))
        key = image, reference, head
        joined = self._single_flight.under_way(key)
        started = self.now()
        asked = self._single_flight.join(key, lambda: self._ask(image, reference, head=head))
        if here is not None and self._may_be_stale(here):
            try:
                found = await self.overdue.wait(asked)
            except TimedOut as error:
                found = _stands_in(here, image, reference, error)
        else:
            found = await asked
        if found.provenance is HIT:
            return found
        how = evolve(found.provenance, waited=max(self.now() - started, 0.0))
        if joined:
            self.counters.coalesced.inc()
            how = evolve(how, cache=f"{how.cache}; collapsed")
        if how.stale is not None:
            self._note_stale(image, reference, here, how.stale)
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
        self._note_stale(image, reference, cached, _OFFLINE)
        return ManifestFound(cached.record, image, stale(_OFFLINE))

    def _note_stale(
        self, image: ImageName, reference: Reference, cached: CachedTag | None, why: str
    ) -> None:
        self.counters.stale.inc()
        if cached is not None:
            checked, name, tag = cached.checked_at, str(image), str(reference)
            since = checked + self._freshness
            self.stale.note(StaleTag(name, tag, checked, since, self.now(), why))

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

    async def _ask(self, image: ImageName, reference: Reference, *, head: bool) -> ManifestFound:
        # Looked up again: another request may have fetched it since the first look.
        cached = await self._here(image, reference)
        if isinstance(cached, ManifestFound):
            return cached
        refused: UpstreamError | None = self.refusals.of(image, reference)
        if refused is None:
            try:
                if cached is None or not isinstance(reference, Tag):
                    self.counters.misses.inc()
                    asking = self._find(image, reference, head=head)
                else:
                    self.counters.revalidated.inc()
                    asking = self._revalidate(image, reference, cached, head=head)
                return await self.overdue.answered(asking)
            except UpstreamError as error:
                self.refusals.remember(image, reference, error)
                refused = error
                if isinstance(reference, Digest) and _gives_other(error):
                    self._doubt_head(image, reference)
        if cached is not None and self._may_be_stale(cached):
            return _stands_in(cached, image, reference, refused)
        told = translated(refused, ManifestUnknown, name=str(image), reference=str(reference))
        raise told from refused

    def _may_be_stale(self, cached: CachedTag) -> bool:
        if not self.settings.max_stale:
            return True
        return self.now() - cached.checked_at < self._freshness + self.settings.max_stale

    @property
    def _freshness(self) -> float:
        return self.settings.freshness * self.upstream.frugality()

    async def _find(self, image: ImageName, reference: Reference, *, head: bool) -> ManifestFound:
        """
        Find a manifest of which nothing is cached by its reference: by HEAD where that may do, else
        by GET.

        Most new tags of an image that is here are one of its manifests.
        """
        if not isinstance(reference, Tag) or not (
            head or (self._head_helps and await self.remote.is_known(image))
        ):
            return await self._fetch(image, reference, reference)
        try:
            told = await self._ask_head(image, reference, None)
        except UpstreamError as error:
            self._head_helps = self._head_helps and not isinstance(error, Unreachable)
            if head or not isinstance(error, Throttled):
                raise
            return await self._fetch(image, reference, reference)
        if told is not None:
            found = await self._found_by_head(image, reference, told, "fwd=miss", head=head)
            if found is not None:
                return found
        fetched = await self._fetch(image, reference, reference)
        self._head_helps = told is not None
        return fetched

    async def _found_by_head(
        self, image: ImageName, tag: Tag, told: UpstreamHead, why: str, *, head: bool
    ) -> ManifestFound | None:
        """The manifest that ``tag`` is, if it is here or HEAD is all that is wanted; else None."""
        how = f"{why}; fwd-status=200"
        record = await self.catalog.manifest(image, told.digest)
        if record is not None and await self.remote.point_tag(image, tag, told.digest):
            return ManifestFound(record, image, Provenance("cache", how))
        if not (head and told.media_type and told.size):
            return None
        record = ManifestRecord(told.digest, told.size, told.media_type)
        self._told.remember(image, tag, record)
        return ManifestFound(record, image, Provenance("remote", how, verified=False))

    async def _revalidate(
        self, image: ImageName, tag: Tag, cached: CachedTag, *, head: bool
    ) -> ManifestFound:
        """Ask for a cached tag again: by HEAD, and by GET where that says nothing or is wrong."""
        told = await self._ask_head(image, tag, cached.record)
        if told is None:
            return await self._revalidate_by_get(image, tag, cached)
        kept = await self._kept(image, tag, cached, told.digest)
        if kept is not None:
            return kept
        found = await self._found_by_head(image, tag, told, "fwd=stale", head=head)
        if found is not None:
            return found
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

    async def _ask_head(
        self, image: ImageName, tag: Tag, current: ManifestRecord | None
    ) -> UpstreamHead | None:
        """
        Ask by HEAD what ``tag`` is now; ``None``: only GET can tell.

        :param current: the cached manifest, if the tag is cached.
        """
        if (image, tag) in self._misled:
            return None
        known = None if current is None else current.digest
        told = await self.upstream.manifest_head(image.image, tag, known)
        if told is None:
            return None
        self._head_helps = True
        record = current
        if told.digest != known:
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

    def _doubt_head(self, image: ImageName, digest: Digest) -> None:
        """Ask by GET alone for the tags that HEAD has said to be ``digest``, which GET refuses."""
        for tag in self._told.tags_of(image, digest):
            self._told.forget(image, tag)
            self._misled[image, tag] = True

    async def _keep(self, image: ImageName, tag: Tag | None, manifest: Manifest) -> ManifestFound:
        await self.blobs.require_room()
        told = await self._tags_told(image, manifest.digest)
        staged = await self.blobs.publish(manifest.digest, manifest.content)
        await publish(
            staged,
            self.catalog,
            lambda: self.remote.cache_manifest(
                image, manifest, tag, staged.confirm, staged.release, told
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

    async def _tags_told(self, image: ImageName, digest: Digest) -> dict[Tag, float]:
        """The tags that were told by HEAD to be ``digest``, unless something newer is cached."""
        tags = {}
        for tag, at in self._told.tags_of(image, digest).items():
            cached = await self.remote.cached_tag(image, tag)
            if cached is None or cached.checked_at < at:
                tags[tag] = at
        return tags


def _gives_other(error: UpstreamError) -> bool:
    """Whether the upstream has answered that it lacks a manifest, or sent something else for it."""
    return isinstance(error, Missing | Unreachable) and (error.status or 500) < 500


def _stands_in(
    cached: CachedTag, image: ImageName, tag: Reference, error: UpstreamError
) -> ManifestFound:
    """What is cached of a tag, for the upstream that fails so."""
    _log.info("{image}:{tag} is stale: {why}", image=image, tag=tag, why=error.reason)
    return ManifestFound(cached.record, image, stale(error.reason, error.status))


def _describes(told: UpstreamHead, media_type: str, size: int) -> bool:
    """Whether what HEAD says of a digest is true of the manifest that has it."""
    return told.media_type in (None, media_type.lower()) and told.size in (None, size)
