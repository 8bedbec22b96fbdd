"""Blobs as response bodies, over TCP and through TLS."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from artifactd.kit.turns import MOST
from artifactd.web.server.sendfile import SMALL, Patience
from tests.wire.connection import request
from tests.wire.loopback import Client
from tests.wire.sender import BIG, STALL, OverTLS, SenderCase


class Leisurely(Client):
    """A client that takes 20 MiB in the time of a stall; less than that is ever under way."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def dataReceived(self, data: bytes) -> None:
        self.clock.advance(STALL * len(data) / (20 * 1024 * 1024))
        super().dataReceived(data)


class SendTests(SenderCase):
    """What holds on every transport."""

    async def test_bytes_are_exact_over_a_kept_alive_connection(self) -> None:
        await self.serve()
        client = await self.connect()
        for first, length in [(0, BIG), (1, BIG - 1), (4097, 300_001), (5, SMALL), (BIG - 1, 1)]:
            client.send(self.get(first, length))
            headers, body = await client.response()
            self.assertIn(b"200 OK", headers)
            self.check_body(body, first, length)
        self.assertEqual(self.served.outcomes, [True] * 5)
        sent = [request.sentLength for request in self.served.requests]
        self.assertEqual(sent, [BIG, BIG - 1, 300_001, SMALL, 1])
        await self.check_ended()

    async def test_pipelined_requests_are_answered_in_order(self) -> None:
        await self.serve()
        client = await self.connect()
        spans = [(0, BIG), (100, 10), (7, 2_000_000), (0, SMALL + 1), (3, 3)]
        client.send(b"".join(self.get(first, length) for first, length in spans))
        for first, length in spans:
            self.check_body((await client.response())[1], first, length)
        await self.check_ended()

    async def test_a_slow_reader_gets_every_byte(self) -> None:
        class Slow(Client):
            def step(self, size: int) -> None:
                self.transport.pauseProducing()  # type: ignore[attr-defined]
                reactor.callLater(0, self.transport.resumeProducing)  # type: ignore[attr-defined]

        await self.serve()
        client = await self.connect(Slow())
        client.send(self.get() + self.get(9, 500_000))
        self.check_body((await client.response())[1])
        self.check_body((await client.response())[1], 9, 500_000)
        await self.check_ended()

    async def test_a_client_that_leaves_is_no_error(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(self.get())
        await client.take(100_000)
        client.leave()
        await client.lost
        await self.until(lambda: len(self.served.outcomes) == 1)
        self.assertTrue(
            self.served.outcomes[0] is False or isinstance(self.served.outcomes[0], CancelledError)
        )
        await self.check_ended()
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_a_client_that_takes_nothing_is_dropped(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(self.get())
        await client.take(1)
        client.transport.pauseProducing()  # type: ignore[attr-defined]
        await self.until(lambda: self.served.outcomes != [], lambda: self.clock.advance(STALL))
        client.transport.resumeProducing()  # type: ignore[attr-defined]
        await client.lost
        self.assertLess(len(client.received), BIG)
        await self.check_ended()

    async def test_a_client_that_takes_some_now_and_then_is_not(self) -> None:
        clock, size = self.clock, 64 * 1024 * 1024
        os.truncate(self.path, size)

        await self.serve()
        client = await self.connect(Leisurely(clock))
        client.send(self.get(0, size))
        _, body = await client.response()
        self.assertEqual(len(body), size)
        self.assertGreater(clock.seconds(), 2 * STALL)

    async def test_a_file_shorter_than_promised_cuts_the_connection(self) -> None:
        await self.serve()
        for first, length in [(0, BIG + 1), (BIG - 5, 10)]:
            client = await self.connect()
            client.send(self.get(first, length))
            await client.lost
            self.assertNotEqual(len(client.received.partition(b"\r\n\r\n")[2]), length)
        await self.until(lambda: len(self.served.outcomes) == 2)
        self.assertNotIn(True, self.served.outcomes)
        await self.check_ended()

    async def test_a_head_has_the_length_and_no_body(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(request("HEAD", f"/0/{BIG}") + self.get(0, 3))
        while client.received.count(b"\r\n\r\n") < 2:
            await client.take_more()
        head, _, rest = bytes(client.received).partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d" % BIG, head)
        self.assertTrue(rest.startswith(b"HTTP/1.1 200"))
        await self.check_ended()

    async def test_draining_lets_a_response_end_and_closes(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(self.get())
        await client.take(1)
        drained = Deferred.fromCoroutine(self.site.drain(60))
        await client.lost
        await drained
        self.assertTrue(client.received.endswith(self.content[-1000:]))
        self.assertEqual(self.served.outcomes, [True])


class TLSTests(OverTLS, SendTests):
    """The same over TLS."""


class TakeOverTests(SenderCase):
    """The transport's producer is the file for the time of a body, and the channel otherwise."""

    async def test_a_client_that_takes_it_more_slowly_than_the_least_rate_is_dropped(self) -> None:
        clock, size = self.clock, 64 * 1024 * 1024
        os.truncate(self.path, size)
        self.patience = Patience(STALL, rate=size / STALL, window=STALL)
        await self.serve()
        client = await self.connect(Leisurely(clock))
        client.send(self.get(0, size))
        await client.lost
        self.assertLess(len(client.received), size)
        self.assertGreater(clock.seconds(), STALL)
        await self.check_ended()
        self.assertEqual(self.served.outcomes, [False])

    async def test_a_turn_sends_more_and_more_is_left_unsent_if_transfers_are_few(self) -> None:
        sizes: list[int] = []

        def sendfile(out: int, file: int, offset: int, count: int) -> int:
            sizes.append(count)
            return really(out, file, offset, count)

        def unsent() -> int:
            (channel,) = self.site.channels
            found = channel.transport.getHandle().getsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT
            )
            assert isinstance(found, int)
            return found

        really = os.sendfile
        self.patch(os, "sendfile", sendfile)
        await self.serve()
        client = await self.connect()
        for transfers, turn, left in (
            (1, 2 << 20, 2 << 20),
            (8, 1 << 20, 1 << 20),
            (20, 512 << 10, (8 << 20) // 20),
        ):
            self.site.turns.transfers = transfers - 1  # and the one that follows
            sizes.clear()
            client.send(self.get())
            self.check_body((await client.response())[1])
            self.assertEqual((max(sizes), unsent()), (turn, left))
        await self.check_ended()

    async def test_of_many_few_send_in_a_turn_of_the_reactor_and_all_get_every_byte(self) -> None:
        sent = [0]

        def sendfile(out: int, file: int, offset: int, count: int) -> int:
            sent[-1] += 1
            return really(out, file, offset, count)

        def turn() -> None:
            sent.append(0)
            turns()

        loop: Any = reactor
        really, turns = os.sendfile, loop.runUntilCurrent
        self.patch(os, "sendfile", sendfile)
        self.patch(loop, "runUntilCurrent", turn)
        await self.serve()
        clients = [await self.connect() for _ in range(MOST + 4)]
        for client in clients:
            client.send(self.get())
        await self.until(lambda: self.site.turns.transfers == len(clients))
        begun = len(sent)
        await self.until(lambda: self.site.turns.transfers <= MOST)
        self.assertLessEqual(max(sent[begun:-1]), MOST)
        for client in clients:
            self.check_body((await client.response())[1])
        await self.check_ended()
        self.assertEqual(self.site.turns.transfers, 0)

    async def test_the_channel_is_the_producer_again_afterwards(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(self.get())
        await client.response()
        (channel,) = self.site.channels
        self.assertIs(channel.transport.producer, channel)

    async def test_a_channel_paused_before_goes_on_afterwards(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(request("GET", f"/0/{BIG}?padding=100000") + self.get(0, 10))
        self.check_body((await client.response())[1])
        self.check_body((await client.response())[1], 0, 10)
