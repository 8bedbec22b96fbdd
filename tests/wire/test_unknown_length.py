"""Responses from a blob of which nobody knows yet how long it will be."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from tests.wire.connection import Wire, request, statuses
from tests.wire.growing import Fill, Follower
from tests.wire.sender import BIG, STALL, GrowingCase, OverTLS, RelayCase

LAST_CHUNK = b"0\r\n\r\n"


def unchunked(received: bytes) -> bytes:
    """What is in the chunks of ``received``, be the last one there or not."""
    body = b""
    while received:
        size, _, received = received.partition(b"\r\n")
        body += received[: int(size, 16)]
        received = received[int(size, 16) + 2 :]
    return body


class UnknownLengthCase(RelayCase):
    """A site that serves pieces of one blob, which comes as the test says."""

    def setUp(self) -> None:
        super().setUp()
        self.fill = Fill(self.path, self.content, None)
        self.served.opened = lambda _: Follower(self.fill)
        self.serve()

    def ask(self, method: str = "GET", version: str = "1.1", then: bytes = b"") -> Wire:
        wire = self.connect()
        wire.send(request(method, "/0", version=version) + then)
        return wire

    def headers(self, wire: Wire) -> bytes:
        """The headers, the only thing sent so far."""
        headers, _, body = wire.received().partition(b"\r\n\r\n")
        self.assertEqual((statuses(headers), body), ([200], b""))
        return headers

    def check_ended(self) -> None:
        self.assertEqual([blob.closings for blob in self.served.blobs], [1])
        self.assertEqual((self.budget.used, self.fill.waiting), (0, {}))
        self.assertEqual(self.flushLoggedErrors(), [])


class ChunkedTests(UnknownLengthCase):
    """To clients of HTTP/1.1."""

    def test_bytes_go_in_chunks_as_they_come_and_the_last_chunk_at_the_end(self) -> None:
        wire = self.ask(then=request("GET", "/3/5"))
        headers = self.headers(wire)
        self.assertIn(b"Transfer-Encoding: chunked", headers)
        self.assertNotIn(b"Content-Length", headers)
        sent = 0
        for until in (1, 5000, 300_000, 1_000_000):
            self.fill.grow(until)
            received = wire.received()
            self.assertEqual(unchunked(received), self.content[sent:until])
            self.assertFalse(received.endswith(LAST_CHUNK))
            sent = until
        self.fill.end()
        last, _, following = wire.received().partition(b"HTTP/1.1 200")
        self.assertEqual(last, LAST_CHUNK)
        self.assertTrue(following.endswith(self.content[3:8]))
        self.assertEqual(self.served.outcomes, [True, True])
        self.assertEqual(self.served.requests[0].sentLength, 1_000_000)

    def test_a_length_that_is_told_on_the_way_does_not_end_it_before_its_last_byte(self) -> None:
        wire = self.ask()
        self.headers(wire)
        self.fill.grow(500_000)
        self.fill.size = 1_000_000
        self.fill.grow(1_000_000, held=65536)
        self.assertEqual(unchunked(wire.received()), self.content[:-65536])
        self.assertEqual(self.served.outcomes, [])
        self.fill.end()
        received = wire.received()
        self.assertEqual(unchunked(received), self.content[-65536:])
        self.assertTrue(received.endswith(LAST_CHUNK))
        self.check_ended()

    def test_a_failure_leaves_it_without_its_last_chunk(self) -> None:
        for come in (0, 1, 999_999, 1_000_000):
            self.fill = Fill(self.path, self.content, None)
            self.served.blobs.clear()
            wire = self.ask()
            self.headers(wire)
            self.fill.grow(come)
            self.assertEqual(unchunked(wire.received()), self.content[:come])
            self.fill.fail("the upstream sent wrong bytes")
            self.assertTrue(wire.disconnected)
            wire.close(cleanly=False)
            self.assertEqual(wire.received(), b"")
            self.check_ended()
        self.assertNotIn(True, self.served.outcomes)

    def test_an_end_of_which_nobody_knows_the_place_is_none(self) -> None:
        class Unsure(Follower):
            def wait(self, beyond: int) -> Deferred[None]:
                return succeed(None)

        self.served.opened = lambda _: Unsure(self.fill)
        self.fill.grow(100_000)
        wire = self.ask()
        self.assertTrue(wire.disconnected)
        wire.close(cleanly=False)
        self.assertNotIn(LAST_CHUNK, wire.received())
        self.check_ended()

    def test_an_empty_blob_is_the_last_chunk_alone(self) -> None:
        wire = self.ask()
        self.headers(wire)
        self.fill.end()
        self.assertEqual(wire.received(), LAST_CHUNK)
        self.check_ended()

    def test_a_head_has_neither_length_nor_chunks(self) -> None:
        headers = self.headers(self.ask("HEAD"))
        self.assertNotIn(b"Content-Length", headers)
        self.assertNotIn(b"Transfer-Encoding", headers)
        self.check_ended()

    def test_a_length_known_by_now_is_declared(self) -> None:
        self.fill.size = 1_000_000
        wire = self.ask()
        headers = self.headers(wire)
        self.assertIn(b"Content-Length: 1000000", headers)
        self.assertNotIn(b"Transfer-Encoding", headers)
        self.fill.grow(1_000_000)
        self.assertEqual(wire.received(), self.content)
        self.check_ended()

    def test_a_client_that_leaves_waits_no_more(self) -> None:
        for come in (0, 300_000):
            self.served.blobs.clear()
            wire = self.ask()
            self.fill.grow(come)
            self.assertEqual(list(self.fill.waiting.values()), [come])
            self.assertEqual(self.budget.used, 0)
            wire.close()
            self.check_ended()
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_deadline_begins_anew_with_the_bytes(self) -> None:
        wire = self.ask()
        write = wire.writeSequence

        def full(data: list[bytes]) -> None:
            write(data)
            wire.channel.pauseProducing()

        wire.writeSequence = full  # type: ignore[method-assign]
        self.clock.advance(STALL - 1)
        self.fill.grow(1000)
        for _ in range(3):
            # The client takes what there is just before its time is up, and waits for more.
            self.clock.advance(STALL - 1)
            wire.channel.resumeProducing()
            self.clock.advance(2 * STALL)
            self.fill.grow(self.fill.available + 1000)
        self.assertFalse(wire.disconnected)
        self.clock.advance(STALL - 1)
        self.assertFalse(wire.disconnected)
        self.clock.advance(1)
        self.assertTrue(wire.disconnected)

    def test_a_deadline_that_has_passed_meanwhile_begins_anew_with_them_too(self) -> None:
        wire = self.ask()
        self.clock.advance(2 * STALL)
        self.budget.acquire = lambda size: Deferred()  # type: ignore[method-assign]
        self.fill.grow(1000)
        self.clock.advance(STALL - 1)
        self.assertFalse(wire.disconnected)
        self.clock.advance(1)
        self.assertTrue(wire.disconnected)


class WithoutChunksTests(UnknownLengthCase):
    """To clients of HTTP/1.0, who would take a connection that breaks off for the end."""

    def test_headers_wait_until_the_length_is_known(self) -> None:
        wire = self.ask(version="1.0")
        for come in (1, 300_000, 1_000_000):
            self.fill.grow(come)
            self.assertEqual(wire.received(), b"")
        self.clock.advance(10 * STALL)
        self.fill.end()
        headers, _, body = wire.received().partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: 1000000", headers)
        self.assertNotIn(b"Transfer-Encoding", headers)
        self.assertTrue(body == self.content)
        self.check_ended()

    def test_a_failure_leaves_it_without_a_byte(self) -> None:
        wire = self.ask(version="1.0")
        self.fill.grow(1_000_000)
        self.fill.fail("the upstream sent wrong bytes")
        self.assertTrue(wire.disconnected)
        wire.close(cleanly=False)
        self.assertEqual((wire.received(), self.served.outcomes), (b"", [False]))
        self.check_ended()

    def test_a_failure_after_the_length_leaves_it_shorter_than_that(self) -> None:
        wire = self.ask(version="1.0")
        self.fill.grow(500_000)
        self.fill.size = 1_000_000
        self.fill.grow(1_000_000, held=65536)
        headers, _, body = wire.received().partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: 1000000", headers)
        self.assertEqual(len(body), 1_000_000 - 65536)
        self.fill.fail("the upstream sent wrong bytes")
        self.assertTrue(wire.disconnected)
        wire.close(cleanly=False)
        self.assertEqual(wire.received(), b"")
        self.check_ended()

    def test_an_empty_blob_has_the_length_0(self) -> None:
        wire = self.ask(version="1.0")
        self.fill.end()
        headers, _, body = wire.received().partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: 0", headers)
        self.assertEqual(body, b"")
        self.check_ended()


class ChunkedOnLoopbackTests(GrowingCase):
    """Over a real connection."""

    def setUp(self) -> None:
        super().setUp()
        self.fill.size = None

    async def test_what_is_pipelined_behind_is_answered_afterwards(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(request("GET", "/0") + self.get(7, 400_000))
        answered = Deferred.fromCoroutine(client.chunks())
        for until in (3, 1_000_000, BIG):
            self.fill.grow(until)
            await self.waits(until)
        self.fill.end()
        self.check_body((await answered)[1])
        self.check_body((await client.response())[1], 7, 400_000)
        await self.check_ended()

    async def test_a_failure_is_no_end(self) -> None:
        await self.serve()
        client = await self.connect()
        client.send(request("GET", "/0"))
        self.fill.grow(BIG)
        await self.until(lambda: len(client.received) > BIG)
        await self.waits(BIG)
        self.fill.fail("the upstream sent wrong bytes")
        await client.lost
        self.assertFalse(client.received.endswith(LAST_CHUNK))
        await self.until(lambda: self.served.outcomes != [])
        await self.check_ended()


class ChunkedThroughTLSTests(OverTLS, ChunkedOnLoopbackTests):
    """The same through TLS."""
