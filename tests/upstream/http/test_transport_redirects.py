"""Redirects on the wire."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from artifactd.upstream.http.response import DROPPED_BYTES, DROPPED_SECONDS, Response
from artifactd.upstream.http.url import LIMIT
from tests.upstream.wire import Peer, Request, TransportCase, head, start


class RedirectTests(TransportCase):
    def setUp(self) -> None:
        super().setUp()
        self.reactor.names = dict.fromkeys(("registry.example", "cdn.example"), "127.0.0.1")
        self.start_url = self.server.url("/v2/blob", "registry.example")
        self.cdn_url = self.server.url("/data?sig=a%2Bb", "cdn.example")

    def ask(self, method: str = "GET", **headers: str) -> Deferred[Response]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return start(self.transport.request(method, self.start_url, named))

    async def redirected(
        self, location: str, status: str = "307 Temporary", body: bytes = b""
    ) -> tuple[Peer, Request]:
        """Redirect the request that comes."""
        peer, request = await self.server.asked.get()
        peer.answer(status, f"Location: {location}", body=body)
        return peer, request

    async def ended(self, answer: Deferred[Response]) -> Response:
        """Answer the request that comes."""
        peer, _ = await self.server.asked.get()
        peer.answer(body=b"ok")
        response = await answer
        self.assertEqual(await response.read(2), b"ok")
        return response

    async def test_a_redirect_to_another_host_loses_authorization(self) -> None:
        answer = self.ask(Authorization="Bearer t", Range="bytes=5-", If_Range='"e"', Accept="a/b")
        await self.redirected(self.cdn_url)
        peer, request = await self.server.asked.get()
        peer.answer("206 Partial Content", body=b"ok")
        self.assertEqual(request.resource, "/data?sig=a%2Bb")
        self.assertEqual(request.values("Host"), [f"cdn.example:{self.server.port}"])
        self.assertEqual(request.values("Authorization"), [])
        self.assertEqual(request.values("Range"), ["bytes=5-"])
        self.assertEqual(request.values("If-Range"), ['"e"'])
        self.assertEqual(request.values("Accept"), ["a/b"])
        self.assertEqual(request.values("Accept-Encoding"), ["identity"])
        response = await answer
        self.assertEqual(response.host, f"cdn.example:{self.server.port}")
        self.assertEqual(response.url, self.cdn_url)
        response.abort()

    async def test_a_redirect_within_an_origin_keeps_authorization(self) -> None:
        answer = self.ask(Authorization="Bearer t")
        await self.redirected("other")
        peer, request = await self.server.asked.get()
        self.assertEqual(request.resource, "/v2/other")
        self.assertEqual(request.values("Authorization"), ["Bearer t"])
        peer.answer()
        self.assertEqual((await answer).url, self.server.url("/v2/other", "registry.example"))

    async def test_authorization_does_not_come_back(self) -> None:
        answer = self.ask(Authorization="Bearer t")
        await self.redirected(self.cdn_url)
        await self.redirected(self.server.url("/back", "registry.example"))
        peer, request = await self.server.asked.get()
        self.assertEqual(request.values("Authorization"), [])
        peer.answer()
        await answer

    async def test_all_kinds_are_followed_by_the_same_method(self) -> None:
        for method in ("GET", "HEAD"):
            for status in (301, 302, 303, 307, 308):
                answer = self.ask(method)
                peer, _ = await self.server.asked.get()
                peer.send(head(f"{status} Moved", "Content-Length: 0", "Location: /next"))
                peer, request = await self.server.asked.get()
                self.assertEqual((request.method, request.resource), (method, "/next"))
                peer.send(head("204 No Content"))
                self.assertEqual((await answer).status, 204)

    async def test_other_statuses_are_answers(self) -> None:
        for status in (300, 304, 305, 201):
            answer = self.ask()
            await self.redirected("/next", f"{status} Other")
            response = await answer
            self.assertEqual(response.status, status)
            response.abort()

    async def test_there_is_an_end_to_redirects(self) -> None:
        answer = self.ask()
        for number in range(LIMIT + 1):
            await self.redirected(f"/{number}?sig=secret")
        error = await self.error(answer)
        self.assertEqual(
            error.reason,
            f"registry.example:{self.server.port} redirects for more than {LIMIT} times",
        )

    async def test_the_last_redirect_of_those_allowed_is_followed(self) -> None:
        answer = self.ask()
        for number in range(LIMIT):
            await self.redirected(f"/{number}")
        await self.ended(answer)

    async def test_a_redirect_without_a_location_is_unreachable(self) -> None:
        answer = self.ask()
        peer, _ = await self.server.asked.get()
        peer.answer("302 Found")
        await self.error(answer)

    async def test_the_short_body_of_a_redirect_saves_its_connection(self) -> None:
        answer = self.ask()
        first, _ = await self.redirected(self.cdn_url, body=bytes(1000))
        await self.ended(answer)
        answer = self.ask()
        again, _ = await self.redirected(self.cdn_url, body=bytes(1000))
        self.assertIs(again, first)
        await self.ended(answer)
        self.assertEqual(len(self.server.peers), 2)

    async def test_a_redirect_is_followed_before_its_body_has_come(self) -> None:
        answer = self.ask()
        peer, _ = await self.server.asked.get()
        peer.send(head("307 Temporary", "Location: /next", f"Content-Length: {DROPPED_BYTES}"))
        await self.ended(answer)
        self.assertFalse(peer.lost.called)
        self.clock.advance(DROPPED_SECONDS)
        await peer.lost

    async def test_a_long_body_of_a_redirect_is_not_read(self) -> None:
        for length in (f"Content-Length: {DROPPED_BYTES + 1}", "Transfer-Encoding: chunked"):
            answer = self.ask()
            peer, _ = await self.server.asked.get()
            peer.send(head("307 Temporary", "Location: /next", length))
            await self.ended(answer)
            await peer.lost

    async def test_a_redirect_whose_body_breaks_off_is_followed(self) -> None:
        answer = self.ask()
        peer, _ = await self.server.asked.get()
        peer.send(head("307 Temporary", "Location: /next", "Content-Length: 10"), b"abc")
        peer.close()
        await self.ended(answer)
        await peer.lost
