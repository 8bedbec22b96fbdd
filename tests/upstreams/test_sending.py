"""Bodies of a test's upstream are sent with flow control."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Request

from tests.upstreams.backing import Bytes
from tests.upstreams.reply import Gate, Reply
from tests.upstreams.sending import send
from tests.upstreams.serving import Server

MIB = 1024 * 1024
SIZE = 64 * MIB


class Narrow(StringTransport):
    """A connection that is full at one MiB, until it is emptied."""

    def write(self, data: bytes) -> None:
        super().write(data)
        if len(self.value()) > MIB and self.producer is not None:
            self.producer.pauseProducing()


class Zeros:
    """Content that is not in memory."""

    size = SIZE

    async def read(self, first: int, count: int) -> bytes:
        return bytes(count)


class FlowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.written: list[int] = []
        self.reply = Reply("/", content=Zeros())
        reactor = MemoryReactorClock()
        server = Server(reactor, "127.0.0.1", self.handle)
        server.start()
        factory: Any = reactor.tcpServers[0][1]
        self.transport = Narrow()
        self.protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5000))
        self.protocol.makeConnection(self.transport)

    async def handle(self, request: Request) -> None:
        await self.reply.resolve({})
        await send(request, self.reply, self.written.append)

    def resume(self) -> None:
        self.transport.clear()
        assert self.transport.producer is not None
        self.transport.producer.resumeProducing()

    def ask(self) -> None:
        self.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

    def test_a_client_that_does_not_read_is_not_sent_to(self) -> None:
        self.ask()
        self.assertLessEqual(sum(self.written), 2 * MIB)
        before = sum(self.written)
        self.resume()
        self.assertGreater(sum(self.written), before)
        self.assertLessEqual(sum(self.written), before + 2 * MIB)

    def test_a_client_that_reads_gets_all(self) -> None:
        self.ask()
        received = len(self.transport.value().partition(b"\r\n\r\n")[2])
        while received < SIZE:
            self.resume()
            received += len(self.transport.value())
        self.assertEqual((received, sum(self.written)), (SIZE, SIZE))

    def test_nothing_goes_on_when_the_client_has_left(self) -> None:
        gate = Gate(100)
        self.reply.gates.append(gate)
        self.ask()
        self.assertEqual(sum(self.written), 100)
        self.protocol.connectionLost(Failure(ConnectionLost()))
        gate.release()
        self.assertEqual(sum(self.written), 100)

    def test_a_gate_lets_through_what_it_is_told(self) -> None:
        gate = Gate(100)
        self.reply.gates.append(gate)
        self.reply.content = Bytes(bytes(1000))
        self.ask()
        gate.release(100)
        self.assertEqual(sum(self.written), 100)
        gate.release(300)
        self.assertEqual(sum(self.written), 300)
        gate.release()
        self.assertEqual(sum(self.written), 1000)
