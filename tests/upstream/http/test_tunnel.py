"""A tunnel's beginning, byte by byte."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from artifactd.upstream.http.proxy import TunnelEndpoint


class Inside(Protocol):
    """Keeps what it receives."""

    received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data


@implementer(IStreamClientEndpoint)
@define
class ProxyEndpoint:
    """Connects to ``wire``, at once."""

    wire: StringTransport = field(factory=StringTransport)
    protocols: list[IProtocol] = field(factory=list)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        protocol = protocolFactory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 3128))
        assert protocol is not None
        self.protocols.append(protocol)
        protocol.makeConnection(self.wire)
        return succeed(protocol)


class TunnelTests(TestCase):
    def setUp(self) -> None:
        self.proxy = ProxyEndpoint()
        endpoint = TunnelEndpoint(self.proxy, "registry.example:443", None)
        self.connecting = endpoint.connect(Factory.forProtocol(Inside))

    def receive(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.proxy.protocols[0].dataReceived(piece)

    def inside(self) -> Inside:
        protocol = self.successResultOf(self.connecting)
        assert isinstance(protocol, Inside)
        return protocol

    def test_the_proxy_is_asked_for_the_destination(self) -> None:
        self.assertEqual(
            self.proxy.wire.value(),
            b"CONNECT registry.example:443 HTTP/1.1\r\nHost: registry.example:443\r\n\r\n",
        )

    def test_what_follows_the_proxys_answer_belongs_to_the_tunnel(self) -> None:
        self.receive(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nfirst", b" and more")
        self.assertEqual(self.inside().received, b"first and more")

    def test_the_answer_may_come_in_pieces_and_with_bare_line_ends(self) -> None:
        self.receive(*(bytes([byte]) for byte in b"HTTP/1.0 200\nX: y\n\nz"))
        self.assertEqual(self.inside().received, b"z")

    def test_the_protocol_inside_has_the_connection(self) -> None:
        self.receive(b"HTTP/1.1 200 OK\r\n\r\n")
        self.assertIs(self.inside().transport, self.proxy.wire)
