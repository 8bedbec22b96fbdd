"""A client that sends what it likes, and knows when the registry has nothing more to say."""

from __future__ import annotations

import fcntl
import json
import select
import struct
import termios
import time
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from pathlib import Path
from socket import IPPROTO_TCP, SHUT_WR, TCP_INFO, TCP_NODELAY, create_connection
from typing import Any

from attrs import frozen
from twisted.internet.threads import blockingCallFromThread

from artifactd.web.server.protocol import RegistryRequest, RegistrySite
from tests.programs import reactor

# Seconds after which something hangs.  Nothing waits for them: an end is seen when it comes.
_HANGS = 60.0

_BYTES_RECEIVED = 128  # where it stands in Linux' struct tcp_info


@frozen
class Reply:
    """One answer on a connection."""

    status: int
    body: bytes

    @property
    def name(self) -> str:
        """The image that its error is about; empty if it is about none."""
        try:
            (error,) = json.loads(self.body)["errors"]
            return str(error["detail"]["name"])
        except (ValueError, KeyError, TypeError):
            return ""


class Exchange:
    """
    One connection to ``site``, which runs in this process; to be used in another thread than the
    reactor's.
    """

    def __init__(self, site: RegistrySite, port: int) -> None:
        self._site = site
        self._socket = create_connection(("127.0.0.1", port), timeout=_HANGS)
        self._socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self._port = self._socket.getsockname()[1]
        self._sent = 0

    def send(self, *pieces: bytes) -> None:
        """Send each of ``pieces`` by itself; what the registry has closed to is not sent."""
        for piece in pieces:
            try:
                self._socket.sendall(piece)
                self._sent += len(piece)
            except ConnectionError:
                return

    def end(self) -> bytes:
        """
        All that the registry answers: until it closes, or has handled all it was sent and waits for
        more, which it is told then that there is none.

        :raises AssertionError: if neither comes.
        """
        deadline = time.monotonic() + _HANGS
        while not blockingCallFromThread(reactor, self._settled):
            assert time.monotonic() < deadline, "the registry hangs"
            select.select([], [], [], 0)
        with suppress(OSError):  # reset
            self._socket.shutdown(SHUT_WR)
        received = bytearray()
        try:
            while piece := self._socket.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
        self._socket.close()
        return bytes(received)

    def read_reply(self) -> Reply:
        """The next answer, on a connection that stays."""
        response = HTTPResponse(self._socket, method="GET")
        response.begin()
        return Reply(response.status, response.read())

    def close(self) -> None:
        self._socket.close()

    def _settled(self) -> bool:
        """In the reactor's thread: whether nothing will happen before we do something."""
        mine = [c for c in self._site.channels if c.transport.getPeer().port == self._port]
        if not mine:
            return not self._connecting()
        (channel,) = mine
        transport = channel.transport
        if transport.disconnecting:
            return True
        end = transport.getHandle()
        if _received(end) < self._sent or _unread(end) or transport._isSendBufferFull():
            return False
        if transport._tempDataBuffer or transport.offset < len(transport.dataBuffer):
            return False  # of an answer
        return all(_waits(request) for request in channel.requests)

    def _connecting(self) -> bool:
        """Whether the registry has yet to accept the connection: it has told nobody its end."""
        readable, _, _ = select.select([self._socket], [], [], 0)
        return not readable


def _unread(end: Any) -> int:
    """Bytes that have come, and nobody has read."""
    (size,) = struct.unpack("i", fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4)))
    return int(size)


def _received(end: Any) -> int:
    """Bytes that have come, read or not."""
    (size,) = struct.unpack_from("Q", end.getsockopt(IPPROTO_TCP, TCP_INFO, 192), _BYTES_RECEIVED)
    return int(size)


def _waits(request: Any) -> bool:
    assert isinstance(request, RegistryRequest)
    if request.started is None:
        return True  # of its headers some are missing
    if request.body is None or request.body.complete:
        return False
    return request.answered or request.body._asked


def replies(received: bytes) -> list[Reply]:
    """The answers in what a connection has received, the last perhaps cut off."""
    stream, found = BytesIO(received), []
    while stream.tell() < len(received):
        at = stream.tell()
        response = HTTPResponse(_Kept(stream))  # type: ignore[arg-type]
        try:
            response.begin()
            if response.status == 100:
                continue
            body = response.read()
        except HTTPException as error:
            raise AssertionError(f"no answer: {received[at:]!r}") from error
        found.append(Reply(response.status, body))
    return found


class _Kept:
    """A stream that an ``HTTPResponse`` can't close."""

    def __init__(self, stream: BytesIO) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> Any:
        return _Unclosed(self._stream)


class _Unclosed:
    def __init__(self, stream: BytesIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        pass


class Log:
    """The lines of an access log in JSON, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Those since it was asked last."""
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            lines = stream.read()
        self._offset += len(lines)
        return [json.loads(line) for line in lines.splitlines()]
