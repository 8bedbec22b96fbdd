"""Bodies of answers: their ends, and giving them up."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from artifactd.upstream.patience import refusal
from tests.upstream.bodies import BodyCase
from tests.upstream.sinks import Sink
from tests.upstream.wire import start

LARGE = 8 * 1024 * 1024 + 12345


class EndTests(BodyCase):
    async def test_a_body_shorter_than_its_length_broke_off(self) -> None:
        for end in ("close", "reset"):
            peer, response = await self.opened("Content-Length: 10")
            sink = Sink()
            delivered = response.deliver_to(sink)
            peer.send(b"abc")
            await sink.has(3)
            getattr(peer, end)()
            self.assertEqual(await self.reason(delivered), "broke off after 3 of 10 bytes")
            self.assertIsNone(sink.producer)

    async def test_a_body_that_only_the_connection_ends_counts_as_broken_off(self) -> None:
        peer, response = await self.opened("Connection: close")
        self.assertIsNone(response.length)
        body = start(response.read(100))
        peer.send(b"hello")
        peer.close()
        self.assertEqual(await self.reason(body), "broke off after 5 bytes")

    async def test_a_chunked_body_without_its_last_chunk_broke_off(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(100))
        peer.send(b"5\r\nhello\r\n")
        peer.close()
        self.assertEqual(await self.reason(body), "broke off after 5 bytes")

    async def test_a_chunked_body_with_broken_framing_broke_off(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(100))
        peer.send(b"5\r\nhello\r\nfive\r\n")
        self.assertEqual(await self.reason(body), "broke off after 5 bytes")
        await peer.lost

    async def test_a_connection_lost_before_the_body_is_asked_for_broke_off(self) -> None:
        peer, response = await self.opened("Content-Length: 10", body=b"abc")
        peer.reset()
        await self.round_trip()
        self.assertEqual(
            await self.reason(start(response.read(10))), "broke off after 3 of 10 bytes"
        )

    async def test_a_body_declared_too_long_is_not_read(self) -> None:
        peer, response = await self.opened("Content-Length: 11")
        reason = await self.reason(start(response.read(10)))
        self.assertEqual(reason, "sends more than the 10 bytes that there may be")
        await peer.lost

    async def test_a_body_that_gets_too_long_is_not_read_on(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(10))
        peer.send(b"a\r\n0123456789\r\n1\r\n0\r\n")
        reason = await self.reason(body)
        self.assertEqual(reason, "sends more than the 10 bytes that there may be")
        await peer.lost

    async def test_a_body_of_just_the_limit_is_read(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(10))
        peer.send(b"a\r\n0123456789\r\n0\r\n\r\n")
        self.assertEqual(await body, b"0123456789")

    async def test_the_words_of_an_error_are_not_waited_for(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        told = start(refusal(response))
        for _ in range(4):
            peer.send(b"1\r\n{\r\n")
            await self.round_trip()
            self.clock.advance(1)
            self.assertFalse(told.called)
        self.clock.advance(1)
        self.assertTrue(told.called)
        self.assertEqual("127.0.0.1", (await told).reason.partition(":")[0])
        await peer.lost


class GivingUpTests(BodyCase):
    async def test_a_consumer_that_stops_closes_the_connection(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        peer.send(b"abc")
        await sink.has(3)
        sink.stop()
        self.assertEqual(await delivered, 3)
        self.assertIsNone(sink.producer)
        await peer.lost

    async def test_a_paused_consumer_that_stops_closes_the_connection(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        sink = Sink()
        sink.on_write = sink.pause
        delivered = response.deliver_to(sink)
        await sink.has(1)
        sink.stop()
        self.assertEqual(await delivered, len(sink.content))
        await peer.lost

    async def test_a_consumer_may_stop_before_the_first_byte_and_in_a_write(self) -> None:
        for when in ("on_register", "on_write"):
            peer, response = await self.opened("Content-Length: 10", body=b"abc")
            sink = Sink()
            setattr(sink, when, lambda *_, sink=sink: sink.stop())
            delivered = await response.deliver_to(sink)
            self.assertEqual(delivered, len(sink.content))
            await peer.lost

    async def test_a_consumer_that_stops_at_the_last_byte_harms_no_later_request(self) -> None:
        peer, response = await self.opened("Content-Length: 3")
        sink = Sink()
        sink.on_write = sink.stop
        delivered = response.deliver_to(sink)
        peer.send(b"abc")
        self.assertEqual(await delivered, 3)
        await self.round_trip()
        await peer.lost

    async def test_cancelling_closes_the_connection(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        delivered.cancel()
        self.failureResultOf(delivered, CancelledError)
        self.assertIsNone(sink.producer)
        await peer.lost

    async def test_an_unwanted_body_closes_the_connection(self) -> None:
        for body in (b"", b"abc"):
            peer, response = await self.opened("Content-Length: 10", body=body)
            response.abort()
            response.abort()
            await peer.lost

    async def test_aborting_a_delivery_closes_the_connection(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        response.abort()
        self.assertEqual(await delivered, 0)
        await peer.lost

    async def test_a_mistake_of_the_consumers_is_not_blamed_on_the_upstream(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()

        def fail() -> None:
            raise ZeroDivisionError

        sink.on_write = fail
        delivered = response.deliver_to(sink)
        peer.send(b"abc")
        await self.assertFailure(delivered, ZeroDivisionError)
        self.assertIsNone(sink.producer)
        await peer.lost
