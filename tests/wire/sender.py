"""A site on loopback that serves pieces of a file through a ``FileSender``."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, field
from klein import Klein
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import IResource

from artifactd.web.accesslog import AccessLog
from artifactd.web.request import RegistryRequest
from artifactd.web.sendfile import FileSender
from artifactd.web.site import RegistrySite
from tests.wire.connection import request
from tests.wire.loopback import Client, CountingBudget, FileBlob

STALL = 30.0
BIG = 8 * 1024 * 1024 + 12345


@define
class BlobApp:
    """``/<first>/<length>`` are those bytes of the file at ``path``; and what became of each."""

    path: Path
    blobs: list[FileBlob] = field(factory=list)
    requests: list[RegistryRequest] = field(factory=list)
    outcomes: list[object] = field(factory=list)

    def resource(self, sender: FileSender) -> IResource:
        app = Klein()

        @app.route("/<int:first>/<int:length>", methods=["GET", "HEAD"])
        async def serve(request: RegistryRequest, first: int, length: int) -> None:
            request.setHeader(
                "X-Padding", "x" * int((request.args or {}).get(b"padding", [b"0"])[0])
            )
            self.requests.append(request)
            self.blobs.append(FileBlob(self.path))
            try:
                self.outcomes.append(await sender.send(request, self.blobs[-1], first, length))
            except CancelledError as error:
                self.outcomes.append(error)
                raise

        return app.resource()


class SenderCase(TestCase):
    """A site on loopback that serves pieces of one file."""

    timeout = 60

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.content = random.Random(7).randbytes(BIG)
        self.path.write_bytes(self.content)
        self.served = BlobApp(self.path)
        self.budget = CountingBudget()
        self.clock = Clock()
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
        sender = FileSender(self.clock, self.in_thread, self.budget, STALL)
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

    async def check_ended(self) -> None:
        """Every blob is closed, once, when no thread reads it, and every buffer given back."""
        await self.until(lambda: all(blob.closings for blob in self.served.blobs))
        self.assertEqual(
            [blob.closings for blob in self.served.blobs], [1] * len(self.served.blobs)
        )
        self.assertEqual(self.budget.out, 0)

    def get(self, first: int = 0, length: int = BIG) -> bytes:
        return request("GET", f"/{first}/{length}")

    def check_body(self, body: bytes, first: int = 0, length: int = BIG) -> None:
        self.assertTrue(
            body == self.content[first : first + length], f"{length} bytes from {first} differ"
        )
