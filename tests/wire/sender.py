"""Sites, on loopback and in memory, that serve pieces of a file through a ``FileSender``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from klein import Klein
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import (
    SSL4ClientEndpoint,
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.ssl import CertificateOptions, KeyPair
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent
from twisted.trial.unittest import SkipTest, TestCase
from twisted.web.resource import IResource

from artifactd.kit.timers import Timers
from artifactd.web.server import sendfile
from artifactd.web.server.accesslog import AccessLog
from artifactd.web.server.protocol import RegistryRequest, RegistrySite
from artifactd.web.server.sendfile import FileSender, Patience
from tests.leaf import leaf
from tests.wire.connection import WireCase, request
from tests.wire.growing import Fill, Follower
from tests.wire.loopback import Client, CountingBudget, FileBlob

STALL = 30.0
BIG = 8 * 1024 * 1024 + 12345


def cuts(events: Sequence[LogEvent]) -> list[str]:
    """The reasons for which transfers were cut off."""
    return [event["problem"] for event in events if "cut off" in event.get("log_format", "")]


@define
class BlobApp:
    """
    ``/<first>/<length>`` are those bytes of the file at ``path``, ``/<first>`` all from there on;
    and what became of each.

    :ivar opened: opens the file.
    """

    path: Path
    opened: Callable[[Path], FileBlob | Follower] = FileBlob
    blobs: list[FileBlob | Follower] = field(factory=list)
    requests: list[RegistryRequest] = field(factory=list)
    outcomes: list[object] = field(factory=list)

    def resource(self, sender: FileSender) -> IResource:
        app = Klein()

        @app.route("/<int:first>", methods=["GET", "HEAD"])
        @app.route("/<int:first>/<int:length>", methods=["GET", "HEAD"])
        async def serve(request: RegistryRequest, first: int, length: int | None = None) -> None:
            request.setHeader(
                "X-Padding", "x" * int((request.args or {}).get(b"padding", [b"0"])[0])
            )
            self.requests.append(request)
            self.blobs.append(self.opened(self.path))
            try:
                self.outcomes.append(await sender.send(request, self.blobs[-1], first, length))
            except CancelledError as error:
                self.outcomes.append(error)
                raise

        return leaf(app)


class SenderCase(TestCase):
    """A site on loopback that serves pieces of one file."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.content = random.Random(7).randbytes(BIG)
        self.path.write_bytes(self.content)
        self.served = BlobApp(self.path)
        self.budget = CountingBudget()
        self.clock = Clock()
        self.patience = Patience(STALL)
        self.thread_calls = 0

    def listening(self) -> IStreamServerEndpoint:
        return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")

    def connecting(self, port: int) -> IStreamClientEndpoint:
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port)

    def in_thread(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        self.thread_calls += 1
        return deferToThread(f, *args)

    async def serve(self) -> None:
        """Listen."""
        sender = FileSender(Timers(self.clock), self.in_thread, self.budget, self.patience)
        self.site = RegistrySite(self.served.resource(sender), reactor, AccessLog("off"))
        self.port = await self.listening().listen(self.site)
        self.addCleanup(self.port.stopListening)
        self.addCleanup(self._closed)

    def _closed(self) -> Deferred[None]:
        # Last in, first out: before the port stops, so that no connection outlives its test.
        return Deferred.fromCoroutine(self.site.drain(5))

    async def connect(self, client: Client | None = None) -> Client:
        address = self.port.getHost()
        assert isinstance(address, IPv4Address)
        client = await connectProtocol(self.connecting(address.port), client or Client())
        self.addCleanup(lambda: client.lost)
        self.addCleanup(client.leave)
        return client

    async def until(
        self, condition: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Let the reactor turn until ``condition`` holds."""
        while not condition():
            meanwhile()
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn

    def cannot_tell(self) -> None:
        """Make the kernel one that does not say whether a read would wait."""
        self.patch(sendfile, "_NOWAIT", 0)

    def can_tell(self) -> None:
        """Skip on a filesystem that does not say whether a read would wait (tmpfs)."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            raise SkipTest(f"no RWF_NOWAIT here: {error}") from None
        finally:
            os.close(fd)

    async def check_ended(self) -> None:
        """
        Every blob is closed, once, when no thread reads it, every buffer is given back, and no
        deadline is left.
        """
        await self.until(lambda: all(blob.closings for blob in self.served.blobs))
        self.assertEqual(
            [blob.closings for blob in self.served.blobs], [1] * len(self.served.blobs)
        )
        self.assertEqual(self.budget.used, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def get(self, first: int = 0, length: int = BIG) -> bytes:
        return request("GET", f"/{first}/{length}")

    def check_body(self, body: bytes, first: int = 0, length: int = BIG) -> None:
        self.assertTrue(
            body == self.content[first : first + length], f"{length} bytes from {first} differ"
        )


class GrowingCase(SenderCase):
    """A site that serves pieces of one blob, which comes as the test says."""

    def setUp(self) -> None:
        super().setUp()
        self.fill = Fill(self.path, self.content, BIG)
        self.served.opened = lambda _: Follower(self.fill)

    async def begin(self, sent: bytes | None = None, client: Client | None = None) -> Client:
        """Serve, connect, ask, and take the headers of the answer."""
        await self.serve()
        client = await self.connect(client)
        client.send(self.get() if sent is None else sent)
        await self.headers(client)
        return client

    async def headers(self, client: Client) -> bytes:
        while b"\r\n\r\n" not in client.received:
            await client.take_more()
        return await client.take(client.received.index(b"\r\n\r\n") + 4)

    async def waits(self, beyond: int) -> None:
        """Until a transfer has sent what there was, and waits for more."""
        await self.until(lambda: beyond in self.fill.waiting.values())

    async def has(self, client: Client, size: int) -> None:
        """Until ``client`` has received ``size`` bytes that the test has not taken."""
        await self.until(lambda: len(client.received) == size)

    async def check_cut(self, client: Client) -> None:
        """The connection is dropped, and all is over."""
        await client.lost
        await self.until(lambda: len(self.served.outcomes) == len(self.served.blobs))
        self.assertNotIn(True, self.served.outcomes)
        self.assertEqual(self.fill.waiting, {})
        await self.check_ended()
        self.assertEqual(self.flushLoggedErrors(), [])


class OverTLS(SenderCase):
    """The same through TLS, where the bytes pass through this process."""

    def setUp(self) -> None:
        super().setUp()
        self.certificate = KeyPair.generate(size=2048).selfSignedCert(1, CN="localhost")

    def listening(self) -> IStreamServerEndpoint:
        options = self.certificate.options()
        return SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")

    def connecting(self, port: int) -> IStreamClientEndpoint:
        return SSL4ClientEndpoint(reactor, "127.0.0.1", port, CertificateOptions())


class RelayCase(WireCase):
    """A site in memory that serves pieces of one file, which pass through this process."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())
        self.content = random.Random(8).randbytes(1_000_000)
        self.path.write_bytes(self.content)
        self.served = BlobApp(self.path)
        self.budget = CountingBudget()
        self.patience = Patience(STALL)

    def cannot_tell(self) -> None:
        """Make the kernel one that does not say whether a read would wait."""
        self.patch(sendfile, "_NOWAIT", 0)

    def serve(self, in_thread: Callable[..., Deferred[Any]] = maybeDeferred) -> None:
        sender = FileSender(Timers(self.clock), in_thread, self.budget, self.patience)
        self.site.resource = self.served.resource(sender)
