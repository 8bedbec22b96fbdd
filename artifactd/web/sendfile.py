"""Blobs as the bodies of responses, with ``os.sendfile`` where the transport allows it."""
# twisted.web is half annotated: most of Request is not.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Protocol

from attrs import frozen
from twisted.internet import tcp
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IPullProducer,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from zope.interface import implementer

from artifactd.storage.interfaces import OpenBlob
from artifactd.web.request import RegistryRequest
from artifactd.web.transfer import BlobReader, InThread, Transfer

# All sizes are in bytes.
SMALL = 64 * 1024  # up to here a body is read at once and written with its headers
_AT_A_TIME = 512 * 1024  # per wake-up of one connection: fairness to the others
_PIECE = 64 * 1024  # where bytes pass through this process
_WINDOW = 4 * 1024 * 1024  # how far a cold file is read ahead
_UNSENT = 128 * 1024  # how much the kernel takes from us beyond what is on its way


class Budget(Protocol):
    """The transfer buffers that all connections share."""

    def acquire(self, size: int) -> Deferred[None]:
        """Wait for ``size`` bytes of it.  May be cancelled."""

    def release(self, size: int) -> None:
        """Give ``size`` bytes back."""


@frozen
class FileSender:
    """
    Sends blobs as response bodies.

    :param in_thread: calls a function with arguments in a thread, as ``deferToThread`` does.
    :param stall: seconds after which a client that takes nothing is dropped.
    :param in_memory: whether blobs lie in memory anyway, on a filesystem that can't be asked.
    """

    clock: IReactorTime
    in_thread: InThread
    budget: Budget
    stall: float = 60.0
    in_memory: bool = False

    async def send(self, request: RegistryRequest, blob: OpenBlob, first: int, length: int) -> bool:
        """
        Send the headers set on ``request`` and ``length`` bytes of ``blob`` from ``first`` on.

        Closes ``blob`` in every case, when no thread reads it any more.  ``True`` means that all
        bytes are with the connection and the request can be finished; ``False`` that the client
        is gone, or has been dropped, and nothing is left to do.  A client never gets a complete
        response with bytes missing.
        """
        reader = BlobReader(blob, self.in_thread, self.in_memory)
        try:
            if request.gone:
                return False
            request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % length])
            if request.method == b"HEAD" or request.code in NO_BODY_CODES or not length:
                request.write(b"")
                return True
            if length <= SMALL:
                content = reader.cached(first, length) or await reader.read(first, length)
                if len(content) == length:
                    request.write(content)
                    return not request.gone
                # The file is shorter than it was, which the transfer will meet as well.
            request.write(b"")
            transfer: Transfer
            if _possible(request):
                transfer = _Sendfile(request, reader, first, length)
            else:
                transfer = _Relay(request, reader, first, length, self.budget)
            return await transfer.start(self.clock, self.stall)
        finally:
            reader.close()


def _possible(request: RegistryRequest) -> bool:
    """Whether the socket itself can be written to, in the order of what the channel writes."""
    transport = request.channel.transport
    return (
        hasattr(os, "sendfile")
        and isinstance(transport, tcp.Connection)
        and not ISSLTransport.providedBy(transport)
        and transport.producer is request.channel
    )


@implementer(IPullProducer)
class _Sendfile(Transfer):
    """
    A pull producer on the TCP transport itself, which asks for more when its own buffer is empty.

    A file that is not in the page cache is read ahead in a thread, so that ``sendfile`` does not
    wait for the disk.
    """

    _first = True
    _taken_over = False
    _ahead = 0  # up to here the file can be sent without waiting
    _reading = False
    _cold = False

    def register(self) -> None:
        with suppress(OSError, AttributeError):  # a UNIX socket; not Linux
            self.transport.getHandle().setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT
            )
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, False)

    def unregister(self) -> None:
        self.transport.unregisterProducer()
        self.transport.registerProducer(self.channel, True)

    def resumeProducing(self) -> None:
        if self._first:
            # Called by registerProducer: the headers may be in the buffer, or sent long ago.
            self._first = False
            self.transport.startWriting()
            return
        if not self._taken_over:
            # The transport may have paused the channel before; its "go on" has come to us.
            self._taken_over = True
            self.channel.resumeProducing()
        ready = self._ready()
        if ready > 0:
            self._send(min(ready, _AT_A_TIME))

    def stopProducing(self) -> None:
        """The connection is lost; the request is told next, and tells us."""

    def _send(self, count: int) -> None:
        try:
            sent = os.sendfile(self.transport.fileno(), self.reader.fileno(), self.offset, count)
        except BlockingIOError:
            self.transport.startWriting()
            return
        except OSError as error:
            self.cut(str(error))
            return
        if not sent:
            self.cut("the file is shorter than it was")
            return
        self.request.sentLength += sent
        self.advance(sent)
        if self.offset == self.end:
            self.complete()
        else:
            self.transport.startWriting()

    def _ready(self) -> int:
        """How many bytes can be sent without waiting for the disk; has more read if need be."""
        if self._ahead <= self.offset and not self._reading:
            count = min(_AT_A_TIME, self.end - self.offset)
            if self.reader.is_cached(self.offset, count):
                self._ahead = self.offset + count
                self._cold = False
            else:
                self._cold = True
                self._read_ahead(self.offset)
        elif self._cold and not self._reading and self._ahead - self.offset < _WINDOW:
            self._read_ahead(self._ahead)
        return self._ahead - self.offset

    def _read_ahead(self, first: int) -> None:
        until = min(first + _WINDOW, self.end)
        if first < until:
            self._reading = True
            reading = self.reader.read_ahead(first, until - first)
            reading.addCallbacks(self._was_read, self._failed, callbackArgs=(until,))

    def _was_read(self, _: None, until: int) -> None:
        self._reading = False
        self._ahead = until
        if not self.ended:
            self.progress()
            self.transport.startWriting()

    def _failed(self, failure: Failure) -> None:
        self.cut(failure.getErrorMessage())


@implementer(IPushProducer)
class _Relay(Transfer):
    """
    Where the bytes have to pass through this process (TLS): pieces read in a thread, the next when
    the transport has got rid of the one before.
    """

    def __init__(
        self,
        request: RegistryRequest,
        reader: BlobReader,
        first: int,
        length: int,
        budget: Budget,
    ) -> None:
        super().__init__(request, reader, first, length)
        self._budget = budget
        self._granted: Deferred[None] = succeed(None)
        self._resumed: Deferred[None] | None = None

    def register(self) -> None:
        self.request.registerProducer(self, True)
        Deferred.fromCoroutine(self._pump()).addErrback(self._failed)

    def unregister(self) -> None:
        self.request.unregisterProducer()

    def pauseProducing(self) -> None:
        if self._resumed is None:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """The connection is lost; the request is told next, and tells us."""

    def stopped(self) -> None:
        self._granted.cancel()
        self.resumeProducing()  # to its end

    async def _pump(self) -> None:
        while self.offset < self.end:
            size = min(_PIECE, self.end - self.offset)
            self._granted = self._budget.acquire(size)
            await self._granted
            self.progress()
            try:
                if not await self._relay(size):
                    return
            finally:
                self._budget.release(size)
        self.complete()

    async def _relay(self, size: int) -> bool:
        """Send a piece and wait until it is sent; whether there is reason to go on."""
        piece = await self.reader.read(self.offset, size)
        if not self.live():
            return False
        if len(piece) < size:
            raise EOFError("the file is shorter than it was")
        self.request.write(piece)
        self.advance(size)
        if self._resumed is not None:
            await self._resumed
            self.progress()
        return self.live()

    def _failed(self, failure: Failure) -> None:
        self.cut(failure.getErrorMessage())
