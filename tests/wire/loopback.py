"""A real connection over loopback, where only that shows what happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from artifactd.kit.budget import BufferBudget


class Client(Protocol):
    """
    Keeps what it receives.

    :ivar step: called at each piece received, with how much there is by now.
    :ivar lost: fires when the connection has ended.
    """

    transport: ITCPTransport

    def __init__(self) -> None:
        self.received = bytearray()
        self.lost: Deferred[None] = Deferred()
        self._awaited: tuple[int, Deferred[bytes]] | None = None

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def leave(self) -> None:
        """Drop the connection, if there still is one."""
        if not self.lost.called:
            self.transport.abortConnection()

    def step(self, size: int) -> None:
        """Nothing by default."""

    def take(self, size: int) -> Deferred[bytes]:
        """Wait for ``size`` bytes and remove them from what was received."""
        waiting: Deferred[bytes] = Deferred()
        self._awaited = (size, waiting)
        self._check()
        return waiting

    async def response(self) -> tuple[bytes, bytes]:
        """The next response, whose length has to be declared: headers and body."""
        headers = await self._line(b"\r\n\r\n")
        length = int(headers.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        return headers, await self.take(length)

    async def chunks(self) -> tuple[bytes, bytes]:
        """The next response, which has to be chunked: headers and body, when the last has come."""
        headers = await self._line(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in headers.lower()
        body = b""
        while size := int(await self._line(b"\r\n"), 16):
            body += (await self.take(size + 2))[:-2]
        await self.take(2)
        return headers, body

    async def _line(self, end: bytes) -> bytes:
        while end not in self.received:
            await self.take_more()
        return await self.take(self.received.index(end) + len(end))

    async def take_more(self) -> None:
        """Wait until there is more than now."""
        size = len(self.received) + 1
        self.received[:0] = await self.take(size)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.step(len(self.received))
        self._check()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._awaited is not None:
            self._awaited[1].errback(reason)
            self._awaited = None
        self.lost.callback(None)

    def _check(self) -> None:
        if self._awaited is not None and len(self.received) >= self._awaited[0]:
            (size, waiting), self._awaited = self._awaited, None
            taken = bytes(self.received[:size])
            del self.received[:size]
            waiting.callback(taken)


class OpenFile:
    """
    A file open for reading.

    :ivar closings: how often it has been closed.
    :ivar errors: what reading it has failed with.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.closings = 0
        self.errors: list[OSError] = []
        self.content = None
        self.on_failure: Callable[[OSError], object] | None = self.errors.append
        self.on_close: Callable[[], object] | None = None

    def fileno(self) -> int:
        assert not self.closings, "used after it was closed"
        return self._fd

    def close(self) -> None:
        self.closings += 1
        if self.closings == 1:
            os.close(self._fd)


class FileBlob(OpenFile):
    """A whole :class:`artifactd.store.blobs.OpenBlob` that tells what became of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = self.available = os.fstat(self._fd).st_size

    def wait(self, beyond: int) -> Deferred[None]:
        return succeed(None)


class CountingBudget(BufferBudget):
    """A budget so large that nobody waits, which notes how much of it was used at most."""

    def __init__(self) -> None:
        super().__init__(1 << 40)
        self.most = 0

    def acquire(self, size: int) -> Deferred[None]:
        acquired = super().acquire(size)
        self.most = max(self.most, self.used)
        return acquired
