"""Manifests as they come from a connection: how much memory and time they may take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.logger import globalLogPublisher

from artifactd.kit.budget import Shares
from artifactd.kit.timers import Timers
from artifactd.oci.errors import ContentTooLarge, RegistryError, TooManyRequests
from artifactd.web.server.body import BODY_SECONDS, SMALL, ManifestBodies, RequestBody
from artifactd.web.server.protocol import RegistryRequest
from tests.api.case import LogLines
from tests.wire.connection import Wire, WireCase, chunked, request, statuses

KIB = 1 << 10
MOST = 200 * KIB


class Eager(RequestBody):
    """
    A body that delivers what comes although it is paused, as a push producer may.

    :ivar paused: whether it is to pause.
    """

    def __init__(self, length: int) -> None:
        super().__init__(length, self.nothing, self.nothing, self.nothing)
        self.paused = False

    def nothing(self) -> None:
        """There is no transport."""

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False


class ManifestBodyTests(WireCase):
    """
    Of at most 200 KiB each; one owner may hold 64 KiB for small ones and 200 KiB for large ones.
    """

    def setUp(self) -> None:
        super().setUp()
        self.small, self.large = Shares(3 * SMALL // 2, SMALL, queue=2), Shares(300 * KIB, MOST)
        self.bodies = ManifestBodies(self.small, self.large, MOST, Timers(self.clock))
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)
        self.read: list[int | type[Exception]] = []

        @self.app.route("/<owner>", methods=["PUT"])
        async def put(request: RegistryRequest, owner: str) -> bytes:
            try:
                async with self.bodies.read(request, owner) as content:
                    self.read.append(len(content))
                    if content == b"slow":
                        await self.gate()
            except (ConnectionClosed, CancelledError, RegistryError) as error:
                self.read.append(type(error))
            return b""

    def begin(self, length: int | None, owner: str = "ann") -> Wire:
        wire = self.connect()
        how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        wire.send(request("PUT", f"/{owner}", how))
        return wire

    async def size_of(self, body: RequestBody) -> int:
        """Read ``body`` as one of ann's; return its size in bytes."""
        request = cast(RegistryRequest, SimpleNamespace(body=body))  # all that is asked of it
        async with self.bodies.read(request, "ann") as content:
            return len(content)

    def assert_nothing_held(self) -> None:
        self.assertEqual((self.small.used, self.large.used), (0, 0))

    def test_it_is_read_whole(self) -> None:
        wire = self.begin(4)
        wire.send(b"ab")
        self.assertEqual(self.small.used, 4)
        wire.send(b"cd")
        self.assertEqual(self.read, [4])
        self.assertEqual(statuses(wire.received()), [200])
        self.assert_nothing_held()
        self.clock.advance(BODY_SECONDS / 2)
        self.assertFalse(wire.disconnected)

    def test_none_is_empty(self) -> None:
        self.connect().send(request("PUT", "/ann"))
        self.assertEqual(self.read, [0])

    def test_it_holds_its_memory_until_it_is_dealt_with(self) -> None:
        self.begin(4).send(b"slow")
        self.assertEqual(self.small.used, 4)
        self.clock.advance(10 * BODY_SECONDS)
        self.open_gate()
        self.assertEqual(self.log.events, [])
        self.assert_nothing_held()

    def test_what_is_announced_and_not_sent_holds_nothing(self) -> None:
        for _ in range(20):
            self.begin(MOST)
        self.assert_nothing_held()

    def test_of_unknown_length_it_acquires_what_it_may_need_as_it_grows(self) -> None:
        wire = self.begin(None)
        wire.send(b"1\r\na\r\n")
        self.assertEqual((self.small.used, self.large.used), (SMALL, 0))
        wire.send(b"%x\r\n%b\r\n" % (SMALL, bytes(SMALL)))
        self.assertEqual((self.small.used, self.large.used), (SMALL, MOST - SMALL))
        wire.send(b"0\r\n\r\n")
        self.assertEqual(self.read, [SMALL + 1])
        self.assert_nothing_held()

    def test_one_that_is_larger_than_all_memory_acquires_all_of_it(self) -> None:
        self.bodies = ManifestBodies.of(100 * KIB, 400 * KIB, Timers(self.clock))
        wire = self.begin(300 * KIB)
        wire.send(bytes(200 * KIB))
        self.assertEqual(self.bodies.large.used, 75 * KIB)
        wire.send(bytes(100 * KIB))
        self.assertEqual(self.read, [300 * KIB])
        self.assertEqual(self.bodies.large.used, 0)

    def test_one_that_is_too_large_is_refused(self) -> None:
        self.begin(MOST + 1)
        self.begin(None).send(chunked(bytes(MOST + 1)))
        self.assertEqual(self.read, [ContentTooLarge] * 2)
        self.assert_nothing_held()

    def test_large_ones_of_one_owner_hold_up_no_other_owner_and_no_small_ones(self) -> None:
        for _ in range(2):
            self.begin(MOST, "mallory").send(bytes(SMALL + 1))
        self.assertEqual(self.large.used, MOST)
        self.begin(100 * KIB, "ann").send(bytes(100 * KIB))
        self.begin(5, "mallory").send(bytes(5))
        self.assertEqual(self.read, [100 * KIB, 5])

    def test_small_ones_of_one_owner_hold_up_no_other_owner(self) -> None:
        for _ in range(2):
            self.begin(SMALL, "mallory").send(b"a")
        self.begin(5, "ann").send(bytes(5))
        self.assertEqual(self.read, [5])

    def test_one_that_waited_goes_on_where_it_was(self) -> None:
        first, second = self.begin(MOST), self.begin(MOST)
        first.send(bytes(SMALL + 1))
        second.send(bytes(SMALL + 1))
        self.assertFalse(second.reading)
        first.send(bytes(MOST - SMALL - 1))
        self.assertTrue(second.reading)
        second.send(bytes(MOST - SMALL - 1))
        self.assertEqual(self.read, [MOST, MOST])
        self.assert_nothing_held()

    def test_one_whose_bytes_come_on_while_it_waits_goes_on_once_there_is_memory_for_all(
        self,
    ) -> None:
        """A producer that is paused may still deliver what it has read."""
        for needed in (SMALL + 1, MOST):
            first = self.begin(SMALL)
            first.send(b"a")
            body = Eager(needed)
            reading = Deferred.fromCoroutine(self.size_of(body))
            body.data_received(b"b")
            self.assertTrue(body.paused)
            body.data_received(bytes(SMALL))
            first.close(cleanly=False)
            self.assertFalse(body.paused)
            body.data_received(bytes(needed - SMALL - 1))
            body.ended()
            self.assertEqual(self.successResultOf(reading), needed)
            self.assert_nothing_held()

    def test_one_whose_bytes_come_on_waits_for_those_too(self) -> None:
        first, other = self.begin(SMALL), self.begin(MOST, "bob")
        first.send(b"a")
        other.send(bytes(SMALL + 1))
        body = Eager(MOST)
        reading = Deferred.fromCoroutine(self.size_of(body))
        body.data_received(b"b")
        body.data_received(bytes(SMALL))
        first.close(cleanly=False)
        self.assertTrue(body.paused)
        other.close(cleanly=False)
        self.assertFalse(body.paused)
        body.data_received(bytes(MOST - SMALL - 1))
        body.ended()
        self.assertEqual(self.successResultOf(reading), MOST)
        self.assert_nothing_held()

    def test_one_that_is_all_here_waits_for_its_memory_too(self) -> None:
        first, second = self.begin(SMALL), self.begin(5)
        first.send(b"a")
        second.send(bytes(5))
        self.assertEqual(self.read, [])
        first.send(bytes(SMALL - 1))
        self.assertEqual(self.read, [SMALL, 5])
        self.assert_nothing_held()

    def test_more_of_one_owner_than_may_wait_are_refused(self) -> None:
        self.begin(SMALL).send(b"a")
        waiting = [self.begin(5) for _ in range(2)]
        for wire in waiting:
            wire.send(b"b")
        self.begin(5).send(b"c")
        self.assertEqual(self.read, [TooManyRequests])
        for wire in waiting:
            wire.close(cleanly=False)
        self.begin(5).send(b"d")
        self.assertEqual(self.read.count(TooManyRequests), 1)

    def test_one_that_drips_is_cut_off_when_its_time_is_over(self) -> None:
        wire = self.begin(100)
        for _ in range(int(BODY_SECONDS)):
            self.assertFalse(wire.disconnected)
            wire.send(b"a")
            self.clock.advance(1)
        self.assertTrue(wire.disconnected)
        (event,) = self.log.events
        self.assertIn("the manifest has not come", str(event["log_format"]))
        wire.close(cleanly=False)
        self.assertEqual(len(self.read), 1)
        self.assert_nothing_held()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_time_stands_still_while_one_waits_for_memory(self) -> None:
        self.begin(4).send(b"slow")
        wire = self.begin(SMALL)
        self.clock.advance(10)
        wire.send(b"a")
        self.clock.advance(10 * BODY_SECONDS)
        self.assertFalse(wire.disconnected)
        self.open_gate()
        self.clock.advance(BODY_SECONDS - 12)
        self.assertFalse(wire.disconnected)
        self.clock.advance(4)
        self.assertTrue(wire.disconnected)

    def test_one_whose_client_leaves_returns_its_memory(self) -> None:
        wires = [self.begin(SMALL) for _ in range(2)]
        for wire in reversed(wires):
            wire.send(b"a")
        for wire in wires:
            wire.close(cleanly=False)
        self.assert_nothing_held()
        self.assertEqual(self.log.events, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
