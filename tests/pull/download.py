"""A client that reads what comes, as it comes, in the reactor's thread."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.programs import reactor


class Download(Protocol):
    """
    One GET, on a connection of its own.

    :ivar status: of the answer; 0 before it has begun.
    :ivar headers: their names in lower case; those that come twice are joined.
    :ivar count: bytes of the body so far.
    :ivar body: those bytes, unless they are not kept.
    :ivar whole: all of the body has come, by its length or its last chunk.
    :ivar ended: the connection has ended.
    """

    transport: Any

    def __init__(self, keep: bool) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.count = 0
        self.body = bytearray()
        self.whole = self.ended = False
        self._keep = keep
        self._hash = hashlib.sha256()
        self._raw = bytearray()
        self._chunk: int | None = None  # what is missing of it, its end of line included
        self._waiting: list[tuple[int | None, Deferred[Download]]] = []

    @classmethod
    async def start(
        cls,
        test: TestCase,
        port: int,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        version: str = "1.1",
        keep: bool = True,
    ) -> Self:
        """Ask for ``path``; the answer is not waited for.  It leaves with the test."""
        endpoint = HostnameEndpoint(reactor, "127.0.0.1", port)
        self = cls(keep)
        await connectProtocol(endpoint, self)
        test.addCleanup(self.leave)
        lines = [f"GET {path} HTTP/{version}", "Host: 127.0.0.1", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode())
        return self

    # -- for the test

    @property
    def encoded(self) -> str:
        """The SHA-256 of the body so far, in hex."""
        return self._hash.hexdigest()

    @property
    def error(self) -> tuple[int, str, Any]:
        """The status of an error of the spec, its code and its detail."""
        (error,) = json.loads(self.body)["errors"]
        return self.status, error["code"], error.get("detail")

    async def has(self, count: int) -> Download:
        """
        Wait until so many bytes of the body are here (0: the headers).

        :raises AssertionError: if the connection ends before.
        """
        return await self._wait(count)

    async def end(self) -> Download:
        """Wait for the end of the connection."""
        return await self._wait(None)

    async def leave(self) -> None:
        """Break off."""
        if not self.ended:
            self.transport.abortConnection()
            await self.end()

    # -- what comes

    def dataReceived(self, data: bytes) -> None:
        self._raw += data
        if not self.status and not self._begin():
            return
        if self.headers.get("transfer-encoding") == "chunked":
            self._unchunk()
        else:
            self._take(self._raw)
            self._raw.clear()
            self.whole = str(self.count) == self.headers.get("content-length")
        self._tell()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True
        self._tell()

    def _begin(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return False
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status, self._raw = int(status.split()[1]), rest
        for line in lines:
            name, _, value = line.partition(":")
            known = self.headers.get(name.lower())
            self.headers[name.lower()] = value.strip() if known is None else f"{known},{value}"
        return True

    def _unchunk(self) -> None:
        while self._raw and not self.whole:
            if self._chunk is None:
                size, found, rest = self._raw.partition(b"\r\n")
                if not found:
                    return
                self._chunk, self._raw = int(size, 16) + 2, rest
                self.whole = self._chunk == 2
            piece = self._raw[: self._chunk]
            self._take(piece[: max(self._chunk - 2, 0)])
            del self._raw[: len(piece)]
            self._chunk = self._chunk - len(piece) or None

    def _take(self, data: bytearray) -> None:
        self.count += len(data)
        self._hash.update(data)
        if self._keep:
            self.body += data

    # -- who waits

    def _wait(self, count: int | None) -> Deferred[Download]:
        waiting: Deferred[Download] = Deferred()
        self._waiting.append((count, waiting))
        self._tell()
        return waiting

    def _tell(self) -> None:
        for entry in list(self._waiting):
            count, waiting = entry
            reached = self.status and count is not None and self.count >= count
            if not reached and not self.ended:
                continue
            self._waiting.remove(entry)
            if reached or count is None:
                waiting.callback(self)
            else:
                waiting.errback(AssertionError(f"ended after {self.status}, {self.count} bytes"))
