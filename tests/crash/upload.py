"""Uploads that are stopped half-way: the session, and a request of which a part is sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Self

from attrs import frozen
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.trial.unittest import TestCase

from tests.process import Daemon
from tests.programs import reactor, wait_for
from tests.wire.loopback import Client

CONTENT = Random("artifactd").randbytes(8 << 20)
"""Enough for several writes to disk while half of it arrives."""


@frozen
class Upload:
    """An upload session into image ``crash``; any daemon on its data can be asked about it."""

    path: str

    @classmethod
    async def start(cls, daemon: Daemon) -> Self:
        """Open one."""
        answer = await daemon.request("POST", "/v2/crash/blobs/uploads/")
        assert answer.status == 202, answer
        return cls((answer.header("Location") or "").partition("?")[0])

    def file(self, data: Path) -> Path:
        """Where its bytes are staged."""
        return data / "uploads" / self.path.rpartition("/")[2]

    async def offset(self, daemon: Daemon) -> int:
        """What its status tells; 1 also for an empty one, which ``Range`` can't say."""
        answer = await daemon.request("GET", self.path)
        assert answer.status == 204, answer
        first, _, last = (answer.header("Range") or "").partition("-")
        assert first == "0", answer
        return int(last) + 1

    async def receiving(self, daemon: Daemon) -> None:
        """Wait until its status tells that bytes are there."""

        async def some_are_there() -> bool:
            return await self.offset(daemon) > 1

        await wait_for(some_are_there)


async def connect(test: TestCase, daemon: Daemon) -> Client:
    """A connection to ``daemon``, closed at the end of the test if it is still open then."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", daemon.port)
    client: Client = await connectProtocol(endpoint, Client())

    async def close() -> None:
        if not client.lost.called:
            client.transport.abortConnection()
        await client.lost

    test.addCleanup(close)
    return client


async def send(
    test: TestCase,
    daemon: Daemon,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    length: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Client:
    """
    Send a request, and await nothing.

    :param length: bytes that are promised; by default those of ``body``.
    """
    client = await connect(test, daemon)
    fields = {
        "Host": daemon.address,
        "Content-Length": str(len(body) if length is None else length),
        **(headers or {}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    client.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body)
    return client


async def status(client: Client) -> int:
    """The status of the next answer, as soon as its first line is there."""
    while b"\r\n" not in client.received:
        await client.take_more()
    return int(client.received.split(b" ", 2)[1])
