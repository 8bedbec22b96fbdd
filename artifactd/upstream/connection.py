"""
Connections to upstreams, between Twisted's HTTP client and TCP or TLS.

What stands here is what that client leaves to its transport: to read in large pieces, to stop at
once when nobody wants more, and not to take headers without end.
"""
# twisted.protocols.policies is half annotated.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

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
