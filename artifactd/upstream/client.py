"""Another registry, asked as the distribution spec says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from random import Random
from urllib.parse import quote, urlencode

from twisted.internet.interfaces import IReactorTime

from artifactd.oci.digest import Digest
from artifactd.oci.errors import DigestInvalid
from artifactd.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Reference
from artifactd.upstream.api import ApiRequest, Kind, RegistryApi
from artifactd.upstream.blob import body_of
from artifactd.upstream.breaker import BreakerSettings, CircuitBreaker
from artifactd.upstream.budget import RateBudget
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import Missing, Unreachable
from artifactd.upstream.exchange import Exchanges
from artifactd.upstream.http import Http, HttpResponse
from artifactd.upstream.interfaces import (
    BlobBody,
    UpstreamBlob,
    UpstreamManifest,
    UpstreamPage,
    UpstreamWatch,
)
from artifactd.upstream.link import next_page
from artifactd.upstream.login import Login
from artifactd.upstream.retries import Retries
from artifactd.upstream.target import Target
from artifactd.upstream.tokens import Tokens

# Of manifests.  No "*/*": some registries convert what they have for whoever would take anything.
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
_LISTS = f"{OCI_INDEX}, application/json"
_PAGE = 8 << 20  # bytes of a page of a list
_LENGTH = re.compile(r"[0-9]{1,19}")
_OK = frozenset({200})
# What registries answer that do not know a method, or an endpoint, besides 404.
_NO_METHOD = frozenset({405, 501})
_NO_ENDPOINT = frozenset({405, 406, 501})


class RegistryUpstream:
    """
    An :class:`artifactd.upstream.interfaces.Upstream`.

    :param name: of the repository, for logs.
    :param url: of the upstream, as far as ``/v2/``.
    :param transport: how it is reached; closed by whoever made it.
    :param credentials: ours there; called whenever they are needed, in the reactor's thread.  An
        OSError or ValueError of it is a refused login, and is logged.
    :param auth_hosts: ``host`` or ``host:port`` of others that may have the credentials too.
    :param max_manifest: bytes that a manifest may have.
    :param retries: how often a request that failed is repeated at most.
    :param random: for the time before a repetition.
    :raises ValueError: if ``url`` is none of http or https.
    """

    def __init__(
        self,
        name: str,
        url: str,
        transport: Http,
        clock: IReactorTime,
        watch: UpstreamWatch,
        *,
        credentials: Callable[[], Credentials | None] = lambda: None,
        auth_hosts: Iterable[str] = (),
        max_manifest: int = 4 << 20,
        retries: int = 2,
        random: Random | None = None,
        breaker: BreakerSettings | None = None,
    ) -> None:
        upstream = Target.parse(url)
        self.name = name
        self._url = upstream.url.rstrip("/")
        self._watch = watch
        self._max_manifest = max_manifest
        self._budget = RateBudget(clock)
        repeated = Retries(clock, random or Random(), retries)

        def exchanges(subject: str) -> Exchanges:
            broken = CircuitBreaker(name, subject, clock, breaker or BreakerSettings())
            return Exchanges(transport, broken, watch)

        tokens = Tokens(exchanges(f"the token service of {upstream.authority}"), repeated, clock)
        disclosure = Disclosure(upstream, frozenset(host.lower() for host in auth_hosts))
        login = Login(disclosure, credentials, tokens)
        self._api = RegistryApi(exchanges(upstream.authority), login, repeated, self._budget, clock)

    def frugality(self) -> float:
        """As :meth:`RateBudget.frugality`."""
        return self._budget.frugality()

    # -- manifests

    async def manifest(self, image: str, reference: Reference) -> UpstreamManifest:
        """end-3, GET."""
        request = self._manifest("GET", image, reference)

        async def take(response: HttpResponse) -> UpstreamManifest:
            content = await _whole(response, self._max_manifest)
            self._watch.received(len(content))
            return UpstreamManifest(content, response.header("Content-Type"), _digest(response))

        return await self._api.ask(request, take)

    async def manifest_digest(
        self, image: str, reference: Reference, known: Digest | None
    ) -> Digest | None:
        """end-3, HEAD."""
        headers = {} if known is None else {"If-None-Match": f'"{known}"'}
        expected = _OK | _NO_METHOD | (frozenset() if known is None else {304})
        request = self._manifest("HEAD", image, reference, headers, expected)
        response = await self._api.ask(request, _ended)
        return known if response.status == 304 else _digest(response)

    def _manifest(
        self,
        method: str,
        image: str,
        reference: Reference,
        headers: Mapping[str, str] | None = None,
        expected: frozenset[int] = _OK,
    ) -> ApiRequest:
        url = self._at(image, "manifests", str(reference))
        return ApiRequest(
            Kind.MANIFEST, method, url, image, {"Accept": ACCEPT, **(headers or {})}, expected
        )

    # -- blobs

    async def blob(self, image: str, digest: Digest) -> UpstreamBlob:
        """end-2, HEAD."""
        request = ApiRequest(Kind.BLOB, "HEAD", self._at(image, "blobs", str(digest)), image)
        response = await self._api.ask(request, _ended)
        length = _LENGTH.fullmatch(response.header("Content-Length") or "")
        return UpstreamBlob(int(length[0]) if length else None)

    async def open_blob(
        self,
        image: str,
        digest: Digest,
        first: int = 0,
        last: int | None = None,
        validator: str | None = None,
    ) -> BlobBody:
        """end-2, GET."""
        headers: dict[str, str] = {}
        expected = _OK
        if first or last is not None:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
            expected = frozenset({200, 206})
            if validator is not None:
                headers["If-Range"] = validator
        url = self._at(image, "blobs", str(digest))
        request = ApiRequest(Kind.BLOB, "GET", url, image, headers, expected)
        return body_of(await self._api.ask(request, _as_it_is), self._watch)

    # -- lists

    async def tags(self, image: str, query: Mapping[str, str]) -> UpstreamPage:
        """end-8."""
        return await self._page(self._at(image, "tags", "list"), image, query)

    async def referrers(
        self, image: str, subject: Digest, query: Mapping[str, str]
    ) -> UpstreamPage:
        """end-12."""
        url = self._at(image, "referrers", str(subject))
        return await self._page(url, image, query, _NO_ENDPOINT)

    async def _page(
        self,
        url: str,
        image: str,
        query: Mapping[str, str],
        unknown: frozenset[int] = frozenset(),
    ) -> UpstreamPage:
        async def take(response: HttpResponse) -> UpstreamPage:
            if unknown and (response.status in unknown or not _is_json(response)):
                response.abort()
                raise Missing(f"{response.host} does not know the endpoint", response.status)
            return UpstreamPage(
                await _whole(response, _PAGE),
                next_page(response.headers("Link"), query),
                response.header("OCI-Filters-Applied"),
            )

        asked = f"{url}?{urlencode(query)}" if query else url
        return await self._api.ask(
            ApiRequest(Kind.LIST, "GET", asked, image, {"Accept": _LISTS}, _OK | unknown), take
        )

    def _at(self, image: str, *path: str) -> str:
        """The URL of something of ``image``."""
        parts = (quote(image), *(quote(part, safe=":") for part in path))
        return f"{self._url}/v2/{'/'.join(parts)}"


def _digest(response: HttpResponse) -> Digest | None:
    """What it says that the digest of a manifest is."""
    try:
        return Digest.parse(response.header("Docker-Content-Digest") or "")
    except DigestInvalid:
        return None


def _is_json(response: HttpResponse) -> bool:
    """
    Whether it may be an index: some registries lead whoever asks for what they don't know to a page
    for people to log in.
    """
    media_type = (response.header("Content-Type") or "json").partition(";")[0]
    return media_type.strip().lower().endswith("json")


async def _as_it_is(response: HttpResponse) -> HttpResponse:
    return response


async def _ended(response: HttpResponse) -> HttpResponse:
    """An answer to HEAD."""
    await response.read(0)
    return response


async def _whole(response: HttpResponse, limit: int) -> bytes:
    """Its body, which is not begun with if it says that it is longer than ``limit``."""
    if response.length is not None and response.length > limit:
        response.abort()
        raise Unreachable(
            f"{response.host} answers with {response.length} bytes, more than the {limit} allowed",
            response.status,
        )
    return await response.read(limit)
