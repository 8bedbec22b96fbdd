"""HTTP/1.1 as a client of upstreams, by treq."""
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field, frozen
from hyperlink import EncodedURL
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
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import VerificationError
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from artifactd import __version__
from artifactd.kit.timers import Timers
from artifactd.upstream.http.coding import coding_of
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.http.proxy import Proxies, Proxy, ProxyRefused, TunnelEndpoint
from artifactd.upstream.http.reach import CheckedEndpoint, Reach
from artifactd.upstream.http.response import Response
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.url import REDIRECT_STATUSES, Origin, Target, Trail, bracketed

RECEIVE_SIZE = 256 * 1024
"""Bytes that one read of a socket brings at most."""

MAX_HEAD = 256 * 1024
"""Bytes of status line and headers, 1xx answers included, before an answer is given up."""


class Connection(ProtocolWrapper):
    """
    The transport under Twisted's HTTP client.

    It does what that client leaves to its transport: it reads in large pieces, stops at once when
    nobody wants more, and bounds the headers of an answer.
    """

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
        """Close the connection at once, whatever is under way."""
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
        """Note that ``connection`` is open."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """Note that ``connection`` is closed."""
        self._open.discard(connection)
        if not self._open and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    async def abort(self) -> None:
        """Close all connections; returns when they are closed."""
        if not self._open:
            return
        emptied: Deferred[None] = Deferred()
        self._emptied = emptied
        for connection in list(self._open):
            connection.abortConnection()
        await emptied


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


def cause(problem: BaseException) -> str | None:
    """
    Explain why a request got no answer, in words that complete a sentence about the host.

    They hold nothing that the peer has sent.  ``None``: neither the host nor the network failed.
    """
    if isinstance(problem, ValueError):
        return "that is not the name of a host"  # raised before anything is sent
    if not isinstance(
        problem, RequestGenerationFailed | RequestTransmissionFailed | ResponseFailed
    ):
        return _words(problem)
    known = (_words(reason.value) for reason in problem.reasons)
    # The parser's errors, of various types, come inside of a ResponseFailed.
    return next(filter(None, known), "its answer is not valid HTTP/1.1")


def _words(problem: BaseException | None) -> str | None:
    if isinstance(problem, ProxyRefused):
        answer = "something that is not HTTP" if problem.status is None else problem.status
        return f"the proxy answers {answer} to CONNECT"
    for kind, words in _CAUSES:
        if isinstance(problem, kind):
            return words
    if isinstance(problem, SSL.Error):
        # OpenSSL's own words, such as "certificate verify failed".
        stack = problem.args[0] if problem.args and isinstance(problem.args[0], list) else []
        return f"TLS failed: {stack[0][2] if stack else 'no reason given'}"
    if isinstance(problem, error.ConnectError):
        number = problem.osError
        return os.strerror(number).lower() if isinstance(number, int) else "no connection"
    return None


class Step:
    """
    One request to one host, up to the headers of its answer; a redirect leads to another step.

    Its endpoint reports when it connects, so that connecting (resolving the name and a proxy's
    tunnel included) and waiting for the answer have separate timeouts.

    :param host: the host, and the proxy if there is one, for error messages.
    :param connect_timeout: seconds.
    :param first_byte_timeout: seconds.
    """

    def __init__(
        self, timers: Timers, host: str, connect_timeout: float, first_byte_timeout: float
    ) -> None:
        self.host = host
        self._connect_timeout = connect_timeout
        self._first_byte_timeout = first_byte_timeout
        self._deadline = timers.deadline(self._expired)
        self._connecting = False
        self._asking: Deferred[IResponse] | None = None
        self._given_up: BaseException | None = None

    async def run(self, ask: Callable[[], Deferred[IResponse]]) -> IResponse:
        """
        Call ``ask`` and wait for the answer.  Cancelling closes the connection.

        :raises TimedOut: if connecting, or the answer's headers, take too long.
        :raises Unreachable: if no answer comes.
        """
        answered: Deferred[IResponse] = Deferred(lambda _: self.give_up(CancelledError()))
        self.connected()
        try:
            self._asking = maybeDeferred(ask)
            self._asking.chainDeferred(answered)
            return await answered
        except Exception as problem:
            if self._given_up is not None:
                raise self._given_up from None
            if isinstance(problem, ConnectTimeout | TCPTimedOutError):
                raise TimedOut(self._no_connection()) from None
            why = None if isinstance(problem, UpstreamError) else cause(problem)
            if why is None:
                raise
            status = problem.status if isinstance(problem, ProxyRefused) else None
            unreachable = Unreachable(f"{self.host} can't be reached: {why}", status)
            unreachable.connected = isinstance(problem, ResponseFailed)
            raise unreachable from None
        finally:
            self._deadline.cancel()

    def connecting(self) -> None:
        """Note that a new connection is being made: the connect timeout runs."""
        self._connecting = True
        self._deadline.start(self._connect_timeout)

    def connected(self) -> None:
        """Note that the request is about to be sent: the first byte timeout runs."""
        self._connecting = False
        self._deadline.start(self._first_byte_timeout)

    def give_up(self, error: BaseException) -> None:
        """Close the connection; :meth:`run` raises ``error``."""
        self._given_up = error
        if self._asking is not None:
            self._asking.cancel()

    def _expired(self) -> None:
        late = f"{self.host} did not answer within {self._first_byte_timeout:g} seconds"
        expired = TimedOut(self._no_connection() if self._connecting else late)
        expired.connected = not self._connecting
        self.give_up(expired)

    def _no_connection(self) -> str:
        return f"{self.host}: no connection within {self._connect_timeout:g} seconds"


class _AnyHostEndpoint(HostnameEndpoint):
    """
    Connects to a host by a name that IDNA may refuse.

    Twisted refuses an underscore, and hyphens in the third and fourth place; real hosts have them.
    """

    @staticmethod
    def _hostAsBytesAndText(host: Any) -> tuple[bool, bytes, str]:
        labels = host.rstrip(".").split(".")
        invalid = len(host) > 253 or not all(0 < len(label) < 64 for label in labels)
        return invalid, host.encode("ascii"), host


@implementer(IStreamClientEndpoint)
@frozen
class _StepEndpoint:
    """Connects by ``below``, and reports to ``step`` when it begins to and when it has."""

    below: IStreamClientEndpoint
    connections: Connections
    step: Step

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def connected(connection: Connection) -> IProtocol:
            self.step.connected()
            wrapped: IProtocol = connection.wrappedProtocol
            return wrapped

        self.step.connecting()
        # Otherwise each connection is worth two lines in the log to it.
        protocolFactory.noisy = False  # type: ignore[attr-defined]
        factory = ConnectionFactory(protocolFactory, self.connections)
        connecting: Deferred[Any] = self.below.connect(factory)
        return connecting.addCallback(connected)


class _ExactUrl(EncodedURL):
    """A URL that treq takes as it is: it would normalise any other, and refuses hosts like ::1."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def to_uri(self) -> Self:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._text


class _StepAgent(Agent):
    """
    Sends the one request of a step by ``endpoint``, and notes how its answer is coded.

    A signed URL must go out exactly as it came.  Twisted's agents rebuild it from its parts, which
    in newer versions of Python doubles slashes at the beginning of a path.

    :param target: the URL of the request.
    :param proxy: the proxy that ``endpoint`` connects to, or ``None``.
    :ivar coding: of the answer, as :func:`coding_of` returns it.
    """

    def __init__(
        self,
        pool: HTTPConnectionPool,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        target: Target,
        proxy: Proxy | None,
    ) -> None:
        super().__init__(reactor, pool=pool)
        self.coding = ""
        self._endpoint = endpoint
        if proxy is not None and target.scheme == "http":
            self._key: Any = ("proxy", proxy.address)
            self._path = target.url
        else:
            self._key = target.origin
            self._path = target.resource

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        wire = Headers() if headers is None else headers.copy()
        # treq asks for gzip, which would break lengths and ranges.
        wire.setRawHeaders("Accept-Encoding", ["identity"])
        path = self._path.encode("ascii")
        asking: Deferred[IResponse] = self._requestWithEndpoint(
            self._key, self._endpoint, method, URI.fromBytes(uri), wire, bodyProducer, path
        )
        return asking.addCallback(self._answered)

    def _answered(self, response: IResponse) -> IResponse:
        """Leave nothing in the headers that treq would act upon."""
        response.headers.removeHeader(b"Set-Cookie")
        fields = response.headers.getRawHeaders(b"Content-Encoding", [])
        if fields:
            self.coding = coding_of(value.decode("iso-8859-1") for value in fields)
            response.headers.removeHeader(b"Content-Encoding")
        return response


__all__ = ["Response", "Transport"]

IDLE_CONNECTIONS = 8
"""Connections to one host that are kept for later requests."""

IDLE_SECONDS = 60
"""Seconds for which idle connections are kept."""


@define(eq=False, kw_only=True)
class Transport:
    """
    HTTP to one upstream: a connection pool of its own, redirects, TLS, proxies, timeouts.

    :param reactor: connects, resolves names, and is the clock of all timeouts.
    :param reach: decides which addresses may be connected to.
    :param connect_timeout: seconds for a connection, the name's resolution and a proxy's tunnel
        included.
    :param first_byte_timeout: seconds from there, a TLS handshake included, to the end of the
        answer's headers.
    :param idle_timeout: seconds for which a body may stand still.
    """

    reactor: Any
    trust: Trust
    proxies: Proxies
    reach: Reach
    connect_timeout: float
    first_byte_timeout: float
    idle_timeout: float
    _pool: HTTPConnectionPool = field(init=False)
    _timers: Timers = field(init=False)
    _connections: Connections = field(factory=Connections, init=False)
    _steps: set[Step] = field(factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._timers = Timers(self.reactor)
        self._pool = HTTPConnectionPool(self.reactor)
        self._pool.maxPersistentPerHost = IDLE_CONNECTIONS
        self._pool.cachedConnectionTimeout = IDLE_SECONDS

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        others: Mapping[Origin, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """
        Ask for ``url`` and follow redirects; returns when the headers of the answer have come.

        ``Authorization`` goes to the API at the origin of ``url`` alone.  ``Accept-Encoding`` is
        always ``identity``; an answer that is coded none the less says so
        (:attr:`Response.coding`).  If the upstream closes a kept connection before it answers, the
        request is sent once more on a new one.

        :param method: GET, HEAD, or POST, which follows no redirect: what is posted is a secret.
        :param others: ``Authorization`` for other origins that a redirect may lead to.
        :param body: of a POST.
        :raises TimedOut: if a connection or an answer takes too long.
        :raises OutOfReach: if it leads to an address that the upstream may not lead to.
        :raises Unreachable: if there is no answer, or a redirect that may not be followed.
        """
        assert method in (("GET", "HEAD") if body is None else ("POST",)), method
        try:
            trail = Trail(Target.parse(url), headers, others or {})
        except ValueError as error:
            raise Unreachable(f"the upstream's URL can't be asked for: {error}") from None
        while True:
            try:
                response = await self._ask(
                    method, trail.target, trail.headers, body, redirected=trail.left
                )
            except Unreachable as error:
                error.led_elsewhere = trail.left
                raise
            if response.status not in REDIRECT_STATUSES:
                return response
            location = response.header("Location")
            response.drop()
            if body is not None:
                raise Unreachable(f"{response.host} redirects a POST", response.status)
            try:
                trail.follow(location)
            except Unreachable as error:
                error.led_elsewhere = True
                raise

    async def close(self) -> None:
        """Give up all requests and close all connections; returns when they are closed."""
        self._closed = True
        for step in list(self._steps):
            step.give_up(_shut_down(step.host))
        await self._connections.abort()
        # Last, since one on which an answer has just ended comes to the pool even now.
        await self._pool.closeCachedConnections()

    async def _ask(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        redirected: bool,
    ) -> Response:
        """Make one request, without following a redirect."""
        if self._closed:
            raise _shut_down(target.authority)
        self.reach.check(target)
        wire = Headers({name: [value] for name, value in headers.items()})
        wire.setRawHeaders("User-Agent", [f"artifactd/{__version__}"])
        proxy = self.proxies.for_target(target)
        whom = target.authority
        if proxy is not None:
            whom += f" (through the proxy {proxy.address.authority})"
            if proxy.authorization and target.scheme == "http":
                wire.setRawHeaders("Proxy-Authorization", [proxy.authorization])
        step = Step(self._timers, whom, self.connect_timeout, self.first_byte_timeout)

        endpoint = _StepEndpoint(self._endpoint(target, proxy), self._connections, step)
        agent = _StepAgent(self._pool, self.reactor, endpoint, target, proxy)

        def ask() -> Deferred[Any]:
            return HTTPClient(agent).request(
                method,
                _ExactUrl(target.url),
                headers=wire,
                data=body,
                allow_redirects=False,
                unbuffered=True,
                reactor=self.reactor,
            )

        self._steps.add(step)
        try:
            answer = await step.run(ask)
        finally:
            self._steps.discard(step)
        return Response(
            answer,
            target.authority,
            target.url,
            redirected,
            agent.coding,
            self.reactor,
            self._timers,
            self.idle_timeout,
        )

    def _endpoint(self, target: Target, proxy: Proxy | None) -> IStreamClientEndpoint:
        """Make the endpoint for ``target``: direct, to a proxy, or through a proxy's tunnel."""
        address = proxy.address if proxy else target

        def by(reactor: Any) -> IStreamClientEndpoint:
            return _AnyHostEndpoint(
                reactor, address.host, address.port, timeout=self.connect_timeout
            )

        if proxy is None:
            socket: IStreamClientEndpoint = CheckedEndpoint(self.reactor, target, self.reach, by)
        else:
            socket = by(self.reactor)  # the proxy resolves the name
        if target.scheme == "http":
            return socket
        if proxy is not None:
            destination = f"{bracketed(target.host)}:{target.port}"
            socket = TunnelEndpoint(socket, destination, proxy.authorization)
        return wrapClientTLS(self.trust.options(target.host), socket)


def _shut_down(host: str) -> Unreachable:
    return Unreachable(f"{host} is not asked any more: shutting down")
