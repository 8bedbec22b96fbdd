"""What clients do that shows in no output of theirs."""

from __future__ import annotations

import contextlib  # not suppress by its name: trial takes that for its own
import socket
import ssl

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from tests.process import Daemon


class EmptyBlobTests(TestCase):
    async def test_a_blob_of_no_bytes_comes_back(self) -> None:
        daemon = await Daemon.start(self)
        digest = Digest.of(b"")
        session = await daemon.request("POST", "/v2/hello/blobs/uploads/")
        location = session.header("Location")
        pushed = await daemon.request("PUT", f"{location}?digest={digest}", body=b"")
        self.assertEqual(pushed.status, 201, pushed)
        pulled = await daemon.request("GET", f"/v2/hello/blobs/{digest}")
        self.assertEqual((pulled.status, pulled.body), (200, b""))
        self.assertEqual(pulled.header("Content-Length"), "0")
        self.assertEqual(pulled.header("Docker-Content-Digest"), str(digest))


class PlainHttpTests(TestCase):
    async def test_a_client_that_tries_tls_first_is_answered_at_once(self) -> None:
        """As Docker, podman, buildah and skopeo do with a registry that may be without TLS."""
        daemon = await Daemon.start(self)

        def shake_hands() -> bytes:
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=5) as connection:
                connection.sendall(client_hello())
                return connection.makefile("rb").read()

        answer = await deferToThread(shake_hands)
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), answer)


def client_hello() -> bytes:
    """What a TLS client sends first."""
    sent = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), sent, server_hostname="registry.example"
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()
