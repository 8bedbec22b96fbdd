"""Another registry, asked as the distribution spec says."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import Enum
from random import Random
from typing import TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from attrs import define, evolve, field, frozen
from cachetools import TTLCache
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.python.failure import Failure

from artifactd.kit.shared import SharedMemory
from artifactd.kit.streams import Tallied
from artifactd.oci.errors import DigestInvalid
from artifactd.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    is_manifest_type,
)
from artifactd.oci.names import Digest, Reference
from artifactd.settings.remote import RemoteSettings
from artifactd.upstream.coded import Meaning, Meanings, UndoneBody
from artifactd.upstream.credentials import Disclosure
from artifactd.upstream.errors import (
    ChallengeRefused,
    LoginRefused,
    Missing,
    RangeRefused,
    Throttled,
)
from artifactd.upstream.http.errors import EndedByClosing, Unreachable, UpstreamError
from artifactd.upstream.http.response import Http, HttpResponse, media_type_of
from artifactd.upstream.http.url import Target
from artifactd.upstream.interfaces import (
    BlobBody,
    UpstreamBlob,
    UpstreamHead,
    UpstreamManifest,
    UpstreamPage,
    UpstreamState,
    UpstreamWatch,
)
from artifactd.upstream.login import Authorization, Login, Token, Tokens
from artifactd.upstream.patience import (
    Exchanges,
    Interrupted,
    NoRegistry,
    RateLimit,
    Retries,
    Throttle,
    is_html,
    is_page,
    refusal,
)
from artifactd.upstream.sources import ANONYMOUS, CredentialSource

_T = TypeVar("_T")


class Kind(Enum):
    """The kinds of requests that upstreams throttle separately."""

    MANIFEST = "manifest"  # by GET, which Docker Hub's limit of pulls counts
    MANIFEST_HEAD = "manifest by HEAD"
    BLOB = "blob"
    LIST = "list"


@frozen
class ApiRequest:
    """
    A request to the API of a registry.

    :ivar method: ``GET`` or ``HEAD``.
    :ivar url: without credentials.
    :ivar image: the name there, which a token is needed for.
    :ivar expected: the statuses that are an answer; any other is an error.
    """

    kind: Kind
    method: str
    url: str
    image: str
    headers: Mapping[str, str] = field(factory=dict)
    expected: frozenset[int] = frozenset({200})


@frozen
class Root:
    """
    Where the API of an upstream is, and which names its images have there.

    :ivar url: what comes before ``/v2/``.
    """

    url: str
    settings: RemoteSettings

    @classmethod
    def of(cls, settings: RemoteSettings) -> Root:
        """:raises ValueError: if the URL of ``settings`` is none of http or https."""
        return cls(Target.parse(settings.upstream).url.rstrip("/"), settings)

    def request(
        self,
        kind: Kind,
        method: str,
        image: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expected: frozenset[int] = frozenset({200}),
    ) -> ApiRequest:
        """Make a request for ``path``, such as ``tags``, ``list``, of ``image``."""
        name = self.settings.name_there(image)
        parts = (quote(name), *(quote(part, safe=":") for part in path))
        url = f"{self.url}/v2/{'/'.join(parts)}"
        asked = f"{url}?{urlencode(query)}" if query else url
        return ApiRequest(kind, method, asked, name, headers or {}, expected)


# Statuses by which registries refuse a token that has expired.
_UNAUTHORIZED = frozenset({400, 401, 403})

# Tokens that are not replaced, and seconds for which not, since HEAD was refused with them.
_TOKENS_IN_VAIN = 1024
_SECONDS_IN_VAIN = 60.0


@define(eq=False)
class RegistryApi:
    """
    Asks an upstream: logs in where it wants that, repeats what may be repeated, and does not ask
    while the upstream is down or throttles the daemon.

    :param whose: whose requests it makes, if not the daemon's: one that has to wait after a 429
        holds up no other.
    """

    exchanges: Exchanges
    login: Login
    retries: Retries
    clock: IReactorTime
    whose: str = ""
    rate_limit: RateLimit = field(init=False)
    _throttles: dict[Kind, Throttle] = field(init=False)
    # The tokens, by image, that were fresh when HEAD was refused in spite of them.
    _in_vain: TTLCache[str, Token] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rate_limit = self.exchanges.rate_limit(self.whose)
        self._throttles = {kind: self.exchanges.throttle(self.whose, kind.name) for kind in Kind}
        self._in_vain = TTLCache(_TOKENS_IN_VAIN, _SECONDS_IN_VAIN, self.clock.seconds)

    def state(self) -> UpstreamState:
        """How the upstream does.  It is not asked."""
        host = self.exchanges.host
        return UpstreamState(
            host=self.exchanges.subject,
            trouble=host.trouble,
            pause=host.left,
            throttled=max(throttle.left for throttle in self._throttles.values()),
            remaining=self.rate_limit.remaining,
        )

    async def ask(self, request: ApiRequest, take: Callable[[HttpResponse], Awaitable[_T]]) -> _T:
        """
        Return what ``take`` makes of the answer to ``request``.

        :param take: reads or aborts the answer; is called again with another one if it breaks off.
        :raises UpstreamError: if no answer of the expected statuses comes.
        """

        async def attempt() -> _T:
            response, _ = await self.answer(request)
            return await take(response)

        return await self.retries.run(attempt)

    async def answer(self, request: ApiRequest) -> tuple[HttpResponse, Authorization | None]:
        """
        Return the answer to ``request``, and the credential it was given for, after one attempt.

        :raises UpstreamError: if no answer of the expected statuses comes.
        """
        outcome = await self._outcome(request)
        if isinstance(outcome, UpstreamError):
            raise outcome
        return outcome

    async def head(
        self, request: ApiRequest
    ) -> tuple[HttpResponse, Authorization | None] | UpstreamError:
        """
        As :meth:`answer`, but return the error where the upstream refuses a HEAD: GET may be
        answered.

        Some registries don't know the method, answer it wrongly, or redirect it to a URL that is
        signed for GET.

        :raises UpstreamError: if GET would do no better: no token can be had, nothing answers, or
            the upstream answers 429.
        """
        try:
            outcome = await self._outcome(request)
        except ChallengeRefused as error:
            return error
        except Unreachable as error:
            of_url = isinstance(error, Interrupted) and error.connected
            if error.status is None and not of_url:
                raise
            return error
        if isinstance(outcome, Throttled):
            raise outcome
        return outcome

    async def _outcome(
        self, request: ApiRequest
    ) -> tuple[HttpResponse, Authorization | None] | UpstreamError:
        """
        Return the answer, or the error that another status than those expected means.

        Where the upstream refuses credentials, and there are others now, those are tried, once.

        :raises UpstreamError: if there is no answer, or no login.
        """
        try:
            outcome = await self._attempt(request)
        except ChallengeRefused as error:
            if not await self._renewed(error):
                raise
        else:
            if not isinstance(outcome, LoginRefused) or not await self._renewed(outcome):
                return outcome
        return await self._attempt(request)

    async def _renewed(self, error: LoginRefused) -> bool:
        """Whether there are other credentials now than those whose refusal is ``error``."""
        return error.credentials is not None and await self.login.renewed(error.credentials)

    async def _attempt(
        self, request: ApiRequest
    ) -> tuple[HttpResponse, Authorization | None] | UpstreamError:
        response, sent = await self._admitted(request)
        if response.status in request.expected:
            return response, sent
        return await self._refusal(request, response, sent)

    async def _admitted(self, request: ApiRequest) -> tuple[HttpResponse, Authorization | None]:
        """Send a request, and once more with a login where the upstream wants one."""
        throttle = self._throttles[request.kind]
        throttle.check(request.image)
        sent = await self.login.known(request.image)
        response = await self._send(request, sent)
        if self._wants_login(request, response, sent):
            await refusal(response)
            challenges = response.headers("WWW-Authenticate")
            sent = await self.login.answer(request.image, challenges, sent)
            response = await self._send(request, sent)
            in_vain = request.method == "HEAD" and response.status in (401, 403)
            if in_vain and self._is_ours(response) and sent.token is not None:
                self._in_vain[request.image] = sent.token
        if response.status in _UNAUTHORIZED and not self._is_ours(response):
            response = await self._admitted_there(request, response, sent)
        if response.status != 429:
            throttle.answered()
        return response, sent

    async def _admitted_there(
        self, request: ApiRequest, response: HttpResponse, sent: Authorization | None
    ) -> HttpResponse:
        """
        Send a request again that was redirected to a registry which refuses it, with an anonymous
        token for that one; if it asks for none, ``response`` is the answer.
        """
        refused = self.login.known_there(request.image).get(Target.parse(response.url).origin)
        is_head = request.method == "HEAD"
        if response.status != 401 and (refused is None or is_head):
            return response
        challenges = response.headers("WWW-Authenticate")
        try:
            if not await self.login.answer_there(request.image, response.url, challenges, refused):
                return response
        except (LoginRefused, Missing):
            if is_head:
                return response  # GET may be led elsewhere
            response.abort()
            raise
        except BaseException:
            response.abort()
            raise
        response.abort()
        return await self._send(request, sent)

    def _wants_login(
        self, request: ApiRequest, response: HttpResponse, sent: Authorization | None
    ) -> bool:
        if response.status not in _UNAUTHORIZED or not self._is_ours(response):
            return False
        token = None if sent is None else sent.token
        if token is not None and self._in_vain.get(request.image) is token:
            return False  # another one would be refused as well
        # To a token from the cache, 403 and 400 may mean that it has expired or has other rights.
        # To HEAD they more often mean that HEAD is refused.
        return response.status == 401 or (token is not None and request.method != "HEAD")

    async def _refusal(
        self, request: ApiRequest, response: HttpResponse, sent: Authorization | None
    ) -> UpstreamError:
        """Turn an answer of another status than those expected into an error."""
        error = await refusal(response, *(sent.secrets if sent else ()))
        if isinstance(error, Throttled):
            self._throttles[request.kind].tell(error, request.image)
        if response.status not in (401, 403) or isinstance(error, NoRegistry):
            return error
        if not self._is_ours(response):
            if Target.parse(response.url).origin in self.login.known_there(request.image):
                why = "anonymously: it is not there, or not for us"
                return Missing(f"{error.reason} ({why})", error.status)
            # The storage refuses, though the upstream has said that the content is there.
            return Unreachable(error.reason, error.status)
        if sent is None:
            return Missing(
                f"{error.reason} (anonymously: it is not there, or not for us)", error.status
            )
        withheld = await self.login.withheld(request.image)
        refused = self.login.refused(request.image)
        if request.method != "HEAD":  # GET may be answered with it
            self.login.reject(request.image, sent)
        # Amazon's ECR answers 403 to a password that has expired.
        if sent.token is None and (error.status == 401 or "expired" in error.reason.lower()):
            return LoginRefused(
                f"{error.reason} (login refused {sent.who})", error.status, sent.credentials
            )
        if refused is not None and sent.user is None:
            return LoginRefused(f"{error.reason} ({sent.who}; {refused.reason})", error.status)
        why = f"{sent.who}: it is not there, or not for us"
        why = f"{why}; {withheld}" if withheld else why
        return Missing(f"{error.reason} ({why})", error.status)

    async def _send(self, request: ApiRequest, sent: Authorization | None) -> HttpResponse:
        headers = dict(request.headers)
        if sent is not None:
            headers["Authorization"] = sent.value
        secrets = sent.secrets if sent else ()
        there = self.login.known_there(request.image)
        others = {origin: Authorization.of_token(token).value for origin, token in there.items()}
        response = await self.exchanges.ask(
            request.method, request.url, headers, *secrets, image=request.image, others=others
        )
        if request.kind in (Kind.MANIFEST, Kind.MANIFEST_HEAD):
            self.rate_limit.read(response)
        return response

    def _is_ours(self, response: HttpResponse) -> bool:
        """Whether the upstream itself answers; the target of a redirect got no credential."""
        return not response.redirected


# RFC 9110, 14.4 and 8.8.3; a weak tag is none that If-Range may have (13.1.5).
_CONTENT_RANGE = re.compile(
    r"bytes[ \t]+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE
)
_STRONG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


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

    @classmethod
    def of(cls, response: HttpResponse, watch: UpstreamWatch) -> ResponseBody:
        """
        Make the body of a 200 or 206.

        :raises Unreachable: if a 206 doesn't say clearly which bytes it has; it is aborted then.
        """
        first, length, size, problem = 0, response.length, response.length, ""
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch((response.header("Content-Range") or "").strip())
            if match is None:
                problem = "without saying which"
            else:
                first, last = int(match[1]), int(match[2])
                size = None if match[3] == "*" else int(match[3])
                length = last - first + 1
                if length < 1 or (size is not None and last >= size):
                    problem = "that can't be"
                elif response.length not in (None, length):
                    problem = "of another length than it says"
        if problem:
            response.abort()
            raise Unreachable(
                f"{response.host} answers a part of a blob {problem}", response.status
            )
        tag = response.header("ETag") or ""
        validator = tag if _STRONG.fullmatch(tag) else None
        return cls(first, length, size, validator, response.host, response, watch)

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        def ended(count: int) -> int:
            # The transport holds an answer to a length of its own; a range may have none.
            if self._response.length is None and self.length not in (None, count):
                raise Unreachable(f"{self.host} sent {count} bytes where it said {self.length}")
            return count

        def closed(failure: Failure) -> int:
            failure.trap(EndedByClosing)
            assert isinstance(failure.value, EndedByClosing)
            if self.length != failure.value.received:
                failure.raiseException()
            return failure.value.received

        counted = Tallied(consumer, self._watch.received)
        return self._response.deliver_to(IConsumer(counted)).addCallbacks(ended, closed)

    def abort(self) -> None:
        self._response.abort()


# Characters of a field that are read.  Backtracking in a malicious field could take very long: no
# part of the patterns can match the same text in two ways.  The quantifiers of groups are not
# possessive, since such a group may match too much before Python 3.11.5.
_FIELD = 8192
_LINK = re.compile(
    r'<([^<>]*+)>((?:[ \t]*+;[ \t]*+[^\s=;,"]++[ \t]*+(?:=[ \t]*+'
    r'(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*+))?)*)'
)
_PARAMETER = re.compile(r';[ \t]*+([^\s=;,"]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*+))')


def next_page(fields: Iterable[str], query: Mapping[str, str]) -> Mapping[str, str] | None:
    """
    Return the query parameters of the ``Link`` to the next page; nothing else of it is followed.

    :param fields: the ``Link`` fields of an answer.
    :param query: the parameters of this page: a link to the same ones is ignored.
    """  # RFC 8288; distribution-spec, "Listing Tags"
    for value in fields:
        for target, parameters in _LINK.findall(value[:_FIELD]):
            relations = [
                str(quoted or plain).lower().split()
                for name, quoted, plain in _PARAMETER.findall(parameters)
                if name.lower() == "rel"
            ]
            if not relations or "next" not in relations[0]:
                continue
            try:
                found = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
            except ValueError:
                return None
            return found if found and found != query else None
    return None


# Without "*/*": some registries convert a manifest for clients that take anything.
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
_LISTS = f"{OCI_INDEX}, application/json"
_PAGE = 8 << 20  # bytes of a page of a list
_LENGTH = re.compile(r"[0-9]{1,19}")
_OK = frozenset({200})
# Statuses of registries that do not know an endpoint, besides 404.
_NO_ENDPOINT = frozenset({405, 406, 501})
# Seconds for which an endpoint that an upstream has answered so is not asked for again.
_WITHOUT_ENDPOINT = 600.0
# Statuses of registries that refuse a page for its length, and the lengths that others allow:
# Amazon's ECR 1,000 entries (405 above that), GitLab 100 (400).
_TOO_LONG = frozenset({400, 405, 406, 413, 416, 422})
_PAGE_LENGTHS = (1000, 100)


class RegistryUpstream:
    """
    An :class:`artifactd.upstream.interfaces.Upstream` over HTTP.

    :param name: the repository's name, for logs.
    :param http: makes the requests; the caller closes it.
    :param memory: where all processes of the daemon remember what fails.
    :param credentials: gives the daemon's credentials there.
    :param max_manifest: bytes that a manifest may have.
    :param random: for the time before a repetition.
    :raises ValueError: if the URL of the settings is none of http or https.
    """

    def __init__(
        self,
        name: str,
        settings: RemoteSettings,
        http: Http,
        clock: IReactorTime,
        watch: UpstreamWatch,
        memory: SharedMemory,
        *,
        credentials: CredentialSource = ANONYMOUS,
        max_manifest: int = 4 << 20,
        random: Random | None = None,
    ) -> None:
        disclosure = Disclosure.of(settings)
        host = disclosure.upstream.authority
        retries = Retries(clock, random or Random(), settings.retries)
        services = Exchanges(http, name, f"the token service of {host}", clock, watch, memory)
        led_to = f"the token service of a registry that {host} leads to"
        others = Exchanges(http, name, led_to, clock, watch, memory)
        self.name = name
        self._root = Root.of(settings)
        self._clock = clock
        self._watch = watch
        self._meanings = Meanings(clock, watch)
        # The reason and the status that say that the upstream does not know referrers.
        self._no_referrers: TTLCache[str, tuple[str, int | None]] = TTLCache(
            1, _WITHOUT_ENDPOINT, clock.seconds
        )
        self._max_manifest = max_manifest
        self._api = RegistryApi(
            Exchanges(http, name, host, clock, watch, memory),
            Login(
                disclosure,
                credentials,
                Tokens(services, retries, clock),
                Tokens(others, retries, clock),
                anonymous_too=True,
            ),
            retries,
            clock,
        )

    def state(self) -> UpstreamState:
        """How the upstream does.  It is not asked."""
        return self._api.state()

    def frugality(self) -> float:
        return self._api.rate_limit.frugality()

    async def manifest(self, image: str, reference: Reference) -> UpstreamManifest:  # end-3
        request = self._manifest("GET", image, reference)

        async def take(response: HttpResponse) -> UpstreamManifest:
            content = await response.read(self._max_manifest)
            self._watch.received(len(content))
            return UpstreamManifest(
                content, response.header("Content-Type"), named_digest(response)
            )

        return await self._api.ask(request, take)

    async def manifest_head(
        self, image: str, reference: Reference, known: Digest | None
    ) -> UpstreamHead | None:
        headers = {} if known is None else {"If-None-Match": f'"{known}"'}
        expected = _OK if known is None else _OK | {304}
        request = self._manifest("HEAD", image, reference, headers, expected)
        response = await self._head(request)
        if response is None:
            return None
        if response.status == 304 and known is not None:
            return UpstreamHead(known)
        digest, media_type = named_digest(response), media_type_of(response)
        size = _told_length(response)
        if digest is None or (size is not None and size > self._max_manifest):
            return None
        if media_type and not is_manifest_type(media_type, other_types=True):
            return None  # a page for people, for example
        return UpstreamHead(digest, media_type or None, size)

    async def _head(self, request: ApiRequest) -> HttpResponse | None:
        """Ask by HEAD; ``None`` where the upstream refuses that, which says nothing of GET."""

        async def attempt() -> HttpResponse | None:
            answer = await self._api.head(request)
            if isinstance(answer, UpstreamError):
                return None
            response, _ = answer
            await response.read(0)
            return response

        return await self._api.retries.run(attempt)

    def _manifest(
        self,
        method: str,
        image: str,
        reference: Reference,
        headers: Mapping[str, str] | None = None,
        expected: frozenset[int] = _OK,
    ) -> ApiRequest:
        return self._root.request(
            Kind.MANIFEST if method == "GET" else Kind.MANIFEST_HEAD,
            method,
            image,
            "manifests",
            str(reference),
            headers={"Accept": ACCEPT, **(headers or {})},
            expected=expected,
        )

    async def blob(self, image: str, digest: Digest, size: int | None = None) -> UpstreamBlob:
        request = self._root.request(Kind.BLOB, "HEAD", image, "blobs", str(digest))
        response = await self._head(request)
        if response is not None and not is_html(response):
            told = self._meanings.size(digest) if response.coding else _told_length(response)
            is_empty = digest == Digest.of(b"", digest.algorithm)
            if told is not None and size in (None, told) and (told == 0) == is_empty:
                return UpstreamBlob(told)
        # One byte, not the blob, tells whether it is there.
        try:
            body = await self.open_blob(image, digest, 0, 0, unread=True)
        except RangeRefused:
            body = await self.open_blob(image, digest, unread=True)  # it is empty
        body.abort()
        return UpstreamBlob(body.size)

    async def open_blob(
        self,
        image: str,
        digest: Digest,
        first: int = 0,
        last: int | None = None,
        validator: str | None = None,
        *,
        unread: bool = False,
    ) -> BlobBody:
        """
        Open a blob, as ``Upstream.open_blob`` says.

        :param unread: whether only its headers are wanted.  No bytes will be verified, so a page of
            HTML is no answer.
        """
        headers, expected = ranged(first, last, validator)
        request = self._root.request(
            Kind.BLOB, "GET", image, "blobs", str(digest), headers=headers, expected=expected
        )
        goes_on = first > 0

        async def take(response: HttpResponse) -> BlobBody | None:
            if unread and response.status == 200 and is_page(response):
                response.abort()
                raise NoRegistry(f"{response.host} answers a page for people, not a blob", 200)
            if not response.coding:
                return ResponseBody.of(response, self._watch)
            return await self._coded(response, digest, goes_on=goes_on, unread=unread)

        while (body := await self._api.ask(request, take)) is None:
            request, goes_on = evolve(request, headers={}, expected=_OK), True
        return body

    async def _coded(
        self, response: HttpResponse, digest: Digest, *, goes_on: bool, unread: bool
    ) -> BlobBody | None:
        """Make the body of a blob that is coded; ``None``: ask for the whole blob again."""
        found = await self._meanings.find(response, digest, goes_on=goes_on, unread=unread)
        if not isinstance(found, Meaning):
            return found
        if not found.undo:
            return ResponseBody.of(response, self._watch)
        return UndoneBody.of(response, found.size, self._clock, self._watch)

    async def tags(self, image: str, query: Mapping[str, str]) -> UpstreamPage:
        return await self._page(image, ("tags", "list"), query)

    async def referrers(
        self, image: str, subject: Digest, query: Mapping[str, str]
    ) -> UpstreamPage:
        told = self._no_referrers.get(self.name)
        if told is not None:
            raise Missing(*told, asked=False)
        try:
            return await self._page(image, ("referrers", str(subject)), query, _NO_ENDPOINT)
        except Missing as error:
            if error.status in _NO_ENDPOINT:
                self._no_referrers[self.name] = error.reason, error.status
            raise

    async def _page(
        self,
        image: str,
        path: tuple[str, str],
        query: Mapping[str, str],
        unknown: frozenset[int] = frozenset(),
    ) -> UpstreamPage:
        """Get a page; ask for a shorter one where the upstream refuses the number of entries."""

        async def take(response: HttpResponse) -> UpstreamPage:
            if unknown and (response.status in unknown or not _is_json(response)):
                response.abort()
                raise Missing(f"{response.host} does not know the endpoint", response.status)
            return UpstreamPage(
                await response.read(_PAGE),
                next_page(response.headers("Link"), query),
                response.header("OCI-Filters-Applied"),
            )

        request = self._root.request(
            Kind.LIST,
            "GET",
            image,
            *path,
            query=query,
            headers={"Accept": _LISTS},
            expected=_OK | unknown,
        )
        try:
            return await self._api.ask(request, take)
        except NoRegistry as error:
            if unknown and error.status in (404, 410):
                raise Missing(error.reason, error.status) from None
            raise
        except UpstreamError as error:
            shorter = _shorter(query)
            if shorter is None or error.status not in _TOO_LONG - unknown:
                raise
        return await self._page(image, path, shorter, unknown)


def ranged(
    first: int, last: int | None, validator: str | None
) -> tuple[Mapping[str, str], frozenset[int]]:
    """
    The headers of a request for bytes ``first`` to ``last`` (inclusive; ``None``: to the end), and
    the statuses that are an answer to it.

    :param validator: sent as ``If-Range``.
    """
    if not first and last is None:
        return {}, _OK
    headers = {"Range": f"bytes={first}-{'' if last is None else last}"}
    if validator is not None:
        headers["If-Range"] = validator
    return headers, frozenset({200, 206})


def _shorter(query: Mapping[str, str]) -> Mapping[str, str] | None:
    """The query for a shorter page; ``None``: there is none that more upstreams allow."""
    n = query.get("n", "")
    if not _LENGTH.fullmatch(n):
        return None
    shorter = next((str(length) for length in _PAGE_LENGTHS if length < int(n)), None)
    return None if shorter is None else {**query, "n": shorter}


def named_digest(response: HttpResponse) -> Digest | None:
    """Return the digest that the upstream says a manifest has, if it says one."""
    try:
        return Digest.parse(response.header("Docker-Content-Digest") or "")
    except DigestInvalid:
        return None


def _told_length(response: HttpResponse) -> int | None:
    """Return the bytes that an answer to HEAD says the body of GET has, if it says so."""
    if response.coding:
        return None  # the bytes that would be sent
    length = _LENGTH.fullmatch(response.header("Content-Length") or "")
    return int(length[0]) if length else None


def _is_json(response: HttpResponse) -> bool:
    """
    Whether the answer may be an index.

    Some registries redirect requests to unknown endpoints to a login page for people.
    """
    return not response.header("Content-Type") or media_type_of(response).endswith("json")
