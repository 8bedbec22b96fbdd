"""Which addresses an upstream may lead the daemon to."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactd.upstream.http.errors import OutOfReach
from artifactd.upstream.http.reach import Area, Reach, area_of
from artifactd.upstream.http.url import Target
from tests.upstream.wire import TransportCase, start

PUBLIC = ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"]
LOOPBACK = [
    "127.0.0.1",
    "127.8.9.10",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
]
PRIVATE = ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "fd00::1", "fec0::1"]
PRIVATE += ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:c0a8:1::1"]
OTHER = ["169.254.169.254", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "ff02::1"]
OTHER += ["255.255.255.255", "240.0.0.1", "192.0.2.1", "2001:db8::1", "::127.0.0.1"]
OTHER += ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"]
# Of the local-use prefix; where the IPv4 address stands is the network's choice: after 96, 64, 56
# or 48 bits.
PUBLIC += ["64:ff9b:1::808:808", "64:ff9b:1:0:8:808:800:0"]
PUBLIC += ["64:ff9b:1:8:8:808::", "64:ff9b:1:808:8:800::"]
LOOPBACK += ["64:ff9b:1::7f00:1"]
PRIVATE += ["64:ff9b:1::a00:1", "64:ff9b:1::7:a00:1"]
PRIVATE += ["64:ff9b:1:0:a:900:800:0", "64:ff9b:1:a:9:807::", "64:ff9b:1:a09:8:700::"]
OTHER += ["64:ff9b:1::a9fe:a9fe", "64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1::"]
# Public after 96 bits, but private after 48, or the other way about; of two networks.
PRIVATE += ["64:ff9b:1:a00:0:100:808:808", "64:ff9b:1:808:8:800:a00:1"]
OTHER += ["64:ff9b:1:7f00:0:100:a00:1"]
AREAS = {
    Area.PUBLIC: PUBLIC,
    Area.LOOPBACK: LOOPBACK,
    Area.PRIVATE: PRIVATE,
    Area.BENCHMARK: ["198.18.0.1", "198.19.255.255", "::ffff:198.18.0.1"],
    Area.OTHER: OTHER,
}


class AreaTests(SynchronousTestCase):
    def test_an_address_is_of_the_area_that_it_leads_to(self) -> None:
        for area, addresses in AREAS.items():
            for address in addresses:
                self.assertIs(area_of(address), area, address)


class ReachTests(SynchronousTestCase):
    def admitted(self, reach: Reach, url: str, addresses: Iterable[str]) -> list[str]:
        try:
            return list(reach.admitted(Target.parse(url), list(addresses)))
        except OutOfReach:
            return []

    def test_a_public_upstream_leads_to_public_addresses_alone(self) -> None:
        reach = Reach("registry.example")
        self.assertEqual(
            self.admitted(reach, "https://registry.example/", ["8.8.8.8"]), ["8.8.8.8"]
        )
        for area, addresses in AREAS.items():
            for address in addresses:
                found = self.admitted(reach, "https://cdn.example/", [address])
                self.assertEqual(found, [address] if area is Area.PUBLIC else [], address)

    def test_a_manifest_leads_to_public_addresses_and_hosts_that_the_settings_name(self) -> None:
        reach = Reach(None, frozenset({"layers.corp"}))
        for area, addresses in AREAS.items():
            for address in addresses:
                found = self.admitted(reach, "https://registry.example/", [address])
                self.assertEqual(found, [address] if area is Area.PUBLIC else [], address)
                named = self.admitted(reach, "https://layers.corp/", [address])
                self.assertEqual(named, [address])

    def test_of_several_addresses_those_within_reach_are_taken(self) -> None:
        found = self.admitted(Reach("r"), "http://cdn.example/", ["10.0.0.1", "8.8.8.8", "::1"])
        self.assertEqual(found, ["8.8.8.8"])

    def test_an_upstream_that_is_not_public_leads_to_its_own_kind(self) -> None:
        for own, address, within in (
            ("10.0.0.5", "10.0.0.5", PUBLIC + PRIVATE),
            ("registry.corp", "192.168.7.7", PUBLIC + PRIVATE),
            ("localhost", "127.0.0.1", PUBLIC + LOOPBACK),
            ("registry.example", "198.18.0.7", PUBLIC + AREAS[Area.BENCHMARK]),
            ("169.254.1.1", "169.254.1.1", PUBLIC),
            ("0.0.0.0", "0.0.0.0", PUBLIC),
        ):
            reach = Reach(own)
            self.assertEqual(self.admitted(reach, f"http://{own}:5000/", [address]), [address])
            for addresses in AREAS.values():
                for other in addresses:
                    found = self.admitted(reach, "http://other.example/", [other])
                    self.assertEqual(found, [other] if other in within else [], (own, other))

    def test_a_name_that_was_public_does_not_become_private(self) -> None:
        reach = Reach("registry.example")
        url = "http://registry.example/v2/"
        self.assertEqual(self.admitted(reach, url, ["8.8.8.8"]), ["8.8.8.8"])
        for address in (*LOOPBACK, *PRIVATE, *OTHER):
            self.assertEqual(self.admitted(reach, url, [address]), [])
            self.assertEqual(self.admitted(reach, "http://cdn.example/", [address]), [])

    def test_addresses_listed_beside_a_public_one_open_nothing(self) -> None:
        url = "http://registry.example/v2/"
        for address in (*LOOPBACK, *PRIVATE, *OTHER):
            reach = Reach("registry.example")
            self.assertEqual(self.admitted(reach, url, [address, "8.8.8.8"]), ["8.8.8.8"])
            for host in (url, "http://cdn.example/"):
                self.assertEqual(self.admitted(reach, host, [address]), [], address)

    def test_no_name_that_is_resolved_is_let_become_link_local(self) -> None:
        reach = Reach("registry.example")
        self.assertEqual(self.admitted(reach, "http://registry.example/", OTHER), [])

    def test_an_answer_without_a_usable_address_decides_nothing(self) -> None:
        reach, url = Reach("registry.corp"), "http://registry.corp/"
        for nothing in (["0.0.0.0"], ["::", "169.254.7.7"], []):
            self.assertEqual(self.admitted(reach, url, nothing), [])
        self.assertEqual(self.admitted(reach, url, ["10.0.0.1"]), ["10.0.0.1"])
        self.assertEqual(self.admitted(reach, url, ["127.0.0.1"]), [])

    def test_a_host_that_the_settings_name_may_have_any_address(self) -> None:
        reach = Reach("registry.example", frozenset({"cdn.corp", "10.0.0.1:8080"}))
        for address in (*LOOPBACK, *PRIVATE, *OTHER):
            self.assertEqual(self.admitted(reach, "http://cdn.corp:81/", [address]), [address])
        self.assertEqual(self.admitted(reach, "http://10.0.0.1:8080/", ["10.0.0.1"]), ["10.0.0.1"])
        self.assertEqual(self.admitted(reach, "http://10.0.0.1/", ["10.0.0.1"]), [])

    def test_without_resolving_addresses_and_localhost_are_refused_however_written(self) -> None:
        reach = Reach("registry.example")
        for host in (
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "[::1]",
            "[::ffff:10.0.0.1]",
            "169.254.169.254",
            "localhost",
            "localhost.",
            "a.localhost",
            "10.0.0.1.",
        ):
            with self.assertRaises(OutOfReach, msg=host):
                reach.check(Target.parse(f"http://{host}/latest/meta-data"))
        for host in ("8.8.8.8", "registry.example", "localhost.example", "1.example"):
            reach.check(Target.parse(f"http://{host}/"))

    def test_an_error_names_the_host_and_the_setting(self) -> None:
        with self.assertRaises(OutOfReach) as caught:
            Reach("registry.example").admitted(Target.parse("http://db.corp:81/x?y"), ["10.9.8.7"])
        self.assertEqual(
            caught.exception.reason,
            "db.corp:81 is not asked: its address is of a private network, and registry.example may"
            " lead there only if private_hosts names it",
        )


class ConnectingTests(TransportCase):
    """An upstream "registry.example" with a public address, that leads to loopback."""

    def lead(self, reach: Reach, host: str, **environ: str) -> Deferred[object]:
        """Ask for a URL at ``host``."""
        transport = self.make(environ=environ)
        transport.reach = reach
        return start(transport.request("GET", self.server.url(host=host), {}))

    async def test_a_name_is_refused_by_what_it_resolves_to(self) -> None:
        self.reactor.names = {"cdn.example": "127.0.0.1"}
        for host in ("cdn.example", "127.0.0.1", "localhost"):
            await self.assertFailure(self.lead(Reach("registry.example"), host), OutOfReach)
        self.assertEqual(self.server.peers, [])

    async def test_one_that_the_settings_name_is_asked(self) -> None:
        self.reactor.names = {"cdn.example": "127.0.0.1"}
        answer = self.lead(Reach("registry.example", frozenset({"cdn.example"})), "cdn.example")
        peer, _ = await self.server.asked.get()
        peer.answer()
        self.assertEqual((await answer).status, 200)  # type: ignore[attr-defined]

    async def test_a_redirect_is_refused(self) -> None:
        reach = Reach("registry.example", frozenset({"first.example"}))
        self.reactor.names = {"first.example": "127.0.0.1", "cdn.example": "127.0.0.1"}
        for host in ("cdn.example", "127.0.0.1"):
            answer = self.lead(reach, "first.example")
            peer, _ = await self.server.asked.get()
            peer.answer("302 Found", f"Location: {self.server.url('/secret', host=host)}")
            await self.assertFailure(answer, OutOfReach)

    async def test_a_proxy_is_not_asked_for_an_address_that_is_not_public(self) -> None:
        proxy = self.server.url(host="127.0.0.1")
        for host in ("10.0.0.1", "169.254.169.254", "2130706433", "x.localhost"):
            await self.assertFailure(
                self.lead(Reach("registry.example"), host, http_proxy=proxy), OutOfReach
            )
        self.assertEqual(self.server.peers, [])
