"""Requests and answers on the wire."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError

from artifactd import __version__
from tests.upstream.wire import TransportCase, head, start


class RequestTests(TransportCase):
    async def test_nothing_but_the_bytes_as_they_are_is_asked_for(self) -> None:
        self.get(Accept="a/b", Accept_Encoding="gzip", accept_encoding="br", Range="bytes=1-2")
        _, request = await self.server.asked.get()
        self.assertEqual(
            sorted(request.fields),
            [
                ("accept", "a/b"),
                ("accept-encoding", "identity"),
                ("host", f"127.0.0.1:{self.server.port}"),
                ("range", "bytes=1-2"),
                ("user-agent", f"artifactd/{__version__}"),
            ],
        )

    async def test_a_signed_url_goes_out_as_it_is(self) -> None:
        signed = "//a%2fb/%7e?X-Sig=a%2Bb/=&&z=[1]|'"
        self.get(signed)
        _, request = await self.server.asked.get()
        self.assertEqual(request.resource, signed)

    async def test_cookies_are_not_kept(self) -> None:
        for _ in range(2):
            answer = self.get()
            peer, request = await self.server.asked.get()
            self.assertEqual(request.values("Cookie"), [])
            peer.answer("200 OK", "Set-Cookie: session=1")
            (await answer).abort()

    async def test_an_answer_tells_its_status_headers_and_length(self) -> None:
        answer = self.get("/x?y")
        peer, _ = await self.server.asked.get()
        peer.answer("206 Partial", "Link: </a>", 'ETag: "e\xe9"', "Link: </b>", body=b"12345")
        response = await answer
        self.assertEqual((response.status, response.length), (206, 5))
        self.assertEqual(response.host, f"127.0.0.1:{self.server.port}")
        self.assertEqual(response.url, self.server.url("/x?y"))
        self.assertEqual(response.headers("link"), ["</a>", "</b>"])
        self.assertEqual(response.header("ETAG"), '"e\xc3\xa9"')
        self.assertEqual((response.header("Date"), response.headers("Date")), (None, []))
        self.assertEqual(await response.read(5), b"12345")

    async def test_answers_without_a_body_leave_the_connection_for_more(self) -> None:
        for method, status in (
            ("HEAD", "200 OK"),
            ("GET", "204 No Content"),
            ("GET", "304 Not Modified"),
        ):
            answer = self.get(method=method)
            peer, request = await self.server.asked.get()
            self.assertEqual(request.method, method)
            peer.send(head(status, "Content-Length: 12345"))
            response = await answer
            self.assertEqual((response.status, response.length), (int(status[:3]), 0))
            if method == "HEAD":
                self.assertEqual(response.header("Content-Length"), "12345")
                response.abort()
            else:
                self.assertEqual(await response.read(10), b"")
        self.assertEqual(len(self.server.peers), 1)

    async def test_a_body_that_is_coded_none_the_less_is_refused(self) -> None:
        answer = self.get("/x?sig=secret")
        peer, _ = await self.server.asked.get()
        peer.send(head("200 OK", "Content-Encoding: gzip", "Content-Length: 100"))
        error = await self.error(answer)
        self.assertIn("Content-Encoding", error.reason)
        await peer.lost
        self.assertIn(f"127.0.0.1:{self.server.port}", error.reason)
        self.assertNotIn("secret", error.reason)

    async def test_an_error_keeps_its_meaning_however_its_text_is_coded(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.answer("404 Not Found", "Content-Encoding: gzip", body=b"not gzip")
        response = await answer
        self.assertEqual((response.status, response.length), (404, 8))
        self.assertEqual(await response.read(100), b"not gzip")

    async def test_a_body_said_not_to_be_coded_is_taken(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.answer("200 OK", "Content-Encoding: Identity", body=b"plain")
        self.assertEqual(await (await answer).read(100), b"plain")

    async def test_url_that_cannot_be_asked_is_unreachable(self) -> None:
        for url in ("ftp://h/", "http://user:secret@h/", "nonsense"):
            error = await self.error(start(self.transport.request("GET", url, {})))
            self.assertNotIn("secret", error.reason)


class ConnectionTests(TransportCase):
    async def answered(self, resource: str = "/") -> Any:
        answer = self.get(resource)
        peer, _ = await self.server.asked.get()
        peer.answer(body=b"ok")
        self.assertEqual(await (await answer).read(2), b"ok")
        return peer

    async def test_a_connection_is_used_again(self) -> None:
        self.assertIs(await self.answered(), await self.answered("/next"))

    async def test_a_connection_closed_while_idle_fails_no_request(self) -> None:
        peer = await self.answered()
        peer.close()
        await peer.lost
        self.assertIsNot(await self.answered(), peer)

    async def test_a_connection_closed_at_the_next_request_fails_no_request(self) -> None:
        for end in ("close", "reset"):
            peer = await self.answered()
            answer = self.get("/next")
            again, _ = await self.server.asked.get()
            self.assertIs(again, peer)
            getattr(peer, end)()
            other, request = await self.server.asked.get()
            self.assertIsNot(other, peer)
            self.assertEqual(request.resource, "/next")
            other.answer(body=b"ok")
            self.assertEqual(await (await answer).read(2), b"ok")
            other.close()
            await other.lost

    async def test_what_comes_unasked_on_an_idle_connection_is_no_answer(self) -> None:
        peer = await self.answered()
        peer.answer("408 Request Timeout")
        await peer.lost
        self.assertIsNot(await self.answered(), peer)

    async def test_an_idle_connection_is_closed_after_its_time(self) -> None:
        peer = await self.answered()
        self.clock.advance(60)
        await peer.lost

    async def test_many_requests_at_once_have_a_connection_each(self) -> None:
        answers = [self.get(f"/{number}") for number in range(20)]
        for _ in answers:
            peer, request = await self.server.asked.get()
            peer.answer(body=request.resource.encode())
        bodies = [await (await answer).read(9) for answer in answers]
        self.assertEqual(bodies, [f"/{number}".encode() for number in range(20)])
        self.assertEqual(len(self.server.peers), 20)

    async def test_closing_ends_all_that_is_under_way(self) -> None:
        await self.answered()
        asked = self.get("/asked")
        await self.server.asked.get()
        sending = self.get("/sending")
        peer, _ = await self.server.asked.get()
        peer.send(head("200 OK", "Content-Length: 10"))
        body = start((await sending).read(10))
        await self.transport.close()
        error = await self.error(asked)
        self.assertIn("shutting down", error.reason)
        await self.error(body)
        for peer in self.server.peers:
            await peer.lost
        await self.error(self.get("/late"))
        self.assertEqual(len(self.server.peers), 2)

    async def test_cancelling_closes_the_connection(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        answer.cancel()
        await self.assertFailure(answer, CancelledError)
        await peer.lost

    async def test_cancelling_a_request_on_a_kept_connection_does_not_send_it_again(self) -> None:
        peer = await self.answered()
        answer = self.get("/next")
        await self.server.asked.get()
        answer.cancel()
        await self.assertFailure(answer, CancelledError)
        await peer.lost
        self.assertEqual(len(self.server.peers), 1)
