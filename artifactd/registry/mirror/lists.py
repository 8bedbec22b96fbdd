"""Lists of a remote repository: tags and referrers, page by page as the upstream sends them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from attrs import define, evolve, field
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.remote import CachedPage, RemoteCatalog
from artifactd.kit.deferreds import SingleFlight
from artifactd.oci.digest import Digest
from artifactd.oci.errors import ManifestUnknown, NameUnknown, RegistryError
from artifactd.oci.foreign import decode_foreign
from artifactd.oci.manifest import INDEX_TYPES
from artifactd.oci.names import ImageName, Tag
from artifactd.registry.content import Contents
from artifactd.registry.local import index_of, referrers_page
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.manifests import RemoteManifests
from artifactd.registry.mirror.refusals import Refusals, stale, translated
from artifactd.registry.model import (
    HIT,
    PACKED,
    PAGING,
    ListWanted,
    Provenance,
    ReferrersFound,
    TagsFound,
)
from artifactd.upstream.errors import Missing
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.interfaces import Upstream, UpstreamPage

_log = Logger()

_STORED = Provenance("remote", "fwd=miss; fwd-status=200; stored")
_Fetch = Callable[[], Awaitable[tuple[UpstreamPage, Provenance]]]


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class _Index(msgspec.Struct):
    manifests: list[dict[str, Any]] | None = None


_T = TypeVar("_T")

_tags = msgspec.json.Decoder(_Tags)
_index = msgspec.json.Decoder(_Index)

# Some upstreams send all tags of an image at once.
_VALUES = 500_000

# Bytes above which a list is decoded in a thread: it takes over a millisecond.
_IN_THREAD = 64 << 10


@define(eq=False)
class RemoteLists:
    """
    Caches the pages of an upstream's lists; a page is fresh for as long as a tag is.

    While the upstream can't answer, its last page is merged with the cached tags and referrers.
    """

    upstream: Upstream
    catalog: Catalog
    remote: RemoteCatalog
    manifests: RemoteManifests
    contents: Contents
    counters: RepositoryCounters
    refusals: Refusals
    now: Callable[[], float] = time.time
    _single_flight: SingleFlight[tuple[ImageName, str], tuple[CachedPage, Provenance]] = field(
        factory=SingleFlight, init=False
    )

    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        """List tags.  :raises NameUnknown: if the upstream has no such image."""
        query = _unpacked(wanted.query)

        async def fetch() -> tuple[UpstreamPage, Provenance]:
            page = await self.upstream.tags(image.image, query)
            await self._decoded(_tags, page.body, image)
            return page, _STORED

        try:
            page, how = await self._page(image, f"tags?{urlencode(query)}", fetch)
        except UpstreamError as error:
            cached = await self.catalog.tags(image, wanted.after, wanted.limit + 1)
            if not cached or not self._stands_in:
                raise translated(error, NameUnknown, name=str(image)) from error
            shown = cached[: wanted.limit]
            last = shown[-1] if shown and len(cached) > len(shown) else None
            self.counters.stale.inc()
            return TagsFound(shown, _behind(last, wanted), stale(error.reason, error.status))
        tags = (await self._decoded(_tags, page.body, image)).tags or []
        if how.stale is not None:
            cached = await self.catalog.tags(image, wanted.after, wanted.limit)
            tags = sorted({*tags, *_upto(cached or [], tags if page.next else [])})
        if not wanted.limit:
            return TagsFound([], None, how)  # some upstreams take 0 for no limit
        return TagsFound(tags, _packed(page.next), how)

    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        """List referrers; empty if the upstream has no such image."""
        query = _unpacked(wanted.query)

        async def fetch() -> tuple[UpstreamPage, Provenance]:
            try:
                page = await self.upstream.referrers(image.image, subject, query)
            except Missing as error:
                return await self._by_tag(image, subject, error)
            await self._decoded(_index, page.body, image)
            return page, _STORED

        key = f"referrers/{subject}?{urlencode(query)}"
        try:
            page, how = await self._page(image, key, fetch)
        except UpstreamError as error:
            records = await self.catalog.referrers(
                image, subject, artifact_type, wanted.after, wanted.limit + 1
            )
            if not records or not self._stands_in:
                if isinstance(error, Missing):
                    return ReferrersFound(index_of([]), provenance=self._none(error))  # never 404
                raise translated(error, NameUnknown, name=str(image)) from error
            index, last = referrers_page(records, wanted.limit)
            self.counters.stale.inc()
            how = stale(error.reason, error.status)
            return ReferrersFound(index, _behind(last, wanted), artifact_type is not None, how)
        filtered = artifact_type is not None and "artifactType" in (page.filtered or "")
        if how.stale is None:
            return ReferrersFound(page.body, _packed(page.next), filtered, how)
        index = await self._merged(image, subject, artifact_type if filtered else None, page.body)
        return ReferrersFound(index, _packed(page.next), filtered, how)

    def _none(self, error: Missing) -> Provenance:
        """The provenance of an empty list."""
        if self.manifests.settings.offline:
            return stale(error.reason)
        if not error.asked:
            return Provenance("cache", "hit; detail=negative")
        told = f"; fwd-status={error.status}" if error.status else ""
        return Provenance("remote", f"fwd=miss{told}")

    @property
    def _stands_in(self) -> bool:
        """Whether cached tags and referrers of any age may be listed for the upstream."""
        return self.manifests.settings.offline or not self.manifests.settings.max_stale

    async def _page(
        self, image: ImageName, key: str, fetch: _Fetch
    ) -> tuple[CachedPage, Provenance]:
        """A page, cached or fetched.  :raises UpstreamError: if there is neither."""
        cached = await self.remote.cached_page(image, key)
        settings = self.manifests.settings
        age = None if cached is None else self.now() - cached.fetched_at
        freshness = settings.freshness * self.upstream.frugality()
        if cached is not None and age is not None and 0 <= age < freshness:
            self.counters.hits.inc()
            return cached, HIT
        started = self.now()
        try:
            if settings.offline:
                raise Missing("the upstream is not asked (offline)", asked=False)
            refused = self.refusals.of(image, key)
            if refused is not None:
                raise refused
            joined = self._single_flight.under_way((image, key))
            page, how = await self._single_flight.join(
                (image, key), lambda: self._fetch(image, key, fetch)
            )
            if joined:
                self.counters.coalesced.inc()
                how = evolve(how, cache=f"{how.cache}; collapsed")
            return page, evolve(how, waited=max(self.now() - started, 0.0))
        except UpstreamError as error:
            most = settings.max_stale
            too_old = age is not None and most and age >= freshness + most
            if cached is None or too_old:
                raise
            self.counters.stale.inc()
            return cached, stale(error.reason, error.status)

    async def _fetch(
        self, image: ImageName, key: str, fetch: _Fetch
    ) -> tuple[CachedPage, Provenance]:
        self.counters.misses.inc()
        try:
            sent, how = await fetch()
        except UpstreamError as error:
            self.refusals.remember(image, key, error)
            raise
        page = CachedPage(sent.body, sent.next, sent.filtered, self.now())
        if how.stale is None:
            await self.remote.cache_page(image, key, page)
        return page, how

    async def _by_tag(
        self, image: ImageName, subject: Digest, refused: Missing
    ) -> tuple[UpstreamPage, Provenance]:
        """
        List referrers by the tag that an upstream without the endpoint has for them.

        :raises Missing: ``refused``, the endpoint's answer, if the image is unknown here.
        """
        # distribution-spec, "Referrers Tag Schema".
        tag = Tag.parse(f"{subject.algorithm}-{subject.encoded}"[:128])
        descriptors: list[dict[str, Any]] = []
        how = _STORED
        try:
            found = await self.manifests.get(image, tag)
            if found.record.media_type in INDEX_TYPES:
                content = await self._content(image, found.record.digest)
                descriptors = (await self._decoded(_index, content, image)).manifests or []
            if found.provenance.stale is not None:
                how = found.provenance
        except ManifestUnknown:
            # Clients may ask for any name: pages are kept only of images that exist.
            if not await self.remote.is_known(image):
                raise refused from None
        except RegistryError as error:
            if isinstance(error.__cause__, UpstreamError):
                raise error.__cause__ from None  # a cached page may stand in for it
            raise
        return UpstreamPage(index_of(descriptors)), how

    async def _content(self, image: ImageName, digest: Digest) -> bytes:
        """The bytes of a manifest, fetched again if the store has lost them."""
        try:
            return await self.contents.of(digest)
        except (RuntimeError, OSError) as error:
            _log.warn("a manifest of {image} is fetched again: {error}", image=image, error=error)
        await self.manifests.restore(image, digest)
        return await self.contents.of(digest)

    async def _merged(
        self, image: ImageName, subject: Digest, artifact_type: str | None, body: bytes
    ) -> bytes:
        listed = (await self._decoded(_index, body, image)).manifests or []
        records = await self.catalog.referrers(image, subject, artifact_type, None, 1000)
        here, _ = referrers_page(records, 1000)
        known = {descriptor.get("digest") for descriptor in listed}
        cached = (await self._decoded(_index, here, image)).manifests or []
        return index_of([*listed, *(d for d in cached if d.get("digest") not in known)])

    async def _decoded(
        self, decoder: msgspec.json.Decoder[_T], body: bytes, image: ImageName
    ) -> _T:
        """
        Decode a list that the upstream sent, in a thread if large.

        :raises Unreachable: if it is no such list, or exceeds the bounds of JSON.
        """
        decode = partial(decode_foreign, decoder, body, values=_VALUES)
        try:
            return decode() if len(body) <= _IN_THREAD else await self.manifests.run(decode)
        except ValueError as error:
            raise Unreachable(f"what was sent for {image} is not this list: {error}", 200) from None


def _packed(query: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Pack an upstream's query for its next page into one that a client returns unchanged."""
    if query is None or query.keys() <= PAGING:
        return query
    ours = {name: value for name, value in query.items() if name in PAGING}
    theirs = {name: value for name, value in query.items() if name not in PAGING}
    return {**ours, PACKED: urlencode(theirs)}


def _unpacked(query: Mapping[str, str]) -> dict[str, str]:
    """Unpack a client's query into the one for the upstream."""
    ours = {name: value for name, value in query.items() if name != PACKED}
    return {**ours, **dict(parse_qsl(query.get(PACKED, ""), keep_blank_values=True))}


def _upto(cached: list[str], page: list[str]) -> list[str]:
    """The cached tags that would be on a page that ends with the last tag of ``page``."""
    last = max(page, default=None)
    return [tag for tag in cached if last is None or tag <= last]


def _behind(last: str | None, wanted: ListWanted) -> Mapping[str, str] | None:
    """The query of the page after ``last``."""
    return None if last is None else {**wanted.query, "last": last}
