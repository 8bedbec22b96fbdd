"""Tunnels through an HTTP proxy: RFC 9110, 9.3.6 (CONNECT)."""

from __future__ import annotations

import re
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

MAX_HEAD = 64 * 1024
"""Bytes of status line and headers that a proxy may answer with."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: [^\r\n]*)?\r?\n")


class ProxyRefused(Exception):
    """
    A proxy has not made the tunnel.

    :ivar status: that it answered with; ``None`` if that was not HTTP.
    """

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class _Tunnel(Protocol):
    """
    The proxy's connection: until the proxy agrees, and then that of the protocol inside.

    :ivar made: fires with that protocol.
    """

    transport: ITCPTransport

    def __init__(self, request: bytes, factory: IProtocolFactory, address: IAddress) -> None:
        self.made: Deferred[IProtocol] = Deferred(self._cancelled)
        self._request = request
        self._factory = factory
        self._address = address
        self._received = b""
        self._inside: IProtocol | None = None

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._inside is not None:
            self._inside.dataReceived(data)
        elif not self.made.called:
            self._received += data
            end = _HEAD_END.search(self._received)
            if end is not None:
                self._answered(self._received[: end.end()], self._received[end.end() :])
            elif len(self._received) > MAX_HEAD:
                self._fail(ProxyRefused(None))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inside is not None:
            self._inside.connectionLost(reason)
        elif not self.made.called:
            self.made.errback(reason)

    def _answered(self, head: bytes, rest: bytes) -> None:
        match = _STATUS.match(head)
        status = int(match[1]) if match else None
        if status is None or not 200 <= status < 300:
            self._fail(ProxyRefused(status))
            return
        self._received = b""
        inside = self._factory.buildProtocol(self._address)
        assert inside is not None
        self._inside = inside
        inside.makeConnection(self.transport)
        self.made.callback(inside)
        if rest:
            inside.dataReceived(rest)

    def _fail(self, error: ProxyRefused) -> None:
        self.transport.abortConnection()
        self.made.errback(error)

    def _cancelled(self, _: Deferred[IProtocol]) -> None:
        self.transport.abortConnection()


class _TunnelFactory(Factory):
    """Makes a :class:`_Tunnel`; ``inside`` makes what is to use it."""

    noisy = False

    def __init__(self, request: bytes, inside: IProtocolFactory) -> None:
        self._request = request
        self._inside = inside

    def buildProtocol(self, addr: IAddress | None) -> _Tunnel:
        assert addr is not None
        return _Tunnel(self._request, self._inside, addr)


@implementer(IStreamClientEndpoint)
@frozen
class TunnelEndpoint:
    """
    Connects to a host through a proxy.

    :ivar proxy: connects to the proxy.
    :ivar destination: ``host:port``, with a port always.
    :ivar authorization: the value of ``Proxy-Authorization``, or ``None``.
    """

    proxy: IStreamClientEndpoint
    destination: str
    authorization: str | None = field(repr=False)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """
        :raises ProxyRefused: if the proxy answers with another status than 2xx.
        """
        lines = [f"CONNECT {self.destination} HTTP/1.1", f"Host: {self.destination}"]
        if self.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        request = "\r\n".join([*lines, "", ""]).encode("ascii")
        connecting: Deferred[Any] = self.proxy.connect(_TunnelFactory(request, protocolFactory))
        return connecting.addCallback(lambda tunnel: tunnel.made)
