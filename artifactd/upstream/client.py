"""Another registry, asked as the distribution spec says."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import Enum
from random import Random
from typing import TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IReactorTime
from zope.interface import implementer

from artifactd.oci.digest import Digest
from artifactd.oci.errors import DigestInvalid
from artifactd.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Reference
from artifactd.upstream.credentials import Credentials, Disclosure
from artifactd.upstream.errors import LoginRefused, Missing, Throttled
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.http.response import Http, HttpResponse
from artifactd.upstream.http.url import Target
from artifactd.upstream.interfaces import (
    BlobBody,
    UpstreamBlob,
    UpstreamManifest,
    UpstreamPage,
    UpstreamWatch,
)
from artifactd.upstream.login import Authorization, Login, Tokens
from artifactd.upstream.patience import (
    BreakerSettings,
    CircuitBreaker,
    Exchanges,
    RateBudget,
    Retries,
    Throttle,
    refusal,
)

# The requests of the distribution spec to one upstream, with all that stands round them.

_T = TypeVar("_T")


class Kind(Enum):
    """What is asked for, as far as upstreams count it apart."""

    MANIFEST = "manifest"  # what Docker Hub's limit of pulls counts
    BLOB = "blob"
    LIST = "list"


@frozen
class ApiRequest:
    """
    :ivar kind: what it asks for.
    :ivar method: ``GET`` or ``HEAD``.
    :ivar url: without anything secret.
    :ivar image: the name that a token is needed for.
    :ivar expected: the statuses that are an answer; any other is an error.
    """

    kind: Kind
    method: str
    url: str
    image: str
    headers: Mapping[str, str] = field(factory=dict)
    expected: frozenset[int] = frozenset({200})


@define(eq=False)
class RegistryApi:
    """
    Asks an upstream: logs in where it wants that, asks again what may be asked again, and does not
    ask while it is down or wants to be left alone.
    """

    exchanges: Exchanges
    login: Login
    retries: Retries
    budget: RateBudget
    clock: IReactorTime
    _throttles: dict[Kind, Throttle] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._throttles = {kind: Throttle(self.clock) for kind in Kind}

    async def ask(self, request: ApiRequest, take: Callable[[HttpResponse], Awaitable[_T]]) -> _T:
        """
        What ``take`` makes of the answer.

        :param take: ends the response; is called again with the next one when it breaks off.
        :raises UpstreamError: if there is no answer of those expected.
        """

        outcome, _ = await self.ask_as(request, take)
        return outcome

    async def ask_as(
        self, request: ApiRequest, take: Callable[[HttpResponse], Awaitable[_T]]
    ) -> tuple[_T, Authorization | None]:
        """As :meth:`ask`, with what was shown for it."""

        async def attempt() -> tuple[_T, Authorization | None]:
            sent, response = await self._answer(request)
            return await take(response), sent

        return await self.retries.run(attempt)

    async def _answer(self, request: ApiRequest) -> tuple[Authorization | None, HttpResponse]:
        throttle = self._throttles[request.kind]
        throttle.check()
        sent, response = await self._logged_in(request)
        if response.status in request.expected:
            return sent, response
        error = await refusal(response, *_secrets(sent))
        if isinstance(error, Throttled):
            throttle.tell(error)
        if response.status in (401, 403):
            if self._is_ours(response):
                raise self._rejected(request, sent, error)
            # Of where it is stored: the upstream itself has said that it is there.
            raise Unreachable(error.reason, error.status)
        raise error

    async def _logged_in(self, request: ApiRequest) -> tuple[Authorization | None, HttpResponse]:
        """What was sent at last, and the answer to that."""
        sent = self.login.known(request.image)
        response = await self._exchange(request, sent)
        # With a token that is not fresh, 403 may mean that it is one of other rights.
        refused = response.status == 401 or (response.status == 403 and sent and sent.token)
        if not refused or not self._is_ours(response):
            return sent, response
        await refusal(response)
        fields = response.headers("WWW-Authenticate")
        sent = await self.login.answer(request.image, fields, sent)
        return sent, await self._exchange(request, sent)

    async def _exchange(
        self, request: ApiRequest, authorization: Authorization | None
    ) -> HttpResponse:
        headers = dict(request.headers)
        if authorization is not None:
            headers["Authorization"] = authorization.value
        response = await self.exchanges.ask(
            request.method, request.url, headers, *_secrets(authorization)
        )
        if request.kind is Kind.MANIFEST:
            self.budget.read(response)
        return response

    def _is_ours(self, response: HttpResponse) -> bool:
        """Whether the upstream itself answers: where a redirect led, nobody was shown anything."""
        return response.host == self.login.disclosure.upstream.authority

    def _rejected(
        self, request: ApiRequest, sent: Authorization | None, error: UpstreamError
    ) -> UpstreamError:
        """401 or 403 in spite of a fresh token, or without that one was asked for."""
        if sent is None:
            return Missing(
                f"{error.reason} (anonymously: it is not there, or not for us)", error.status
            )
        withheld = self.login.withheld(request.image)
        self.login.reject(request.image, sent)
        if sent.token is None and error.status == 401:
            return LoginRefused(f"{error.reason} (login refused {sent.who})", error.status)
        why = f"{sent.who}: it is not there, or not for us"
        why = f"{why}; {withheld}" if withheld else why
        return Missing(f"{error.reason} ({why})", error.status)


def _secrets(authorization: Authorization | None) -> tuple[str, ...]:
    return authorization.secrets if authorization else ()


# The body of a blob as an upstream answers it: which bytes of it come, and how many.

# RFC 9110, 14.4 and 8.8.3; a weak tag is none that If-Range may have (13.1.5).
_CONTENT_RANGE = re.compile(
    r"bytes[ \t]+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE
)
_STRONG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


@implementer(IConsumer)
@define(eq=False)
class _Watched:
    """Passes all on to a consumer, and counts."""

    _consumer: IConsumer
    _watch: UpstreamWatch

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._consumer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        self._watch.received(len(data))
        self._consumer.write(data)


@define(eq=False)
class ResponseBody:
    """A :class:`artifactd.upstream.interfaces.BlobBody`."""

    first: int
    length: int | None
    size: int | None
    validator: str | None
    host: str
    _response: HttpResponse
    _watch: UpstreamWatch

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """As in the protocol."""
        delivered = self._response.deliver_to(IConsumer(_Watched(consumer, self._watch)))
        # Where the answer has a length of its own, that has been held to it.
        return (
            delivered if self._response.length is not None else delivered.addCallback(self._ended)
        )

    def _ended(self, count: int) -> int:
        if self.length is not None and count != self.length:
            raise Unreachable(f"{self.host} sent {count} bytes where it said {self.length}")
        return count

    def abort(self) -> None:
        """As in the protocol."""
        self._response.abort()


@frozen
class _Part:
    first: int
    length: int | None
    size: int | None


def body_of(response: HttpResponse, watch: UpstreamWatch) -> ResponseBody:
    """
    The body of a 200 or 206.

    :raises Unreachable: if a 206 doesn't say clearly which bytes it has; it is aborted then.
    """
    try:
        part = _part(response) if response.status == 206 else _all(response)
    except ValueError as error:
        response.abort()
        raise Unreachable(
            f"{response.host} answers a part of a blob {error}", response.status
        ) from None
    tag = response.header("ETag") or ""
    return ResponseBody(
        part.first,
        part.length,
        part.size,
        tag if _STRONG.fullmatch(tag) else None,
        response.host,
        response,
        watch,
    )


def _all(response: HttpResponse) -> _Part:
    return _Part(0, response.length, response.length)


def _part(response: HttpResponse) -> _Part:
    match = _CONTENT_RANGE.fullmatch((response.header("Content-Range") or "").strip())
    if match is None:
        raise ValueError("without saying which")
    first, last = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    length = last - first + 1
    if length < 1 or (size is not None and last >= size):
        raise ValueError("that can't be")
    if response.length not in (None, length):
        raise ValueError("of another length than it says")
    return _Part(first, length, size)


# ``Link``: where a list goes on (RFC 8288; distribution-spec, "Listing Tags").

# Characters of a field that are read.  No part of a pattern ever gives back what it has taken: a
# field made for that would keep it busy.
_FIELD = 8192
_LINK = re.compile(
    r'<([^<>]*+)>((?:[ \t]*+;[ \t]*+[^\s=;,"]++[ \t]*+(?:=[ \t]*+'
    r'(?:"(?:[^"\\]|\\.)*+"|[^\s;,"]*+))?+)*+)'
)
_PARAMETER = re.compile(
    r';[ \t]*+([^\s=;,"]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;,"]*+))'
)


def next_page(fields: Iterable[str], query: Mapping[str, str]) -> Mapping[str, str] | None:
    """
    The query parameters of the ``Link`` to the next page; nothing else of it is followed.

    :param fields: the ``Link`` fields of an answer.
    :param query: what this page was asked for with: a next page that is the same is none.
    """
    for value in fields:
        for target, parameters in _LINK.findall(value[:_FIELD]):
            if "next" in _relations(parameters):
                found = _query(target)
                return found if found and found != query else None
    return None


def _relations(parameters: str) -> list[str]:
    """What the first ``rel`` says, in lower case."""
    for name, quoted, plain in _PARAMETER.findall(parameters):
        if name.lower() == "rel":
            return str(quoted or plain).lower().split()
    return []


def _query(target: str) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
    except ValueError:
        return {}


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
