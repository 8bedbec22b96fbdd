"""What one client may take: connections, headers, time, requests."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.kit.shared import Moments, SharedMemory, Table
from artifactd.oci.errors import TooManyRequests
from artifactd.settings.settings import LimitsSettings
from artifactd.settings.values import Duration, Size
from artifactd.web.server.accesslog import AccessLog
from artifactd.web.server.limits import Rates, ReaderPace, TokenBuckets
from artifactd.web.server.protocol import RegistryRequest, RegistrySite
from artifactd.web.server.proxies import TrustedProxies
from tests.api.case import LogLines
from tests.leaf import leaf
from tests.wire.connection import Sink, Wire, WireCase, request, statuses

_PORT = IPv4Address("TCP", "0.0.0.0", 5000)
_SOCKET = UNIXAddress(b"/run/artifactd.sock")


class LimitsCase(WireCase):
    """Tests with a site that has limits."""

    limits = LimitsSettings()

    def setUp(self) -> None:
        super().setUp()
        self.log = LogLines()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)

        @self.app.route("/", methods=["GET"])
        def get(request: RegistryRequest) -> bytes:
            return b"text"

        @self.app.route("/", methods=["PUT"])
        async def put(request: RegistryRequest) -> bytes:
            assert request.body is not None
            self.sink = Sink(pause_after=self.pause_after)
            await request.body.deliver_to(self.sink)
            return b""

        self.pause_after: int | None = None
        self.site = self.serve()

    def serve(self) -> RegistrySite:
        return RegistrySite(
            leaf(self.app),
            self.clock,
            AccessLog("off"),
            proxies=TrustedProxies.parse(["10.9.9.9"]),
            limits=self.limits,
        )

    def connect_from(self, peer: object = "1.2.3.4", host: object = _PORT) -> Wire:
        if isinstance(peer, str):
            kind = IPv6Address if ":" in peer else IPv4Address
            peer = kind("TCP", peer, 4321)
        return Wire(self.site, peer, host)

    def refused(self, wire: Wire, status: int) -> None:
        """``wire`` has been answered with ``status``, is closed, and one line says so."""
        self.assertEqual(statuses(wire.received()), [status])
        self.assertFalse(wire.open)
        wire.close()
        self.assertEqual(len(self.log.events), 1, self.log.events)


class ConnectionCountTests(LimitsCase):
    """How many connections there may be."""

    limits = LimitsSettings(connections=4, address_connections=2)

    def test_of_one_address(self) -> None:
        wires = [self.connect_from() for _ in range(2)]
        self.refused(self.connect_from(), 503)
        self.assertTrue(self.connect_from("1.2.3.5").open)
        self.assertTrue(all(wire.open for wire in wires))

    def test_of_one_ipv6_network_of_64_bits(self) -> None:
        for last in (1, 2):
            self.connect_from(f"2001:db8::{last}")
        self.refused(self.connect_from("2001:db8::3"), 503)
        self.assertTrue(self.connect_from("2001:db8:0:1::3").open)

    def test_of_one_listener(self) -> None:
        for last in range(4):
            self.connect_from(f"1.2.3.{last}")
        self.refused(self.connect_from("1.2.3.9"), 503)
        self.assertTrue(self.connect_from(UNIXAddress(b""), _SOCKET).open)

    def test_those_that_are_closed_count_no_more(self) -> None:
        for _ in range(10):
            self.connect_from().close()
        self.assertEqual(len(self.site._connections), 0)
        self.assertTrue(self.connect_from().open)
        self.assertEqual(self.log.events, [])

    def test_what_is_refused_is_logged_once_until_there_is_room(self) -> None:
        first, _ = self.connect_from(), self.connect_from()
        for _ in range(5):
            self.connect_from().close()
        self.assertEqual(len(self.log.events), 1)
        first.close()
        self.connect_from()
        self.connect_from()
        self.assertEqual(len(self.log.events), 2)

    def test_one_that_comes_for_each_that_goes_is_no_news(self) -> None:
        self.limits = LimitsSettings(connections=20, address_connections=0)
        self.site = self.serve()
        wires = [self.connect_from() for _ in range(20)]
        for _ in range(5):
            self.connect_from().close()
            wires.pop().close()
            wires.append(self.connect_from())
        self.assertEqual(len(self.log.events), 1)
        for _ in range(2):
            wires.pop().close()
        for _ in range(3):
            self.connect_from()
        self.assertEqual(len(self.log.events), 2)

    def test_all_that_come_to_one_port_count_together_whatever_its_address(self) -> None:
        for last in range(4):
            self.connect_from(f"1.2.3.{last}", IPv4Address("TCP", f"192.0.2.{last}", 5000))
        self.refused(self.connect_from("1.2.3.9"), 503)

    def test_this_machine_and_trusted_proxies_are_no_addresses(self) -> None:
        for peer in ("127.0.0.1", "10.9.9.9", UNIXAddress(b"")):
            self.site = self.serve()
            self.assertTrue(all(self.connect_from(peer).open for _ in range(3)), peer)

    def test_nothing_that_a_refused_one_sends_is_read(self) -> None:
        for _ in range(2):
            self.connect_from()
        wire = self.connect_from()
        wire.received()
        wire.send(request("GET", "/"))
        self.assertEqual(wire.received(), b"")

    def test_0_is_no_limit(self) -> None:
        self.limits = LimitsSettings(connections=0, address_connections=0)
        self.site = self.serve()
        self.assertTrue(all(self.connect_from().open for _ in range(20)))


class HeaderLimitTests(LimitsCase):
    """The headers of a request."""

    limits = LimitsSettings(header_size=Size(1000), header_count=10, header_timeout=Duration(20))

    def test_as_many_as_may_be(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/", *(f"X: {n}" for n in range(9))))
        self.assertEqual(statuses(wire.received()), [200])

    def test_one_too_many(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/", *(f"X: {n}" for n in range(10))))
        self.refused(wire, 431)

    def test_too_large_together(self) -> None:
        wire = self.connect()
        wire.send(request("GET", "/", "X: " + "a" * 500, "Y: " + "a" * 500))
        self.refused(wire, 431)

    def test_a_line_without_end_is_not_kept(self) -> None:
        wire = self.connect()
        wire.send(b"GET /" + b"a" * 1100)
        self.refused(wire, 431)

    def test_what_drips_is_refused_when_its_time_is_over_however_often_a_byte_comes(self) -> None:
        wire = self.connect()
        for byte in request("GET", "/" + "a" * 100)[:19]:
            wire.send(bytes([byte]))
            self.clock.advance(1)
        self.assertTrue(wire.open)
        wire.send(b"a")
        self.clock.advance(1)
        self.refused(wire, 408)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_header_lines_that_drip_are_as_slow(self) -> None:
        wire = self.connect()
        wire.send(b"GET / HTTP/1.1\r\n")
        for _ in range(4):
            self.clock.advance(5)
            wire.send(b"X: y\r\n")
        self.refused(wire, 408)

    def test_each_request_has_its_time(self) -> None:
        wire = self.connect()
        message = request("GET", "/")
        for _ in range(3):
            wire.send(message[:9])
            self.clock.advance(19)
            wire.send(message[9:])
            self.assertEqual(statuses(wire.received()), [200])
            self.clock.advance(19)
        wire.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_time_runs_between_requests_nor_while_one_is_handled(self) -> None:
        wire = self.connect()
        wire.send(request("PUT", "/", "Content-Length: 20"))
        self.clock.advance(21)
        wire.send(bytes(20))
        self.clock.advance(21)
        self.assertEqual(statuses(wire.received()), [200])
        self.assertTrue(wire.open)


class BodyRateTests(LimitsCase):
    """Bodies that drip."""

    limits = LimitsSettings(body_rate=Size(10), body_window=Duration(30))

    def begin(self) -> Wire:
        wire = self.connect()
        wire.send(request("PUT", "/", "Content-Length: 100000"))
        return wire

    def test_one_that_is_slower_than_the_rate_is_dropped(self) -> None:
        wire = self.begin()
        for _ in range(30):
            self.assertFalse(wire.disconnected)
            wire.send(b"a" * 9)
            self.clock.advance(1)
        self.assertTrue(wire.disconnected)
        (event,) = self.log.events
        self.assertIn("slower than", str(event["log_format"]))
        wire.close(cleanly=False)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_keeps_the_rate_is_not_however_long_it_takes(self) -> None:
        wire = self.begin()
        for _ in range(200):
            wire.send(b"a" * 10)
            self.clock.advance(1)
        self.assertFalse(wire.disconnected)

    def test_it_is_asked_of_every_window(self) -> None:
        wire = self.begin()
        wire.send(b"a" * 10_000)
        self.clock.pump([1] * 31)
        self.assertFalse(wire.disconnected)
        for _ in range(30):
            wire.send(b"a")
            self.clock.advance(1)
        self.assertTrue(wire.disconnected)

    def test_no_time_runs_while_we_do_not_read(self) -> None:
        self.pause_after = 5
        wire = self.begin()
        self.clock.advance(20)
        wire.send(b"a" * 5)
        self.clock.advance(1000)
        assert self.sink.producer is not None
        self.sink.producer.resumeProducing()
        self.clock.advance(9)
        self.assertFalse(wire.disconnected)
        self.clock.advance(1)
        self.assertTrue(wire.disconnected)

    def test_0_is_no_limit(self) -> None:
        self.limits = LimitsSettings(body_rate=Size(0))
        self.site = self.serve()
        wire = self.begin()
        for _ in range(10):
            wire.send(b"a")
            self.clock.advance(50)
        self.assertFalse(wire.disconnected)


class RateTests(LimitsCase):
    """How often one address, and one user, may ask."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = SharedMemory.create()
        self.rates = self.another()

    def another(self) -> Rates:
        """Those of another process of the daemon."""
        limits = LimitsSettings(address_requests=2, address_burst=3, user_requests=2, user_burst=3)
        return Rates(limits, SharedMemory(self.memory.descriptor), self.clock.seconds)

    def ask(self, peer: object = "1.2.3.4", *, by_way_of: str = "", user: str = "") -> str:
        """What it is told to wait before it asks again; empty if it need not."""
        asked = RegistryRequest(self.connect_from(peer).channel)
        asked.site = self.site
        if by_way_of:
            asked.requestHeaders.addRawHeader("X-Forwarded-For", by_way_of)
        if user:
            asked.caller = Caller(Identity(Kind.USER, user))
        try:
            self.rates.charge_address(asked.address)
            self.rates.charge_user(asked.caller.identity)
        except TooManyRequests as error:
            return error.headers["Retry-After"]
        return ""

    def test_after_the_burst_an_address_has_to_wait_and_is_told_how_long(self) -> None:
        self.assertEqual([self.ask() for _ in range(4)], ["", "", "", "1"])
        self.clock.advance(0.5)
        self.assertEqual([self.ask() for _ in range(2)], ["", "1"])

    def test_others_are_not_concerned_but_those_of_its_network(self) -> None:
        for _ in range(3):
            self.ask("2001:db8::1")
        self.assertEqual(self.ask("2001:db8::2"), "1")
        self.assertEqual(self.ask("2001:db8:0:1::1"), "")

    def test_who_asks_by_way_of_a_trusted_proxy_counts_by_himself(self) -> None:
        for _ in range(3):
            self.ask("10.9.9.9", by_way_of="5.6.7.8")
        self.assertEqual(self.ask("10.9.9.9", by_way_of="5.6.7.8"), "1")
        self.assertEqual(self.ask("10.9.9.9", by_way_of="5.6.7.9"), "")

    def test_what_others_say_of_whom_they_ask_for_counts_for_nothing(self) -> None:
        for n in range(3):
            self.ask(by_way_of=f"5.6.7.{n}")
        self.assertEqual(self.ask(by_way_of="127.0.0.1"), "1")

    def test_this_machine_has_no_limit(self) -> None:
        for peer in ("127.0.0.1", "::1", UNIXAddress(b"")):
            self.assertEqual({self.ask(peer) for _ in range(9)}, {""})

    def test_a_user_counts_wherever_he_is(self) -> None:
        for n in range(3):
            self.assertEqual(self.ask(f"5.6.7.{n}", user="alice"), "")
        self.assertEqual(self.ask("127.0.0.1", user="alice"), "1")
        self.assertEqual(self.ask("127.0.0.1", user="bob"), "")

    def test_all_processes_of_the_daemon_count_together(self) -> None:
        one, other = self.rates, self.another()
        told = []
        for self.rates in (one, other, one, other, one):
            told.append((self.ask(), self.ask("127.0.0.1", user="alice")))
        self.assertEqual(told, [("", "")] * 3 + [("1", "1")] * 2)

    def test_neither_address_nor_user_stands_in_the_memory_that_they_share(self) -> None:
        self.ask("192.0.2.99", user="alice")
        for told in (b"192.0.2.99", b"alice"):
            self.assertNotIn(told, self.memory.bytes[:])

    def test_0_is_no_limit(self) -> None:
        self.assertIsNone(Rates.of(LimitsSettings(), self.memory))
        self.rates = Rates(LimitsSettings(), self.memory, self.clock.seconds)
        self.assertEqual({self.ask(user="alice") for _ in range(99)}, {""})


class TokenBucketTests(SynchronousTestCase):
    """The buckets by themselves."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.moments = Moments(SharedMemory.create(), Table.USER_RATES)

    def test_a_steady_rate_passes_for_ever(self) -> None:
        buckets = TokenBuckets(10, 1, self.moments, self.clock.seconds)
        for _ in range(1000):
            self.assertEqual(buckets.take("a"), 0)
            self.clock.advance(0.1)

    def test_who_is_refused_owes_nothing_more_for_it(self) -> None:
        buckets = TokenBuckets(1, 1, self.moments, self.clock.seconds)
        buckets.take("a")
        waits = [buckets.take("a") for _ in range(100)]
        self.assertEqual(waits, [1] * 100)


class ReaderPaceTests(SynchronousTestCase):
    """The least rate at which an answer is taken: 10 bytes a second over 60 s of waiting."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pace = ReaderPace(self.clock.seconds, 10, 60)
        self.taken = 0

    def take(self, count: int, seconds: float) -> bool:
        """Let the client take ``count`` bytes after ``seconds``; return whether it is too slow."""
        self.pace.wait()
        self.clock.advance(seconds)
        too_slow = self.pace.is_too_slow(self.taken)
        self.taken += count
        return too_slow

    def test_one_that_drips_is_too_slow(self) -> None:
        self.assertFalse(any(self.take(9, 1) for _ in range(59)))
        self.assertTrue(self.take(9, 1))

    def test_one_that_keeps_the_rate_is_not_however_it_comes(self) -> None:
        for count, seconds in ((10, 1), (550, 55), (6000, 600)):
            self.setUp()
            self.taken = count  # what the connection buffers before the first wait
            self.assertFalse(any(self.take(count, seconds) for _ in range(300)))

    def test_it_is_measured_anew_in_each_window(self) -> None:
        self.assertFalse(self.take(1_000_000, 0))
        self.assertFalse(any(self.take(1, 1) for _ in range(60)))
        self.assertTrue([self.take(1, 1) for _ in range(60)][-1])

    def test_the_time_in_which_the_server_does_not_wait_does_not_count(self) -> None:
        for _ in range(100):
            self.assertFalse(self.take(1, 0.1))
            self.clock.advance(100)  # the disk, for example
        self.pace.wait()
        self.pace.wait()
        self.clock.advance(49)
        self.assertFalse(self.pace.is_too_slow(self.taken))
        self.assertFalse(self.pace.is_too_slow(self.taken))
        self.assertTrue(self.take(1, 2))

    def test_without_a_rate_none_is(self) -> None:
        self.pace = ReaderPace(self.clock.seconds, 0, 60)
        self.assertFalse(any(self.take(0, 100) for _ in range(10)))
