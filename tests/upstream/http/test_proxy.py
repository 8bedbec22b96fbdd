"""Proxies: which one is taken, tunnels, and requests through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from artifactd.kit.start import StartError
from artifactd.upstream.http.errors import TimedOut
from artifactd.upstream.http.proxy import MAX_HEAD, NoProxy, Proxies, Proxy, TunnelEndpoint
from artifactd.upstream.http.response import Response
from artifactd.upstream.http.transport import Transport
from artifactd.upstream.http.url import Target
from tests.tls.authority import ROOT
from tests.upstream.wire import Peer, Request, Server, TransportCase, head, start


class ProxiesTests(TestCase):
    def assert_proxy(self, environ: dict[str, str], url: str, proxy: str | None) -> None:
        found = Proxies.from_environ(environ).for_target(Target.parse(url))
        self.assertEqual(found and found.address.authority, proxy)

    def test_each_scheme_has_its_own_variable(self) -> None:
        environ = {"http_proxy": "http://plain:1", "https_proxy": "http://secure:2"}
        self.assert_proxy(environ, "http://h.example/", "plain:1")
        self.assert_proxy(environ, "https://h.example/", "secure:2")

    def test_without_variables_there_is_no_proxy(self) -> None:
        for environ in ({}, {"https_proxy": "", "all_proxy": ""}):
            self.assert_proxy(environ, "https://h.example/", None)

    def test_upper_case_counts_for_https_only(self) -> None:
        self.assert_proxy({"HTTPS_PROXY": "p:1"}, "https://h.example/", "p:1")
        self.assert_proxy({"HTTP_PROXY": "p:1"}, "http://h.example/", None)

    def test_lower_case_goes_before_upper_case_and_both_before_all(self) -> None:
        environ = {"https_proxy": "a", "HTTPS_PROXY": "b", "all_proxy": "c", "ALL_PROXY": "d"}
        for name, proxy in (("https_proxy", "a"), ("HTTPS_PROXY", "b"), ("all_proxy", "c")):
            self.assert_proxy(environ, "https://h.example/", proxy)
            del environ[name]
        self.assert_proxy(environ, "https://h.example/", "d")
        self.assert_proxy(environ, "http://h.example/", "d")

    def test_an_empty_variable_is_as_good_as_none(self) -> None:
        self.assert_proxy({"https_proxy": "", "all_proxy": "p"}, "https://h.example/", "p")

    def test_loopback_is_never_proxied(self) -> None:
        for host in ("127.0.0.1:5000", "127.1.2.3", "[::1]:5000", "localhost:5000"):
            self.assert_proxy({"all_proxy": "p:1"}, f"http://{host}/", None)

    def test_what_no_proxy_covers_is_not_proxied(self) -> None:
        for name in ("no_proxy", "NO_PROXY"):
            environ = {"all_proxy": "p:1", name: "internal.example"}
            self.assert_proxy(environ, "https://r.internal.example/", None)
            self.assert_proxy(environ, "https://r.example/", "p:1")

    def test_a_proxy_that_is_not_understood_stops_the_start_without_naming_its_password(
        self,
    ) -> None:
        for url in (
            "socks5://u:secret@p:1",
            "https://u:secret@p:1",
            "http://u:secret@",
            "http://u:secret@p:port",
            "http://u:secret@p q",
        ):
            error = self.assertRaises(StartError, Proxies.from_environ, {"https_proxy": url})
            self.assertIn("https_proxy", str(error))
            self.assertNotIn("secret", str(error))

    def test_a_variable_that_is_not_used_may_be_anything(self) -> None:
        environ = {"http_proxy": "p", "https_proxy": "p", "all_proxy": "socks5://p:1"}
        self.assert_proxy(environ, "http://h.example/", "p")


class ProxyTests(TestCase):
    def test_port_and_scheme_may_be_left_out(self) -> None:
        for url in ("p.example", "http://p.example", "http://p.example/", "P.example:80"):
            address = Proxy.parse(url).address
            self.assertEqual((address.host, address.port), ("p.example", 80))

    def test_user_and_password_become_basic_credentials(self) -> None:
        # The example of RFC 7617, 2.
        proxy = Proxy.parse("http://Aladdin:open%20sesame@p.example:3128")
        self.assertEqual(proxy.authorization, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
        self.assertEqual(proxy.address.authority, "p.example:3128")

    def test_a_password_may_hold_what_ends_a_login_if_it_is_encoded(self) -> None:
        self.assertEqual(Proxy.parse("u:p%40h@p.example").authorization, "Basic dTpwQGg=")

    def test_credentials_do_not_show(self) -> None:
        self.assertNotIn("QWxh", repr(Proxy.parse("http://Aladdin:open%20sesame@p.example")))


class NoProxyTests(TestCase):
    def assert_covers(self, rules: str, *hosts: str, port: int = 443) -> None:
        for host in hosts:
            self.assertTrue(NoProxy.parse(rules).covers(host, port), (rules, host))

    def assert_leaves(self, rules: str, *hosts: str, port: int = 443) -> None:
        for host in hosts:
            self.assertFalse(NoProxy.parse(rules).covers(host, port), (rules, host))

    def test_a_domain_is_it_and_all_below_it(self) -> None:
        for rule in ("corp.example", ".corp.example", "*.corp.example", "CORP.example."):
            self.assert_covers(rule, "corp.example", "r.corp.example", "a.b.corp.example")
            self.assert_leaves(rule, "mycorp.example", "corp.example.org", "example")

    def test_rules_are_separated_by_commas_or_spaces(self) -> None:
        self.assert_covers(
            "a.example, b.example  c.example,,", "a.example", "b.example", "c.example"
        )
        self.assert_leaves("a.example, b.example  c.example,,", "d.example", "10.0.0.1")

    def test_a_star_is_every_host(self) -> None:
        self.assert_covers("x,*", "a.example", "10.0.0.1", "fd00::1")

    def test_nothing_covers_nothing(self) -> None:
        self.assert_leaves("", "a.example", "10.0.0.1")
        self.assert_leaves(" , ", "a.example")

    def test_what_cant_be_understood_covers_nothing(self) -> None:
        for rule in (".", "*.", ":443", "http://a.example", "[fd00::1", "10.0.0.0/99"):
            self.assert_leaves(rule, "a.example", "10.0.0.1", "fd00::1")

    def test_addresses_and_networks_cover_addresses(self) -> None:
        self.assert_covers("10.0.0.1", "10.0.0.1")
        self.assert_covers("10.1.2.3/8", "10.255.0.1")
        self.assert_covers("fd00::/8", "fd12::1")
        self.assert_covers("[fd00::1]", "fd00::1")
        self.assert_covers("fd00::1", "fd00::1")
        self.assert_leaves("10.0.0.1,10.1.0.0/16,fd00::/8", "10.0.0.2", "10.2.0.1", "fe80::1")

    def test_an_address_is_not_the_end_of_a_name(self) -> None:
        self.assert_leaves("0.0.1", "10.0.0.1")
        self.assert_leaves("10.0.0.1", "x.10.0.0.1.example", "a.10.0.0.1")

    def test_a_port_narrows_a_rule(self) -> None:
        for rule, host in (
            ("r.example:5000", "r.example"),
            ("10.0.0.0/8:5000", "10.0.0.1"),
            ("[fd00::1]:5000", "fd00::1"),
            ("*:5000", "any.example"),
        ):
            self.assert_covers(rule, host, port=5000)
            self.assert_leaves(rule, host, port=443)

    def test_a_name_may_end_in_a_dot(self) -> None:
        self.assert_covers("corp.example", "r.corp.example.")


class Inside(Protocol):
    """Keeps what it receives."""

    received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data


@implementer(IStreamClientEndpoint)
@define
class ProxyEndpoint:
    """Connects to ``wire``, at once."""

    wire: StringTransport = field(factory=StringTransport)
    protocols: list[IProtocol] = field(factory=list)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        protocol = protocolFactory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 3128))
        assert protocol is not None
        self.protocols.append(protocol)
        protocol.makeConnection(self.wire)
        return succeed(protocol)


class TunnelTests(TestCase):
    def setUp(self) -> None:
        self.proxy = ProxyEndpoint()
        endpoint = TunnelEndpoint(self.proxy, "registry.example:443", None)
        self.connecting = endpoint.connect(Factory.forProtocol(Inside))

    def receive(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.proxy.protocols[0].dataReceived(piece)

    def inside(self) -> Inside:
        protocol = self.successResultOf(self.connecting)
        assert isinstance(protocol, Inside)
        return protocol

    def test_the_proxy_is_asked_for_the_destination(self) -> None:
        self.assertEqual(
            self.proxy.wire.value(),
            b"CONNECT registry.example:443 HTTP/1.1\r\nHost: registry.example:443\r\n\r\n",
        )

    def test_what_follows_the_proxys_answer_belongs_to_the_tunnel(self) -> None:
        self.receive(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nfirst", b" and more")
        self.assertEqual(self.inside().received, b"first and more")

    def test_the_answer_may_come_in_pieces_and_with_bare_line_ends(self) -> None:
        self.receive(*(bytes([byte]) for byte in b"HTTP/1.0 200\nX: y\n\nz"))
        self.assertEqual(self.inside().received, b"z")

    def test_the_protocol_inside_has_the_connection(self) -> None:
        self.receive(b"HTTP/1.1 200 OK\r\n\r\n")
        self.assertIs(self.inside().transport, self.proxy.wire)


# The example of RFC 7617, 2.
BASIC = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


class ProxiedCase(TransportCase):
    """The server is the proxy; the upstream is a name that only the proxy can resolve."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor.names = {"proxy.example": "127.0.0.1"}
        self.transport = self.proxied()

    def proxied(self, login: str = "") -> Transport:
        ca_file = Path(self.mktemp())
        ca_file.parent.mkdir(parents=True, exist_ok=True)
        ca_file.write_bytes(ROOT.pem)
        proxy = f"http://{login}proxy.example:{self.server.port}"
        environ = {"all_proxy": proxy, "no_proxy": "direct.example"}
        return self.make(ca_file, environ)

    def ask(self, url: str, transport: Transport | None = None) -> Deferred[Response]:
        answer = start((transport or self.transport).request("GET", url, {"Accept": "a/b"}))
        self._asked.append(answer)
        return answer

    @property
    def through(self) -> str:
        return f"(through the proxy proxy.example:{self.server.port})"


class PlainTests(ProxiedCase):
    async def test_an_http_target_is_asked_of_the_proxy_in_absolute_form(self) -> None:
        answer = self.ask("http://registry.example:5000/v2//x?sig=a%2Bb#f")
        peer, request = await self.server.asked.get()
        self.assertEqual(request.resource, "http://registry.example:5000/v2//x?sig=a%2Bb")
        self.assertEqual(request.values("Host"), ["registry.example:5000"])
        self.assertEqual(request.values("Proxy-Authorization"), [])
        self.assertEqual(request.values("Accept-Encoding"), ["identity"])
        peer.answer(body=b"ok")
        response = await answer
        self.assertEqual(response.host, "registry.example:5000")
        self.assertEqual(await response.read(2), b"ok")

    async def test_the_proxy_gets_its_password(self) -> None:
        answer = self.ask("http://registry.example/", self.proxied("Aladdin:open%20sesame@"))
        peer, request = await self.server.asked.get()
        self.assertEqual(request.values("Proxy-Authorization"), [BASIC])
        peer.answer()
        (await answer).abort()

    async def test_a_connection_to_the_proxy_serves_all_its_targets(self) -> None:
        for host in ("registry.example", "cdn.example", "registry.example"):
            answer = self.ask(f"http://{host}/")
            peer, _ = await self.server.asked.get()
            peer.answer()
            await (await answer).read(0)
        self.assertEqual(len(self.server.peers), 1)

    async def test_an_exempt_target_is_asked_directly(self) -> None:
        self.reactor.names = {"direct.example": "127.0.0.1"}
        answer = self.ask(self.server.url("/x", "direct.example"), self.proxied("Aladdin:x@"))
        peer, request = await self.server.asked.get()
        self.assertEqual(request.resource, "/x")
        self.assertEqual(request.values("Proxy-Authorization"), [])
        peer.answer()
        (await answer).abort()

    async def test_a_redirect_to_loopback_leaves_the_proxy(self) -> None:
        answer = self.ask("http://registry.example/", self.proxied("Aladdin:x@"))
        peer, _ = await self.server.asked.get()
        peer.answer("307 Temporary", f"Location: {self.server.url('/direct')}")
        peer, request = await self.server.asked.get()
        self.assertEqual(request.resource, "/direct")
        self.assertEqual(request.values("Proxy-Authorization"), [])
        peer.answer()
        (await answer).abort()

    async def test_failures_name_the_proxy(self) -> None:
        self.reactor.names = {}
        error = await self.error(self.ask("http://registry.example/?s=secret"))
        self.assertEqual(
            error.reason,
            f"registry.example {self.through} can't be reached: its name can't be resolved",
        )


class TunnelledRequestTests(ProxiedCase):
    async def connect(
        self, url: str = "https://registry.example/v2/?sig=secret", login: str = ""
    ) -> tuple[Deferred[Response], Peer, Request]:
        """Ask for ``url``; the proxy has got its CONNECT."""
        self.last = self.proxied(login)
        answer = self.ask(url, self.last)
        peer, request = await self.server.asked.get()
        return answer, peer, request

    def reach(self, peer: Peer, *hosts: str) -> Server:
        """Let the tunnel lead to a server for ``hosts``."""
        upstream = Server()
        secured: Any = TLSMemoryBIOFactory(ROOT.options(*hosts), False, upstream)
        peer.become(secured.buildProtocol(None))
        return upstream

    async def test_an_https_target_is_reached_by_a_tunnel(self) -> None:
        answer, peer, request = await self.connect(login="Aladdin:open%20sesame@")
        self.assertEqual((request.method, request.resource), ("CONNECT", "registry.example:443"))
        self.assertEqual(
            request.fields, (("host", "registry.example:443"), ("proxy-authorization", BASIC))
        )
        upstream = self.reach(peer, "registry.example")
        peer.send(head("200 Connection established"))
        inside, request = await upstream.asked.get()
        self.assertEqual((request.method, request.resource), ("GET", "/v2/?sig=secret"))
        self.assertEqual(request.values("Host"), ["registry.example"])
        self.assertEqual(request.values("Proxy-Authorization"), [])
        inside.answer(body=b"ok")
        response = await answer
        self.assertEqual(response.host, "registry.example")
        self.assertEqual(await response.read(2), b"ok")

    async def test_a_tunnel_is_used_again(self) -> None:
        answer, peer, _ = await self.connect()
        upstream = self.reach(peer, "registry.example")
        peer.send(head("200 OK"))
        inside, _ = await upstream.asked.get()
        inside.answer()
        response = await answer
        await response.read(0)
        again = start(self.last.request("GET", "https://registry.example/again", {}))
        same, request = await upstream.asked.get()
        self.assertIs(same, inside)
        self.assertEqual(request.resource, "/again")
        inside.answer()
        (await again).abort()
        self.assertEqual(len(self.server.peers), 1)

    async def test_the_certificate_has_to_be_the_targets(self) -> None:
        answer, peer, _ = await self.connect()
        self.reach(peer, "proxy.example")
        peer.send(head("200 OK"))
        error = await self.error(answer)
        self.assertIn("its certificate is for another name", error.reason)

    async def test_an_ipv6_target_is_bracketed(self) -> None:
        answer, _, request = await self.connect("https://[2606:4700::1111]:5000/")
        self.assertEqual(request.resource, "[2606:4700::1111]:5000")
        answer.cancel()
        await self.assertFailure(answer, CancelledError)

    async def test_a_proxy_that_refuses_is_unreachable_with_its_status(self) -> None:
        for status in (407, 403, 502):
            answer, peer, _ = await self.connect(login="Aladdin:secret@")
            peer.answer(f"{status} Refused", body=b"a page")
            error = await self.error(answer)
            self.assertEqual(error.status, status)
            self.assertEqual(
                error.reason,
                f"registry.example {self.through} can't be reached: "
                f"the proxy answers {status} to CONNECT",
            )
            await peer.lost

    async def test_a_proxy_that_does_not_speak_http_is_unreachable(self) -> None:
        for sent in (b"SSH-2.0\r\n\r\n", b"x" * (MAX_HEAD + 1)):
            answer, peer, _ = await self.connect()
            peer.send(sent)
            error = await self.error(answer)
            self.assertIn("the proxy answers something that is not HTTP", error.reason)
            self.assertIsNone(error.status)
            await peer.lost

    async def test_a_proxy_that_hangs_up_is_unreachable(self) -> None:
        answer, peer, _ = await self.connect()
        peer.close()
        error = await self.error(answer)
        self.assertIn("it closed the connection", error.reason)

    async def test_a_tunnel_that_breaks_in_the_handshake_is_unreachable(self) -> None:
        answer, peer, _ = await self.connect()
        peer.send(head("200 OK"))
        peer.close()
        await self.error(answer)

    async def test_a_proxy_that_does_not_answer_times_out(self) -> None:
        answer, peer, _ = await self.connect()
        peer.send(b"HTTP/1.1 200 OK\r\n")
        self.clock.advance(10)
        error = self.failureResultOf(answer, TimedOut).value
        self.assertEqual(
            error.reason, f"registry.example {self.through}: no connection within 10 seconds"
        )
        await peer.lost

    async def test_a_handshake_that_does_not_end_times_out(self) -> None:
        answer, peer, _ = await self.connect()
        peer.send(head("200 OK"))
        hello: Deferred[None] = Deferred()
        peer.dataReceived = lambda data: hello.called or hello.callback(None)  # type: ignore
        await hello
        self.clock.advance(30)
        self.failureResultOf(answer, TimedOut)
        await peer.lost

    async def test_cancelling_closes_the_tunnel(self) -> None:
        answer, peer, _ = await self.connect()
        answer.cancel()
        await self.assertFailure(answer, CancelledError)
        await peer.lost
