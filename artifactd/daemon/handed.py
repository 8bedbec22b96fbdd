"""The listeners of a worker: the supervisor has the sockets, and hands it each connection."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from twisted.internet import address, tcp, unix
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.daemon.listen import listen

if TYPE_CHECKING:  # imported with the service, behind this
    from artifactd.registry.metrics import Counters

_log = Logger()


class Handed:
    """
    Listens by being handed connections.

    :param closed: called with the number of a connection when it is closed.
    :param drained: called when no request is under way any more, while the daemon stops;
        :meth:`last` answers it.
    """

    def __init__(
        self, reactor: Any, closed: Callable[[int], None], drained: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._closed, self._drained = closed, drained
        self._factories: list[IProtocolFactory] = []
        self._stopped: Deferred[None] | None = None
        self._ended = False

    def listen(
        self,
        descriptions: Sequence[str],
        site: IProtocolFactory,
        reactor: Any,
        counters: Counters,
        opened: ExitStack,
    ) -> list[IListeningPort]:
        """
        Prepare to serve the connections that come to ``descriptions``, with the parameters of
        :func:`.listen.listen`.

        :raises StartError: naming the first endpoint that is wrong, or lacks a certificate.
        """
        # What systemd has opened is the supervisor's alone, and is served as it is.
        known = ["unix:-" if each.startswith("systemd:") else each for each in descriptions]
        return listen(known, site, _Endpoints(reactor, self._listens), counters, opened)

    def take(self, listener: int, number: int, descriptor: int) -> None:
        """
        Serve a connection.

        :param listener: the index of its listener in ``descriptions``.
        :param number: the number of the connection, which tells later that it is closed.
        :param descriptor: its socket, which is this process's from now on; -1: the system has
            closed it, since this process may have no more descriptors.
        """
        if descriptor < 0:
            _log.error("a connection is dropped: this worker has too many open files (ulimit -n)")
            self._closed(number)
            return
        connection = socket.socket(fileno=descriptor)
        try:
            kind = _Unix if connection.family == socket.AF_UNIX else _Tcp
            peer = _peer(connection)
            protocol = self._factories[listener].buildProtocol(_shown(peer))
        except OSError:  # the client has left already
            protocol = None
        if protocol is None:
            connection.close()
            self._closed(number)
            return
        port: Any = None  # as for a connection that Twisted adopts
        transport = kind(connection, protocol, peer, port, number, self._reactor)
        transport.closed = self._closed
        transport.repstr = f"<{type(protocol).__name__} #{number}>"
        protocol.makeConnection(transport)

    def last(self) -> None:
        """No connection will come any more."""
        self._ended = True
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.callback(None)

    def stop(self) -> Deferred[None]:
        """Take no more connections.  Fires when the last one has come."""
        if self._ended:
            return succeed(None)
        if self._stopped is None:
            self._stopped = Deferred()
            self._drained()
        stopped: Deferred[None] = Deferred()
        self._stopped.chainDeferred(stopped)
        return stopped

    def _listens(self, factory: IProtocolFactory) -> IListeningPort:
        self._factories.append(factory)
        factory.doStart()
        return _Port(self, factory)


@implementer(IListeningPort)
class _Port:
    """A listener of a worker."""

    def __init__(self, handed: Handed, factory: IProtocolFactory) -> None:
        self._handed, self._factory = handed, factory

    def startListening(self) -> None:
        """Do nothing: connections come by themselves."""

    async def _stop(self) -> None:
        await self._handed.stop()
        self._factory.doStop()

    def stopListening(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    def getHost(self) -> Any:
        raise NotImplementedError("the supervisor has the socket")


class _Endpoints:
    """
    The reactor for endpoints of a worker: to listen is to take the factory, whatever they put
    under it, such as TLS.
    """

    def __init__(self, reactor: Any, listens: Callable[[IProtocolFactory], IListeningPort]) -> None:
        self._reactor, self._listens = reactor, listens

    def listenTCP(self, port: int, factory: IProtocolFactory, *_: Any, **__: Any) -> Any:
        return self._listens(factory)

    def listenUNIX(self, path: str, factory: IProtocolFactory, *_: Any, **__: Any) -> Any:
        return self._listens(factory)

    def listenSSL(
        self, port: int, factory: IProtocolFactory, context: Any, *_: Any, **__: Any
    ) -> Any:
        return self._listens(TLSMemoryBIOFactory(context, False, factory))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class _TellsItsEnd:
    """A connection that tells when it is closed."""

    sessionno: int
    closed: Callable[[int], None]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        try:
            super().connectionLost(reason)  # type: ignore[misc]  # of a transport
        finally:
            self.closed(self.sessionno)


class _Tcp(_TellsItsEnd, tcp.Server):
    """A TCP connection."""


class _Unix(_TellsItsEnd, unix.Server):
    """A connection over a Unix socket."""


def _peer(connection: socket.socket) -> Any:
    """The peer, as a transport of Twisted's is told it."""
    peer = connection.getpeername()
    if connection.family == socket.AF_INET6:
        # With the scope of a link-local address, as Twisted's own port does.
        host, _ = socket.getnameinfo(peer, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return (host, *peer[1:])
    return peer


def _shown(peer: Any) -> address.IPv4Address | address.IPv6Address | address.UNIXAddress:
    if not isinstance(peer, tuple):
        return address.UNIXAddress(peer)
    kind = address.IPv6Address if len(peer) == 4 else address.IPv4Address
    return kind("TCP", *peer)
