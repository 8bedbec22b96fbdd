"""HTTP/1.1 as a client of upstreams, by treq."""
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field, frozen
from OpenSSL import SSL
from service_identity import CertificateError
from treq.client import HTTPClient
from twisted.internet import error, tcp
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import TCPTimedOutError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import VerificationError
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ProxyAgent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from artifactd import __version__
from artifactd.upstream.http.errors import TimedOut, Unreachable
from artifactd.upstream.http.proxy import Proxies, Proxy, ProxyRefused, TunnelEndpoint
from artifactd.upstream.http.response import Refusal, Response
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.url import REDIRECT_STATUSES, Target, Trail, bracketed

# Connections to upstreams, between Twisted's HTTP client and TCP or TLS.
#
# What stands here is what that client leaves to its transport: to read in large pieces, to stop
# at
# once when nobody wants more, and not to take headers without end.

RECEIVE_SIZE = 256 * 1024
"""Bytes that one read of a socket brings at most."""

MAX_HEAD = 256 * 1024
"""Bytes of status line and headers, 1xx answers included, before an answer is given up."""


class Connection(ProtocolWrapper):
    """The transport that Twisted's HTTP client has."""

    transport: Any

    def __init__(self, factory: ConnectionFactory, wrapped: Any, connections: Connections) -> None:
        super().__init__(factory, wrapped)
        self._connections = connections
        self._head: int | None = None

    def connectionMade(self) -> None:
        self._connections.opened(self)
        socket = self._socket()
        if isinstance(socket, tcp.Connection):
            socket.bufferSize = RECEIVE_SIZE

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connections.lost(self)
        super().connectionLost(reason)

    def writeSequence(self, data: Any) -> None:
        self._head = 0  # a request: all that comes now is its answer's head
        super().writeSequence(data)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > MAX_HEAD + RECEIVE_SIZE:
                self.abortConnection()

    def pauseProducing(self) -> None:
        self._head = None  # the client does this at the end of the headers, if a body follows
        self.transport.pauseProducing()

    def stopProducing(self) -> None:
        self.abortConnection()

    def abortConnection(self) -> None:
        """Close it now, whatever was under way."""
        self.transport.abortConnection()

    def loseConnection(self) -> None:
        super().loseConnection()
        socket = self._socket()
        if socket is not self.transport:
            # TLS would wait for the peer's close_notify, which need not come (RFC 8446, 6.1).
            socket.loseConnection()

    def _socket(self) -> Any:
        transport: Any = self.transport
        while isinstance(transport, TLSMemoryBIOProtocol):
            transport = transport.transport
        return transport


if TYPE_CHECKING:
    _WrappingFactory = WrappingFactory[Connection]
else:
    _WrappingFactory = WrappingFactory  # not generic in all the versions of Twisted that do


class ConnectionFactory(_WrappingFactory):
    """Puts a :class:`Connection` under each protocol of ``wrapped``."""

    noisy = False

    def __init__(self, wrapped: IProtocolFactory, connections: Connections) -> None:
        super().__init__(wrapped)
        self._connections = connections

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self, self.wrappedFactory.buildProtocol(addr), self._connections)


@define(eq=False)
class Connections:
    """The open connections of a transport, those of its pool included."""

    _open: set[Connection] = field(factory=set)
    _emptied: Deferred[None] | None = None

    def opened(self, connection: Connection) -> None:
        """``connection`` is there."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """``connection`` is closed."""
        self._open.discard(connection)
        if not self._open and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    async def abort(self) -> None:
        """Close all of them; returns when they are."""
        if not self._open:
            return
        emptied: Deferred[None] = Deferred()
        self._emptied = emptied
        for connection in list(self._open):
            connection.abortConnection()
        await emptied


# Why no answer came, in plain words.

_CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (error.DNSLookupError, "its name can't be resolved"),
    (error.ConnectionRefusedError, "connection refused"),
    (error.NoRouteError, "no route to it"),
    (VerificationError, "its certificate is for another name"),
    (CertificateError, "its certificate has no valid name in it (subjectAltName)"),
    (SSL.SysCallError, "it broke off the TLS handshake"),
    (error.ConnectionAborted, "the connection was given up"),
    (error.ConnectionDone, "it closed the connection"),
    (error.ConnectionLost, "it broke off the connection"),
)


def cause(failure: Failure) -> str | None:
    """
    What went wrong between the request and the end of the headers of its answer.

    It completes a sentence about the host, and holds nothing that the peer has sent.  ``None``: it
    is no fault of the host or the network.
    """
    if failure.check(ValueError):
        return "that is not the name of a host"  # says IDNA, before anything is sent
    reasons = _reasons(failure)
    known = [words for reason in reasons if (words := _words(reason.value))]
    if known:
        return known[0]
    # What the parser raises, of whatever type, comes inside of another failure.
    return None if reasons == [failure] else "its answer is not valid HTTP/1.1"


def _reasons(failure: Failure) -> list[Failure]:
    """The failures inside of one of Twisted's that has some, else itself."""
    inner: list[Failure] = getattr(failure.value, "reasons", None) or [failure]
    return inner


def _words(problem: BaseException | None) -> str | None:
    if isinstance(problem, ProxyRefused):
        answer = "something that is not HTTP" if problem.status is None else problem.status
        return f"the proxy answers {answer} to CONNECT"
    for kind, words in _CAUSES:
        if isinstance(problem, kind):
            return words
    if isinstance(problem, SSL.Error):
        return f"TLS failed: {_tls_reason(problem)}"
    if isinstance(problem, error.ConnectError):
        return _os_reason(problem)
    return None


def _tls_reason(problem: SSL.Error) -> str:
    """OpenSSL's words for it, such as ``certificate verify failed``."""
    stack = problem.args[0] if problem.args and isinstance(problem.args[0], list) else []
    return stack[0][2] if stack else "no reason given"


def _os_reason(problem: error.ConnectError) -> str:
    number = problem.osError
    return os.strerror(number).lower() if isinstance(number, int) else "no connection"


# One request to one host, as far as the headers of its answer, within its time.


@define(eq=False)
class Hop:
    """
    A request under way.

    Whoever connects for it says so, so that connecting, the name's resolution and the proxy's
    tunnel included, and waiting for the answer have a time of their own.

    :ivar host: who is asked, with the proxy if there is one, for messages.
    """

    _clock: IReactorTime
    host: str
    _connect_timeout: float
    _first_byte_timeout: float
    _asking: Deferred[IResponse] | None = field(default=None, init=False)
    _answered: Deferred[IResponse] = field(init=False)
    _deadline: IDelayedCall | None = field(default=None, init=False)
    # Why the request was given up from here, if it was.
    _given_up: BaseException | None = field(default=None, init=False)

    def ask(self, request: Callable[[], Deferred[IResponse]]) -> Deferred[IResponse]:
        """
        Its answer.  Cancelling it closes the connection.

        :raises TimedOut: if connecting, or the answer's headers, take too long.
        :raises Unreachable: if no answer comes.
        """
        self._answered = Deferred(self._cancelled)
        self.connected()
        self._asking = maybeDeferred(request)
        self._asking.addCallbacks(self._succeeded, self._failed)
        return self._answered

    def connecting(self) -> None:
        """A new connection is needed."""
        self._allow(self._connect_timeout, self._no_connection())

    def connected(self) -> None:
        """The request is sent, or about to be."""
        seconds = self._first_byte_timeout
        self._allow(seconds, f"{self.host} did not answer within {seconds:g} seconds")

    def give_up(self, error: BaseException) -> None:
        """Close the connection; the request fails with ``error``."""
        self._given_up = error
        if self._asking is not None:
            self._asking.cancel()

    def _no_connection(self) -> str:
        return f"{self.host}: no connection within {self._connect_timeout:g} seconds"

    def _allow(self, seconds: float, reason: str) -> None:
        self._stop_waiting()
        self._deadline = self._clock.callLater(seconds, self.give_up, TimedOut(reason))

    def _stop_waiting(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def _cancelled(self, _: Deferred[IResponse]) -> None:
        self.give_up(CancelledError())

    def _succeeded(self, response: IResponse) -> None:
        self._stop_waiting()
        self._answered.callback(response)

    def _failed(self, failure: Failure) -> None:
        self._stop_waiting()
        self._answered.errback(self._given_up or self._explained(failure))

    def _explained(self, failure: Failure) -> BaseException | Failure:
        if isinstance(failure.value, Unreachable):
            return failure.value
        if failure.check(ConnectTimeout, TCPTimedOutError):
            return TimedOut(self._no_connection())
        why = cause(failure)
        if why is None:
            return failure
        status = failure.value.status if isinstance(failure.value, ProxyRefused) else None
        return Unreachable(f"{self.host} can't be reached: {why}", status)


# How a target is reached: directly, by a request to a proxy, or by a tunnel through one.


class _VerbatimEndpoint(HostnameEndpoint):
    """
    Takes a name as it is: by IDNA, to which Twisted holds it, none has an underscore, or hyphens in
    the third and fourth place, and hosts do.
    """

    @staticmethod
    def _hostAsBytesAndText(host: Any) -> tuple[bool, bytes, str]:
        labels = host.rstrip(".").split(".")
        invalid = len(host) > 253 or not all(0 < len(label) < 64 for label in labels)
        return invalid, host.encode("ascii"), host


@implementer(IStreamClientEndpoint)
@frozen
class _WatchedEndpoint:
    """
    Connects by ``below`` and tells its hop of it.

    :ivar key: endpoints with the same one lead to the same peer: Twisted's agent for proxies looks
        in the pool by endpoint.
    """

    key: Hashable
    _below: IStreamClientEndpoint = field(eq=False)
    _connections: Connections = field(eq=False)
    _hop: Hop = field(eq=False)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        self._hop.connecting()
        # Otherwise each connection is worth two lines in the log to it.
        protocolFactory.noisy = False  # type: ignore[attr-defined]
        factory = ConnectionFactory(protocolFactory, self._connections)
        connecting: Deferred[Any] = self._below.connect(factory)
        return connecting.addCallback(self._connected)

    def _connected(self, connection: Connection) -> IProtocol:
        self._hop.connected()
        wrapped: IProtocol = connection.wrappedProtocol
        return wrapped


@implementer(IAgentEndpointFactory)
@frozen
class _Only:
    """The endpoint of the one request that an agent is made for."""

    endpoint: IStreamClientEndpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self.endpoint


@frozen
class Routes:
    """Makes the agents of a transport, which share its connections."""

    _reactor: Any
    _pool: HTTPConnectionPool
    _connections: Connections
    _proxies: Proxies
    _trust: Trust
    _connect_timeout: float

    def proxy(self, target: Target) -> Proxy | None:
        """The proxy through which ``target`` is asked, or ``None``."""
        return self._proxies.for_target(target)

    def agent(self, target: Target, proxy: Proxy | None, hop: Hop) -> IAgent:
        """An agent for ``hop``, a request of ``target``."""
        address = proxy.address if proxy else target
        socket: IStreamClientEndpoint = _VerbatimEndpoint(
            self._reactor, address.host, address.port, timeout=self._connect_timeout
        )
        if target.scheme == "https":
            socket = self._secured(socket, target, proxy)
        endpoint = _WatchedEndpoint(address, socket, self._connections, hop)
        if proxy and target.scheme == "http":
            agent: IAgent = ProxyAgent(endpoint, self._reactor, self._pool)
        else:
            agent = Agent.usingEndpointFactory(self._reactor, _Only(endpoint), self._pool)
        return agent

    def _secured(
        self, socket: IStreamClientEndpoint, target: Target, proxy: Proxy | None
    ) -> IStreamClientEndpoint:
        if proxy:
            destination = f"{bracketed(target.host)}:{target.port}"
            socket = TunnelEndpoint(socket, destination, proxy.authorization)
        return wrapClientTLS(self._trust.options(target.host), socket)


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
        :param environ: names the proxies (:class:`artifactd.upstream.http.proxy.Proxies`).
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
            trail = Trail(Target.parse(url), headers)
        except ValueError as error:
            raise Unreachable(f"the upstream's URL can't be asked for: {error}") from None
        while True:
            response = await self._ask(method, trail.target, trail.headers)
            if response.status not in REDIRECT_STATUSES:
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
