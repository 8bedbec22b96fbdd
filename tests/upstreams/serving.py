"""HTTP on an address of loopback, by coroutines."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorTCP
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python import log
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

Handler = Callable[[Request], Coroutine[Deferred[Any], Any, None]]


class Server:
    """
    What listens on an address, and can be stopped and started again there.

    :ivar handler: answers each request; cancelled when its client leaves.
    """

    def __init__(self, reactor: IReactorTCP, address: str, handler: Handler) -> None:
        self._reactor = reactor
        self._address = address
        self._connections = _Connections(_Quiet(_Leaf(handler)))
        self._port: IListeningPort | None = None
        self._number = 0
        self._kept: socket.socket | None = None

    @property
    def host(self) -> str:
        """``address:port``; the same after :meth:`stop`."""
        return f"{self._address}:{self._number}"

    def start(self) -> None:
        """Listen, the first time on a free port."""
        factory: Any = self._connections
        self._port = self._reactor.listenTCP(self._number, factory, interface=self._address)
        address = self._port.getHost()
        assert isinstance(address, IPv4Address)
        self._number = address.port
        self._keep_number(None)

    async def stop(self) -> None:
        """Listen no more until :meth:`start`, and cut all connections."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
            # It is bound, so that the kernel gives the number to nobody else; it does not listen,
            # so that clients are refused.
            kept = socket.socket()
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((self._address, self._number))
            self._keep_number(kept)
        await self._connections.cut()

    async def close(self) -> None:
        """Listen no more, and give up the number."""
        await self.stop()
        self._keep_number(None)

    def _keep_number(self, kept: socket.socket | None) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = kept


class _Connection(ProtocolWrapper):
    factory: Any

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.factory.lost()


class _Connections(WrappingFactory):
    """All connections of a site."""

    protocol = _Connection
    noisy = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._gone: Deferred[None] | None = None

    def lost(self) -> None:
        """One of them has ended."""
        if self._gone is not None and not self.protocols:
            self._gone.callback(None)

    async def cut(self) -> None:
        """End them; returns when none is left."""
        if self.protocols:
            self._gone = Deferred()
            for connection in list(self.protocols):
                connection.abortConnection()
            await self._gone
            self._gone = None


class _Quiet(Site):
    """A site that keeps no log, and connections as long as their clients want."""

    noisy = False

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource, timeout=None)

    def log(self, request: object) -> None:
        """Nobody reads it."""


class _Leaf(Resource):
    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.isLeaf = True
        self._handler = handler

    def render(self, request: Request) -> int:
        answering = Deferred.fromCoroutine(self._handler(request))

        def left(failure: Failure) -> None:
            answering.cancel()

        def failed(failure: Failure) -> None:
            if not failure.check(CancelledError):
                log.err(failure, "a test's upstream failed")
                transport: Any = request.transport
                transport.abortConnection()

        request.notifyFinish().addErrback(left)
        answering.addErrback(failed)
        return NOT_DONE_YET
