"""Sending a reply, with flow control and with its faults."""

from __future__ import annotations

import fcntl
import termios
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.web.server import Request
from zope.interface import implementer

from tests.programs import wait_for
from tests.upstreams.reply import Reply

_PIECE = 256 << 10


async def send(request: Request, reply: Reply, wrote: Callable[[int], None]) -> None:
    """
    Answer ``request`` by ``reply``; ends when all is written, or its connection is to end.

    :param wrote: told how many bytes of body were written, piece by piece.
    """
    if reply.silence is not None:
        await reply.silence.beyond(0)
    if reply.after != -1:
        request.setResponseCode(reply.status)
        request.defaultContentType = None
        for name, value in reply.headers.items():
            request.setHeader(name, value)
        if reply.closing:
            request.clientproto = b"HTTP/1.0"
        elif not reply.chunked and reply.status != 304:
            request.setHeader("Content-Length", str(reply.length + reply.excess))
        request.write(b"")
        if request.method != b"HEAD":
            await _send_body(request, reply, wrote)
    if reply.ending == "finish":
        request.finish()
    elif reply.ending == "close":
        request.loseConnection()
    else:
        transport: Any = request.transport
        await wait_for(lambda: not _unsent(transport))
        transport.abortConnection()


async def _send_body(request: Request, reply: Reply, wrote: Callable[[int], None]) -> None:
    flow = _Flow()
    request.registerProducer(flow, True)
    position, stop = reply.first, reply.stop
    if reply.after is not None:
        stop = min(stop, position + reply.after)
    while position < stop:
        limits = [await gate.beyond(position) for gate in reply.gates]
        for gate in reply.relative:
            upto = await gate.beyond(position - reply.first)
            limits.append(None if upto is None else reply.first + upto)
        await flow.ready()
        end = min(position + _PIECE, stop, *(limit for limit in limits if limit is not None))
        piece = await reply.content.read(position, end - position)
        request.write(_spoilt(piece, position, reply.corrupt))
        wrote(len(piece))
        position += len(piece)
    request.unregisterProducer()


def _spoilt(piece: bytes, position: int, corrupt: int | None) -> bytes:
    """``piece``, which begins at ``position``, with the byte at ``corrupt`` wrong."""
    if corrupt is None or not position <= corrupt < position + len(piece):
        return piece
    spoilt = bytearray(piece)
    spoilt[corrupt - position] ^= 0xFF
    return bytes(spoilt)


def _unsent(transport: Any) -> bool:
    """Whether the peer has still to receive something, which a reset would take away from it."""
    queued = fcntl.ioctl(transport.getHandle(), termios.TIOCOUTQ, bytes(4))
    return any(queued) or bool(transport.dataBuffer or transport._tempDataBuffer)


@implementer(IPushProducer)
class _Flow:
    """Whether the transport takes more."""

    def __init__(self) -> None:
        self._paused: Deferred[None] | None = None

    async def ready(self) -> None:
        while self._paused is not None:
            await self._paused

    def pauseProducing(self) -> None:
        if self._paused is None:
            self._paused = Deferred()

    def resumeProducing(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.callback(None)

    def stopProducing(self) -> None:
        """The request tells its handler that the client has left."""
