"""Requests and answers on the wire: redirects, failures, bodies."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactor

from artifactd import __version__
from artifactd.upstream.http import response as responses
from artifactd.upstream.http.errors import EndedByClosing, TimedOut, Unreachable
from artifactd.upstream.http.response import DROPPED_BYTES, DROPPED_SECONDS, Response
from artifactd.upstream.http.transport import MAX_HEAD, RECEIVE_SIZE
from artifactd.upstream.http.url import LIMIT
from artifactd.upstream.patience import refusal
from tests.upstream.wire import Peer, Request, Sink, TransportCase, head, make_transport, start


class BodyCase(TransportCase):
    async def opened(self, *fields: str, body: bytes = b"") -> tuple[Peer, Response]:
        """An answer whose headers have come, and maybe some of ``body``."""
        answer = self.get("/blob?signature=secret")
        peer, _ = await self.server.asked.get()
        peer.send(head("200 OK", *fields), body)
        response: Response = await answer
        return peer, response

    async def round_trip(self) -> None:
        """A request on another connection: all that could be read by now has been."""
        for _ in range(3):
            answer = self.get("/round-trip")
            peer, _ = await self.server.asked.get()
            peer.answer()
            await (await answer).read(0)

    async def reason(self, failing: Deferred[Any], kind: type[Unreachable] = Unreachable) -> str:
        error = await self.error(failing, kind)
        host = f"127.0.0.1:{self.server.port} "
        self.assertTrue(error.reason.startswith(host), error.reason)
        return error.reason.removeprefix(host)


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

    async def test_a_document_that_is_coded_none_the_less_is_undone(self) -> None:
        document = b'{"a": "' + bytes(300_000).replace(b"\0", b"x") + b'"}'
        raw = zlib.compressobj(wbits=-15)
        for coding, body in (
            ("gzip", gzip.compress(document)),
            ("X-GZip", gzip.compress(document[:100]) + gzip.compress(document[100:]) + bytes(50)),
            ("deflate, identity", zlib.compress(document)),
            ("deflate", raw.compress(document) + raw.flush()),
            ("gzip", document),
            ("br", document),
        ):
            answer = self.get()
            peer, _ = await self.server.asked.get()
            peer.answer("200 OK", f"Content-Encoding: {coding}", body=body)
            reading = start((await answer).read(len(document)))
            await self.undone(reading)
            self.assertTrue(await reading == document, coding)

    async def undone(self, reading: Deferred[bytes]) -> None:
        """Give the reactor turns, each of which undoes a piece, until ``reading`` has ended."""
        while not reading.called:
            self.clock.advance(0)
            await deferLater(reactor, 0)

    async def test_a_document_ends_at_its_limit_however_much_it_would_become(self) -> None:
        bomb = gzip.compress(bytes(50_000_000))
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.answer("200 OK", "Content-Encoding: gzip", body=bomb)
        reading = start((await answer).read(100_000))
        await self.undone(reading)
        error = await self.error(reading)
        self.assertIn("more than the 100000 bytes", error.reason)

    async def test_a_document_is_refused_by_itself_where_its_coding_is_unknown_or_damaged(
        self,
    ) -> None:
        half = gzip.compress(b'{"a": 1}')[:-9]
        for coding, body, status in (
            ("br", b"\x8b\x01\x80{}\x03", 200),
            ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 200),
            ("gzip", b"\x1f\x8b" + bytes(100), 200),
            ("gzip", half, None),
        ):
            answer = self.get("/x?sig=secret")
            peer, _ = await self.server.asked.get()
            peer.answer("200 OK", f"Content-Encoding: {coding}", body=body)
            error = await self.error(start((await answer).read(1000)))
            self.assertEqual(error.status, status, error.reason)
            self.assertIn(f"127.0.0.1:{self.server.port} ", error.reason)
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

    async def test_the_failure_of_another_host_is_told_from_the_firsts_own(self) -> None:
        answer = self.ask()
        await self.redirected(self.cdn_url)
        peer, _ = await self.server.asked.get()
        peer.close()
        self.assertTrue((await self.error(answer)).led_elsewhere)

    async def test_a_redirect_that_leads_nowhere_is_no_failure_of_the_host(self) -> None:
        answer = self.ask()
        await self.redirected("ftp://cdn.example/file")
        self.assertTrue((await self.error(answer)).led_elsewhere)

    async def test_a_redirect_within_an_origin_keeps_authorization(self) -> None:
        answer = self.ask(Authorization="Bearer t")
        await self.redirected("other")
        peer, request = await self.server.asked.get()
        self.assertEqual(request.resource, "/v2/other")
        self.assertEqual(request.values("Authorization"), ["Bearer t"])
        peer.answer()
        self.assertEqual((await answer).url, self.server.url("/v2/other", "registry.example"))

    async def test_storage_on_the_same_host_gets_no_authorization(self) -> None:
        answer = self.ask(Authorization="Bearer t", Range="bytes=5-")
        await self.redirected("/bucket/1?X-Amz-Signature=abc")
        peer, request = await self.server.asked.get()
        self.assertEqual(request.values("Authorization"), [])
        self.assertEqual(request.values("Range"), ["bytes=5-"])
        peer.answer("403 Forbidden")
        response = await answer
        self.assertTrue(response.redirected)
        response.abort()

    async def test_another_origin_gets_its_own_authorization_and_its_storage_none(self) -> None:
        other = ("http", "cdn.example", self.server.port)
        asking = self.transport.request(
            "GET", self.start_url, {"Authorization": "Bearer t"}, {other: "Bearer o"}
        )
        answer = start(asking)
        _, request = await self.redirected(self.server.url("/v2/x", "cdn.example"))
        self.assertEqual(request.values("Authorization"), ["Bearer t"])
        _, request = await self.redirected("/v2/y")
        self.assertEqual(request.values("Authorization"), ["Bearer o"])
        _, request = await self.redirected("/v2/y?sig=x")
        self.assertEqual(request.values("Authorization"), ["Bearer o"])
        peer, request = await self.server.asked.get()
        self.assertEqual(request.values("Authorization"), [])
        peer.answer()
        (await answer).abort()

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

    async def test_what_is_posted_follows_no_redirect(self) -> None:
        for location in ("/next", self.cdn_url):
            for status in (301, 302, 303, 307, 308):
                answer = start(self.transport.request("POST", self.start_url, {}, body=b"secret"))
                peer, request = await self.server.asked.get()
                self.assertEqual(request.method, "POST")
                self.assertEqual(request.values("Content-Length"), ["6"])
                peer.answer(f"{status} Moved", f"Location: {location}", "Connection: close")
                self.assertEqual((await self.error(answer)).status, status)
        self.assertEqual(self.server.asked.pending, [])

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


class FailureTests(TransportCase):
    async def assert_unreachable(self, words: str, *sent: bytes) -> None:
        """What is ``sent`` as an answer makes the request fail and the connection end."""
        answer = self.get("/x?signature=secret", Authorization="Bearer secret")
        peer, _ = await self.server.asked.get()
        peer.send(*sent)
        error = await self.error(answer)
        self.assertEqual(
            error.reason, f"127.0.0.1:{self.server.port} can't be reached: {words}", sent[:1]
        )
        await peer.lost

    async def test_answers_that_are_not_http_are_unreachable(self) -> None:
        for sent in (
            head("200 OK", "Content-Length: 5", "Content-Length: 6"),
            head("200 OK", "Content-Length: five"),
            head("200 OK", "Content-Length: -5"),
            head("200 OK", "Content-Length: 5, 6"),
            head("200 OK", "Transfer-Encoding: gzip"),
            head("OK"),
            head("200 OK", "no colon"),
            head("200 OK", " continued"),
            b"HTTP/x.y 200 OK\r\n\r\n",
            b"220 mail.example ESMTP\r\n",
        ):
            await self.assert_unreachable("its answer is not valid HTTP/1.1", sent)

    async def test_a_header_without_end_is_unreachable(self) -> None:
        await self.assert_unreachable(
            "it closed the connection", b"HTTP/1.1 200 OK\r\nX: ", bytes(20_000)
        )

    async def test_headers_without_end_are_unreachable(self) -> None:
        lines = b"X: %b\r\n" % (b"x" * 1000) * ((MAX_HEAD + 2 * RECEIVE_SIZE) // 1000)
        await self.assert_unreachable("the connection was given up", b"HTTP/1.1 200 OK\r\n", lines)

    async def test_a_large_body_is_no_part_of_the_headers(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        size = 2 * (MAX_HEAD + RECEIVE_SIZE)
        peer.answer(body=bytes(size))
        self.assertEqual(len(await (await answer).read(size)), size)

    async def test_a_connection_closed_without_an_answer_is_unreachable(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.close()
        error = await self.error(answer)
        self.assertIn("it closed the connection", error.reason)
        self.assertEqual((error.connected, error.led_elsewhere), (True, False))

    async def test_a_connection_reset_in_the_headers_is_unreachable(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.send(b"HTTP/1.1 200 OK\r\n")
        peer.reset()
        error = await self.error(answer)
        self.assertIn("it broke off the connection", error.reason)

    async def test_a_name_that_does_not_exist_is_unreachable(self) -> None:
        asking = self.transport.request("GET", "http://nowhere.example/", {})
        error = await self.error(start(asking))
        self.assertEqual(
            error.reason, "nowhere.example can't be reached: its name can't be resolved"
        )

    async def test_a_name_that_cannot_be_is_unreachable(self) -> None:
        for url in ("http://a..example/", "https://a..example/", f"http://{'a' * 64}.example/"):
            asking = start(self.transport.request("GET", url, {}))
            error = await self.error(asking)
            self.assertIn("not the name of a host", error.reason)

    async def test_a_name_that_idna_does_not_allow_is_asked_for_none_the_less(self) -> None:
        for host in ("my_registry", "ab--cd.example"):
            self.reactor.names[host] = "127.0.0.1"
            answer = start(self.transport.request("GET", self.server.url("/", host), {}))
            answer.addErrback(lambda failure: self.fail(str(failure.value)))
            if not answer.called:
                peer, request = await self.server.asked.get()
                self.assertEqual([f"{host}:{self.server.port}"], request.values("host"))
                peer.answer()
            await (await answer).read(0)

    async def test_a_port_where_nobody_listens_is_unreachable(self) -> None:
        # Twisted tries the next address of a name after a time, so that has to be real.
        transport = make_transport(reactor)
        self.addCleanup(lambda: start(transport.close()))
        asking = transport.request("GET", "http://127.0.0.1:1/?sig=secret", {})
        error = await self.error(start(asking))
        self.assertEqual(error.reason, "127.0.0.1:1 can't be reached: connection refused")
        self.assertFalse(error.connected)
        self.assertNotIsInstance(error, TimedOut)


class TimeoutTests(TransportCase):
    async def test_a_host_that_takes_no_connection_times_out(self) -> None:
        self.patch(self.reactor, "connect", MemoryReactor().connectTCP)
        answer = self.get("/?sig=secret")
        self.clock.advance(9.9)
        self.assertNoResult(answer)
        self.clock.advance(0.2)
        error = self.failureResultOf(answer, TimedOut).value
        self.assertEqual(
            error.reason, f"127.0.0.1:{self.server.port}: no connection within 10 seconds"
        )
        self.assertFalse(error.connected)

    async def test_a_name_that_takes_too_long_to_resolve_times_out(self) -> None:
        self.patch(self.reactor, "resolving", True)
        answer = self.get()
        self.clock.advance(10)
        self.failureResultOf(answer, TimedOut)

    async def test_an_answer_that_does_not_come_times_out(self) -> None:
        answer = self.get("/?sig=secret")
        peer, _ = await self.server.asked.get()
        self.clock.advance(29.9)
        self.assertNoResult(answer)
        self.clock.advance(0.2)
        error = self.failureResultOf(answer, TimedOut).value
        self.assertEqual(
            error.reason, f"127.0.0.1:{self.server.port} did not answer within 30 seconds"
        )
        self.assertTrue(error.connected)
        await peer.lost

    async def test_an_answer_on_a_kept_connection_has_no_longer(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.answer()
        await (await answer).read(0)
        answer = self.get()
        await self.server.asked.get()
        self.clock.advance(30)
        self.failureResultOf(answer, TimedOut)
        await peer.lost
        self.assertEqual(len(self.server.peers), 1)

    async def test_half_an_answer_gives_no_more_time(self) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        self.clock.advance(20)
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-")
        # A request that has been answered shows that the pieces have been read.
        other = self.get("/other")
        (await self.server.asked.get())[0].answer()
        await (await other).read(0)
        self.assertNoResult(answer)
        self.clock.advance(10)
        self.failureResultOf(answer, TimedOut)
        await peer.lost

    async def test_the_times_are_those_of_the_settings(self) -> None:
        transport = self.make(connect_timeout=1, first_byte_timeout=2, idle_timeout=3)
        answer = start(transport.request("GET", self.server.url(), {}))
        peer, _ = await self.server.asked.get()
        self.clock.advance(1.9)
        peer.send(head("200 OK", "Content-Length: 10"))
        body = start((await answer).read(10))
        self.clock.advance(2.9)
        self.assertNoResult(body)
        self.clock.advance(0.2)
        self.failureResultOf(body, TimedOut)
        answer = start(transport.request("GET", self.server.url(), {}))
        await self.server.asked.get()
        self.clock.advance(2)
        self.failureResultOf(answer, TimedOut)


IDLE = 30.0
LARGE = 8 * 1024 * 1024 + 12345


class DeliveryTests(BodyCase):
    async def test_a_body_is_delivered_whole_and_its_connection_kept(self) -> None:
        content = bytes(range(256)) * (LARGE // 256)
        peer, response = await self.opened(f"Content-Length: {len(content)}")
        sink = Sink()
        delivered = response.deliver_to(sink)
        peer.send(content)
        self.assertEqual(await delivered, len(content))
        self.assertEqual(sink.content, content)
        self.assertIsNone(sink.producer)
        await self.round_trip()
        self.assertEqual(self.server.peers, [peer])

    async def test_a_chunked_body_is_delivered_without_its_framing(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        self.assertIsNone(response.length)
        sink = Sink()
        delivered = response.deliver_to(sink)
        peer.send(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: x\r\n\r\n")
        self.assertEqual(await delivered, 11)
        self.assertEqual(sink.content, b"hello world")

    async def test_an_empty_body_is_delivered(self) -> None:
        _, response = await self.opened("Content-Length: 0")
        sink = Sink()
        self.assertEqual(await response.deliver_to(sink), 0)
        self.assertIsNone(sink.producer)

    async def test_a_body_that_came_with_the_headers_is_delivered(self) -> None:
        _, response = await self.opened("Content-Length: 5", body=b"hello")
        await self.round_trip()
        sink = Sink()
        self.assertEqual(await response.deliver_to(sink), 5)
        self.assertEqual(sink.content, b"hello")

    async def test_large_pieces_are_read(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        sizes: list[int] = []
        sink = Sink()
        sink.on_write = lambda: sizes.append(len(sink.content) - sum(sizes))
        await response.deliver_to(sink)
        self.assertGreater(max(sizes), 64 * 1024)
        self.assertLessEqual(max(sizes), RECEIVE_SIZE)

    async def test_a_body_can_be_had_only_once(self) -> None:
        _, response = await self.opened("Content-Length: 5", body=b"hello")
        await response.read(5)
        self.assertRaises(RuntimeError, response.deliver_to, Sink())
        _, response = await self.opened("Content-Length: 5")
        response.abort()
        self.assertRaises(RuntimeError, response.deliver_to, Sink())


class FlowTests(BodyCase):
    async def test_a_consumer_that_pauses_gets_no_more_than_one_read_brings(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        sink = Sink()
        sink.on_write = sink.pause
        delivered = response.deliver_to(sink)
        peer.send(bytes(LARGE))
        await sink.has(1)
        before = len(sink.content)
        self.assertLessEqual(before, RECEIVE_SIZE)
        await self.round_trip()
        self.assertEqual(len(sink.content), before)
        sink.on_write = lambda: None
        sink.resume()
        self.assertEqual(await delivered, LARGE)
        self.assertEqual(len(sink.content), LARGE)

    async def test_a_consumer_may_pause_before_the_first_byte(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        sink = Sink()
        sink.on_register = lambda producer: producer.pauseProducing()
        delivered = response.deliver_to(sink)
        await self.round_trip()
        self.assertLessEqual(len(sink.content), RECEIVE_SIZE)
        sink.resume()
        self.assertEqual(await delivered, LARGE)

    async def test_nothing_is_read_before_the_body_is_asked_for(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        await self.round_trip()
        sink = Sink()
        sink.on_write = sink.pause
        delivered = response.deliver_to(sink)
        self.assertLessEqual(len(sink.content), RECEIVE_SIZE)
        sink.on_write = lambda: None
        sink.resume()
        await delivered

    async def test_resuming_what_flows_and_pausing_what_is_paused_do_nothing(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        sink.resume()
        sink.pause()
        sink.pause()
        sink.resume()
        sink.resume()
        peer.send(bytes(10))
        self.assertEqual(await delivered, 10)

    async def test_a_producer_that_has_ended_lets_itself_be_called(self) -> None:
        peer, response = await self.opened("Content-Length: 5", body=b"hello")
        producers: list[IPushProducer] = []
        sink = Sink()
        sink.on_register = producers.append
        await response.deliver_to(sink)
        for producer in producers:
            producer.pauseProducing()
            producer.resumeProducing()
            producer.stopProducing()
        response.abort()
        await self.round_trip()
        self.assertEqual(self.server.peers, [peer])


class IdleTests(BodyCase):
    async def test_a_body_that_stands_still_times_out(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        self.clock.advance(IDLE - 0.1)
        peer.send(b"abc")
        await sink.has(3)
        self.clock.advance(IDLE - 0.1)
        self.assertNoResult(delivered)
        self.clock.advance(0.2)
        self.assertIsNone(sink.producer)
        self.assertEqual(
            await self.reason(delivered, TimedOut),
            "sent nothing for 30 seconds after 3 of 10 bytes",
        )
        await peer.lost

    async def test_the_time_for_which_a_consumer_pauses_does_not_count(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        self.clock.advance(IDLE - 1)
        sink.pause()
        self.clock.advance(1000)
        sink.resume()
        self.clock.advance(IDLE - 1)
        self.assertNoResult(delivered)
        self.clock.advance(1)
        self.failureResultOf(delivered, TimedOut)
        await peer.lost

    async def test_no_time_runs_before_the_body_is_asked_for(self) -> None:
        peer, response = await self.opened("Content-Length: 5")
        self.clock.advance(1000)
        body = start(response.read(5))
        peer.send(b"hello")
        self.assertEqual(await body, b"hello")

    async def test_reading_times_out_too(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked", body=b"5\r\nhel")
        body = start(response.read(100))
        await self.round_trip()
        self.clock.advance(IDLE)
        self.assertEqual(
            await self.reason(body, TimedOut), "sent too little in 30 seconds after 3 bytes"
        )
        await peer.lost

    async def test_a_document_that_drips_times_out(self) -> None:
        for coding in ("", "gzip"):
            fields = ("Content-Length: 100", f"Content-Encoding: {coding}" if coding else "A: b")
            peer, response = await self.opened(*fields)
            body = start(response.read(1000))
            for byte in gzip.compress(b"{}")[:3] if coding else b"{  ":
                peer.send(bytes([byte]))
                await self.round_trip()
                self.assertNoResult(body)
                self.clock.advance(IDLE / 3)
            self.assertEqual(
                await self.reason(body, TimedOut),
                "sent too little in 30 seconds after 3 of 100 bytes",
            )
            await peer.lost

    async def test_a_document_may_take_long_where_it_is_large(self) -> None:
        peer, response = await self.opened(f"Content-Length: {3 * responses.LEAST}")
        body = start(response.read(3 * responses.LEAST))
        for _ in range(3):
            self.clock.advance(IDLE - 1)
            peer.send(bytes(responses.LEAST))
            await self.round_trip()
        self.assertEqual(len(await body), 3 * responses.LEAST)


class EndTests(BodyCase):
    async def test_a_body_shorter_than_its_length_broke_off(self) -> None:
        for end in ("close", "reset"):
            peer, response = await self.opened("Content-Length: 10")
            sink = Sink()
            delivered = response.deliver_to(sink)
            peer.send(b"abc")
            await sink.has(3)
            getattr(peer, end)()
            self.assertEqual(await self.reason(delivered), "broke off after 3 of 10 bytes")
            self.assertIsNone(sink.producer)

    async def test_a_body_that_only_the_connection_ends_may_have_broken_off(self) -> None:
        for end in ("close", "reset"):
            peer, response = await self.opened("Connection: close")
            self.assertIsNone(response.length)
            sink = Sink()
            delivered = response.deliver_to(sink)
            peer.send(b"hello")
            await sink.has(5)
            getattr(peer, end)()
            error = await self.error(delivered, EndedByClosing)
            assert isinstance(error, EndedByClosing)
            self.assertEqual((error.received, error.status), (5, None))
            self.assertTrue(error.reason.endswith("broke off after 5 bytes"))

    async def test_a_document_that_only_the_connection_ends_is_whole_if_its_json_is(self) -> None:
        for document in (b'{"a": [1]}\n', b"[]", b"<p>hello</p>"):
            await self.assert_read(document, document)
        await self.assert_read(gzip.compress(b"{}"), b"{}", "Content-Encoding: gzip")
        for part in (b"", b'{"a": [1]', b"[", b'{"a": {}}}', b"[" * 9999, b'{"a": "b\\'):
            answer = self.get()
            peer, _ = await self.server.asked.get()
            peer.send(b"HTTP/1.0 200 OK\r\n\r\n", part)
            peer.close()
            reading = start((await answer).read(10_000))
            self.assertEqual(await self.reason(reading), f"broke off after {len(part)} bytes")
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.send(head("200 OK", "Content-Encoding: gzip"), gzip.compress(b"{}")[:11])
        peer.close()
        await self.error(start((await answer).read(100)), EndedByClosing)

    async def test_of_a_long_one_the_last_byte_tells_and_its_reader_decodes_it(self) -> None:
        self.patch(responses, "DECODED", 5)
        for document in (b'{"a": [1]}\n', b'{"a": {}', b" " * 80 + b"[1]" + b"\n" * 10):
            await self.assert_read(document, document)
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.send(b"HTTP/1.0 200 OK\r\n\r\n", b'{"a": [1')
        peer.close()
        await self.error(start((await answer).read(100)), EndedByClosing)

    async def assert_read(self, sent: bytes, document: bytes, *fields: str) -> None:
        answer = self.get()
        peer, _ = await self.server.asked.get()
        peer.send("\r\n".join(["HTTP/1.0 200 OK", *fields, "", ""]).encode(), sent)
        peer.close()
        self.assertEqual(await (await answer).read(100), document)

    async def test_a_chunked_body_without_its_last_chunk_broke_off(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(100))
        peer.send(b"5\r\nhello\r\n")
        peer.close()
        self.assertEqual(await self.reason(body), "broke off after 5 bytes")

    async def test_a_chunked_body_with_broken_framing_broke_off(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(100))
        peer.send(b"5\r\nhello\r\nfive\r\n")
        self.assertEqual(await self.reason(body), "broke off after 5 bytes")
        await peer.lost

    async def test_a_connection_lost_before_the_body_is_asked_for_broke_off(self) -> None:
        peer, response = await self.opened("Content-Length: 10", body=b"abc")
        peer.reset()
        await self.round_trip()
        self.assertEqual(
            await self.reason(start(response.read(10))), "broke off after 3 of 10 bytes"
        )

    async def test_a_body_declared_too_long_is_not_read(self) -> None:
        peer, response = await self.opened("Content-Length: 11")
        reason = await self.reason(start(response.read(10)))
        self.assertEqual(reason, "sends more than the 10 bytes that there may be")
        await peer.lost

    async def test_a_body_that_gets_too_long_is_not_read_on(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(10))
        peer.send(b"a\r\n0123456789\r\n1\r\n0\r\n")
        reason = await self.reason(body)
        self.assertEqual(reason, "sends more than the 10 bytes that there may be")
        await peer.lost

    async def test_a_body_of_just_the_limit_is_read(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        body = start(response.read(10))
        peer.send(b"a\r\n0123456789\r\n0\r\n\r\n")
        self.assertEqual(await body, b"0123456789")

    async def test_the_words_of_an_error_are_not_waited_for(self) -> None:
        peer, response = await self.opened("Transfer-Encoding: chunked")
        told = start(refusal(response))
        for _ in range(4):
            peer.send(b"1\r\n{\r\n")
            await self.round_trip()
            self.clock.advance(1)
            self.assertFalse(told.called)
        self.clock.advance(1)
        self.assertTrue(told.called)
        self.assertEqual("127.0.0.1", (await told).reason.partition(":")[0])
        await peer.lost


class GivingUpTests(BodyCase):
    async def test_a_consumer_that_stops_closes_the_connection(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        peer.send(b"abc")
        await sink.has(3)
        sink.stop()
        self.assertEqual(await delivered, 3)
        self.assertIsNone(sink.producer)
        await peer.lost

    async def test_a_paused_consumer_that_stops_closes_the_connection(self) -> None:
        peer, response = await self.opened(f"Content-Length: {LARGE}")
        peer.send(bytes(LARGE))
        sink = Sink()
        sink.on_write = sink.pause
        delivered = response.deliver_to(sink)
        await sink.has(1)
        sink.stop()
        self.assertEqual(await delivered, len(sink.content))
        await peer.lost

    async def test_a_consumer_may_stop_before_the_first_byte_and_in_a_write(self) -> None:
        for when in ("on_register", "on_write"):
            peer, response = await self.opened("Content-Length: 10", body=b"abc")
            sink = Sink()
            setattr(sink, when, lambda *_, sink=sink: sink.stop())
            delivered = await response.deliver_to(sink)
            self.assertEqual(delivered, len(sink.content))
            await peer.lost

    async def test_a_consumer_that_stops_at_the_last_byte_harms_no_later_request(self) -> None:
        peer, response = await self.opened("Content-Length: 3")
        sink = Sink()
        sink.on_write = sink.stop
        delivered = response.deliver_to(sink)
        peer.send(b"abc")
        self.assertEqual(await delivered, 3)
        await self.round_trip()
        await peer.lost

    async def test_cancelling_closes_the_connection(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        delivered.cancel()
        self.failureResultOf(delivered, CancelledError)
        self.assertIsNone(sink.producer)
        await peer.lost

    async def test_an_unwanted_body_closes_the_connection(self) -> None:
        for body in (b"", b"abc"):
            peer, response = await self.opened("Content-Length: 10", body=body)
            response.abort()
            response.abort()
            await peer.lost

    async def test_aborting_a_delivery_closes_the_connection(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()
        delivered = response.deliver_to(sink)
        response.abort()
        self.assertEqual(await delivered, 0)
        await peer.lost

    async def test_a_mistake_of_the_consumers_is_not_blamed_on_the_upstream(self) -> None:
        peer, response = await self.opened("Content-Length: 10")
        sink = Sink()

        def fail() -> None:
            raise ZeroDivisionError

        sink.on_write = fail
        delivered = response.deliver_to(sink)
        peer.send(b"abc")
        await self.assertFailure(delivered, ZeroDivisionError)
        self.assertIsNone(sink.producer)
        await peer.lost
