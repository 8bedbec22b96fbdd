"""A server on loopback that answers byte by byte as a test says, and a transport with a clock."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Self, TypeVar

from attrs import define, field, frozen
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.interfaces import (
    IConsumer,
    IHostResolution,
    IProducer,
    IPushProducer,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IResolutionReceiver,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import directlyProvides, implementer

from artifactd.upstream.http.errors import Unreachable
from artifactd.upstream.http.proxy import Proxies
from artifactd.upstream.http.reach import Reach
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import Transport

_T = TypeVar("_T")


@frozen
class Request:
    """A request that the server received: its request line, and the header fields in order."""

    method: str
    resource: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, head: bytes) -> Self:
        line, *fields = head.decode("ascii").split("\r\n")
        method, resource, version = line.split(" ")
        assert version == "HTTP/1.1"
        pairs = (line.partition(": ")[::2] for line in fields)
        return cls(method, resource, tuple((name.lower(), value) for name, value in pairs))

    def values(self, name: str) -> list[str]:
        """All values of a header field."""
        return [value for field, value in self.fields if field == name.lower()]


class Peer(Protocol):
    """
    The server's end of one connection.

    :ivar lost: fires when the connection has ended.
    """

    transport: ITCPTransport

    def __init__(self, server: Server) -> None:
        self.lost: Deferred[None] = Deferred()
        self._server = server
        self._received = b""
        self._raw: Protocol | None = None

    def connectionMade(self) -> None:
        self._server.peers.append(self)
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        if self._raw is not None:
            self._raw.dataReceived(data)
            return
        self._received += data
        while b"\r\n\r\n" in self._received and self._raw is None:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._server.asked.put((self, Request.parse(head)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._raw is not None:
            self._raw.connectionLost(reason)
        self.lost.callback(None)

    def send(self, *pieces: bytes) -> None:
        """Send ``pieces``."""
        self.transport.write(b"".join(pieces))

    def answer(self, status: str = "200 OK", *fields: str, body: bytes = b"") -> None:
        """Send an answer with its length, and ``fields``."""
        self.send(head(status, f"Content-Length: {len(body)}", *fields), body)

    def close(self) -> None:
        """End the connection, in order."""
        self.transport.loseConnection()

    def reset(self) -> None:
        """End the connection with a reset."""
        self.transport.abortConnection()

    def become(self, protocol: Protocol) -> None:
        """From now on ``protocol`` is at this end."""
        self._raw = protocol
        protocol.makeConnection(self.transport)


class Server(Factory):
    """
    Listens on 127.0.0.1.

    :ivar asked: the requests, each with the connection that it came on, as they arrive.
    :ivar peers: all connections that there have been.
    :ivar port: where it listens.
    """

    noisy = False

    def __init__(self) -> None:
        self.asked: DeferredQueue[tuple[Peer, Request]] = DeferredQueue()
        self.peers: list[Peer] = []
        self.port = 0

    @classmethod
    def start(cls, test: TransportCase) -> Self:
        """Start a server that stops with the test."""
        server = cls()
        server.listen(test, server)
        return server

    def listen(self, test: TransportCase, factory: Any) -> None:
        """Listen with ``factory``, which may put something under this server's connections."""
        listening = IReactorTCP(reactor).listenTCP(0, factory, interface="127.0.0.1")
        address = listening.getHost()
        assert isinstance(address, IPv4Address)
        self.port = address.port
        test.addCleanup(listening.stopListening)
        test.servers.append(self)

    def buildProtocol(self, addr: object) -> Peer:
        return Peer(self)

    def url(self, resource: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        """Where ``resource`` is."""
        return f"{scheme}://{host}:{self.port}{resource}"


@implementer(IConsumer)
class Sink:
    """
    A consumer that keeps the bytes that it is given.

    :ivar producer: the body, until all of it has come.
    :ivar on_register: called with the producer when it registers.
    :ivar on_write: called after each write.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self.producer: IPushProducer | None = None
        self.on_register: Callable[[IPushProducer], None] = lambda producer: None
        self.on_write: Callable[[], None] = lambda: None
        self._awaited: tuple[int, Deferred[None]] | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        assert IPushProducer.providedBy(producer)
        self.producer = producer
        self.on_register(producer)

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        self.content += data
        self.on_write()
        if self._awaited is not None and len(self.content) >= self._awaited[0]:
            (_, waiting), self._awaited = self._awaited, None
            waiting.callback(None)

    def has(self, size: int) -> Deferred[None]:
        """Fires when there are ``size`` bytes."""
        waiting: Deferred[None] = Deferred()
        if len(self.content) >= size:
            waiting.callback(None)
        else:
            self._awaited = (size, waiting)
        return waiting

    def pause(self) -> None:
        """Take no more for now."""
        assert self.producer is not None
        self.producer.pauseProducing()

    def resume(self) -> None:
        """Take more."""
        assert self.producer is not None
        self.producer.resumeProducing()

    def stop(self) -> None:
        """Take no more."""
        assert self.producer is not None
        self.producer.stopProducing()


@implementer(IHostResolution)
@frozen
class _Resolution:
    name: str

    def cancel(self) -> None:
        """It is over already."""


@define(eq=False, slots=False)
class ClockedReactor:
    """
    Real connections, but time goes by as ``clock`` says, and names are those that ``names`` has.

    :ivar resolving: whether the resolution of names takes for ever.
    :ivar connect: does what ``connectTCP`` is to do.
    """

    clock: Clock = field(factory=Clock)
    names: dict[str, str] = field(factory=dict)
    resolving: bool = False
    connect: Callable[..., Any] = IReactorTCP(reactor).connectTCP

    def __attrs_post_init__(self) -> None:
        # Not all of it: no more than connecting asks for.
        directlyProvides(self, IReactorTime, IReactorTCP, IReactorPluggableNameResolver)

    @property
    def nameResolver(self) -> Self:
        return self

    def resolveHostName(
        self, receiver: IResolutionReceiver, hostName: str, portNumber: int = 0, *_: object
    ) -> IHostResolution:
        resolution = _Resolution(hostName)
        receiver.resolutionBegan(resolution)
        if self.resolving:
            return resolution
        address = hostName if hostName[0].isdigit() else self.names.get(hostName)
        if address is not None:
            receiver.addressResolved(IPv4Address("TCP", address, portNumber))
        receiver.resolutionComplete()
        return resolution

    def callLater(self, delay: float, *args: Any, **kwargs: Any) -> Any:
        return self.clock.callLater(delay, *args, **kwargs)

    def seconds(self) -> float:
        return self.clock.seconds()

    def connectTCP(self, *args: Any, **kwargs: Any) -> Any:
        return self.connect(*args, **kwargs)


class TransportCase(TestCase):
    """Tests with a server on loopback, and a transport whose time is the test's."""

    def setUp(self) -> None:
        self.addCleanup(self._nothing_left)
        self.servers: list[Server] = []
        self.server = Server.start(self)
        self.reactor = ClockedReactor()
        self.clock = self.reactor.clock
        self.transport = self.make()
        self._asked: list[Deferred[Any]] = []

    def make(
        self, ca_file: object = "", environ: Mapping[str, str] | None = None, **timeouts: float
    ) -> Transport:
        """A transport that is closed at the end; all of its timers have to be gone then."""
        transport = make_transport(self.reactor, str(ca_file), environ or {}, **timeouts)
        self.addCleanup(self._closed, transport)
        return transport

    async def error(
        self, failing: Deferred[Any], kind: type[Unreachable] = Unreachable
    ) -> Unreachable:
        """Return the error of ``failing``, which has to be of ``kind``."""
        error: Any = await self.assertFailure(failing, kind)
        assert isinstance(error, Unreachable)
        return error

    async def _closed(self, transport: Transport) -> None:
        await transport.close()
        for answer in self._asked:
            answer.addErrback(lambda failure: failure.trap(Unreachable))  # nobody waited for it

    async def _nothing_left(self) -> None:
        for server in self.servers:
            for peer in server.peers:
                await peer.lost
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def get(self, resource: str = "/", method: str = "GET", **headers: str) -> Deferred[Any]:
        """Ask the server."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = start(self.transport.request(method, self.server.url(resource), named))
        self._asked.append(answer)
        return answer


def make_transport(
    reactor: Any,
    ca_file: str = "",
    environ: Mapping[str, str] | None = None,
    *,
    connect_timeout: float = 10,
    first_byte_timeout: float = 30,
    idle_timeout: float = 30,
) -> Transport:
    """Make a transport with the default timeouts, to an upstream on loopback."""
    return Transport(
        reactor=reactor,
        trust=Trust.load(ca_file),
        proxies=Proxies.from_environ(environ or {}),
        reach=Reach("127.0.0.1"),
        connect_timeout=connect_timeout,
        first_byte_timeout=first_byte_timeout,
        idle_timeout=idle_timeout,
    )


def start(work: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
    """Let ``work`` begin."""
    return Deferred.fromCoroutine(work)


def head(status: str, *fields: str) -> bytes:
    """An answer's head."""
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode()
