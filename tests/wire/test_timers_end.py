"""Deadlines end with their connection, whatever it is doing when it is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ConnectionClosed

from artifactd.kit.timers import Deadline, Timers
from artifactd.settings.settings import LimitsSettings
from artifactd.web.answer import Answer
from artifactd.web.server.accesslog import AccessLog
from artifactd.web.server.body import ManifestBodies
from artifactd.web.server.protocol import RegistryRequest, RegistrySite
from artifactd.web.server.sendfile import FileSender, Patience
from tests.leaf import leaf
from tests.wire.connection import Sink, Wire, WireCase, request, statuses
from tests.wire.growing import Fill, Follower
from tests.wire.loopback import CountingBudget


class RecordingTimers(Timers):
    """Timers that remember all deadlines they have made."""

    def __init__(self, clock: object) -> None:
        super().__init__(clock)  # type: ignore[arg-type]  # a test's clock
        self.made: list[Deadline] = []

    def deadline(self, expired: Callable[[], object]) -> Deadline:
        deadline = super().deadline(expired)
        self.made.append(deadline)
        return deadline


class TimersEndTests(WireCase):
    """A connection is brought to where a deadline runs, and is lost there."""

    def setUp(self) -> None:
        super().setUp()
        self.site.limits = LimitsSettings()
        self.site.timers = self.timers = RecordingTimers(self.clock)
        self.sink = Sink()
        self.path = Path(self.mktemp())
        self.path.write_bytes(bytes(200_000))
        sender = FileSender(self.timers, maybeDeferred, CountingBudget(), Patience(30.0, 1.0))
        bodies = ManifestBodies.of(1 << 20, 100_000, self.timers)

        @self.app.route("/body", methods=["PUT"])
        async def body(request: RegistryRequest) -> None:
            assert request.body is not None
            await request.body.deliver_to(self.sink)

        @self.app.route("/slow", methods=["GET", "PUT"])
        async def slow(request: RegistryRequest) -> None:
            await self.gate()

        @self.app.route("/refused", methods=["PUT"])
        @self.app.route("/quick", methods=["GET"])
        def refused(request: RegistryRequest) -> bytes:
            request.setHeader(b"Content-Length", b"2")
            return b"no"

        @self.app.route("/manifest", methods=["PUT"])
        async def manifest(request: RegistryRequest) -> None:
            async with bodies.read(request, "ann"):
                pass

        @self.app.route("/list", methods=["GET"])
        async def answer(request: RegistryRequest) -> None:
            sending = Answer(body=bytes(200_000)).send(request, sender)
            assert sending is not None
            await sending

        @self.app.route("/blob", methods=["GET"])
        async def blob(request: RegistryRequest) -> None:
            fill = Fill(self.path, bytes(200_000), 200_000)
            fill.grow(200_000)
            await sender.send(request, Follower(fill), 0, 200_000)

        self.site.resource = leaf(self.app)

    def running(self) -> set[str]:
        """What happens when the deadlines that run expire."""
        return {
            str(getattr(each._expired, "__name__", each._expired))
            for each in self.timers.made
            if each.due is not None
        }

    def unread(self, *pieces: bytes) -> Wire:
        """A connection of a client that reads nothing."""
        wire = self.connect()
        write = wire.write

        def full(data: bytes) -> None:
            write(data)
            wire.channel.pauseProducing()

        wire.write = full  # type: ignore[method-assign]
        wire.send(*pieces)
        return wire

    def sent(self, *pieces: bytes) -> Wire:
        """A connection on which ``pieces`` have come."""
        wire = self.connect()
        wire.send(*pieces)
        return wire

    def paused(self) -> Wire:
        """A connection whose body is not read on."""
        self.sink = Sink(pause_after=1)
        return self.sent(request("PUT", "/body", "Content-Length: 9"), b"a")

    def resumed(self) -> Wire:
        """A connection whose body was not read on for a while."""
        wire = self.paused()
        self.clock.advance(5)
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        return wire

    def test_they_end_wherever_the_connection_is_lost(self) -> None:
        chunked = request("PUT", "/body", "Transfer-Encoding: chunked")
        sized = request("PUT", "/body", "Content-Length: 9")
        situations: list[tuple[str, Callable[[], Wire], str | None]] = [
            ("nothing has come", self.connect, "timeoutConnection"),
            ("a request line", lambda: self.sent(b"GET / HTTP/1"), "_headers_overdue"),
            ("headers", lambda: self.sent(b"GET / HTTP/1.1\r\nHost: a\r\n"), "_headers_overdue"),
            ("a body is awaited", lambda: self.sent(sized), "_window_over"),
            ("a body comes", lambda: self.sent(sized, b"a"), "timeoutConnection"),
            ("a body is paused", self.paused, None),
            ("a body is resumed", self.resumed, "_window_over"),
            ("a chunked body comes", lambda: self.sent(chunked, b"9\r\na"), "_window_over"),
            ("trailers", lambda: self.sent(chunked, b"0\r\nX: "), "_headers_overdue"),
            ("wrong chunks", lambda: self.sent(chunked, b"x\r\n"), "forceAbortClient"),
            ("a handler works", lambda: self.sent(request("GET", "/slow")), None),
            (
                "more requests have come",
                lambda: self.sent(request("GET", "/slow") + b"GET / HTTP/1.1\r\n"),
                None,
            ),
            (
                "a handler has not asked for the body",
                lambda: self.sent(request("PUT", "/slow", "Content-Length: 9")),
                None,
            ),
            (
                "the rest is drained",
                lambda: self.sent(request("PUT", "/refused", "Content-Length: 9")),
                "abort",
            ),
            (
                "the rest of chunks is drained",
                lambda: self.sent(request("PUT", "/refused", "Transfer-Encoding: chunked")),
                "abort",
            ),
            (
                "the rest is drained and comes",
                lambda: self.sent(request("PUT", "/refused", "Content-Length: 9"), bytes(9)),
                "forceAbortClient",
            ),
            (
                "a body is not sent, since it is not wanted",
                lambda: self.sent(
                    request("PUT", "/refused", "Content-Length: 9", "Expect: 100-continue")
                ),
                "forceAbortClient",
            ),
            ("malformed HTTP", lambda: self.sent(b"no request\r\n\r\n"), "forceAbortClient"),
            (
                "a connection is kept alive",
                lambda: self.sent(request("GET", "/quick")),
                "timeoutConnection",
            ),
            ("a manifest comes", lambda: self.sent(self.manifest(), b"{"), "_window_over"),
            ("a list is not read", lambda: self.unread(request("GET", "/list")), "_stalled"),
            ("a blob is not read", lambda: self.unread(request("GET", "/blob")), "_stalled"),
        ]
        for what, begin, expected in situations:
            for cleanly in (True, False):
                self.timers.made.clear()
                wire = begin()
                if expected is not None:
                    self.assertIn(expected, self.running(), what)
                wire.close(cleanly=cleanly)
                left = [each._expired for each in self.timers.made if each._call is not None]
                self.assertEqual(left, [], what)
                self.assertEqual(self.clock.getDelayedCalls(), [], what)
                self.assertEqual(self.site.in_flight, 0, what)
                self.gates.clear()
        self.flushLoggedErrors(ConnectionClosed, CancelledError)

    def manifest(self) -> bytes:
        """The headers of a manifest that is pushed."""
        return request("PUT", "/manifest", "Content-Length: 9")

    def test_so_do_those_of_a_connection_that_there_is_no_room_for(self) -> None:
        limits = LimitsSettings(connections=1)
        self.site = RegistrySite(leaf(self.app), self.clock, AccessLog("off"), limits=limits)
        self.site.timers = self.timers
        first, second = self.connect(), self.connect()
        self.assertEqual(statuses(second.received()), [503])
        self.assertIn("forceAbortClient", self.running())
        second.close()
        first.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_so_does_that_of_a_draining_site(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/slow"))
        draining = Deferred.fromCoroutine(self.site.drain(10))
        wire.close()
        self.successResultOf(draining)
        self.assertEqual(self.clock.getDelayedCalls(), [])
