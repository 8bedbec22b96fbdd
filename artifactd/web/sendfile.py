"""Blobs as the bodies of responses, with ``os.sendfile`` where the transport allows it."""
# twisted.web is half annotated: most of Request is not.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import socket
from contextlib import suppress

from attrs import frozen
from twisted.internet import tcp
from twisted.internet.interfaces import IPullProducer, IReactorTime, ISSLTransport
from twisted.web.http import NO_BODY_CODES
from zope.interface import implementer

from artifactd.store.interfaces import OpenBlob
from artifactd.web.relay import Budget, Relay
from artifactd.web.request import RegistryRequest
from artifactd.web.transfer import BlobReader, InThread, Transfer

# All sizes are in bytes.
SMALL = 64 * 1024  # up to here a body is read at once and written with its headers
_AT_A_TIME = 512 * 1024  # per wake-up of one connection: fairness to the others
_WINDOW = 4 * 1024 * 1024  # how far a cold file is read ahead
_UNSENT = 128 * 1024  # how much the kernel takes from us beyond what is on its way


@frozen
class FileSender:
    """
    Sends blobs as response bodies.

    :param in_thread: calls a function with arguments in a thread, as ``deferToThread`` does.
    :param stall: seconds after which a client that takes nothing is dropped, unless it is the blob
        that it waits for.
    :param in_memory: whether blobs lie in memory anyway, on a filesystem that can't be asked.
    """

    clock: IReactorTime
    in_thread: InThread
    budget: Budget
    stall: float = 60.0
    in_memory: bool = False

    async def send(
        self, request: RegistryRequest, blob: OpenBlob, first: int, length: int | None
    ) -> bool:
        """
        Send the headers set on ``request`` and ``length`` bytes of ``blob`` from ``first`` on, as
        they become available; with ``None`` all bytes up to the end, wherever that will be.

        The headers go at once.  Without a length they go without ``Content-Length``, and the body
        is chunked (RFC 9112, 7.1); to a client of HTTP/1.0 they wait until the length is known.

        Closes ``blob`` in every case, when no thread reads it any more.  ``True`` means that all
        bytes are with the connection and the request can be finished; ``False`` that the client
        is gone, or has been dropped, and nothing is left to do.  A client never gets a complete
        response with bytes missing.
        """
        reader = BlobReader(blob, self.in_thread, self.in_memory)
        try:
            if request.gone:
                return False
            if length is None and blob.size is not None:
                length = blob.size - first
            if length is not None:
                request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % length])
            if request.method == b"HEAD" or request.code in NO_BODY_CODES or length == 0:
                request.write(b"")
                return True
            if length is None:
                unmeasured = Relay(request, reader, first, None, self.budget)
                return await unmeasured.start(self.clock, self.stall)
            if length <= SMALL and first + length <= blob.available:
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
                transfer = Relay(request, reader, first, length, self.budget)
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
    wait for the disk.  When all that is available has been sent, the transport is left alone until
    there is more.
    """

    _first = True
    _taken_over = False
    _ahead = 0  # up to here the file can be sent without waiting
    _margin = 0  # how far ahead of the client to look: far in a cold file
    _pending = False  # something is being read ahead, or has yet to come

    def register(self) -> None:
        self._ahead = self.offset
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
            self.reader.failed(error)
            self.cut(str(error))
            return
        if not sent:
            self.cut("the file is shorter than it was")
            return
        self.request.sentLength += sent
        self.advance(sent)
        if self.offset < self.here:
            self.transport.startWriting()
        elif self.offset == self.end:
            self.complete()
        else:
            self._wait()

    def _ready(self) -> int:
        """How many bytes can be sent without waiting for the disk; has more read if need be."""
        if self._ahead <= self.offset + self._margin and not self._pending:
            self._look_ahead()
        return self._ahead - self.offset

    def _look_ahead(self) -> None:
        first = self._ahead
        count = min(_AT_A_TIME, self.here - first)
        if count <= 0:
            if first == self.offset:
                self._wait()
        elif self.reader.is_cached(first, count):
            self._ahead = first + count
            if first == self.offset:
                self._margin = 0
        else:
            self._margin = _WINDOW - 1
            self._read_ahead(first)

    def _read_ahead(self, first: int) -> None:
        self._pending = True
        until = min(first + _WINDOW, self.here)
        reading = self.reader.read_ahead(first, until - first)
        reading.addCallbacks(self._was_read, self.failed, callbackArgs=(until,))

    def _was_read(self, _: None, until: int) -> None:
        self._ahead = until
        self.progress()
        self._go_on()

    def _wait(self) -> None:
        self._pending = True
        self.more().addCallbacks(self._go_on, self.failed)

    def _go_on(self, _: None = None) -> None:
        self._pending = False
        if not self.ended:
            self.transport.startWriting()
