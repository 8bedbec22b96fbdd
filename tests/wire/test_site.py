"""What connections share: the end of the service, and the access log."""

from __future__ import annotations

from pathlib import Path

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactd.kit.lines import moment
from artifactd.web.server.accesslog import Access, AccessLog
from artifactd.web.server.protocol import NEW_SECONDS, TELL_SECONDS, RegistryRequest, RegistrySite
from artifactd.web.server.proxies import TrustedProxies
from tests.leaf import leaf
from tests.wire.connection import IDLE, Sink, Wire, WireCase, request, statuses


class DrainTests(WireCase):
    """The end of the service."""

    def setUp(self) -> None:
        super().setUp()

        @self.app.route("/slow", methods=["GET", "PUT"])
        async def slow(request: RegistryRequest) -> bytes:
            await self.gate()
            return b"done"

        @self.app.route("/begun", methods=["GET"])
        async def begun(request: RegistryRequest) -> bytes:
            request.write(b"first ")
            await self.gate()
            return b"last"

    def busy(self, path: str = "/slow") -> Wire:
        wire = self.connect()
        wire.send(request("GET", path))
        return wire

    def drain(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.site.drain(30))

    def test_requests_in_flight_are_counted(self) -> None:
        self.connect()
        wires = [self.busy(), self.busy()]
        self.assertEqual(self.site.in_flight, 2)
        self.open_gate()
        self.assertEqual(self.site.in_flight, 1)
        wires[1].close()
        self.assertEqual(self.site.in_flight, 0)

    def test_there_is_nothing_to_wait_for_without_connections(self) -> None:
        self.successResultOf(self.drain())

    def test_idle_connections_are_closed_at_once(self) -> None:
        wire = self.connect()
        self.clock.advance(NEW_SECONDS)
        self.assert_closed_at_once(wire)

    def test_so_is_one_that_had_its_request(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/absent"))
        self.assertEqual(statuses(wire.received()), [404])
        self.assert_closed_at_once(wire)

    def test_a_new_one_gets_an_answer_if_it_asks_soon(self) -> None:
        asks, silent = self.connect(), self.connect()
        self.clock.advance(NEW_SECONDS / 2)
        later, lines = self.connect(), self.told()
        draining = self.drain()
        self.clock.advance(0)
        asks.send(request("GET", "/absent"))
        received = asks.received()
        self.assertEqual(statuses(received), [503])
        self.assertIn(b"Connection: close", received)
        self.assertFalse(asks.open)
        self.assertTrue(silent.open)
        self.clock.advance(NEW_SECONDS)
        self.assertEqual((silent.open, later.open), (False, False))
        for wire in (asks, silent, later):
            wire.close()
        self.successResultOf(draining)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(lines, [])

    def assert_closed_at_once(self, wire: Wire) -> None:
        draining = self.drain()
        self.assertFalse(wire.open)
        self.assertNoResult(draining)
        wire.close()
        self.successResultOf(draining)

    def test_a_request_in_flight_is_answered_with_close(self) -> None:
        wire = self.busy()
        draining = self.drain()
        self.assertTrue(wire.open)
        self.open_gate()
        received = wire.received()
        self.assertEqual(statuses(received), [200])
        self.assertIn(b"Connection: close", received)
        self.assertFalse(wire.open)
        self.assertNoResult(draining)
        wire.close()
        self.successResultOf(draining)

    def test_a_response_already_begun_is_ended_and_its_connection_closed(self) -> None:
        wire = self.busy("/begun")
        self.drain()
        self.open_gate()
        self.assertIn(b"last", wire.received())
        self.assertFalse(wire.open)

    def told(self) -> list[str]:
        """What the log says, once it has been told to take it, from now on."""
        lines: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if text := formatEvent(event):
                lines.append(text)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def test_the_log_says_what_is_waited_for(self) -> None:
        self.busy("/begun")
        for _ in range(6):
            self.busy()
        self.connect()
        lines = self.told()
        self.drain()
        self.clock.advance(0)
        (first,) = (line for line in lines if line.startswith("stopping:"))
        self.assertIn("waiting up to 30 s for 7 running requests", first)
        self.assertIn("GET /slow of ", first)
        self.assertTrue(first.endswith(", and 2 more"), first)
        lines.clear()
        self.clock.advance(TELL_SECONDS)
        (second,) = (line for line in lines if line.startswith("stopping:"))
        self.assertIn("waiting up to 25 s", second)
        self.assertIn("(5 s, 0 bytes received, ", second)

    def test_the_log_says_too_that_clients_have_to_take_their_answers(self) -> None:
        self.busy()
        lines = self.told()
        draining = self.drain()
        self.open_gate()  # answered; its connection is not reported lost yet
        self.clock.advance(TELL_SECONDS)
        self.assertIn("stopping: waiting up to 25 s for 1 clients to take their answers", lines)
        self.assertNoResult(draining)

    def test_without_requests_the_log_has_nothing_to_say(self) -> None:
        wire, lines = self.connect(), self.told()
        draining = self.drain()
        wire.close()
        self.successResultOf(draining)
        self.assertEqual(lines, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_cut_ends_the_drain_at_once(self) -> None:
        wire = self.busy()
        draining = self.drain()
        self.site.cut()
        self.assertFalse(wire.open)
        wire.close()
        self.successResultOf(draining)

    def test_a_request_pipelined_behind_is_not_begun(self) -> None:
        wire = self.busy()
        wire.send(request("GET", "/slow"))
        self.drain()
        self.open_gate()
        self.assertEqual(self.gates, [])

    def test_a_new_request_meanwhile_is_answered_503_and_its_connection_closed(self) -> None:
        idle, busy = self.connect(), self.busy()
        self.drain()
        self.assertTrue(idle.open)
        idle.send(request("GET", "/slow"))
        received = idle.received()
        self.assertEqual(statuses(received), [503])
        self.assertIn(b"Retry-After: 10\r\n", received)
        self.assertIn(b"Connection: close\r\n", received)
        self.assertIn(b'"code":"UNKNOWN"', received)
        self.assertFalse(idle.open)
        self.assertTrue(busy.open)
        self.open_gate()
        self.assertEqual(statuses(busy.received()), [200])

    def test_so_is_one_on_a_new_connection_while_the_listeners_are_open(self) -> None:
        busy = self.busy()
        closing: Deferred[None] = Deferred()
        closed: list[bool] = []

        async def close() -> None:
            closed.append(True)
            await closing

        draining = Deferred.fromCoroutine(self.site.drain(30, close))
        late = self.connect()
        late.send(request("GET", "/slow"))
        self.assertEqual(statuses(late.received()), [503])
        silent = self.connect()
        self.assertEqual(closed, [])
        self.open_gate()  # the request in flight ends
        self.assertEqual(statuses(busy.received()), [200])
        self.assertEqual(closed, [True])
        self.assertTrue(silent.open)
        self.clock.advance(NEW_SECONDS)
        self.assertTrue(silent.open)
        closing.callback(None)
        self.assertFalse(silent.open)
        for wire in (busy, late, silent):
            wire.close()
        self.successResultOf(draining)

    def test_requests_that_come_late_do_not_keep_the_listeners_open(self) -> None:
        busy = self.busy()
        closed: list[bool] = []

        async def close() -> None:
            closed.append(True)

        Deferred.fromCoroutine(self.site.drain(30, close))
        late = self.connect()
        late.send(request("PUT", "/slow", "Content-Length: 1000000"))  # its body never comes
        self.assertEqual(statuses(late.received()), [503])
        self.assertEqual(self.site.in_flight, 2)
        self.open_gate()
        self.assertEqual(closed, [True])
        busy.close()

    def test_the_listeners_are_closed_at_the_end_of_the_time(self) -> None:
        self.busy()
        closed: list[bool] = []

        async def close() -> None:
            closed.append(True)

        draining = Deferred.fromCoroutine(self.site.drain(30, close))
        self.clock.advance(30)
        self.assertEqual(closed, [True])
        self.successResultOf(draining)

    def test_a_retired_site_serves_each_connection_to_its_next_answer(self) -> None:
        idle, busy = self.connect(), self.busy()
        retiring = Deferred.fromCoroutine(self.site.retire())
        for wire in (busy, idle):
            if wire is idle:
                self.assertTrue(idle.open)
                idle.send(request("GET", "/slow"))
            self.open_gate()
            received = wire.received()
            self.assertEqual(statuses(received), [200])
            self.assertIn(b"Connection: close", received)
        self.assertNoResult(retiring)
        idle.close()
        busy.close()
        self.successResultOf(retiring)

    def test_a_retired_site_closes_no_connection_whose_client_does_not_know(self) -> None:
        wire = self.busy("/begun")  # its headers are sent, and say nothing of an end
        retiring = Deferred.fromCoroutine(self.site.retire())
        self.open_gate()
        self.assertIn(b"last", wire.received())
        self.assertTrue(wire.open)
        wire.send(request("GET", "/slow"))
        self.open_gate()
        received = wire.received()
        self.assertEqual(statuses(received), [200])
        self.assertIn(b"Connection: close", received)
        self.assertFalse(wire.open)
        wire.close()
        self.successResultOf(retiring)

    def test_a_connection_of_a_retired_site_ends_when_it_is_idle_for_too_long(self) -> None:
        idle = self.connect()
        retiring = Deferred.fromCoroutine(self.site.retire())
        self.clock.advance(IDLE + 1)
        self.assertFalse(idle.open)
        idle.close()
        self.successResultOf(retiring)

    def test_a_retired_site_can_be_drained(self) -> None:
        idle, busy = self.connect(), self.busy()
        retiring = Deferred.fromCoroutine(self.site.retire())
        draining = self.drain()
        idle.send(request("GET", "/slow"))
        self.assertEqual(statuses(idle.received()), [503])
        self.open_gate()
        for wire in (idle, busy):
            wire.close()
        self.successResultOf(retiring)
        self.successResultOf(draining)

    def test_so_is_one_with_a_body_that_it_then_need_not_send(self) -> None:
        idle, _ = self.connect(), self.busy()
        self.drain()
        idle.send(request("PUT", "/slow", "Content-Length: 9", "Expect: 100-continue"))
        self.assertEqual(statuses(idle.received()), [503])
        self.assertFalse(idle.open)

    def test_idle_connections_are_closed_when_nothing_is_in_flight_any_more(self) -> None:
        idle, first, second = self.connect(), self.busy(), self.busy()
        self.clock.advance(NEW_SECONDS)
        self.drain()
        self.open_gate()
        self.assertTrue(idle.open)
        second.close()  # its client leaves
        self.assertFalse(idle.open)
        self.assertFalse(first.open)

    def test_what_is_left_at_the_end_of_the_time_is_dropped(self) -> None:
        wire = self.busy()
        draining = self.drain()
        self.clock.advance(29)
        self.assertFalse(wire.disconnected)
        self.clock.advance(1)
        self.assertTrue(wire.disconnected)
        self.successResultOf(draining)

    def test_the_access_log_stays_open_when_no_listener_is_left(self) -> None:
        access_log = AccessLog("text", self.mktemp())
        site = RegistrySite(leaf(self.app), self.clock, access_log)
        site.doStart()
        site.doStop()
        self.assertTrue(access_log.wanted)
        access_log.close()

    def test_only_http_1_1_is_offered_in_tls(self) -> None:
        self.assertEqual(self.site.acceptableProtocols(), [b"http/1.1"])

    def test_no_clock_ticks_while_nothing_happens(self) -> None:
        self.site.startFactory()
        self.addCleanup(self.site.stopFactory)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class SiteLogTests(WireCase):
    """One line per request, whatever becomes of it."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())
        log = AccessLog("json", str(self.path), now=lambda: 1_000_000_000.25)
        self.site = RegistrySite(leaf(self.app), self.clock, log, IDLE)
        self.site.startFactory()
        self.addCleanup(self.site.stopFactory)

        @self.app.route("/v2/", methods=["GET"])
        async def base(request: RegistryRequest) -> bytes:
            request.actor = "alice"
            self.clock.advance(0.5)
            return b"{}"

        @self.app.route("/body", methods=["PUT"])
        async def body(request: RegistryRequest) -> bytes:
            assert request.body is not None
            await request.body.deliver_to(Sink())
            return b""

        @self.app.route("/refused", methods=["PUT"])
        def refused(request: RegistryRequest) -> bytes:
            request.setResponseCode(401)
            return b""

    def lines(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(line) for line in self.path.read_bytes().splitlines()]

    def test_a_request_is_a_line(self) -> None:
        self.connect().send(request("GET", "/v2/?n=1", "User-Agent: docker/28"))
        (line,) = self.lines()
        self.assertRegex(str(line.pop("request")), r"\A[0-9a-f]{16}\Z")
        self.assertEqual(
            line,
            {
                "time": "2001-09-09T01:46:40.250Z",
                "client": "192.168.1.1",
                "user": "alice",
                "method": "GET",
                "path": "/v2/?n=1",
                "status": 200,
                "sent": 2,
                "seconds": 0.5,
                "agent": "docker/28",
            },
        )

    def test_a_request_cut_off_before_its_answer_is_a_line_of_status_0(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/body", "Content-Length: 10") + b"0123")
        wire.close(cleanly=False)
        self.assertEqual([line["status"] for line in self.lines()], [0])

    def test_an_early_answer_is_one_line(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/refused", "Content-Length: 4"), b"body")
        wire.close()
        self.assertEqual([line["status"] for line in self.lines()], [401])

    def test_an_early_answer_whose_drain_is_cut_is_one_line(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/refused", "Content-Length: 4"))
        wire.close()
        self.assertEqual([line["status"] for line in self.lines()], [401])

    def test_a_body_that_is_framed_wrong_is_a_line_of_status_400(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/body", "Transfer-Encoding: chunked"), b"nonsense\r\n")
        wire.close()
        self.assertEqual([line["status"] for line in self.lines()], [400])

    def test_a_connection_without_a_request_is_none(self) -> None:
        wire = self.connect()
        wire.send(b"GET /v2/ HTTP/1.1\r\nHo")
        wire.close()
        self.assertEqual(self.lines(), [])

    def test_behind_a_trusted_proxy_the_client_is_whom_it_speaks_for(self) -> None:
        for networks, client in (([], "192.168.1.1"), (["192.168.0.0/16"], "198.51.100.9")):
            self.site.proxies = TrustedProxies.parse(networks)
            self.connect().send(request("GET", "/v2/", "X-Forwarded-For: 198.51.100.9"))
            self.assertEqual(self.lines()[-1]["client"], client)

    def test_an_agent_that_is_not_utf8_is_still_json(self) -> None:
        wire = self.connect()
        wire.send(b'GET /v2/ HTTP/1.1\r\nHost: r\r\nUser-Agent: \xff"\\ \xc3\xa9\r\n\r\n')
        self.assertEqual(self.lines()[0]["agent"], '\\xff"\\ é')


class AccessLogTests(SynchronousTestCase):
    """How a line is written."""

    access = Access(
        client="::1",
        user="-",
        method="GET",
        path="/v2/",
        status=200,
        sent=2,
        seconds=0.0123456,
        agent="curl/8",
        request="0" * 16,
    )

    def written(self, *accesses: Access, style: str = "text") -> str:
        path = self.mktemp()
        log = AccessLog(style, path, now=lambda: 0.0)  # type: ignore[arg-type]
        log.open()
        for access in accesses:
            log.write(access)
        log.close()
        return Path(path).read_text() if Path(path).exists() else ""

    def changed(self, **changes: str) -> Access:
        return msgspec.structs.replace(self.access, **changes)

    def test_a_line_of_text(self) -> None:
        self.assertEqual(
            self.written(self.access),
            '1970-01-01T00:00:00.000Z ::1 - "GET /v2/" 200 2 0.012 "curl/8" 0000000000000000\n',
        )

    def test_no_client_can_forge_a_line_or_a_field(self) -> None:
        evil = 'a" 200\n1970 \r\x1b[2K\\"\u2028é'
        for field in ("method", "path", "agent", "user"):
            line = self.written(self.changed(**{field: evil}))
            self.assertEqual(len(line.splitlines()), 1, field)
            self.assertEqual(line.count('"'), 4, field)
            self.assertTrue(line.rstrip("\n").isprintable(), field)
            self.assertTrue(line.isascii(), field)

    def test_a_user_is_one_word(self) -> None:
        self.assertIn(" a\\x20b ", self.written(self.changed(user="a b")))

    def test_json_is_a_line_per_request_whatever_a_client_sends(self) -> None:
        evil = 'a"\n\r\x00\\\x7f\x9b31m\u2028\u202e\u2066\ufeff'
        first, second = self.written(
            self.changed(agent=evil), self.access, style="json"
        ).splitlines()
        self.assertTrue(first.isprintable(), ascii(first))
        self.assertEqual(msgspec.json.decode(first)["agent"], evil)
        self.assertEqual(msgspec.json.decode(second)["agent"], "curl/8")

    def test_its_time_has_milliseconds_that_are_not_rounded_up(self) -> None:
        for seconds, text in (
            (0.9999, "1970-01-01T00:00:00.999Z"),
            (1.001, "1970-01-01T00:00:01.001Z"),
            (1_800_000_000.25, "2027-01-15T08:00:00.250Z"),
        ):
            self.assertEqual(moment(seconds), text)

    def test_off_writes_nothing(self) -> None:
        self.assertEqual(self.written(self.access, style="off"), "")

    def test_probes_that_are_answered_well_can_be_left_out(self) -> None:
        path = self.mktemp()
        log = AccessLog("text", path, omitted=("/healthz", "kube-probe"))
        log.open()
        for requested, status, agent in (
            ("/healthz", 200, "curl"),
            ("/healthz?verbose", 200, "curl"),
            ("/v2/", 200, "kube-probe/1.30"),
            ("/healthz/other", 404, "curl"),
            ("/healthz", 503, "kube-probe/1.30"),
            ("/v2/", 200, "not kube-probe"),
            ("/v2/healthz", 200, "curl"),
        ):
            log.write(
                msgspec.structs.replace(self.access, path=requested, status=status, agent=agent)
            )
        log.close()
        text = Path(path).read_text()
        written = [(line.split()[4][:-1], line.split()[5]) for line in text.splitlines()]
        self.assertEqual(
            written,
            [
                ("/healthz/other", "404"),
                ("/healthz", "503"),
                ("/v2/", "200"),
                ("/v2/healthz", "200"),
            ],
        )

    def test_a_request_that_fails_here_is_an_error_in_the_daemons_log(self) -> None:
        errors: list[bool] = []
        log = AccessLog(own=lambda line, message="", *, is_error=False: errors.append(is_error))
        for status in (0, 200, 404, 499, 500, 503):
            log.write(msgspec.structs.replace(self.access, status=status))
        self.assertEqual(errors, [False] * 4 + [True] * 2)

    def test_without_a_path_lines_go_to_the_daemons_log(self) -> None:
        events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observer(event: LogEvent) -> None:
            events.append(event)

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        AccessLog(now=lambda: 0.0).write(self.changed(agent="{braces}"))
        (event,) = events
        self.assertEqual(event["log_namespace"], "artifactd.access")
        self.assertEqual(event["log_level"], LogLevel.info)
        self.assertIn('"{braces}"', formatEvent(event))

    def test_a_renamed_file_is_followed_when_opened_again(self) -> None:
        path = Path(self.mktemp())
        log = AccessLog("text", str(path), now=lambda: 0.0)
        log.open()
        log.write(self.access)
        path.rename(f"{path}.1")
        log.open()
        log.write(self.access)
        log.close()
        self.assertEqual(len(path.read_text().splitlines()), 1)

    def test_a_full_disk_does_not_stop_the_serving(self) -> None:
        log = AccessLog("text", "/dev/full", now=lambda: 0.0)
        log.open()
        log.write(self.access)
        log.write(self.access)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1, "told once")
        log.close()
