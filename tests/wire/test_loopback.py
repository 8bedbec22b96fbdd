"""Uploads over a real connection, for what the kernel and the transport add."""

from __future__ import annotations

from hashlib import sha256

from klein import Klein
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.tcp import Connection
from twisted.trial.unittest import TestCase

from artifactd.kit.budget import RECEIVE_SIZE, receive_size
from artifactd.web.server.accesslog import AccessLog
from artifactd.web.server.protocol import RegistryRequest, RegistrySite
from tests.leaf import leaf
from tests.wire.connection import Sink, request
from tests.wire.loopback import Client


class UploadTests(TestCase):
    async def connect(self, app: Klein) -> Client:
        self.site = site = RegistrySite(leaf(app), reactor, AccessLog("off"))
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: Deferred.fromCoroutine(site.drain(5)))
        self.endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        return await self.connect_again()

    async def connect_again(self) -> Client:
        client: Client = await connectProtocol(self.endpoint, Client())
        self.addCleanup(lambda: client.lost)
        self.addCleanup(client.leave)
        return client

    async def test_a_refused_client_that_sends_all_first_still_gets_the_answer(self) -> None:
        app = Klein()

        @app.route("/", methods=["PUT"])
        def refuse(request: RegistryRequest) -> bytes:
            request.setResponseCode(403)
            request.setHeader(b"Content-Length", b"6")
            return b"denied"

        client = await self.connect(app)
        client.send(request("PUT", "/", body=bytes(20_000_000)))
        await client.lost
        self.assertTrue(client.received.startswith(b"HTTP/1.1 403"))
        self.assertTrue(client.received.endswith(b"denied"))

    async def test_reads_are_larger_while_a_body_is_delivered(self) -> None:
        app = Klein()
        sizes: list[int] = []
        sink = Sink()

        @app.route("/", methods=["PUT"])
        async def take(request: RegistryRequest) -> bytes:
            assert request.body is not None
            transport = request.channel.transport
            sizes.append(transport.bufferSize)
            delivery = request.body.deliver_to(sink)
            sizes.append(transport.bufferSize)
            await delivery
            sizes.append(transport.bufferSize)
            request.setHeader(b"Content-Length", b"2")
            return b"ok"

        client = await self.connect(app)
        body = bytes(range(256)) * 20_000
        client.send(request("PUT", "/", body=body))
        self.assertEqual((await client.response())[1], b"ok")
        self.assertEqual(sha256(sink.content).digest(), sha256(body).digest())
        self.assertEqual(sizes[1], RECEIVE_SIZE)
        self.assertLess(sizes[0], RECEIVE_SIZE)
        self.assertEqual(sizes[0], sizes[2])

    async def test_a_large_body_is_read_in_pieces_as_large_as_the_transfers_allow(self) -> None:
        app = Klein()
        sizes: list[int] = []

        class Watching(Sink):
            def write(self, data: bytes) -> None:
                sizes.append(transport().bufferSize)
                super().write(data)

        def transport() -> Connection:
            (channel,) = (each for each in self.site.channels if each.busy)
            return channel.transport

        @app.route("/", methods=["PUT"])
        async def take(request: RegistryRequest) -> bytes:
            assert request.body is not None
            await request.body.deliver_to(Watching())
            sizes.append(transport().bufferSize)
            request.setHeader(b"Content-Length", b"2")
            return b"ok"

        client = await self.connect(app)
        for transfers in (1, 6, 100):
            self.site.turns.transfers = transfers - 1  # and the one that follows
            sizes.clear()
            client.send(request("PUT", "/", body=bytes(4_000_000)))
            await client.response()
            *during, after = sizes
            self.assertEqual(during[0], RECEIVE_SIZE)
            self.assertEqual(during[-1], receive_size(transfers))
            self.assertLess(after, RECEIVE_SIZE)

    async def test_reads_stay_small_where_many_share_the_reactor(self) -> None:
        app = Klein()
        sizes: list[int] = []

        @app.route("/", methods=["PUT"])
        async def take(request: RegistryRequest) -> None:
            assert request.body is not None
            delivery = request.body.deliver_to(Sink())
            sizes.append(request.channel.transport.bufferSize)
            await delivery
            request.setHeader(b"Content-Length", b"0")

        clients = [await self.connect(app)]
        clients += [await self.connect_again() for _ in range(16)]
        clients[0].send(request("PUT", "/", body=bytes(1_000_000)))
        await clients[0].response()
        self.assertEqual(len(sizes), 1)
        self.assertLess(sizes[0], RECEIVE_SIZE)
