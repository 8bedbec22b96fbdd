"""Answers given before the request's body is over."""

from __future__ import annotations

from artifactd.web.server.protocol import DRAIN_BYTES, DRAIN_SECONDS, RegistryRequest
from tests.wire.connection import Sink, Wire, WireCase, chunked, request, statuses

_SMUGGLED = request("GET", "/smuggled")


class EarlyAnswerTests(WireCase):
    """A handler that refuses without looking at the body."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[bytes] = []
        self.ends: list[object] = []
        self.app.url_map.strict_slashes = False

        @self.app.route("/refused", methods=["PUT", "PATCH", "POST"])
        def refuse(request: RegistryRequest) -> bytes:
            self.seen.append(request.uri)
            request.notifyFinish().addBoth(self.ends.append)
            request.setResponseCode(401)
            request.setHeader(b"Content-Length", b"3")
            return b"no!"

        @self.app.route("/unsized", methods=["PUT"])
        def unsized(request: RegistryRequest) -> bytes:
            return b"no length"

        @self.app.route("/smuggled", methods=["GET"])
        def smuggled(request: RegistryRequest) -> bytes:
            self.seen.append(request.uri)
            return b"smuggled"

        @self.app.route("/slow", methods=["PUT"])
        async def slow(request: RegistryRequest) -> bytes:
            await self.gate()
            request.setHeader(b"Content-Length", b"4")
            return b"done"

    def refuse(self, *headers: str, body: bytes = b"", path: str = "/refused") -> Wire:
        wire = self.connect()
        wire.send(request("PUT", path, *headers) + body)
        return wire

    def test_the_answer_is_sent_at_once_and_says_close(self) -> None:
        wire = self.refuse("Content-Length: 100")
        received = wire.received()
        self.assertEqual(statuses(received), [401])
        self.assertIn(b"\r\nConnection: close\r\n", received)
        self.assertTrue(received.endswith(b"\r\n\r\nno!"))
        self.assertTrue(wire.open)

    def test_an_answer_without_a_length_is_complete_while_the_rest_is_drained(self) -> None:
        wire = self.refuse("Content-Length: 100", path="/unsized")
        self.assertTrue(wire.received().endswith(b"9\r\nno length\r\n0\r\n\r\n"))
        wire.send(b"x" * 100)
        self.assertEqual(wire.received(), b"")

    def test_no_byte_of_a_refused_body_is_parsed_as_a_request(self) -> None:
        wire = self.refuse(f"Content-Length: {2 * len(_SMUGGLED)}")
        wire.send(_SMUGGLED, _SMUGGLED)
        self.assertEqual(self.seen, [b"/refused"])

    def test_no_byte_of_a_refused_chunked_body_is_parsed_as_a_request(self) -> None:
        wire = self.refuse("Transfer-Encoding: chunked")
        wire.send(chunked(_SMUGGLED))
        self.assertEqual(self.seen, [b"/refused"])
        self.assertFalse(wire.open)

    def test_a_request_behind_a_refused_body_is_dropped(self) -> None:
        wire = self.refuse("Content-Length: 4", body=b"body" + _SMUGGLED)
        wire.send(_SMUGGLED)
        self.assertEqual(self.seen, [b"/refused"])
        self.assertEqual(statuses(wire.received()), [401])

    def test_a_refused_body_that_came_with_its_headers_costs_no_connection(self) -> None:
        wire = self.refuse("Content-Length: 4", body=b"body")
        received = wire.received()
        self.assertEqual(statuses(received), [401])
        self.assertNotIn(b"Connection: close", received)
        wire.send(_SMUGGLED)
        self.assertEqual(self.seen, [b"/refused", b"/smuggled"])

    def test_nothing_is_parsed_once_the_connection_is_being_closed(self) -> None:
        # As over TLS, whose transport delivers what it has decrypted.
        wire = self.refuse("Content-Length: 4", "Expect: 100-continue")
        self.assertFalse(wire.open)
        wire.send(b"body" + _SMUGGLED, _SMUGGLED)
        self.assertEqual(self.seen, [b"/refused"])

    def test_both_framings_at_once_are_refused(self) -> None:
        wire = self.connect()
        wire.send(
            request("PUT", "/refused", "Content-Length: 4", "Transfer-Encoding: chunked")
            + chunked(b"body")
        )
        self.assertEqual(statuses(wire.received()), [400])
        self.assertEqual(self.seen, [])
        self.assertFalse(wire.open)

    def test_the_connection_is_closed_when_the_body_is_over(self) -> None:
        wire = self.refuse("Content-Length: 10")
        wire.send(b"01234")
        self.assertTrue(wire.open and wire.reading)
        wire.send(b"56789")
        self.assertFalse(wire.open)
        self.assertEqual(self.ends, [None])

    def test_the_drain_ends_after_its_time(self) -> None:
        wire = self.refuse("Content-Length: 10")
        self.clock.advance(DRAIN_SECONDS - 1)
        wire.send(b"0")
        self.assertFalse(wire.disconnected)
        self.clock.advance(1)
        self.assertTrue(wire.disconnected)

    def test_the_drain_ends_after_its_bytes(self) -> None:
        wire = self.refuse(f"Content-Length: {2 * DRAIN_BYTES}")
        piece = bytes(DRAIN_BYTES // 4)
        wire.send(piece, piece, piece, piece)
        self.assertFalse(wire.disconnected)
        wire.send(b"x")
        self.assertTrue(wire.disconnected)

    def test_a_client_that_leaves_during_the_drain_leaves_nothing_behind(self) -> None:
        wire = self.refuse("Content-Length: 10")
        wire.close()
        self.assertEqual((self.site.in_flight, self.clock.getDelayedCalls()), (0, []))

    def test_a_drained_connection_leaves_nothing_behind(self) -> None:
        wire = self.refuse("Content-Length: 1", body=b"0")
        wire.close()
        self.assertEqual((self.site.in_flight, self.clock.getDelayedCalls()), (0, []))

    def test_an_unread_body_that_has_arrived_does_not_close_the_connection(self) -> None:
        wire = self.refuse("Content-Length: 4", body=b"body", path="/slow")
        self.open_gate()
        received = wire.received()
        self.assertNotIn(b"close", received)
        self.assertTrue(received.endswith(b"done"))
        wire.send(_SMUGGLED)
        self.assertEqual(self.seen, [b"/smuggled"])

    def test_bad_framing_of_a_refused_body_adds_nothing_to_the_answer(self) -> None:
        wire = self.refuse("Transfer-Encoding: chunked")
        wire.received()
        wire.send(b"nonsense\r\n")
        self.assertEqual(wire.received(), b"")
        self.assertEqual((wire.open, wire.disconnected), (True, False))
        self.clock.advance(DRAIN_SECONDS + 1)
        self.assertTrue(wire.disconnected)

    def test_the_rest_of_chunks_is_counted_and_not_parsed(self) -> None:
        # In any pieces: what matters is that the client waits, with the last chunk sent.
        rest = b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n"
        for cut in range(1, 8):
            wire = self.refuse("Transfer-Encoding: chunked", body=b"1\r\na\r\n0"[:cut])
            body = wire.channel.requests[0].body
            assert body is not None
            before = body.received
            self.assertEqual(before, cut)
            wire.send(rest[:-4], rest[-4:-1])
            self.assertEqual(body.received - before, len(rest) - 1)
            self.assertTrue(wire.open)
            wire.send(rest[-1:])
            self.assertFalse(wire.open)
            wire.close()
        for line_end in (b"", b"\r", b"\r\n", b"\r\n\r"):
            began = b"1\r\na\r\n0" + line_end
            wire = self.refuse("Transfer-Encoding: chunked", body=began, path="/slow")
            self.open_gate()
            self.assertTrue(wire.open)
            wire.send(b"\r\n\r\n"[len(line_end) :])
            self.assertFalse(wire.open)
            wire.close()

    def test_the_drain_of_chunks_ends_after_its_bytes_framing_and_all(self) -> None:
        wire = self.refuse("Transfer-Encoding: chunked")
        piece = b"1\r\na\r\n" * (DRAIN_BYTES // 24)
        wire.send(piece, piece, piece, piece)
        self.assertFalse(wire.disconnected)
        wire.send(b"1\r\na\r\n" * 6)
        self.assertTrue(wire.disconnected)

    def test_a_handler_adds_no_answer_to_that_of_bad_framing(self) -> None:
        wire = self.refuse("Transfer-Encoding: chunked", path="/slow")
        wire.send(b"nonsense\r\n")
        self.assertEqual(statuses(wire.received()), [400])
        self.assertTrue(self.gates[0].called, "the handler is cancelled")
        self.assertEqual(wire.received(), b"")

    def test_an_unread_body_of_a_get_is_not_parsed_either(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/smuggled", "Content-Length: 50"), _SMUGGLED[:50])
        self.assertEqual(self.seen, [b"/smuggled"])
        self.assertIn(b"Connection: close", wire.received())


class ExpectTests(WireCase):
    """Clients that ask before they send."""

    def setUp(self) -> None:
        super().setUp()
        self.sink = Sink()

        @self.app.route("/wanted", methods=["PUT"])
        async def take(request: RegistryRequest) -> bytes:
            await self.gate()
            assert request.body is not None
            await request.body.deliver_to(self.sink)
            return b"taken"

        @self.app.route("/refused", methods=["PUT"])
        def refuse(request: RegistryRequest) -> bytes:
            request.setResponseCode(404)
            return b""

    def expect(self, path: str, version: str = "1.1") -> Wire:
        wire = self.connect()
        wire.send(
            request("PUT", path, "Content-Length: 4", "Expect: 100-Continue", version=version)
        )
        return wire

    def test_a_client_is_told_to_continue_when_the_body_is_wanted(self) -> None:
        wire = self.expect("/wanted")
        self.assertEqual(wire.received(), b"")
        self.open_gate()
        self.assertEqual(wire.received(), b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.send(b"body")
        self.assertEqual(self.sink.content, b"body")
        received = wire.received()
        self.assertEqual(statuses(received), [200])
        self.assertNotIn(b"close", received)

    def test_a_refusal_needs_no_body_and_closes_at_once(self) -> None:
        wire = self.expect("/refused")
        received = wire.received()
        self.assertEqual(statuses(received), [404])
        self.assertIn(b"Connection: close", received)
        self.assertFalse(wire.open)

    def test_a_client_that_takes_nothing_of_its_refusal_is_dropped(self) -> None:
        wire = self.expect("/refused")
        self.clock.advance(DRAIN_SECONDS)
        self.assertTrue(wire.disconnected)

    def test_http_1_0_knows_no_100(self) -> None:
        wire = self.expect("/wanted", version="1.0")
        self.open_gate()
        self.assertEqual(wire.received(), b"")

    def test_a_client_that_did_not_wait_is_drained(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/wanted", "Content-Length: 4", "Expect: 100-continue"), b"bo")
        self.gates.pop().errback(KeyError("refused late"))
        self.flushLoggedErrors(KeyError)
        self.assertTrue(wire.open)
        wire.send(b"dy")
        self.assertFalse(wire.open)
