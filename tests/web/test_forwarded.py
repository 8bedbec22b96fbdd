"""The address of a client, its scheme, and whether it is on this machine."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from artifactd.web.server.proxies import TrustedProxies, is_local, names_loopback

HERE = IPv4Address("TCP", "127.0.0.1", 40000)
AFAR = IPv4Address("TCP", "192.0.2.7", 40000)
PROXY = IPv4Address("TCP", "10.1.2.3", 40000)
SOCKET = UNIXAddress(b"")


def asked(peer: object, *, secure: bool = False, **headers: str) -> Any:
    """A request from ``peer``; ``_`` stands for ``-`` in the names of headers."""
    request: Any = DummyRequest([b"v2"])
    request.client = peer
    request.host = IPv4Address("TCP", "192.0.2.1", 5000)
    request.isSecure = lambda: secure
    headers = {"Host": "127.0.0.1:5000", **headers}
    for name, value in headers.items():
        request.requestHeaders.addRawHeader(name.replace("_", "-"), value)
    return request


class LocalTests(SynchronousTestCase):
    def test_loopback_and_unix_sockets_are_this_machine(self) -> None:
        for peer in (
            HERE,
            IPv4Address("TCP", "127.8.9.1", 1),
            IPv6Address("TCP", "::1", 1),
            IPv6Address("TCP", "::ffff:127.0.0.1", 1),
            SOCKET,
        ):
            self.assertTrue(is_local(asked(peer)), peer)

    def test_every_other_address_is_not(self) -> None:
        for host in ("192.0.2.7", "10.0.0.1", "0.0.0.0"):
            self.assertFalse(is_local(asked(IPv4Address("TCP", host, 1))), host)
        for host in ("::", "fe80::1%eth0", "2001:db8::1", "::ffff:192.0.2.1"):
            self.assertFalse(is_local(asked(IPv6Address("TCP", host, 1))), host)
        self.assertFalse(is_local(asked(None)))

    def test_what_was_passed_on_is_not(self) -> None:
        for peer in (HERE, SOCKET):
            self.assertFalse(is_local(asked(peer, Forwarded="x")))
            self.assertFalse(is_local(asked(peer, X_Forwarded_For="x")))
            self.assertFalse(is_local(asked(peer, X_Forwarded_Port="x")))
            self.assertFalse(is_local(asked(peer, Via="x")))
            self.assertFalse(is_local(asked(peer, X_Real_IP="x")))

    def test_nor_is_what_a_web_page_asks_for(self) -> None:
        self.assertFalse(is_local(asked(HERE, Origin="http://evil.example")))


class HostTests(SynchronousTestCase):
    """The name under which a client asks, where reading takes a client on this machine."""

    def test_a_name_of_loopback(self) -> None:
        for host in (
            "127.0.0.1",
            "127.0.0.1:5000",
            "127.8.9.1:80",
            "localhost",
            "LocalHost:5000",
            "[::1]",
            "[::1]:5000",
            "[::ffff:127.0.0.1]:5000",
        ):
            self.assertTrue(names_loopback(asked(HERE, Host=host)), host)

    def test_a_name_that_was_made_to_mean_loopback(self) -> None:
        for host in (
            "evil.example",
            "evil.example:5000",
            "127.0.0.1.evil.example",
            "localhost.evil.example:5000",
            "127.0.0.1@evil.example",
            "127.0.0.1:5000:evil",
            "192.0.2.1:5000",
            "[2001:db8::1]:5000",
            "0.0.0.0:5000",
            "",
        ):
            self.assertFalse(names_loopback(asked(HERE, Host=host)), host)
            self.assertTrue(names_loopback(asked(SOCKET, Host=host)), host)
        twice = asked(HERE, Host="localhost")
        twice.requestHeaders.addRawHeader("Host", "evil.example")
        self.assertFalse(names_loopback(twice))
        without = asked(HERE)
        without.requestHeaders.removeHeader("Host")
        self.assertFalse(names_loopback(without))


class ClientTests(SynchronousTestCase):
    proxies = TrustedProxies.parse(["10.0.0.0/8", "2001:db8::/32"])

    def client(self, peer: object, said: str, proxies: TrustedProxies | None = None) -> str:
        return (proxies or self.proxies).client(asked(peer, X_Forwarded_For=said))

    def test_without_a_proxy_it_is_the_peer(self) -> None:
        self.assertEqual(self.proxies.client(asked(AFAR)), "192.0.2.7")
        self.assertEqual(TrustedProxies().client(asked(SOCKET)), "unix")
        self.assertEqual(TrustedProxies().client(asked(None)), "-")

    def test_who_is_not_trusted_says_nothing(self) -> None:
        self.assertEqual(self.client(AFAR, "198.51.100.1"), "192.0.2.7")
        self.assertEqual(self.client(SOCKET, "198.51.100.1"), "unix")

    def test_a_trusted_proxy_says_whom_it_speaks_for(self) -> None:
        for said, client in (
            ("198.51.100.1", "198.51.100.1"),
            ("198.51.100.1:4711", "198.51.100.1"),
            ("[2001:DB9::1]:4711", "2001:db9::1"),
            ("2001:DB9::1", "2001:db9::1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
        ):
            self.assertEqual(self.client(PROXY, said), client, said)

    def test_only_the_last_that_is_no_proxy_counts(self) -> None:
        self.assertEqual(self.client(PROXY, "1.2.3.4, 198.51.100.1, 10.0.0.9"), "198.51.100.1")

    def test_behind_what_is_no_address_nothing_is_believed(self) -> None:
        for said in ("unknown", "", "198.51.100.1, _hidden", "198.51.100.1,"):
            self.assertEqual(self.client(PROXY, said), "10.1.2.3", said)
        self.assertEqual(self.client(PROXY, "198.51.100.1, junk, 10.0.0.9"), "10.0.0.9")

    def test_the_zone_of_an_address_which_may_be_any_text_is_left_out(self) -> None:
        for said in ("fe80::1%eth0", '[fe80::1%x alice "GET]:1', 'fe80::1%x alice "GET'):
            self.assertEqual(self.proxies.client(asked(PROXY, X_Forwarded_For=said)), "fe80::1")

    def test_several_headers_are_one_list(self) -> None:
        request = asked(PROXY, X_Forwarded_For="198.51.100.1")
        request.requestHeaders.addRawHeader("X-Forwarded-For", "198.51.100.2")
        self.assertEqual(self.proxies.client(request), "198.51.100.2")

    def test_a_proxy_may_connect_to_a_unix_socket(self) -> None:
        proxies = TrustedProxies.parse(["unix"])
        self.assertEqual(self.client(SOCKET, "198.51.100.1", proxies), "198.51.100.1")
        self.assertEqual(self.client(PROXY, "198.51.100.1", proxies), "10.1.2.3")

    def test_an_address_of_ipv4_is_the_same_in_ipv6s_clothes(self) -> None:
        peer = IPv6Address("TCP", "::ffff:10.1.2.3", 1)
        self.assertEqual(self.client(peer, "198.51.100.1"), "198.51.100.1")

    def test_what_is_no_network_is_refused(self) -> None:
        for text in ("10.0.0.1/8", "proxy.example", "", "10.0.0.0/33"):
            self.assertRaises(ValueError, TrustedProxies.parse, [text])
        self.assertEqual(TrustedProxies.parse(["10.0.0.1"]).networks, [ip_network("10.0.0.1")])


class OriginTests(SynchronousTestCase):
    proxies = TrustedProxies.parse(["10.0.0.0/8"])

    def test_it_is_as_the_client_has_come(self) -> None:
        for secure, scheme in ((False, "http"), (True, "https")):
            request = asked(AFAR, secure=secure, Host="registry.example:5000")
            self.assertEqual(self.proxies.origin(request), f"{scheme}://registry.example:5000")

    def test_a_trusted_proxys_scheme_counts(self) -> None:
        request = asked(PROXY, Host="registry.example", X_Forwarded_Proto="http, https")
        self.assertEqual(self.proxies.origin(request), "https://registry.example")
        request = asked(AFAR, Host="registry.example", X_Forwarded_Proto="https")
        self.assertEqual(self.proxies.origin(request), "http://registry.example")

    def test_without_a_host_that_is_one_it_is_where_the_connection_ends(self) -> None:
        for host in ("", "a b", 'a"', "a/b", "a@b", "-a", "a:b", "[::1", "a\\b"):
            origin = self.proxies.origin(asked(AFAR, Host=host))
            self.assertEqual(origin, "http://192.0.2.1:5000", host)
        for host in ("", "[1]", "[::::]:5000", "[192.0.2.9]", "[::ffff:192.0.2.999]", "[:]"):
            origin = self.proxies.origin(asked(AFAR, Host=host))
            self.assertEqual(origin, "http://192.0.2.1:5000", host)
        request = asked(AFAR, Host="one")
        request.requestHeaders.addRawHeader("Host", "two")
        self.assertEqual(self.proxies.origin(request), "http://192.0.2.1:5000")

    def test_an_address_of_ipv6_is_a_host(self) -> None:
        for host in ("[::1]:5000", "[::]", "[2001:DB8::1]", "[::ffff:192.0.2.9]:80"):
            self.assertEqual(self.proxies.origin(asked(AFAR, Host=host)), f"http://{host}")
        request = asked(AFAR, Host="")
        request.host = IPv6Address("TCP", "2001:db8::1", 5000)
        self.assertEqual(self.proxies.origin(request), "http://[2001:db8::1]:5000")
