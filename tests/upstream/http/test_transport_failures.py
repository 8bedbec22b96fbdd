"""Requests to which no answer comes."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.testing import MemoryReactor

from artifactd.upstream.http.errors import TimedOut
from artifactd.upstream.http.transport import MAX_HEAD, RECEIVE_SIZE
from tests.upstream.wire import TransportCase, head, make_transport, start


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
