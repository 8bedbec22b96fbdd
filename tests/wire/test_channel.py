"""A connection: what is parsed when, how much is buffered, and which paths are refused."""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactd.web.server.framing import origin_form, path_problem
from artifactd.web.server.protocol import CLOSE_SECONDS, RegistryRequest
from tests.wire.connection import IDLE, Wire, WireCase, request, statuses


class FullTransport(Wire):
    """A connection whose client reads nothing: beyond 64 KiB its producer is paused."""

    def write(self, data: bytes) -> None:
        super().write(data)
        self._check()

    def writeSequence(self, data: list[bytes]) -> None:
        super().writeSequence(data)
        self._check()

    def _check(self) -> None:
        if len(self.value()) > 65536 and self.producer is not None:
            self.producer.pauseProducing()

    def drained(self) -> bytes:
        """The client has read everything."""
        received = self.received()
        assert self.producer is not None
        self.producer.resumeProducing()
        return received


class PipeliningTests(WireCase):
    """Clients that send requests without reading answers."""

    def setUp(self) -> None:
        super().setUp()
        self.handled = 0

        @self.app.route("/big", methods=["GET"])
        def big(request: RegistryRequest) -> bytes:
            self.handled += 1
            return bytes(100_000)

        @self.app.route("/slow", methods=["GET"])
        async def slow(request: RegistryRequest) -> bytes:
            await self.gate()
            return bytes(100_000)

    def test_no_request_is_handled_while_answers_pile_up(self) -> None:
        wire = FullTransport(self.site)
        wire.send(request("GET", "/big") * 50)
        self.assertEqual(self.handled, 1)
        self.assertFalse(wire.reading)
        wire.send(request("GET", "/big") * 50)
        self.assertEqual(self.handled, 1)

    def test_the_next_is_handled_when_the_answers_have_been_read(self) -> None:
        wire = FullTransport(self.site)
        wire.send(request("GET", "/big") * 3)
        self.assertEqual([statuses(wire.drained()) for _ in range(3)], [[200]] * 3)
        self.assertEqual(self.handled, 3)
        self.assertTrue(wire.reading)
        wire.send(request("GET", "/big"))
        self.assertEqual(self.handled, 4)

    def test_a_client_that_never_reads_its_answers_is_dropped(self) -> None:
        wire = FullTransport(self.site)
        wire.send(request("GET", "/big") * 3)
        self.clock.advance(IDLE + 1)
        self.assertFalse(wire.open)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(wire.disconnected)

    def test_what_follows_a_request_in_progress_is_read_up_to_a_limit(self) -> None:
        wire = FullTransport(self.site)
        wire.send(request("GET", "/slow"))
        self.assertTrue(wire.reading)
        wire.send(request("GET", "/big") * 400)
        self.assertFalse(wire.reading)

    def test_the_limit_holds_while_the_client_does_not_read(self) -> None:
        wire = FullTransport(self.site)
        wire.send(request("GET", "/slow"))
        wire.channel.pauseProducing()  # the transport is full of an answer in progress
        wire.send(request("GET", "/big") * 400)
        self.assertFalse(wire.reading)

    def test_a_closed_connection_is_dropped_if_the_client_does_not_take_the_answer(self) -> None:
        wire = FullTransport(self.site)
        wire.send(request("GET", "/big", "Connection: close"))
        self.assertFalse(wire.open)
        self.assertFalse(wire.disconnected)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(wire.disconnected)

    def test_answers_come_in_the_order_of_their_requests(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/slow") + request("GET", "/nothing"))
        self.assertEqual(wire.received(), b"")
        self.open_gate()
        self.assertEqual(statuses(wire.received()), [200, 404])


class MalformedTests(WireCase):
    """Requests that never become one are answered with the spec's JSON, and closed."""

    def refused(self, *pieces: bytes) -> bytes:
        wire = self.connect()
        wire.send(*pieces)
        self.assertFalse(wire.open)
        received = wire.received()
        wire.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return received

    def test_a_bad_request_line(self) -> None:
        received = self.refused(b"GET / SPDY/9\r\n\r\n")
        self.assertEqual(statuses(received), [400])
        self.assertIn(b'{"errors":[{"code":"', received)
        self.assertIn(b"\r\nCache-Status: artifactd\r\nServer-Timing: total;dur=0.0\r\n", received)

    def test_who_does_not_close_then_is_dropped_once(self) -> None:
        wire = self.connect()
        wire.send(b"GET / SPDY/9\r\n\r\n")
        self.clock.pump([1.0] * int(max(IDLE, CLOSE_SECONDS)))
        self.assertTrue(wire.disconnected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_line_without_end(self) -> None:
        self.assertEqual(statuses(self.refused(b"GET /" + b"a" * 20_000)), [431])

    def test_a_client_that_begins_with_tls_is_told_at_once_and_the_log_says_nothing(self) -> None:
        # As Docker does before it tries plain HTTP; no end of line in sight.
        lines: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        received = self.refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        self.assertEqual(statuses(received), [400])
        self.assertIn(b"this address speaks plain HTTP", received)
        self.assertEqual([line for line in lines if "malformed" in line], [])
        self.refused(b"GET / SPDY/9\r\n\r\n")
        self.assertEqual(len([line for line in lines if "malformed" in line]), 1)

    def test_too_many_headers(self) -> None:
        headers = [f"X-{n}: 1" for n in range(600)]
        self.assertEqual(statuses(self.refused(request("GET", "/", *headers))), [431])

    def test_a_length_that_is_no_number(self) -> None:
        self.assertEqual(statuses(self.refused(request("PUT", "/", "Content-Length: -1"))), [400])


class HeaderTests(WireCase):
    """What every request and response has."""

    def test_every_status_has_its_reason_phrase(self) -> None:
        @self.app.route("/busy")
        def busy(request: RegistryRequest) -> bytes:
            request.setResponseCode(429)
            return b""

        wire = self.connect()
        wire.send(request("GET", "/busy"))
        self.assertTrue(wire.received().startswith(b"HTTP/1.1 429 Too Many Requests\r\n"))

    def setUp(self) -> None:
        super().setUp()
        self.requests: list[RegistryRequest] = []

        @self.app.route("/", methods=["GET"])
        def keep(request: RegistryRequest) -> bytes:
            self.requests.append(request)
            return b"text"

    def test_no_content_type_is_made_up(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/"))
        self.assertNotIn(b"content-type", wire.received().lower())

    def test_a_request_id_is_stable_and_its_own(self) -> None:
        self.connect().send(request("GET", "/") * 2)
        first, second = self.requests
        self.assertEqual(first.request_id, first.request_id)
        self.assertNotEqual(first.request_id, second.request_id)
        self.assertRegex(first.request_id, r"\A[0-9a-f]{16}\Z")

    def test_a_request_knows_when_its_headers_were_complete(self) -> None:
        wire = self.connect()
        wire.send(b"GET / HTTP/1.1\r\n")
        self.clock.advance(7)
        wire.send(b"Host: a\r\n\r\n")
        self.assertEqual(self.requests[0].started, 7)


class PathTests(SynchronousTestCase):
    """Paths that no route may see."""

    def assert_refused(self, path: bytes, word: str) -> None:
        problem = path_problem(path)
        assert problem is not None, f"{path!r} was let through"
        self.assertIn(word, problem)

    def test_ordinary_paths_are_fine(self) -> None:
        for path in (
            b"/",
            b"/v2/",
            b"/v2/a/b.c/manifests/v1.0",
            b"/v2/a/blobs/sha256:ab%3Acd",
            b"/v2/caf%C3%A9/tags/list/",
            b"/v2/..a/.b/c...",
            b"/v2/%252e%252e/x",
        ):
            self.assertIsNone(path_problem(path), path)

    def test_a_target_with_scheme_and_host_is_its_path(self) -> None:
        for target, path in (
            (b"/v2/", b"/v2/"),
            (b"http://127.0.0.1:5000/v2/a?n=1", b"/v2/a?n=1"),
            (b"HTTPS://example.org", b"/"),
            (b"http://example.org?n=1", b"/?n=1"),
            (b"http:/v2/", b"http:/v2/"),
            (b"*", b"/*"),
        ):
            self.assertEqual(origin_form(target), path)

    def test_encoded_slashes_and_backslashes(self) -> None:
        for path in (b"/v2/a%2Fb/tags/list", b"/v2/a%2fb", b"/v2/a%5Cb", b"/v2/a\\b"):
            self.assert_refused(path, "slash")

    def test_empty_components(self) -> None:
        for path in (b"//v2/", b"/v2//tags/list", b"/v2/a//"):
            self.assert_refused(path, "empty")

    def test_dot_components_raw_or_encoded(self) -> None:
        for path in (b"/v2/../x", b"/v2/a/.", b"/v2/%2e%2E/x", b"/v2/.%2e", b"/v2/a/./b"):
            self.assert_refused(path, ".")

    def test_control_characters(self) -> None:
        for path in (b"/v2/a%00", b"/v2/a%0d%0ab", b"/v2/%7F", b"/v2/%C2%85"):
            self.assert_refused(path, "control")

    def test_what_is_not_utf8(self) -> None:
        for path in (b"/v2/%ff", b"/v2/%C3/tags", b"/v2/\xc3"):
            self.assert_refused(path, "UTF-8")
