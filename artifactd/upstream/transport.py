"""HTTP/1.1 as a client of upstreams, by treq."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from attrs import define, field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from artifactd import __version__
from artifactd.upstream import redirects
from artifactd.upstream.body import Refusal
from artifactd.upstream.connection import Connections
from artifactd.upstream.errors import Unreachable
from artifactd.upstream.hop import Hop
from artifactd.upstream.proxy import Proxies, Proxy
from artifactd.upstream.response import Response
from artifactd.upstream.routes import Routes
from artifactd.upstream.target import Target
from artifactd.upstream.tls import Trust

__all__ = ["Response", "Transport", "TransportSettings"]

IDLE_CONNECTIONS = 8
"""Connections to one host that are kept for later requests."""

IDLE_SECONDS = 60
"""Seconds for which they are kept."""

# What treq is given: it would rewrite the URL, which may be signed, and fails on IPv6 addresses.
# The agent below it knows the real one.
_SOME_URL = "http://upstream.invalid/"


@frozen
class TransportSettings:
    """
    :ivar connect_timeout: seconds for a connection, the name's resolution and a proxy's tunnel
        included.
    :ivar first_byte_timeout: seconds from there, a TLS handshake included, to the end of the
        answer's headers.
    :ivar idle_timeout: seconds for which a body may stand still.
    :ivar ca_file: certificates in PEM, trusted besides the platform's.
    """

    connect_timeout: float = 10
    first_byte_timeout: float = 30
    idle_timeout: float = 30
    ca_file: Path | None = None


@implementer(IAgent)
@frozen
class _Verbatim:
    """
    Asks for exactly ``target`` with exactly ``headers``, whatever treq would make of them, and
    keeps from treq what of an answer it would act upon.
    """

    agent: IAgent
    target: Target
    headers: Headers

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        asking = self.agent.request(method, self.target.url.encode("ascii"), self.headers)
        return asking.addCallback(self._uncoded)

    def _uncoded(self, response: IResponse) -> IResponse:
        response.headers.removeHeader(b"Set-Cookie")
        codings = b",".join(response.headers.getRawHeaders(b"Content-Encoding", []))
        response.headers.removeHeader(b"Content-Encoding")
        # What an error means doesn't hang on how its text is coded.
        if codings.strip().lower() in (b"", b"identity") or not 200 <= response.code < 300:
            return response
        response.deliverBody(Refusal())
        raise Unreachable(
            f"{self.target.authority} sends a Content-Encoding, though asked for none",
            response.code,
        )


@define(eq=False)
class Transport:
    """HTTP to one upstream: a connection pool of its own, redirects, TLS, proxies, timeouts."""

    _reactor: Any
    _settings: TransportSettings
    _routes: Routes
    _pool: HTTPConnectionPool
    _connections: Connections
    _hops: set[Hop] = field(factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    @classmethod
    def make(cls, reactor: Any, settings: TransportSettings, environ: Mapping[str, str]) -> Self:
        """
        :param reactor: connects, resolves names, and is the clock of all timeouts.
        :param environ: names the proxies (:class:`artifactd.upstream.proxy.Proxies`).
        :raises StartError: if the CA file can't be used, or a proxy's URL.
        """
        pool = HTTPConnectionPool(reactor)
        pool.maxPersistentPerHost = IDLE_CONNECTIONS
        pool.cachedConnectionTimeout = IDLE_SECONDS
        connections = Connections()
        routes = Routes(
            reactor,
            pool,
            connections,
            Proxies.from_environ(environ),
            Trust.load(settings.ca_file),
            settings.connect_timeout,
        )
        return cls(reactor, settings, routes, pool, connections)

    async def request(self, method: str, url: str, headers: Mapping[str, str]) -> Response:
        """
        Ask for ``url``, and follow redirects; the headers of the answer have come then.

        ``Authorization`` goes to the origin of ``url`` alone.  ``Accept-Encoding`` is always
        ``identity``: what comes is what the upstream has.  A request that a connection kept from
        before has not outlived is sent once more on a new one.

        :param method: GET or HEAD.
        :raises TimedOut: if a connection or an answer takes too long.
        :raises Unreachable: if there is no answer, or none that may be followed; also if a 2xx has
            a ``Content-Encoding`` none the less.
        """
        assert method in ("GET", "HEAD"), method
        try:
            trail = redirects.Trail(Target.parse(url), headers)
        except ValueError as error:
            raise Unreachable(f"the upstream's URL can't be asked for: {error}") from None
        while True:
            response = await self._ask(method, trail.target, trail.headers)
            if response.status not in redirects.STATUSES:
                return response
            location = response.header("Location")
            response.drop()
            trail.follow(location)

    async def close(self) -> None:
        """Give up what is under way and close all connections; returns when they are closed."""
        self._closed = True
        for hop in list(self._hops):
            hop.give_up(_shut_down(hop.host))
        await self._connections.abort()
        # Last, since one on which an answer has just ended comes to the pool even now.
        await self._pool.closeCachedConnections()

    async def _ask(self, method: str, target: Target, headers: Mapping[str, str]) -> Response:
        if self._closed:
            raise _shut_down(target.authority)
        proxy = self._routes.proxy(target)
        hop = Hop(
            self._reactor,
            _whom(target, proxy),
            self._settings.connect_timeout,
            self._settings.first_byte_timeout,
        )

        def ask() -> Deferred[Any]:
            agent = self._routes.agent(target, proxy, hop)
            client = HTTPClient(_Verbatim(agent, target, _wire_headers(headers, target, proxy)))
            return client.request(
                method, _SOME_URL, allow_redirects=False, unbuffered=True, reactor=self._reactor
            )

        self._hops.add(hop)
        try:
            answer: Any = await hop.ask(ask)
        finally:
            self._hops.discard(hop)
        return Response(
            answer.original,
            target.authority,
            target.url,
            self._reactor,
            self._settings.idle_timeout,
        )


def _wire_headers(headers: Mapping[str, str], target: Target, proxy: Proxy | None) -> Headers:
    wire = Headers()
    for name, value in headers.items():
        wire.setRawHeaders(name, [value])
    wire.setRawHeaders("Accept-Encoding", ["identity"])
    wire.setRawHeaders("User-Agent", [f"artifactd/{__version__}"])
    if proxy and proxy.authorization and target.scheme == "http":
        wire.setRawHeaders("Proxy-Authorization", [proxy.authorization])
    return wire


def _whom(target: Target, proxy: Proxy | None) -> str:
    if proxy is None:
        return target.authority
    return f"{target.authority} (through the proxy {proxy.address.authority})"


def _shut_down(host: str) -> Unreachable:
    return Unreachable(f"{host} is not asked any more: shutting down")
