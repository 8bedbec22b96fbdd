"""Clients that don't come to speak TLS, on a transport in memory."""

from __future__ import annotations

from klein import Klein
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.deferreds import run_here
from artifactd.tls.certificates import Certificates
from artifactd.tls.connection import TlsFactory
from artifactd.web.server.accesslog import AccessLog
from artifactd.web.server.protocol import RegistrySite
from tests.leaf import leaf
from tests.tls.authority import ROOT
from tests.tls.case import Files, logged

IDLE = 60.0
SERVER = ROOT.sign("server")


class _Transport(StringTransportWithDisconnection):
    """StringTransport has not all of a TCP transport, and ends while it is still being used."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def abortConnection(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self._clock.callLater(0, super().loseConnection)


class UnspokenTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        here = Files(self)
        here.write(SERVER)
        certificates = Certificates(here.files, "tls", False, self.clock, run_here)
        certificates.load()
        self.site = RegistrySite(leaf(Klein()), self.clock, AccessLog("off"), IDLE)
        self.factory = TlsFactory(certificates, self.site, self.clock)
        self.transport = _Transport(self.clock)
        protocol = self.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        assert isinstance(protocol, Protocol)
        self.protocol = self.transport.protocol = protocol
        self.protocol.makeConnection(self.transport)

    def hello(self) -> bytes:
        """Return the first bytes of a TLS client."""
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
        client.set_connect_state()
        self.assertRaises(SSL.WantReadError, client.do_handshake)
        return client.bio_read(65536)

    def test_a_client_that_sends_nothing_is_closed_after_idle_timeout(self) -> None:
        self.clock.advance(IDLE - 1)
        self.assertTrue(self.transport.connected)
        self.clock.advance(1)
        self.assertFalse(self.transport.connected)
        self.assertEqual(self.site.channels, set())

    def test_no_deadline_outlives_a_connection_that_is_lost_in_its_handshake(self) -> None:
        hello = self.hello()
        for sent in (b"", hello[:1], hello[:-1], hello, b"\x16no TLS", b"GET / HTTP/1.1\r\n"):
            transport = _Transport(self.clock)
            protocol = self.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
            assert isinstance(protocol, Protocol)
            transport.protocol = protocol
            protocol.makeConnection(transport)
            if sent:
                protocol.dataReceived(sent)
            transport.loseConnection()
            self.clock.advance(0)
            self.assertFalse(transport.connected)
        self.transport.loseConnection()
        self.clock.advance(0)
        self.assertEqual(self.site.channels, set())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_handshake_that_drips_has_no_longer(self) -> None:
        hello = self.hello()
        for position in range(60):
            self.assertTrue(self.transport.connected)
            self.protocol.dataReceived(hello[position : position + 1])
            self.clock.advance(1)
        self.assertFalse(self.transport.connected)

    def test_a_handshake_that_stops_in_the_middle_has_no_longer(self) -> None:
        self.clock.advance(IDLE / 2)
        self.protocol.dataReceived(self.hello())
        self.assertTrue(self.transport.value())  # the server's part of it
        self.clock.advance(IDLE / 2)
        self.assertFalse(self.transport.connected)

    def test_http_is_told_to_use_https(self) -> None:
        with logged() as lines:
            self.protocol.dataReceived(b"G")
            self.protocol.dataReceived(b"ET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n")
            self.clock.advance(0)
        answer = self.transport.value()
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), answer)
        self.assertIn(b"this port speaks HTTPS: use https://", answer)
        self.assertEqual(answer.count(b"HTTP/1.1"), 1)
        self.assertFalse(self.transport.connected)
        self.assertEqual(len(lines), 1)
        self.assertIn("refused HTTP without TLS from", lines[0])
        self.assertEqual(self.site.channels, set())

    def test_what_is_neither_is_closed_and_told(self) -> None:
        with logged() as lines:
            self.protocol.dataReceived(b"\x00\x01" * 50)
            self.clock.advance(0)
        self.assertFalse(self.transport.connected)
        self.assertEqual(len(lines), 1)
        self.assertIn("no TLS with ", lines[0])

    def test_who_only_looks_whether_somebody_is_there_is_not_told_of(self) -> None:
        with logged() as lines:
            self.transport.loseConnection()
            self.clock.advance(0)
        self.assertEqual(lines, [])
        self.assertEqual(self.site.channels, set())
