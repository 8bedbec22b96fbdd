"""A client's end of a connection that exists in memory only, and consumers for bodies."""

from __future__ import annotations

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from artifactd.settings.settings import LimitsSettings
from artifactd.settings.values import Size
from artifactd.web.answer import stopping
from artifactd.web.server.accesslog import AccessLog
from artifactd.web.server.protocol import RegistryChannel, RegistrySite
from tests.leaf import leaf

IDLE = 60.0


@implementer(IConsumer)
class Sink:
    """
    A consumer that keeps what it is given, and does to its producer what the test says.

    :ivar writes: what it was given, write by write.
    :ivar pause_after: pause the producer at the write that makes this many bytes.
    :ivar stop_after: the same, stopping it.
    """

    def __init__(self, pause_after: int | None = None, stop_after: int | None = None) -> None:
        self.writes: list[bytes] = []
        self.pause_after = pause_after
        self.stop_after = stop_after
        self.producer: IPushProducer | None = None
        self.unregistered = 0

    @property
    def content(self) -> bytes:
        return b"".join(self.writes)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert streaming
        assert IPushProducer.providedBy(producer)
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.unregistered += 1
        self.producer = None

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        if self.producer is None:
            return
        if self.pause_after is not None and len(self.content) >= self.pause_after:
            self.pause_after = None
            self.producer.pauseProducing()
        if self.stop_after is not None and len(self.content) >= self.stop_after:
            self.producer.stopProducing()


class Wire(StringTransport):
    """
    One connection to a site, as its client sees it.

    It lets go of nothing by itself: :meth:`close` ends it, as the reactor would when the site has
    asked for it or the peer has gone.
    """

    def __init__(self, site: RegistrySite, peer: object = None, host: object = None) -> None:
        super().__init__(hostAddress=host, peerAddress=peer)
        self.channel = site.buildProtocol(None)
        assert isinstance(self.channel, RegistryChannel)
        self.channel.makeConnection(self)

    @property
    def reading(self) -> bool:
        """Whether the site reads from the connection."""
        return self.producerState == "producing"

    @property
    def open(self) -> bool:
        """Whether the site has not decided to close."""
        return not self.disconnecting

    def send(self, *pieces: bytes) -> None:
        """Let each of ``pieces`` arrive in a read of its own."""
        for piece in pieces:
            self.channel.dataReceived(piece)

    def received(self) -> bytes:
        """What the site has sent since this was asked last."""
        value: bytes = self.value()
        self.clear()
        return value

    def close(self, *, cleanly: bool = True) -> None:
        """The connection ends."""
        reason: Exception = ConnectionDone() if cleanly else ConnectionLost()
        self.connected = False
        self.channel.connectionLost(Failure(reason))


class WireCase(TestCase):
    """Tests with a site in memory, whose clock is the test's, and a Klein app of the test's own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.app = Klein()
        self.site = RegistrySite(
            leaf(self.app),
            self.clock,
            AccessLog("off"),
            IDLE,
            limits=LimitsSettings(body_rate=Size(0)),
            stopping=stopping(),
        )
        self.gates: list[Deferred[None]] = []

    def connect(self) -> Wire:
        return Wire(self.site)

    async def gate(self) -> None:
        """For a handler: wait until the test calls :meth:`open_gate`."""
        gate: Deferred[None] = Deferred()
        self.gates.append(gate)
        await gate

    def open_gate(self) -> None:
        self.gates.pop(0).callback(None)


def request(
    method: str, path: str, *headers: str, body: bytes = b"", version: str = "1.1"
) -> bytes:
    """A request as bytes; a body without a Transfer-Encoding among ``headers`` has its length."""
    lines = [f"{method} {path} HTTP/{version}", "Host: registry.example", *headers]
    framed = any(
        line.lower().startswith(("transfer-encoding", "content-length")) for line in headers
    )
    if body and not framed:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*pieces: bytes) -> bytes:
    """``pieces`` in the chunked transfer coding, whole."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def statuses(received: bytes) -> list[int]:
    """The status codes of the responses in ``received``, whose bodies have no status lines."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
