"""Manifests as they come from a connection: how much memory and time they may take."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionClosed
from twisted.logger import globalLogPublisher

from artifactd.kit.budget import BufferBudget
from artifactd.kit.timers import Timers
from artifactd.oci.errors import ContentTooLarge
from artifactd.web.api import BODY_SECONDS, ManifestBodies
from artifactd.web.server.protocol import RegistryRequest
from tests.api.case import LogLines
from tests.wire.connection import Wire, WireCase, chunked, request, statuses


class ManifestBodyTests(WireCase):
    """Of at most 100 bytes each, in buffers of 150."""

    def setUp(self) -> None:
        super().setUp()
        self.budget = BufferBudget(150)
        self.bodies = ManifestBodies(self.budget, 100, Timers(self.clock))
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)
        self.read: list[bytes | type[Exception]] = []

        @self.app.route("/", methods=["PUT"])
        async def put(request: RegistryRequest) -> bytes:
            try:
                async with self.bodies.read(request) as content:
                    self.read.append(content)
                    if content == b"slow":
                        await self.gate()
            except (ConnectionClosed, CancelledError, ContentTooLarge) as error:
                self.read.append(type(error))
            return b""

    def begin(self, *headers: str) -> Wire:
        wire = self.connect()
        wire.send(request("PUT", "/", *headers))
        return wire

    def test_it_is_read_whole(self) -> None:
        wire = self.begin("Content-Length: 4")
        self.assertEqual(self.budget.used, 4)
        wire.send(b"ab", b"cd")
        self.assertEqual(self.read, [b"abcd"])
        self.assertEqual(statuses(wire.received()), [200])
        self.assertEqual(self.budget.used, 0)
        self.clock.advance(BODY_SECONDS / 2)
        self.assertFalse(wire.disconnected)

    def test_none_is_empty(self) -> None:
        self.begin()
        self.assertEqual(self.read, [b""])

    def test_it_keeps_its_buffer_until_it_is_dealt_with(self) -> None:
        self.begin("Content-Length: 4").send(b"slow")
        self.assertEqual(self.budget.used, 4)
        self.clock.advance(10 * BODY_SECONDS)
        self.open_gate()
        self.assertEqual(self.log.events, [])
        self.assertEqual(self.budget.used, 0)

    def test_of_unknown_length_it_takes_as_much_as_it_may_need(self) -> None:
        wire = self.begin("Transfer-Encoding: chunked")
        self.assertEqual(self.budget.used, 100)
        wire.send(chunked(b"ab"))
        self.assertEqual(self.read, [b"ab"])
        self.assertEqual(self.budget.used, 0)

    def test_it_takes_all_there_is_where_that_is_less(self) -> None:
        self.bodies = ManifestBodies(self.budget, 1000, Timers(self.clock))
        wire = self.begin("Transfer-Encoding: chunked")
        self.assertEqual(self.budget.used, 150)
        wire.send(chunked(b"a" * 500))
        self.assertEqual(self.read, [b"a" * 500])
        self.assertEqual(self.budget.used, 0)

    def test_one_that_is_too_large_is_refused(self) -> None:
        self.begin("Content-Length: 101")
        self.begin("Transfer-Encoding: chunked").send(chunked(b"a" * 101))
        self.assertEqual(self.read, [ContentTooLarge] * 2)
        self.assertEqual(self.budget.used, 0)

    def test_one_that_drips_is_cut_off_when_its_time_is_over(self) -> None:
        wire = self.begin("Content-Length: 100")
        for _ in range(int(BODY_SECONDS)):
            self.assertFalse(wire.disconnected)
            wire.send(b"a")
            self.clock.advance(1)
        self.assertTrue(wire.disconnected)
        (event,) = self.log.events
        self.assertIn("the manifest has not come", str(event["log_format"]))
        wire.close(cleanly=False)
        self.assertEqual(len(self.read), 1)
        self.assertEqual(self.budget.used, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoever_waits_for_room_has_his_time_from_when_there_is(self) -> None:
        first, second = self.begin("Content-Length: 100"), self.begin("Content-Length: 90")
        self.clock.advance(BODY_SECONDS)
        first.close(cleanly=False)
        self.clock.advance(BODY_SECONDS - 1)
        self.assertFalse(second.disconnected)
        second.send(b"a" * 90)
        self.assertEqual(self.read[1:], [b"a" * 90])
        self.assertEqual(self.budget.used, 0)

    def test_one_whose_client_leaves_gives_its_room_back(self) -> None:
        self.begin("Content-Length: 100").close(cleanly=False)
        self.assertEqual(self.budget.used, 0)
        self.assertEqual(self.log.events, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
