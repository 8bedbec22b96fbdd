"""A client that has closed its sending direction still gets the answers to what it has asked."""

from __future__ import annotations

from twisted.internet.interfaces import IHalfCloseableProtocol

from artifactd.web.server.protocol import RegistryRequest
from tests.wire.connection import Wire, WireCase, request, statuses


class HalfCloseTests(WireCase):
    def setUp(self) -> None:
        super().setUp()

        @self.app.route("/slow", methods=["GET", "PUT"])
        async def slow(request: RegistryRequest) -> bytes:
            await self.gate()
            return b"done"

        @self.app.route("/refused", methods=["PUT"])
        def refused(request: RegistryRequest) -> bytes:
            request.setResponseCode(401)
            return b"no"

    def ends(self, wire: Wire) -> None:
        """The client closes its sending direction."""
        IHalfCloseableProtocol(wire.channel).readConnectionLost()

    def test_a_request_under_way_is_answered_and_then_the_connection_closed(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/slow"))
        self.ends(wire)
        self.assertTrue(wire.open)
        self.open_gate()
        received = wire.received()
        self.assertEqual(statuses(received), [200])
        self.assertIn(b"\r\ndone\r\n0\r\n", received)
        self.assertFalse(wire.open)

    def test_so_is_one_whose_body_has_come_whole(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/slow", body=b"body"))
        self.ends(wire)
        self.open_gate()
        self.assertEqual(statuses(wire.received()), [200])
        self.assertFalse(wire.open)

    def test_and_those_that_wait_behind_it(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/slow") + request("GET", "/slow"))
        self.ends(wire)
        self.open_gate()
        self.assertEqual(statuses(wire.received()), [200])
        self.assertTrue(wire.open)
        self.open_gate()
        self.assertEqual(statuses(wire.received()), [200])
        self.assertFalse(wire.open)

    def test_what_waits_for_the_client_to_read_is_answered_when_it_does(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/slow") + request("GET", "/slow"))
        wire.channel.pauseProducing()
        self.ends(wire)
        self.open_gate()
        self.assertTrue(wire.open)
        wire.channel.resumeProducing()
        self.open_gate()
        self.assertEqual(statuses(wire.received()), [200, 200])
        self.assertFalse(wire.open)

    def test_an_idle_connection_is_closed(self) -> None:
        for sent in (b"", b"GET /sl", b"GET /slow HTTP/1.1\r\nHost: a\r\n"):
            wire = self.connect()
            wire.send(sent)
            self.ends(wire)
            self.assertFalse(wire.open, sent)
            self.assertEqual(wire.received(), b"")

    def test_one_whose_body_never_ends_is_dropped(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/slow", "Content-Length: 9") + b"body")
        self.ends(wire)
        self.assertTrue(wire.disconnected or wire.disconnecting)
        self.assertEqual(wire.received(), b"")

    def test_an_answer_given_before_the_end_of_the_body_is_sent(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/refused", "Content-Length: 9") + b"body")
        self.ends(wire)
        self.assertEqual(statuses(wire.received()), [401])
        self.assertFalse(wire.open)

    def test_it_may_be_told_more_than_once(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/slow"))
        self.ends(wire)
        self.ends(wire)
        self.open_gate()
        self.assertEqual(statuses(wire.received()), [200])
        self.ends(wire)
        self.assertFalse(wire.open)
