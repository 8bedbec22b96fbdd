"""Lists of a remote repository: tags and referrers, page by page as the upstream sends them."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from heapq import merge
from itertools import chain
from typing import Annotated, TypeVar
from urllib.parse import urlencode

import msgspec
from attrs import define, evolve, field, frozen
from msgspec import Meta
from twisted.internet.defer import DeferredSemaphore
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.remote import CachedPage, RemoteCatalog
from artifactd.kit.deferreds import SingleFlight
from artifactd.kit.sealed import seal, unseal
from artifactd.oci.errors import (
    ManifestUnknown,
    NameUnknown,
    QueryInvalid,
    RegistryError,
)
from artifactd.oci.foreign import VALUES, decode_foreign, strings_of
from artifactd.oci.manifest import INDEX_TYPES, MEDIA_TYPE_LENGTH
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.registry.content import Contents
from artifactd.registry.local import index_of, referrers_page
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.eviction import LastUsed
from artifactd.registry.mirror.manifests import RemoteManifests
from artifactd.registry.mirror.refusals import Refusals, stale, translated
from artifactd.registry.model import (
    CONTINUATION,
    HIT,
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


class _Tags(msgspec.Struct):  # distribution-spec, "Listing Tags"
    """Its tags are an array of strings in JSON, or null."""

    tags: msgspec.Raw = msgspec.Raw(b"null")


_MediaType = Annotated[str, Meta(max_length=MEDIA_TYPE_LENGTH)]
_Digest = Annotated[
    str, Meta(pattern=r"\A[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+\Z", max_length=512)
]
_Count = Annotated[int, Meta(ge=0)]


# As Go's programs read them: what they leave out, or take null for, is no reason to refuse a list.
class _Platform(msgspec.Struct, omit_defaults=True):  # image-spec, "Image Index"
    architecture: str | None = None
    os: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = None
    features: list[str] | None = None


class _Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):  # image-spec, "Descriptors"
    digest: _Digest
    size: _Count
    media_type: _MediaType | None = None
    artifact_type: _MediaType | None = None
    annotations: dict[str, str | None] | None = None
    urls: list[str] | None = None
    data: str | None = None
    platform: _Platform | None = None


class _Index(msgspec.Struct):
    """An image index: JSON without ``manifests`` is something else, which is not for clients."""

    manifests: list[_Descriptor] | None


@frozen
class Seal:
    """
    Seals the queries of an upstream's next pages: clients can neither read nor make them.

    What is sealed is the same each time, at every process with the key, and after restarts.

    :param key: 32 bytes.
    :param repository: the repository and its upstream: another one opens none of its seals.
    """

    key: bytes = field(repr=False)
    repository: str

    def close(self, query: Mapping[str, str], image: ImageName, of: str) -> str:
        """Seal a query for the list ``of`` (``tags``, or ``referrers/<digest>``) of ``image``."""
        return seal(self.key, msgspec.json.encode(query), *self._bound(image, of))

    def open(self, sealed: str, image: ImageName, of: str) -> dict[str, str]:
        """:raises QueryInvalid: if :meth:`close` has not made it for this list."""
        content = unseal(self.key, sealed, *self._bound(image, of))
        if content is None:
            raise QueryInvalid(
                f"{CONTINUATION} is none that this list has given: list it from the beginning"
            )
        return _query.decode(content)

    def _bound(self, image: ImageName, of: str) -> list[bytes]:
        return [self.repository.encode(), image.image.encode(), of.encode()]


_query = msgspec.json.Decoder(dict[str, str])


_T = TypeVar("_T")
_U = TypeVar("_U")

_tags = msgspec.json.Decoder(_Tags)
_json = msgspec.json.Decoder(msgspec.Raw)
_index = msgspec.json.Decoder(_Index)

# Some upstreams send all tags of an image at once.
_ALL_TAGS = 500_000

# Pages of one repository that are read or decoded at the same time.
_AT_A_TIME = 2

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
    last_used: LastUsed
    seal: Seal
    now: Callable[[], float] = time.time
    _single_flight: SingleFlight[tuple[ImageName, str], tuple[CachedPage, Provenance]] = field(
        factory=SingleFlight, init=False
    )
    _turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(_AT_A_TIME), init=False)

    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        """
        List tags.

        :raises NameUnknown: if the upstream has no such image.
        :raises QueryInvalid: if ``last`` is no tag, or the continuation is none of this list.
        """
        _check_last(wanted.after, Tag.parse, "a tag")
        query = self._query(image, "tags", wanted)
        after = query.get("last")

        async def fetch() -> tuple[UpstreamPage, Provenance]:
            asking = self.upstream.tags(image.image, query)
            page = await self.manifests.overdue.answered(asking)
            async with self._turn():
                body = await self._of_json(_tags, _listed_tags, page.body, image, _ALL_TAGS)
            return UpstreamPage(body, page.next), _STORED

        try:
            page, how = await self._page(image, _key("tags", query), fetch)
        except UpstreamError as error:
            cached = await self.catalog.tags(image, after, wanted.limit + 1)
            if not cached or not self._stands_in:
                raise translated(error, NameUnknown, name=str(image)) from error
            shown = cached[: wanted.limit]
            last = shown[-1] if shown and len(cached) > len(shown) else None
            self.counters.stale.inc()
            tags = msgspec.json.encode(shown)
            return TagsFound(tags, _behind(last, wanted), stale(error.reason, error.status))
        if not wanted.limit:
            return TagsFound(b"[]", None, how)  # some upstreams take 0 for no limit
        tags = page.body
        if how.stale is not None:
            cached = await self.catalog.tags(image, after, wanted.limit) or []
            merged = partial(_with_tags, cached=cached, to_the_end=page.next is None)
            async with self._turn():
                tags = await self._of_json(_json, merged, tags, image, _ALL_TAGS)
        return TagsFound(tags, self._following(image, page.next), how)

    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        """
        List referrers; empty if the upstream has no such image.

        :raises QueryInvalid: if ``last`` is no digest, or the continuation is none of this list.
        """
        _check_last(wanted.after, Digest.parse, "a digest")
        of = f"referrers/{subject}"
        query = self._query(image, of, wanted)
        if wanted.sealed is None and artifact_type and _MEDIA_TYPE.fullmatch(artifact_type):
            query["artifactType"] = artifact_type

        async def fetch() -> tuple[UpstreamPage, Provenance]:
            try:
                asking = self.upstream.referrers(image.image, subject, query)
                page = await self.manifests.overdue.answered(asking)
            except Missing as error:
                return await self._by_tag(image, subject, _key(of, query), error)
            async with self._turn():
                body = await self._of_json(_index, _listed_referrers, page.body, image)
            filtered = "artifactType" if "artifactType" in (page.filtered or "") else None
            return UpstreamPage(body, page.next, filtered), _STORED

        try:
            page, how = await self._page(image, _key(of, query), fetch)
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
            behind = _behind(last, wanted, artifact_type)
            return ReferrersFound(index, behind, artifact_type is not None, how)
        following = None
        if page.next is not None:
            following = {CONTINUATION: self.seal.close(page.next, image, of)}
            if artifact_type is not None:
                following["artifactType"] = artifact_type
        filtered = artifact_type is not None and page.filtered is not None
        if how.stale is None:
            return ReferrersFound(page.body, following, filtered, how)
        async with self._turn():
            index = await self._merged(
                image, subject, artifact_type if filtered else None, page.body
            )
        return ReferrersFound(index, following, filtered, how)

    # -- the queries of pages

    def _query(self, image: ImageName, of: str, wanted: ListWanted) -> dict[str, str]:
        """The query for the upstream: what was sealed here, or made of what the client means."""
        if wanted.sealed is not None:
            return self.seal.open(wanted.sealed, image, of)
        # Some upstreams take 0 for no limit.
        query = {"n": str(max(wanted.limit, 1))} if wanted.counted else {}
        return query if wanted.after is None else {**query, "last": wanted.after}

    def _following(
        self, image: ImageName, query: Mapping[str, str] | None
    ) -> Mapping[str, str] | None:
        """The query of the next page of tags for the client: the spec's own, or a sealed one."""
        if query is None:
            return None
        try:
            Tag.parse(query["last"])
            if query.keys() == {"last"} or (query.keys() == {"n", "last"} and int(query["n"]) > 0):
                return query
        except (KeyError, ValueError, RegistryError):
            pass
        return {CONTINUATION: self.seal.close(query, image, "tags")}

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
        settings = self.manifests.settings
        freshness = settings.freshness * self.upstream.frugality()
        async with self._turn():
            cached = await self.remote.cached_page(image, key)
        age = None if cached is None else self.now() - cached.fetched_at
        if cached is not None and age is not None and 0 <= age < freshness:
            self.counters.hits.inc()
            self.last_used.touch(image, key)
            return cached, HIT
        del cached  # not to be kept by all that wait for the upstream
        most = settings.max_stale
        beyond = age is None or bool(most and age >= freshness + most)
        started = self.now()
        try:
            if settings.offline:
                raise Missing("the upstream is not asked (offline)", asked=False)
            refused = self.refusals.of(image, key)
            if refused is not None:
                raise refused
            joined = self._single_flight.under_way((image, key))
            asked = self._single_flight.join((image, key), lambda: self._fetch(image, key, fetch))
            page, how = await (asked if beyond else self.manifests.overdue.wait(asked))
            if joined:
                self.counters.coalesced.inc()
                how = evolve(how, cache=f"{how.cache}; collapsed")
            return page, evolve(how, waited=max(self.now() - started, 0.0))
        except UpstreamError as error:
            if beyond:
                raise
            async with self._turn():
                cached = await self.remote.cached_page(image, key)
            if cached is None:
                raise
            self.counters.stale.inc()
            self.last_used.touch(image, key)
            return cached, stale(error.reason, error.status)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """
        Wait until few other pages are read, or decoded, which takes ten times their size in memory.
        """
        await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

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
            most = int(self.manifests.settings.size_cap) or None
            await self.remote.cache_page(image, key, page, most)
        return page, how

    async def _by_tag(
        self, image: ImageName, subject: Digest, key: str, refused: Missing
    ) -> tuple[UpstreamPage, Provenance]:
        """
        List referrers by the tag that an upstream without the endpoint has for them.

        :param key: of the page.
        :raises Missing: ``refused``, the endpoint's answer, if there is no such tag and the image
            is unknown here, or the page has listed some, or the tag is withheld.
        """
        # distribution-spec, "Referrers Tag Schema".
        tag = Tag.parse(f"{subject.algorithm}-{subject.encoded}"[:128])
        descriptors: list[_Descriptor] = []
        how = _STORED
        try:
            found = await self.manifests.get(image, tag)
            # Some registries take the tag for the digest: a subject's children are no referrers.
            if found.record.media_type in INDEX_TYPES and found.record.digest != subject:
                content = await self._content(image, found.record.digest)
                descriptors = (await self._decoded(_index, content, image)).manifests or []
            if found.provenance.stale is not None:
                how = found.provenance
        except ManifestUnknown as error:
            # An upstream that gives nothing, or has listed some by the endpoint, has not said that
            # there are none.  Clients may ask for any name: pages are kept of images that exist.
            cause = error.__cause__
            is_withheld = isinstance(cause, Missing) and cause.status in (401, 403)
            async with self._turn():
                before = await self.remote.cached_page(image, key)
            has_listed = before is not None and before.body != index_of([])
            if is_withheld or has_listed or not await self.remote.is_known(image):
                raise refused from None
        except RegistryError as error:
            if isinstance(error.__cause__, UpstreamError):
                raise error.__cause__ from None  # a cached page may stand in for it
            raise
        return UpstreamPage(await self.manifests.run(index_of, descriptors)), how

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
        known = {descriptor.digest for descriptor in listed}
        cached = (await self._decoded(_index, here, image)).manifests or []
        merged = [*listed, *(each for each in cached if each.digest not in known)]
        return await self.manifests.run(index_of, merged)

    # -- JSON, in a thread where it is large

    async def _decoded(
        self, decoder: msgspec.json.Decoder[_T], body: bytes, image: ImageName
    ) -> _T:
        """
        Decode a list that the upstream sent, in a thread if large.

        :raises Unreachable: if it is no such list, or exceeds the bounds of JSON.
        """
        return await self._of_json(decoder, _as_it_is, body, image)

    async def _of_json(
        self,
        decoder: msgspec.json.Decoder[_T],
        make: Callable[[_T], _U],
        body: bytes,
        image: ImageName,
        values: int = VALUES,
    ) -> _U:
        """What ``make`` makes of what :meth:`_decoded` returns, in the same thread; its errors."""

        def work() -> _U:
            return make(decode_foreign(decoder, body, values=values))

        try:
            return work() if len(body) <= _IN_THREAD else await self.manifests.run(work)
        except ValueError as error:
            raise Unreachable(f"what was sent for {image} is not this list: {error}", 200) from None


# RFC 6838, 4.2; an upstream has nothing of any other type.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")


def _check_last(last: str | None, parse: Callable[[str], object], what: str) -> None:
    """:raises QueryInvalid: if ``parse`` refuses ``last``."""
    if last is None:
        return
    try:
        parse(last)
    except RegistryError:
        raise QueryInvalid(f"last must be {what}", {"last": last[:200]}) from None


def _key(of: str, query: Mapping[str, str]) -> str:
    """The key of a page in the catalog."""
    return f"{of}?{urlencode(sorted(query.items()))}"


def _as_it_is(value: _T) -> _T:
    return value


def _listed_tags(listed: _Tags) -> bytes:
    if bytes(listed.tags) == b"null":
        return b"[]"
    pieces = (msgspec.json.encode(piece)[1:-1] for piece in strings_of(listed.tags) if piece)
    return b"[%b]" % b",".join(pieces)


def _listed_referrers(listed: _Index) -> bytes:
    return index_of(listed.manifests or [])


def _with_tags(page: msgspec.Raw, cached: list[str], to_the_end: bool) -> bytes:
    """A page in JSON with the cached tags that belong on it: up to its last one, or all."""
    # In pieces, so that other threads run meanwhile.
    pieces = [sorted(piece) for piece in strings_of(page) if piece]
    known = set(chain.from_iterable(pieces))
    last = None if to_the_end else max((piece[-1] for piece in pieces), default=None)
    more = [tag for tag in cached if tag not in known and (last is None or tag <= last)]
    return msgspec.json.encode(list(merge(*pieces, more))) if more else bytes(page)


def _behind(
    last: str | None, wanted: ListWanted, artifact_type: str | None = None
) -> Mapping[str, str] | None:
    """The query of the page after ``last``."""
    if last is None:
        return None
    query = {"n": str(wanted.limit)} if wanted.counted else {}
    if artifact_type is not None:
        query["artifactType"] = artifact_type
    return {**query, "last": last}
