"""Requests through proxies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.protocols.tls import TLSMemoryBIOFactory

from artifactd.upstream.http.errors import TimedOut
from artifactd.upstream.http.proxy import MAX_HEAD
from artifactd.upstream.http.response import Response
from artifactd.upstream.http.transport import Transport
from tests.upstream.certificates import Authority
from tests.upstream.wire import Peer, Request, Server, TransportCase, head, start

AUTHORITY = Authority.make("the authority of the tests")

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
        ca_file.write_bytes(AUTHORITY.pem)
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


class TunnelTests(ProxiedCase):
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
        secured: Any = TLSMemoryBIOFactory(AUTHORITY.options(*hosts), False, upstream)
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
        answer, _, request = await self.connect("https://[fd00::1]:5000/")
        self.assertEqual(request.resource, "[fd00::1]:5000")
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
