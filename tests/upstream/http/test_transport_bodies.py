"""Bodies of answers: delivery, flow control and idle time."""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer

from artifactd.upstream.http.errors import TimedOut
from artifactd.upstream.http.transport import RECEIVE_SIZE
from tests.upstream.bodies import BodyCase
from tests.upstream.sinks import Sink
from tests.upstream.wire import start

IDLE = 30.0
LARGE = 8 * 1024 * 1024 + 12345


class DeliveryTests(BodyCase):
    async def test_a_body_is_delivered_whole_and_its_connection_kept(self) -> None:
        content = bytes(range(256)) * (LARGE // 256)
        peer, response = await self.opened(f"Content-Length: {len(content)}")
        sink = Sink()
        delivered = response.deliver_to(sink)
        peer.send(content)
        self.assertEqual(await delivered, len(content))
        self.assertEqual(sink.content, content)
        self.assertIsNone(sink.producer)
        await self.round_trip()
        self.assertEqual(self.server.peers, [peer])

    async def test_a_chunked_body_is_delivered_without_its_framing(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        self.assertIsNone(response.length)
        sink = Sink()
        delivered = response.deliver_to(sink)
        peer.send(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: x\r\n\r\n")
        self.assertEqual(await delivered, 11)
        self.assertEqual(sink.content, b"hello world")

    async def test_an_empty_body_is_delivered(self) -> None:
        _, response = await self.opened("Content-Length: 0")
        sink = Sink()
        self.assertEqual(await response.deliver_to(sink), 0)
        self.assertIsNone(sink.producer)

    async def test_a_body_that_came_with_the_headers_is_delivered(self) -> None:
        _, response = await self.opened("Content-Length: 5", body=b"hello")
        await self.round_trip()
        sink = Sink()
        self.assertEqual(await response.deliver_to(sink), 5)
        self.assertEqual(sink.content, b"hello")

    async def test_large_pieces_are_read(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        sizes: list[int] = []
        sink = Sink()
        sink.on_write = lambda: sizes.append(len(sink.content) - sum(sizes))
        await response.deliver_to(sink)
        self.assertGreater(max(sizes), 64 * 1024)
        self.assertLessEqual(max(sizes), RECEIVE_SIZE)

    async def test_a_body_can_be_had_only_once(self) -> None:
        _, response = await self.opened("Content-Length: 5", body=b"hello")
        await response.read(5)
        self.assertRaises(RuntimeError, response.deliver_to, Sink())
        _, response = await self.opened("Content-Length: 5")
        response.abort()
        self.assertRaises(RuntimeError, response.deliver_to, Sink())


class FlowTests(BodyCase):
    async def test_a_consumer_that_pauses_gets_no_more_than_one_read_brings(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        sink = Sink()
        sink.on_write = sink.pause
        delivered = response.deliver_to(sink)
        peer.send(bytes(LARGE))
        await sink.has(1)
        before = len(sink.content)
        self.assertLessEqual(before, RECEIVE_SIZE)
        await self.round_trip()
        self.assertEqual(len(sink.content), before)
        sink.on_write = lambda: None
        sink.resume()
        self.assertEqual(await delivered, LARGE)
        self.assertEqual(len(sink.content), LARGE)

    async def test_a_consumer_may_pause_before_the_first_byte(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        sink = Sink()
        sink.on_register = lambda producer: producer.pauseProducing()
        delivered = response.deliver_to(sink)
        await self.round_trip()
        self.assertLessEqual(len(sink.content), RECEIVE_SIZE)
        sink.resume()
        self.assertEqual(await delivered, LARGE)

    async def test_nothing_is_read_before_the_body_is_asked_for(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        await self.round_trip()
        sink = Sink()
        sink.on_write = sink.pause
        delivered = response.deliver_to(sink)
        self.assertLessEqual(len(sink.content), RECEIVE_SIZE)
        sink.on_write = lambda: None
        sink.resume()
        await delivered

    async def test_resuming_what_flows_and_pausing_what_is_paused_do_nothing(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        sink.resume()
        sink.pause()
        sink.pause()
        sink.resume()
        sink.resume()
        peer.send(bytes(10))
        self.assertEqual(await delivered, 10)

    async def test_a_producer_that_has_ended_lets_itself_be_called(self) -> None:
        peer, response = await self.opened("Content-Length: 5", body=b"hello")
        producers: list[IPushProducer] = []
        sink = Sink()
        sink.on_register = producers.append
        await response.deliver_to(sink)
        for producer in producers:
            producer.pauseProducing()
            producer.resumeProducing()
            producer.stopProducing()
        response.abort()
        await self.round_trip()
        self.assertEqual(self.server.peers, [peer])


class IdleTests(BodyCase):
    async def test_a_body_that_stands_still_times_out(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        self.clock.advance(IDLE - 0.1)
        peer.send(b"abc")
        await sink.has(3)
        self.clock.advance(IDLE - 0.1)
        self.assertNoResult(delivered)
        self.clock.advance(0.2)
        self.assertIsNone(sink.producer)
        self.assertEqual(
            await self.reason(delivered, TimedOut),
            "sent nothing for 30 seconds after 3 of 10 bytes",
        )
        await peer.lost

    async def test_the_time_for_which_a_consumer_pauses_does_not_count(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        self.clock.advance(IDLE - 1)
        sink.pause()
        self.clock.advance(1000)
        sink.resume()
        self.clock.advance(IDLE - 1)
        self.assertNoResult(delivered)
        self.clock.advance(1)
        self.failureResultOf(delivered, TimedOut)
        await peer.lost

    async def test_no_time_runs_before_the_body_is_asked_for(self) -> None:
        peer, response = await self.opened("Content-Length: 5")
        self.clock.advance(1000)
        body = start(response.read(5))
        peer.send(b"hello")
        self.assertEqual(await body, b"hello")

    async def test_reading_times_out_too(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked", body=b"5\r\nhel")
        body = start(response.read(100))
        await self.round_trip()
        self.clock.advance(IDLE)
        self.assertEqual(
            await self.reason(body, TimedOut), "sent nothing for 30 seconds after 3 bytes"
        )
        await peer.lost
