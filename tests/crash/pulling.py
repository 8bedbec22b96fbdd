"""A blob on its way from a test's upstream through a daemon, and clients that follow it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Self

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from artifactd.oci.names import Digest
from artifactd.store.fills import blob_name
from tests.process import Daemon
from tests.programs import PATIENCE, reactor

MIB = 1 << 20
NAME = "library/app"


def blob_path(digest: Digest, image: str = f"docker.io/{NAME}") -> str:
    """Where a daemon has a blob of an image."""
    return f"/v2/{image}/blobs/{digest}"


def fill_file(data: Path, digest: Digest) -> Path:
    """Where a blob grows, as long as it is coming."""
    return data / "fills" / blob_name("docker.io", digest)


def content(size: int) -> bytes:
    """The same ``size`` bytes each time, which repeat nothing."""
    return Random(size).randbytes(size)


class Pull(Protocol):
    """
    A GET of a blob, under way; keeps of its bytes only how many they are, and their digest.

    :ivar status: of the answer; 0 as long as there is none.
    :ivar headers: of the answer, with its status line.
    :ivar received: bytes of the body.
    :ivar length: how many have been promised.
    """

    transport: ITCPTransport

    def __init__(self) -> None:
        self.status = 0
        self.headers = ""
        self.received = 0
        self.length = 0
        self._hash = hashlib.sha256()
        self._head = b""
        self._lost = False
        self._awaited: list[tuple[int, Deferred[None]]] = []

    @classmethod
    async def start(
        cls, test: TestCase, daemon: Daemon, digest: Digest, *, path: str = "", headers: str = ""
    ) -> Self:
        """
        Ask ``daemon`` for a blob, and await nothing.

        :param path: the blob's, if not that of :func:`blob_path`.
        :param headers: more of them, each with its line end.
        """
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", daemon.port)
        self: Self = await connectProtocol(endpoint, cls())
        test.addCleanup(self.leave)
        target = path or blob_path(digest)
        lines = f"GET {target} HTTP/1.1\r\nHost: {daemon.address}\r\nConnection: close\r\n"
        self.transport.write(f"{lines}{headers}\r\n".encode())
        return self

    @property
    def digest(self) -> Digest:
        """Of the bytes received."""
        return Digest.parse(f"sha256:{self._hash.hexdigest()}")

    @property
    def whole(self) -> bool:
        """Whether a client would take it for the whole answer."""
        return self.status == 200 and self.received == self.length

    def reached(self, count: int) -> Deferred[None]:
        """Fires when so many bytes have been received; fails if the connection ends before."""
        reached: Deferred[None] = Deferred()
        self._awaited.append((count, reached))
        self._tell()
        return reached.addTimeout(PATIENCE, reactor)

    async def ended(self) -> Self:
        """Wait until the connection has ended, however it does."""
        if not self._lost:
            end: Deferred[None] = Deferred()
            self._awaited.append((-1, end))
            await end.addTimeout(PATIENCE, reactor)
        return self

    def leave(self) -> None:
        """Drop the connection, if there still is one."""
        if not self._lost:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if not self.status:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self.headers = head.decode()
            self.status = int(self.headers.split(" ", 2)[1])
            length = self.headers.lower().partition("\r\ncontent-length: ")[2].partition("\r\n")[0]
            self.length = int(length)
        self.received += len(data)
        self._hash.update(data)
        self._tell()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._tell()

    def _tell(self) -> None:
        waiting, self._awaited = self._awaited, []
        for count, fired in waiting:
            if (self._lost and count < 0) or (0 <= count <= self.received and self.status):
                fired.callback(None)
            elif self._lost:
                fired.errback(AssertionError(f"it ended after {self.received} bytes"))
            else:
                self._awaited.append((count, fired))
