"""Blobs that are not in the page cache, and blobs that pass through this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred

from artifactd.kit.timers import Timers
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.server.sendfile import FileSender, Patience
from tests.leaf import leaf
from tests.wire.connection import Wire, request, statuses
from tests.wire.loopback import FileBlob
from tests.wire.sender import STALL, OverTLS, RelayCase, SenderCase


class ColdTests(SenderCase):
    """Where the disk has to be waited for."""

    async def test_a_file_that_is_not_in_the_page_cache_is_sent_whole(self) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        await self.serve()
        client = await self.connect()
        client.send(self.get())
        self.check_body((await client.response())[1])
        await self.check_ended()

    async def test_a_cold_file_is_read_ahead_of_the_client(self) -> None:
        self.cannot_tell()
        sent: list[int] = []
        in_thread = self.in_thread

        def watched(f: Callable[..., Any], *args: Any) -> Deferred[Any]:
            sent.append(self.served.requests[-1].sentLength)
            return in_thread(f, *args)

        self.in_thread = watched  # type: ignore[method-assign]
        await self.serve()
        client = await self.connect()
        client.send(self.get())
        self.check_body((await client.response())[1])
        await self.check_ended()
        window = 4 * 1024 * 1024
        self.assertEqual((len(sent), sent[0]), (3, 0))
        self.assertTrue(0 < sent[1] < window < sent[2] < 2 * window, sent)

    async def test_a_cold_small_blob_is_read_in_a_thread(self) -> None:
        self.cannot_tell()
        await self.serve()
        client = await self.connect()
        client.send(self.get(0, 4096))
        self.check_body((await client.response())[1], 0, 4096)
        self.assertEqual(self.thread_calls, 1)
        await self.check_ended()

    async def test_a_warm_file_needs_no_thread(self) -> None:
        self.can_tell()
        await self.serve()
        client = await self.connect()
        client.send(self.get() + self.get(0, 4096))
        self.check_body((await client.response())[1])
        self.check_body((await client.response())[1], 0, 4096)
        self.assertEqual(self.thread_calls, 0)


class ColdTLSTests(OverTLS, ColdTests):
    """The same over TLS."""


class RelayTests(RelayCase):
    """The fallback, on a transport that is no socket."""

    def test_bytes_are_exact(self) -> None:
        self.serve()
        wire = self.connect()
        wire.send(request("GET", "/3/900000") + request("GET", "/0/100000"))
        received = wire.received()
        self.assertEqual(statuses(received), [200, 200])
        self.assertIn(self.content[3:900003], received)
        self.assertTrue(received.endswith(self.content[:100000]))
        self.assertEqual((self.served.outcomes, self.budget.used), ([True, True], 0))

    def test_no_more_than_a_piece_waits_for_a_client_that_does_not_read(self) -> None:
        self.serve()
        wire = self.connect()
        wire.send(request("GET", "/0/50000"))  # the channel is registered by now
        wire.received()
        write = wire.write

        def full(data: bytes) -> None:
            write(data)
            wire.channel.pauseProducing()

        wire.write = full  # type: ignore[method-assign]
        wire.send(request("GET", "/0/1000000"))
        first = len(wire.value())
        self.assertLess(first, 300_000)
        self.assertEqual(self.budget.used, 0, "the transport has it")
        while self.served.outcomes == [True]:
            wire.channel.resumeProducing()
        self.assertTrue(wire.received().endswith(self.content))
        self.assertEqual(self.budget.used, 0)
        self.assertLess(self.budget.most, 300_000)

    def test_a_client_that_takes_it_more_slowly_than_the_least_rate_is_dropped(self) -> None:
        os.truncate(self.path, 4_000_000)
        for seconds in (10.0, 6.0):  # for each piece of 256 KiB
            self.patience = Patience(STALL, rate=262144 / 8, window=60.0)
            self.serve()
            wire = self.connect()
            write = wire.write

            def full(data: bytes, wire: Wire = wire, write: Callable[..., None] = write) -> None:
                write(data)
                wire.channel.pauseProducing()

            wire.write = full  # type: ignore[method-assign]
            wire.send(request("GET", "/0/4000000"))
            while not wire.disconnected and len(wire.value()) < 4_000_000:
                self.clock.advance(seconds)
                wire.channel.resumeProducing()
            self.assertEqual(wire.disconnected, seconds == 10.0)
            wire.channel.resumeProducing()
            wire.close()
        self.assertEqual(self.served.outcomes, [False, True])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_leaves_while_waiting_for_a_buffer_waits_no_more(self) -> None:
        cancelled: list[object] = []
        self.budget.acquire = lambda size: Deferred(cancelled.append)  # type: ignore[method-assign]
        self.serve()
        wire = self.connect()
        wire.send(request("GET", "/0/1000000"))
        wire.close()
        self.assertEqual(len(cancelled), 1)
        self.assertEqual((self.budget.used, self.served.blobs[0].closings), (0, 1))

    def test_a_blob_is_closed_only_when_its_thread_is_done(self) -> None:
        self.cannot_tell()
        reads: list[Deferred[None]] = []

        def in_thread(*_: object) -> Deferred[None]:
            reads.append(Deferred())
            return reads[-1]

        self.serve(in_thread)
        wire = self.connect()
        wire.send(request("GET", "/0/1000000"))
        wire.close(cleanly=False)
        self.assertEqual(self.served.blobs[0].closings, 0)
        reads[0].callback(None)
        self.assertEqual(self.served.blobs[0].closings, 1)
        self.assertEqual(self.budget.used, 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_read_that_fails_cuts_the_connection(self) -> None:
        self.cannot_tell()

        def in_thread(*_: object) -> Deferred[None]:
            raise OSError(5, "input/output error")

        self.serve(lambda *args: maybeDeferred(in_thread, *args))
        wire = self.connect()
        wire.send(request("GET", "/0/1000000"))
        self.assertTrue(wire.disconnected)
        wire.close(cleanly=False)
        self.assertEqual(self.served.blobs[0].closings, 1)
        self.assertEqual(self.budget.used, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def hold(self) -> tuple[Wire, RegistryRequest]:
        """A connection with a request whose handler waits for :meth:`open_gate`."""
        self.cannot_tell()
        held: list[RegistryRequest] = []

        @self.app.route("/held", methods=["GET"])
        async def hold(request: RegistryRequest) -> None:
            held.append(request)
            await self.gate()

        self.site.resource = leaf(self.app)
        wire = self.connect()
        wire.send(request("GET", "/held"))
        return wire, held[0]

    def send(self, request: RegistryRequest) -> tuple[FileBlob, Deferred[bool]]:
        """Send all with a thread that never ends."""
        blob = FileBlob(self.path)
        sender = FileSender(Timers(self.clock), lambda *_: Deferred(), self.budget, Patience(STALL))
        return blob, Deferred.fromCoroutine(sender.send(request, blob, 0, 1_000_000))

    def test_a_blob_that_can_not_be_read_is_told_and_the_connection_dropped(self) -> None:
        wire, held = self.hold()
        blob, error = FileBlob(self.path), OSError(errno.EIO, "Input/output error")
        sender = FileSender(
            Timers(self.clock), lambda *_: fail(error), self.budget, Patience(STALL)
        )
        sending = Deferred.fromCoroutine(sender.send(held, blob, 0, 1_000_000))
        self.assertEqual(blob.errors, [error])
        self.assertTrue(wire.disconnected)
        wire.close()
        self.assertIs(self.successResultOf(sending), False)

    def test_a_client_gone_before_the_answer_costs_nothing(self) -> None:
        wire, held = self.hold()
        wire.close()
        blob, sending = self.send(held)
        self.assertIs(self.successResultOf(sending), False)
        self.assertEqual(blob.closings, 1)

    def test_a_transfer_given_up_drops_the_connection(self) -> None:
        wire, held = self.hold()
        _, sending = self.send(held)
        sending.cancel()
        self.failureResultOf(sending, CancelledError)
        self.assertTrue(wire.disconnected)

    def test_a_request_finished_before_its_end_drops_the_connection(self) -> None:
        wire, held = self.hold()
        _, sending = self.send(held)
        self.open_gate()
        self.assertTrue(wire.disconnected)
        self.assertIs(self.successResultOf(sending), False)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1, "Twisted's own complaint")
