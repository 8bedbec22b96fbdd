"""A request's body, as it goes from the connection to the handler."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionClosed, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from artifactd.kit.turns import MOST, Turns
from artifactd.oci.errors import ContentTooLarge
from artifactd.settings.settings import LimitsSettings
from artifactd.settings.values import Size
from artifactd.web.server.framing import FREE_FRAMING
from artifactd.web.server.protocol import RegistryRequest
from tests.wire.connection import IDLE, Sink, Wire, WireCase, chunked, request, statuses


class StreamingTests(WireCase):
    """A handler that delivers the body to a consumer."""

    def setUp(self) -> None:
        super().setUp()
        self.sink = Sink()
        self.outcomes: list[object] = []

        @self.app.route("/<path:path>", methods=["PUT", "PATCH", "POST"])
        async def deliver(request: RegistryRequest, path: str) -> bytes:
            assert request.body is not None
            try:
                delivered = await request.body.deliver_to(self.sink)
            except (ConnectionClosed, CancelledError) as error:
                self.outcomes.append(error)
                raise
            self.outcomes.append(delivered)
            request.setHeader(b"Content-Length", b"2")
            return b"ok"

        @self.app.route("/", methods=["GET"])
        def root(request: RegistryRequest) -> bytes:
            request.setHeader(b"Content-Length", b"4")
            return b"root"

    def begin(self, body: bytes = b"", length: int = 10) -> Wire:
        wire = self.connect()
        wire.send(request("PUT", "/a", f"Content-Length: {length}") + body)
        return wire

    def test_a_body_is_delivered_while_it_arrives(self) -> None:
        wire = self.begin()
        wire.send(b"01234")
        self.assertEqual(self.sink.writes, [b"01234"])
        wire.send(b"56789")
        self.assertEqual(self.sink.writes, [b"01234", b"56789"])
        self.assertEqual(self.outcomes, [10])
        self.assertEqual(statuses(wire.received()), [200])

    def test_the_consumer_has_no_producer_when_the_delivery_ends(self) -> None:
        self.begin(b"0123456789")
        self.assertIsNone(self.sink.producer)
        self.assertEqual(self.sink.unregistered, 1)

    def test_a_body_in_the_same_read_as_its_headers_is_delivered_whole(self) -> None:
        wire = self.begin(b"0123456789")
        self.assertEqual(self.sink.content, b"0123456789")
        self.assertEqual(statuses(wire.received()), [200])

    def test_a_chunked_body_is_delivered_without_its_framing(self) -> None:
        wire = self.connect()
        wire.send(
            request("PATCH", "/a", "Transfer-Encoding: chunked"), chunked(b"abc", b"defg", b"h")
        )
        self.assertEqual(self.sink.content, b"abcdefgh")
        self.assertEqual(self.outcomes, [8])
        self.assertIn(b"200 OK", wire.received())

    def test_the_chunks_of_one_read_are_one_piece(self) -> None:
        wire = self.connect()
        wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"))
        wire.send(chunked(*(b"abcdef" for _ in range(20_000)))[:-8], b"f\r\n0\r\n\r\n")
        self.assertEqual([len(piece) for piece in self.sink.writes], [119_999, 1])
        self.assertEqual(self.outcomes, [120_000])
        self.assertEqual(statuses(wire.received()), [200])

    def test_chunks_that_are_mostly_framing_are_refused(self) -> None:
        for size, extension in ((b"1", b""), (b"4", b""), (b"00000006", b""), (b"6", b";a=b")):
            tiny = size + extension + b"\r\n" + b"a" * int(size) + b"\r\n"
            wire = self.connect()
            wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"))
            most = FREE_FRAMING // (len(tiny) - int(size))
            wire.send(tiny * most)
            self.assertTrue(wire.open, tiny)
            wire.send(tiny)
            self.assertEqual(statuses(wire.received()), [400], tiny)
            self.assertFalse(wire.open)
            self.assertEqual(self.site.in_flight, 0)
            wire.close()

    def test_no_more_than_some_thousands_of_chunks_of_a_byte_are_parsed(self) -> None:
        """They come in one read: for each of them the reactor takes a few microseconds."""
        for count, status in ((3_000, 200), (4_000, 400)):
            wire = self.connect()
            wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"))
            wire.send(b"1\r\na\r\n" * count + b"0\r\n\r\n")
            self.assertEqual(statuses(wire.received()), [status])

    def test_small_chunks_are_taken_beside_large_ones_and_as_long_as_they_are_few(self) -> None:
        wire = self.connect()
        wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"))
        wire.send(chunked(bytes(1_000_000))[:-5], b"1\r\na\r\n" * 200_000, b"0\r\n\r\n")
        self.assertEqual(statuses(wire.received()), [200])
        wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"))
        wire.send(b"6\r\nabcdef\r\n" * 50_000, b"0\r\n\r\n")
        self.assertEqual(statuses(wire.received()), [200])
        self.assertEqual(self.outcomes, [1_200_000, 300_000])

    def test_trailers_are_dropped_and_held_to_the_bounds_of_headers(self) -> None:
        self.site.limits = LimitsSettings(header_size=Size(2048), header_count=3, body_rate=Size(0))
        right = (b"", b"X: y\r\n" * 3, b"X: " + b"y" * 2045 + b"\r\n")
        wrong = (
            b"X: y\r\n" * 4,
            b"X: " + b"y" * 2046 + b"\r\n",
            b"X: " + b"y" * 2047,
            b"no colon\r\n",
            b"X : y\r\n",
            b"X: y\r\n folded\r\n",
            b"X: \x00\r\n",
        )
        for trailers, status in (*((t, 200) for t in right), *((t, 400) for t in wrong)):
            for step in (1, 5000):
                wire = self.connect()
                wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"), b"1\r\na\r\n0\r\n")
                whole = trailers + b"\r\n"
                wire.send(*(whole[at : at + step] for at in range(0, len(whole), step)))
                self.assertEqual(statuses(wire.received()), [status], trailers[:20])
                self.assertEqual(self.site.in_flight, 0)
                if status == 200:
                    wire.send(request("GET", "/"))
                    self.assertTrue(wire.received().endswith(b"root"))
                wire.close()

    def test_trailers_have_the_time_of_headers(self) -> None:
        wire = self.connect()
        wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"), b"1\r\na\r\n0\r\nX: ")
        for _ in range(21):
            self.clock.advance(1)
            wire.send(b"y")
        self.assertEqual(statuses(wire.received()), [408])
        self.assertFalse(wire.open)
        wire.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_chunked_body_may_be_cut_anywhere(self) -> None:
        wire = self.connect()
        whole = request("PATCH", "/a", "Transfer-Encoding: chunked") + chunked(b"abc", b"defg")
        wire.send(*(whole[i : i + 1] for i in range(len(whole))))
        self.assertEqual(self.sink.content, b"abcdefg")
        self.assertEqual(statuses(wire.received()), [200])

    def test_the_connection_stays_usable_after_a_streamed_body(self) -> None:
        wire = self.begin(b"0123456789")
        self.assertNotIn(b"close", wire.received())
        wire.send(request("GET", "/"))
        self.assertTrue(wire.received().endswith(b"root"))
        self.assertTrue(wire.open)

    def test_requests_pipelined_behind_a_streamed_body_are_answered_in_order(self) -> None:
        wire = self.begin(b"0123456789" + request("GET", "/") + request("PATCH", "/b", body=b"xyz"))
        received = wire.received()
        self.assertEqual(statuses(received), [200, 200, 200])
        self.assertLess(received.index(b"ok"), received.index(b"root"))
        self.assertEqual(self.sink.content, b"0123456789xyz")

    def test_http_1_0_is_served_and_closed(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/a", body=b"0123", version="1.0"))
        self.assertEqual(self.sink.content, b"0123")
        self.assertTrue(wire.received().endswith(b"ok"))
        self.assertFalse(wire.open)

    def test_a_paused_consumer_stops_the_reading(self) -> None:
        self.sink.pause_after = 1
        wire = self.begin()
        wire.send(b"01")
        self.assertFalse(wire.reading)
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        self.assertTrue(wire.reading)

    def test_of_many_transfers_each_waits_for_its_turn_after_a_piece(self) -> None:
        self.site.turns.transfers = MOST
        wire = self.begin(length=500_000)
        wire.send(bytes(64 << 10))
        self.assertTrue(wire.reading)  # it might be a small body
        for _ in range(2):
            wire.send(bytes(100_000))
            self.assertFalse(wire.reading)
            self.clock.advance(0)
            self.assertTrue(wire.reading)
        wire.send(bytes(500_000 - 200_000 - (64 << 10)))
        self.assertTrue(wire.reading)
        self.assertEqual(self.outcomes, [500_000])
        self.assertEqual(self.site.turns.transfers, MOST)

    def test_while_transfers_are_few_none_waits(self) -> None:
        self.site.turns.transfers = MOST - 1
        wire = self.begin(length=500_000)
        wire.send(bytes(200_000))
        self.assertTrue(wire.reading)

    def test_a_turn_that_comes_while_the_consumer_is_paused_is_not_taken(self) -> None:
        self.site.turns.transfers = MOST
        self.sink.pause_after = 200_000
        wire = self.begin(length=500_000)
        wire.send(bytes(200_000))
        self.clock.advance(0)
        self.assertFalse(wire.reading)
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        self.assertFalse(wire.reading)
        self.clock.advance(0)
        self.assertTrue(wire.reading)

    def test_a_client_that_leaves_before_its_turn_has_none(self) -> None:
        self.site.turns.transfers = MOST
        wire = self.begin(length=500_000)
        wire.send(bytes(200_000))
        wire.close(cleanly=False)
        self.assertEqual(self.site.turns.transfers, MOST)
        self.clock.advance(0)
        self.assertFalse(wire.reading)

    def test_a_client_that_waits_for_its_turn_is_not_dropped(self) -> None:
        self.site.turns = Turns(Clock())  # whose turns never come
        self.site.turns.transfers = MOST
        wire = self.begin(length=500_000)
        wire.send(bytes(200_000))
        self.clock.advance(10 * IDLE)
        self.assertTrue(wire.open and wire.connected)

    def test_what_arrives_while_paused_is_queued_and_comes_in_order(self) -> None:
        self.sink.pause_after = 1
        wire = self.connect()
        wire.send(request("PUT", "/a", "Transfer-Encoding: chunked"))
        wire.send(b"1\r\n0\r\n", b"2\r\n12\r\n3\r\n345\r\n")
        self.assertEqual(self.sink.content, b"0")
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        self.assertEqual(self.sink.content, b"012345")
        wire.send(chunked(b"6"))
        self.assertEqual(self.sink.content, b"0123456")
        self.assertEqual(self.outcomes, [7])

    def test_a_body_that_ends_while_paused_is_delivered_when_resumed(self) -> None:
        self.sink.pause_after = 2
        wire = self.begin()
        wire.send(b"01", b"23456789")
        self.assertEqual(self.outcomes, [])
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        self.assertEqual(self.sink.content, b"0123456789")
        self.assertEqual(self.outcomes, [10])
        self.assertTrue(wire.reading)

    def test_the_idle_timeout_is_back_after_a_body_that_ended_while_paused(self) -> None:
        self.sink.pause_after = 2
        wire = self.begin()
        wire.send(b"01", b"23456789")
        self.clock.advance(IDLE * 2)
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        self.assertTrue(wire.open)
        self.clock.advance(IDLE + 1)
        self.assertFalse(wire.open)

    def test_a_peer_that_falls_silent_is_dropped(self) -> None:
        wire = self.begin(b"0")
        self.clock.advance(IDLE - 1)
        wire.send(b"1")
        self.clock.advance(IDLE - 1)
        self.assertTrue(wire.open)
        self.clock.advance(2)
        self.assertFalse(wire.open)

    def test_a_peer_that_we_have_paused_is_not_dropped(self) -> None:
        self.sink.pause_after = 1
        wire = self.begin(b"0")
        self.clock.advance(IDLE * 3)
        self.assertTrue(wire.open)
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        self.clock.advance(IDLE + 1)
        self.assertFalse(wire.open)

    def test_a_lost_connection_cancels_the_handler_quietly(self) -> None:
        wire = self.begin(b"0123")
        wire.close(cleanly=False)
        self.assertEqual([type(outcome) for outcome in self.outcomes], [CancelledError])
        self.assertEqual((self.sink.content, self.sink.unregistered), (b"0123", 1))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_bad_chunk_framing_ends_the_delivery_and_the_connection(self) -> None:
        wire = self.connect()
        wire.send(request("PATCH", "/a", "Transfer-Encoding: chunked"), b"3\r\nabc\r\nnonsense\r\n")
        received = wire.received()
        self.assertEqual(statuses(received), [400])
        self.assertIn(b'"errors"', received)
        self.assertFalse(wire.open)
        self.assertEqual((self.sink.content, self.sink.unregistered), (b"abc", 1))
        self.assertEqual(self.site.in_flight, 0)
        wire.close()
        self.assertEqual([type(outcome) for outcome in self.outcomes], [CancelledError])

    def test_a_consumer_that_stops_ends_the_delivery_and_the_rest_is_dropped(self) -> None:
        self.sink.stop_after = 4
        wire = self.begin()
        wire.send(b"0123")
        self.assertEqual(self.outcomes, [4])
        self.assertIn(b"Connection: close", wire.received())
        wire.send(b"456789")
        self.assertEqual(self.sink.content, b"0123")
        self.assertFalse(wire.open)


class WithoutKleinTests(WireCase):
    """What the methods of a body promise, whoever calls them."""

    def setUp(self) -> None:
        super().setUp()
        self.requests: list[RegistryRequest] = []

        @self.app.route("/<path:path>", methods=["PUT"])
        async def hold(request: RegistryRequest, path: str) -> None:
            self.requests.append(request)
            await self.gate()

    def begin(self, body: bytes = b"") -> Wire:
        wire = self.connect()
        wire.send(request("PUT", "/a", "Content-Length: 10") + body)
        return wire

    def test_nothing_is_read_beyond_the_first_bytes_until_the_body_is_asked_for(self) -> None:
        wire = self.begin(b"012")
        self.assertFalse(wire.reading)
        sink = Sink()
        assert self.requests[0].body is not None
        self.requests[0].body.deliver_to(sink)
        self.assertEqual(sink.content, b"012")
        self.assertTrue(wire.reading)

    def test_the_peer_is_read_again_when_its_body_is_over(self) -> None:
        # Else nobody would notice that it leaves while the handler works.
        wire = self.begin(b"012")
        wire.send(b"3456789")
        self.assertTrue(wire.reading)

    def test_a_consumer_that_stops_holds_the_peer_until_the_answer(self) -> None:
        wire = self.begin()
        assert self.requests[0].body is not None
        delivery = self.requests[0].body.deliver_to(Sink(stop_after=4))
        wire.send(b"01234")
        self.assertEqual(self.successResultOf(delivery), 5)
        self.assertFalse(wire.reading)
        self.open_gate()
        self.assertTrue(wire.reading)

    def test_a_client_is_not_idle_while_its_handler_thinks(self) -> None:
        wire = self.begin()
        self.clock.advance(IDLE * 3)
        self.assertTrue(wire.open)

    def test_a_delivery_fails_with_the_reason_why_the_connection_was_lost(self) -> None:
        wire = self.begin()
        sink = Sink()
        assert self.requests[0].body is not None
        delivery = self.requests[0].body.deliver_to(sink)
        wire.close(cleanly=False)
        self.failureResultOf(delivery, ConnectionLost)
        self.assertEqual(sink.unregistered, 1)

    def test_a_delivery_asked_for_after_the_connection_was_lost_fails(self) -> None:
        wire = self.begin()
        wire.close(cleanly=False)
        sink = Sink()
        assert self.requests[0].body is not None
        self.failureResultOf(self.requests[0].body.deliver_to(sink), ConnectionLost)

    def test_a_body_is_delivered_only_once(self) -> None:
        self.begin(b"0123456789")
        body = self.requests[0].body
        assert body is not None
        self.assertEqual(self.successResultOf(body.deliver_to(Sink())), 10)
        self.assertRaises(RuntimeError, body.deliver_to, Sink())

    def test_a_cancelled_delivery_lets_go_of_the_consumer_and_reads_no_more(self) -> None:
        wire = self.begin(b"01")
        sink = Sink()
        assert self.requests[0].body is not None
        delivery = self.requests[0].body.deliver_to(sink)
        delivery.cancel()
        self.failureResultOf(delivery, CancelledError)
        self.assertEqual(sink.unregistered, 1)
        self.assertFalse(wire.reading)
        wire.send(b"2345")
        self.assertEqual(sink.content, b"01")

    def test_a_consumer_may_pause_as_soon_as_it_has_a_producer(self) -> None:
        class Hesitant(Sink):
            def registerProducer(self, producer: object, streaming: bool) -> None:
                super().registerProducer(producer, streaming)  # type: ignore[arg-type]
                assert self.producer is not None
                self.producer.pauseProducing()

        wire = self.begin(b"01")
        sink = Hesitant()
        assert self.requests[0].body is not None
        self.requests[0].body.deliver_to(sink)
        self.assertEqual((sink.content, wire.reading), (b"", False))

    def test_declared_and_received_lengths_can_be_asked(self) -> None:
        wire = self.begin(b"01")
        body = self.requests[0].body
        assert body is not None
        self.assertEqual((body.length, body.received, body.complete), (10, 2, False))
        wire.send(b"23456789")
        self.assertEqual((body.received, body.complete), (10, True))

    def test_a_request_without_a_body_has_none(self) -> None:
        self.connect().send(request("PUT", "/a"), request("PUT", "/a", "Content-Length: 0"))
        self.assertEqual([held.body for held in self.requests], [None])


class ReadTests(WireCase):
    """A handler that reads the body into memory, up to a limit."""

    def setUp(self) -> None:
        super().setUp()

        @self.app.route("/<path:path>", methods=["PUT"])
        async def read(request: RegistryRequest, path: str) -> bytes:
            assert request.body is not None
            return b"<" + await request.body.read(8) + b">"

        @self.app.handle_errors(ContentTooLarge)
        def too_large(request: IRequest, failure: Failure) -> bytes:
            request.setResponseCode(413)
            return b""

    def test_a_body_within_the_limit_is_read_whole(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/a", "Content-Length: 8"), b"0123", b"4567")
        self.assertIn(b"<01234567>", wire.received())

    def test_a_declared_length_over_the_limit_is_refused_before_any_byte(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/a", "Content-Length: 9"))
        self.assertEqual(statuses(wire.received()), [413])

    def test_a_chunked_body_is_refused_when_it_exceeds_the_limit(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/a", "Transfer-Encoding: chunked"), b"8\r\n01234567\r\n")
        self.assertEqual(wire.received(), b"")
        wire.send(b"1\r\n8\r\n")
        self.assertEqual(statuses(wire.received()), [413])
        wire.send(b"0\r\n\r\n")
        self.assertFalse(wire.open)
