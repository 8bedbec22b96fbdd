"""A client that half-closes its connection after a request gets the answer, over TCP and TLS."""

from __future__ import annotations

import contextlib
import ssl
from socket import SHUT_WR, create_connection, socket

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from artifactd.web.server import protocol
from tests.api.served import Served
from tests.process import request
from tests.programs import PATIENCE
from tests.tls.authority import ROOT
from tests.tls.case import Files

BLOB = b"content" * 1_000_000
DIGEST = Digest.of(BLOB)
WANTED = f"GET /v2/hello/blobs/{DIGEST} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


SMALL = b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"


def over_tcp(port: int, wanted: bytes = WANTED) -> bytes:
    """What comes until the registry closes."""
    with create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(wanted)
        connection.shutdown(SHUT_WR)
        with connection.makefile("rb") as file:
            return file.read()


class TlsClient:
    """A client that may send the end of its TLS and go on reading, unlike Python's own."""

    def __init__(self, connection: socket) -> None:
        self._socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ROOT.trusting().wrap_bio(self._incoming, self._outgoing, False, "127.0.0.1")

    def _turn(self) -> None:
        """Send what is to be sent, and wait for more."""
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())
        received = self._socket.recv(65536)
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()

    def ask(self, *, notify: bool) -> bytes:
        """Ask, end by close_notify or by TCP alone, and read all that comes."""
        self._begin(WANTED)
        if notify:
            with contextlib.suppress(ssl.SSLWantReadError):  # the registry does not end now
                self._tls.unwrap()
        self._socket.sendall(self._outgoing.read())
        self._socket.shutdown(SHUT_WR)
        return self._read()

    def end_tcp_alone(self, *, last: bool) -> bytes:
        """
        Ask, end by TCP alone, and read all until the registry does so too.

        :param last: have the registry end TLS first.
        """
        self._begin(SMALL.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) if last else SMALL)
        found = self._read() if last else b""
        self._socket.sendall(self._outgoing.read())
        self._socket.shutdown(SHUT_WR)
        found += b"" if last else self._read()
        while self._socket.recv(1):
            pass
        return found

    def _begin(self, wanted: bytes) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._turn()
        self._tls.write(wanted)

    def _read(self) -> bytes:
        found = bytearray()
        while True:
            try:
                piece = self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._turn()
                continue
            except ssl.SSLZeroReturnError:
                return bytes(found)
            if not piece:
                return bytes(found)
            found += piece


def over_tls(port: int, *, notify: bool) -> bytes:
    """What comes until the registry ends TLS."""
    with create_connection(("127.0.0.1", port), PATIENCE) as connection:
        return TlsClient(connection).ask(notify=notify)


class HalfCloseTests(TestCase):
    def assert_whole(self, received: bytes) -> None:
        head, _, body = received.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"), head)
        self.assertTrue(body == BLOB, len(body))

    async def test_over_tcp(self) -> None:
        registry = Served.start(self)
        await registry.push_blob("hello", BLOB)
        self.assert_whole(await deferToThread(over_tcp, registry.port))

    async def test_those_to_all_requests_that_were_sent_before_and_the_last_one_in_part(
        self,
    ) -> None:
        registry = Served.start(self)
        await registry.push_blob("hello", BLOB)
        for rest in (b"", b"GET /v2/ HTTP/1.1\r\nHo"):
            wanted = WANTED + SMALL + SMALL + SMALL + rest
            received = await deferToThread(over_tcp, registry.port, wanted)
            self.assertEqual(received.count(b"HTTP/1.1 200 OK\r\n"), 4)

    async def test_a_body_that_will_not_come_is_not_waited_for_behind_other_requests(self) -> None:
        registry = Served.start(self, 'idle_timeout = "1h"')
        await registry.push_blob("hello", BLOB)
        push = (
            b"POST /v2/hello/blobs/uploads/?digest=%b HTTP/1.1\r\nHost: a\r\n"
            % str(DIGEST).encode()
        )
        wanted = WANTED + push + b"Content-Length: 9\r\n\r\npart"

        def ask() -> bytes:
            try:
                return over_tcp(registry.port, wanted)
            except ConnectionResetError:
                return b""

        received = await deferToThread(ask)
        self.assertLessEqual(received.count(b"HTTP/1.1 "), 1)

    async def over_tls(self) -> Served:
        """A registry over TLS that has the blob."""
        here = Files(self)
        here.write(ROOT.sign("server"))
        registry = Served.start(
            self, listen=f"artifactd-tls:0:interface=127.0.0.1:key={here.key}:cert={here.cert}"
        )
        path = f"/v2/hello/blobs/uploads/?digest={DIGEST}"
        pushed = await request(registry.port, "POST", path, body=BLOB, tls=ROOT.trusting())
        self.assertEqual(pushed.status, 201)
        return registry

    async def test_over_tls_with_close_notify_and_without(self) -> None:
        registry = await self.over_tls()
        for notify in (True, False):
            received = await deferToThread(over_tls, registry.port, notify=notify)
            self.assert_whole(received)

    async def test_a_client_that_has_its_answer_and_ends_tcp_alone_is_closed(self) -> None:
        self.patch(protocol, "CLOSE_SECONDS", 1e6)
        registry = await self.over_tls()
        for last in (True, False):

            def ask(*, last: bool = last) -> bytes:
                with create_connection(("127.0.0.1", registry.port), PATIENCE) as connection:
                    return TlsClient(connection).end_tcp_alone(last=last)

            self.assertIn(b"HTTP/1.1 200 OK\r\n", await deferToThread(ask))
