"""Responses from a blob that is still coming, over TCP and through TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet
from twisted.logger import capturedLogs

from artifactd.web.server import sendfile
from artifactd.web.server.sendfile import SMALL
from tests.wire.connection import request
from tests.wire.growing import Fill
from tests.wire.sender import BIG, STALL, GrowingCase, OverTLS, cuts

HELD = 64 * 1024


class GrowingTests(GrowingCase):
    """What holds on every transport."""

    async def test_headers_go_before_there_is_a_byte(self) -> None:
        client = await self.begin()
        await self.waits(0)
        self.assertEqual(client.received, b"")
        self.fill.grow(BIG)
        self.check_body(await client.take(BIG))
        await self.check_ended()

    async def test_bytes_go_as_they_come_and_the_next_answer_after_them(self) -> None:
        client = await self.begin(self.get() + self.get(9, 500_000))
        sent = 0
        for until in (1, 4096, 4097, 100_000, 1_000_003, 7_000_000, BIG):
            self.fill.grow(until)
            self.check_body(await client.take(until - sent), sent, until - sent)
            sent = until
        self.assertIn(b"Content-Length: 500000\r\n", await self.headers(client))
        self.check_body(await client.take(500_000), 9, 500_000)
        self.assertEqual(self.served.outcomes, [True, True])
        self.assertEqual([request.sentLength for request in self.served.requests], [BIG, 500_000])
        await self.check_ended()

    async def test_a_fill_that_is_never_waited_for_makes_no_difference(self) -> None:
        await self.serve()
        self.fill.grow(BIG)
        client = await self.connect()
        for first, length in [(0, BIG), (5, SMALL), (BIG - 1, 1)]:
            client.send(self.get(first, length))
            self.check_body((await client.response())[1], first, length)
        self.assertEqual(self.served.outcomes, [True] * 3)
        await self.check_ended()

    async def test_the_piece_held_back_goes_when_the_blob_is_verified(self) -> None:
        client = await self.begin()
        self.fill.grow(BIG, held=HELD)
        self.check_body(await client.take(BIG - HELD), 0, BIG - HELD)
        await self.waits(BIG - HELD)
        self.assertEqual((client.received, self.served.outcomes), (b"", []))
        self.fill.end()
        self.check_body(await client.take(HELD), BIG - HELD, HELD)
        await self.check_ended()

    async def test_a_part_is_waited_for_from_before_its_beginning_to_its_end_alone(self) -> None:
        client = await self.begin(self.get(1_000_000, 300_000))
        await self.waits(1_000_000)
        for until in (999_999, 1_000_000):
            self.fill.grow(until)
            self.assertEqual(list(self.fill.waiting.values()), [1_000_000])
        self.fill.grow(1_100_000)
        self.check_body(await client.take(100_000), 1_000_000, 100_000)
        self.fill.grow(2_000_000)
        self.check_body(await client.take(200_000), 1_100_000, 200_000)
        self.assertEqual(self.fill.waiting, {})
        await self.check_ended()

    async def test_of_a_small_body_too_goes_what_there_is(self) -> None:
        self.fill.grow(1000)
        client = await self.begin(self.get(0, 5000))
        self.check_body(await client.take(1000), 0, 1000)
        await self.waits(1000)
        self.fill.grow(BIG)
        self.check_body(await client.take(4000), 1000, 4000)
        await self.check_ended()

    async def test_a_small_body_that_is_held_back_is_not_read_from_the_file(self) -> None:
        self.fill.grow(BIG, held=HELD)
        client = await self.begin(self.get(BIG - HELD, HELD) + self.get(0, 3))
        await self.waits(BIG - HELD)
        self.assertEqual((client.received, self.served.requests[0].sentLength), (b"", 0))
        self.fill.end()
        self.check_body(await client.take(HELD), BIG - HELD, HELD)
        self.check_body((await client.response())[1], 0, 3)
        await self.check_ended()

    async def test_a_failure_cuts_the_connection_with_one_line_in_the_log(self) -> None:
        await self.serve()
        for come in (0, 1, BIG // 2, BIG - HELD, BIG - 1):
            self.fill = Fill(self.path, self.content, BIG)
            self.fill.grow(come)
            client = await self.connect()
            client.send(self.get())
            await self.headers(client)
            self.check_body(await client.take(come), 0, come)
            await self.waits(come)
            with capturedLogs() as events:
                self.fill.fail("the upstream sent wrong bytes")
                await self.check_cut(client)
            self.assertEqual(client.received, b"")
            self.assertEqual(cuts(events), ["the upstream sent wrong bytes"])

    async def test_a_fill_that_failed_before_is_cut_after_what_has_come(self) -> None:
        self.fill.grow(200_000)
        self.fill.fail("no more")
        await self.serve()
        client = await self.connect()
        with capturedLogs() as events:
            client.send(self.get())
            await self.check_cut(client)
        self.assertEqual(cuts(events), ["no more"])

    async def test_a_blob_that_ends_before_what_was_promised_cuts_the_connection(self) -> None:
        client = await self.begin()
        self.fill.grow(300_000)
        self.check_body(await client.take(300_000), 0, 300_000)
        await self.waits(300_000)
        with capturedLogs() as events:
            self.fill.end()
            await self.check_cut(client)
        self.assertEqual(cuts(events), ["the blob is shorter than promised"])

    async def test_a_client_that_leaves_while_it_waits_ends_its_transfer_at_once(self) -> None:
        client = await self.begin()
        self.fill.grow(100_000)
        await client.take(100_000)
        await self.waits(100_000)
        client.leave()
        await self.until(lambda: self.served.blobs[0].closings > 0)
        with capturedLogs() as events:
            await self.check_cut(client)
            self.fill.grow(BIG)
        self.assertEqual(cuts(events), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_slow_client_delays_nobody(self) -> None:
        slow = await self.begin()
        slow.transport.pauseProducing()  # type: ignore[attr-defined]
        await self.waits(0)
        quick = await self.connect()
        quick.send(self.get())
        await self.headers(quick)
        for until in range(1_000_000, BIG, 1_000_000):
            self.fill.grow(until)
            self.check_body(await quick.take(1_000_000), until - 1_000_000, 1_000_000)
        self.fill.grow(BIG)
        await quick.take(BIG - 8_000_000)
        self.assertEqual((self.served.outcomes, slow.received), ([True], b""))
        slow.transport.resumeProducing()  # type: ignore[attr-defined]
        self.check_body(await slow.take(BIG))
        await self.check_ended()

    async def test_no_deadline_runs_while_the_blob_is_waited_for(self) -> None:
        client = await self.begin()
        await self.waits(0)
        for come in (100_000, 200_000):
            self.clock.advance(3 * STALL)
            self.clock.advance(3 * STALL)
            self.fill.grow(come)
            self.check_body(await client.take(100_000), come - 100_000, 100_000)
            await self.waits(come)
        client.transport.pauseProducing()  # type: ignore[attr-defined]
        self.fill.grow(BIG)
        with capturedLogs() as events:
            await self.until(lambda: self.served.outcomes != [], lambda: self.clock.advance(STALL))
        client.transport.resumeProducing()  # type: ignore[attr-defined]
        await self.check_cut(client)
        self.assertEqual(cuts(events), [f"stalled for {STALL:g} s"])

    async def test_a_head_waits_for_nothing(self) -> None:
        client = await self.begin(request("HEAD", f"/0/{BIG}") + self.get(0, 0) + self.get(0, 3))
        self.assertIn(b"Content-Length: 0\r\n", await self.headers(client))
        self.assertIn(b"Content-Length: 3\r\n", await self.headers(client))
        await self.waits(0)
        self.fill.grow(3)
        self.check_body(await client.take(3), 0, 3)
        await self.check_ended()

    async def test_draining_waits_for_the_blob(self) -> None:
        client = await self.begin()
        await self.waits(0)
        drained = Deferred.fromCoroutine(self.site.drain(60))
        self.fill.grow(BIG)
        self.check_body(await client.take(BIG))
        await client.lost
        await drained
        self.assertEqual(self.served.outcomes, [True])


class GrowingThroughTLSTests(OverTLS, GrowingTests):
    """The same through TLS."""

    async def test_no_buffer_is_held_while_the_blob_is_waited_for(self) -> None:
        client = await self.begin()
        for come in (0, 200_000):
            self.fill.grow(come)
            await self.waits(come)
            self.assertEqual(self.budget.used, 0)
        client.leave()
        await self.check_cut(client)


class GrowingFileTests(GrowingCase):
    """What is ``sendfile``'s own."""

    async def test_a_connection_that_waits_is_left_alone_by_the_reactor(self) -> None:
        client = await self.begin()
        (channel,) = self.site.channels
        assert IReactorFDSet.providedBy(reactor)
        for come in (0, 100_000):
            self.fill.grow(come)
            await self.waits(come)
            self.assertNotIn(channel.transport, reactor.getWriters())
            self.assertIn(channel.transport, reactor.getReaders(), "to see the client leave")
        self.fill.grow(BIG)
        self.check_body(await client.take(BIG))
        self.assertIs(channel.transport.producer, channel)

    async def test_one_growth_is_waited_for_once_whatever_else_the_transport_does(self) -> None:
        client = await self.begin()
        (channel,) = self.site.channels
        await self.waits(0)
        channel.transport.startWriting()
        await self.until(lambda: channel.transport not in reactor.getWriters())
        self.assertEqual(len(self.fill.waiting), 1)
        self.fill.grow(BIG)
        self.check_body(await client.take(BIG))
        await self.check_ended()

    async def test_nothing_is_read_ahead_of_what_has_come(self) -> None:
        self.cannot_tell()
        read: list[tuple[int, int, int]] = []
        in_thread = self.in_thread

        def watched(f: Callable[..., Any], fd: int, length: int, first: int) -> Deferred[Any]:
            read.append((first, first + length, self.fill.available))
            return in_thread(f, fd, length, first)

        self.in_thread = watched  # type: ignore[method-assign]
        client = await self.begin()
        for come in (3_000_000, 3_000_001, BIG):
            self.fill.grow(come)
            await self.has(client, come)
        self.check_body(bytes(client.received))
        self.assertEqual(read[0], (0, 3_000_000, 3_000_000))
        self.assertTrue(all(first < until <= available for first, until, available in read), read)
        await self.check_ended()

    async def test_what_has_just_come_after_a_cold_beginning_needs_no_thread(self) -> None:
        self.can_tell()
        cold = 1_000_000
        self.fill.grow(cold)
        real = sendfile.BlobReader.is_cached
        self.patch(
            sendfile.BlobReader,
            "is_cached",
            lambda reader, first, length: first >= cold and real(reader, first, length),
        )
        client = await self.begin()
        self.check_body(await client.take(cold), 0, cold)
        self.assertEqual(self.thread_calls, 1)
        for come in (cold + 100_000, BIG):
            self.fill.grow(come)
            await self.has(client, come - cold)
        self.check_body(bytes(client.received), cold, BIG - cold)
        self.assertEqual(self.thread_calls, 1)

    async def test_bytes_that_the_file_has_lost_cut_the_connection(self) -> None:
        client = await self.begin()
        self.fill.grow(300_000)
        await client.take(300_000)
        await self.waits(300_000)
        with capturedLogs() as events:
            self.fill.pretend(BIG)
            await self.check_cut(client)
        self.assertEqual(len(cuts(events)), 1)
