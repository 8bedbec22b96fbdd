"""Sends blobs as response bodies, with ``os.sendfile`` where the transport allows it."""
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from attrs import define, field, frozen
from twisted.internet import tcp
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import (
    IPullProducer,
    IPushProducer,
    ISSLTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from zope.interface import implementer

from artifactd.kit.budget import BufferBudget, ShareExhausted, Shares, portion
from artifactd.kit.timers import Deadline, Timers
from artifactd.oci.errors import TooManyRequests
from artifactd.store.blobs import OpenBlob
from artifactd.web.server.limits import ReaderPace
from artifactd.web.server.protocol import RegistryRequest

InThread = Callable[..., Deferred[Any]]

# All sizes are in bytes.

# What all transfers together send in one turn of the reactor, and what they may have in buffers, if
# they are few.  The bounds of each one's part of it follow.
_TOGETHER = 8 * 1024 * 1024
# Sent at a time.
_LEAST_PIECE, _MOST_PIECE = 512 * 1024, 2 * 1024 * 1024
# Buffered by the kernel beyond the bytes on their way.
_LEAST_UNSENT, _MOST_UNSENT = 128 * 1024, 2 * 1024 * 1024
# Passed through this process at a time.
_LEAST_BUFFER, _MOST_BUFFER = 64 * 1024, 256 * 1024

# Linux reads at least this much of a cold file at a time, in bytes.
_STRIDE = 128 * 1024
_SCRATCH = 256 * 1024

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


@define(eq=False)
class BlobReader:
    """Reads a blob, and closes it once it is not wanted and no thread reads it."""

    _blob: OpenBlob
    _in_thread: InThread
    _on_tmpfs: bool = False
    _reading: int = 0
    _closing: bool = False

    @property
    def size(self) -> int | None:
        return self._blob.size

    @property
    def available(self) -> int:
        return self._blob.available

    @property
    def in_memory(self) -> bool:
        """Whether this process has the bytes in memory, apart from the page cache."""
        return self._blob.content is not None

    def wait(self, beyond: int) -> Deferred[None]:
        return self._blob.wait(beyond)

    def fileno(self) -> int:
        return self._blob.fileno()

    def close(self) -> None:
        self._closing = True
        if not self._reading:
            self._blob.close()

    def cached(self, first: int, length: int) -> bytes | None:
        """Return the bytes if they are in the page cache; ``None`` if not, or if unknown."""
        if not _NOWAIT:
            return None
        buffer = bytearray(length)
        try:
            got = os.preadv(self._blob.fileno(), [buffer], first, _NOWAIT)
        except OSError:  # some are on disk, or the filesystem does not tell
            return None
        return bytes(buffer) if got == length else None

    def is_cached(self, first: int, length: int) -> bool:
        """Whether samples of these bytes are in the page cache, so that reading won't wait."""
        if self._on_tmpfs or self.in_memory:
            return True
        samples = range(first, first + length, _STRIDE)
        return all(self.cached(sample, 1) is not None for sample in samples)

    def read(self, first: int, length: int) -> Deferred[bytes]:
        """Read bytes in a thread: fewer than ``length`` if the file ends before."""
        return self._run(os.pread, length, first)

    def read_now(self, first: int, length: int) -> bytes:
        """
        Read bytes that are in memory: fewer than ``length`` if the file ends before.

        :raises OSError: if they can't be read, after all.
        """
        content = self._blob.content
        if content is not None:
            return content[first : first + length]
        return os.pread(self._blob.fileno(), length, first)

    def read_ahead(self, first: int, length: int) -> Deferred[None]:
        """Read bytes into the page cache, in a thread."""
        return self._run(_touch, length, first)

    def _run(self, read: Callable[[int, int, int], Any], length: int, first: int) -> Deferred[Any]:
        # Cancelling the returned Deferred leaves the thread alone; the file stays open for it.
        waiting: Deferred[Any] = Deferred()
        try:
            fd = self._blob.fileno()
        except OSError:
            return fail()
        self._reading += 1
        reading = self._in_thread(read, fd, length, first)
        reading.addBoth(self._returned).chainDeferred(waiting)
        return waiting

    def failed(self, error: OSError) -> None:
        """
        Report ``error`` to the blob's opener if it is one of the disk.

        Other errors of ``sendfile`` may be the connection's.
        """
        if error.errno == errno.EIO and self._blob.on_failure is not None:
            self._blob.on_failure(error)

    def _returned(self, result: object) -> object:
        self._reading -= 1
        if isinstance(result, Failure) and isinstance(result.value, OSError):
            self.failed(result.value)
        if self._closing:
            self.close()
        return result


def _touch(fd: int, length: int, first: int) -> None:
    scratch = bytearray(min(length, _SCRATCH))
    for offset in range(first, first + length, len(scratch)):
        os.preadv(fd, [scratch], offset)


@frozen
class Patience:
    """
    How slow a reader may be before it is cut off.

    :ivar stall: seconds without progress.
    :ivar rate: bytes a second on the average over ``window`` seconds; 0: any number.
    :ivar window: seconds.  Only those count in which the server waits for the client.
    """

    stall: float = 60.0
    rate: float = 0.0
    window: float = 60.0


class Transfer(ABC):
    """
    The body of one response: bytes of a blob that may still grow, sent under a stall timeout and at
    a least rate.

    A file that is not in the page cache is read ahead in a thread, so that nothing waits for the
    disk in the reactor's.

    :ivar offset: the offset in the blob of the next byte to send.
    :ivar end: the offset behind the last byte to send; ``None`` as long as it is not known.
    :ivar here: the offset before which bytes can be sent, as seen last; at most ``end``.
    """

    _log = Logger()

    def __init__(
        self,
        request: RegistryRequest,
        reader: BlobReader,
        first: int,
        length: int | None,
    ) -> None:
        self.request = request
        self.channel = request.channel
        self.transport = request.channel.transport
        self.reader = reader
        self.offset = first
        self.end = None if length is None else first + length
        self.ended = False
        self._stall = 0.0
        self._deadline: Deadline
        self._pace: ReaderPace
        self._turns = self.channel.site.turns
        self._first = self._ahead = first
        self._margin = 0
        self._pending = False
        self._growth: Deferred[None] | None = None
        self._done: Deferred[bool] = Deferred(self._cancelled)
        self._look()

    def start(self, timers: Timers, patience: Patience) -> Deferred[bool]:
        """
        Begin to send.  Fires with whether all was sent, when the connection is free again or lost.
        """
        self._stall = patience.stall
        self._pace = ReaderPace(timers.seconds, patience.rate, patience.window)
        self._deadline = timers.deadline(self._stalled)
        self._deadline.start(self._stall)
        self._turns.join()
        self.request.notifyFinish().addBoth(self._request_ended)
        self.register()
        return self._done

    @abstractmethod
    def register(self) -> None:
        """Become the producer of the connection."""

    @abstractmethod
    def unregister(self) -> None:
        """Give the connection back."""

    def more(self) -> Deferred[None]:
        """
        Wait until :attr:`here` is further than it is now, or known to be :attr:`end`.

        Meanwhile the stall timeout does not apply, since the client is not to blame.  The end of
        the transfer cancels it.

        :raises EOFError: if the blob ends before what was promised.
        :raises OSError: if the bytes will never come.
        """
        beyond = max(self.offset, self.here)
        self._growth = growth = self.reader.wait(beyond)
        return growth.addCallback(self._grown, beyond)

    def part(self, least: int, most: int) -> int:
        """Return this transfer's part of :data:`_TOGETHER`, from ``least`` to ``most``."""
        return portion(self._turns.transfers, _TOGETHER, least, most)

    @property
    def piece(self) -> int:
        """The most bytes to send at a time."""
        return self.part(_LEAST_PIECE, _MOST_PIECE)

    @abstractmethod
    def step(self) -> None:
        """Send a piece, as the turn of this transfer has come."""

    def advance(self, count: int) -> None:
        """Note that ``count`` more bytes have been handed to the connection."""
        self.offset += count
        self.progress()

    def progress(self) -> None:
        """Restart the stall timeout: the client takes bytes, or is not to blame for the wait."""
        if not self.ended:
            self._deadline.start(self._stall)

    def wait_for_client(self) -> None:
        """Note that the client has to take something before more can be sent."""
        self._pace.wait()

    def client_took(self) -> bool:
        """Note that the client has taken something.  Returns whether the transfer goes on."""
        if self._pace.is_too_slow(self.offset - self._first):
            self.cut("the client takes it too slowly")
            return False
        return not self.ended

    def complete(self) -> None:
        """End the transfer: all bytes have been handed to the connection."""
        self._end()
        self.unregister()
        self._done.callback(True)

    def cut(self, problem: str) -> None:
        """Drop the connection: the rest of the response can't be delivered."""
        if not self.ended:
            self._log.warn(
                "response to {path} cut off, request {request_id}: {problem}",
                path=self.request.path.decode("latin-1"),
                request_id=self.request.request_id,
                problem=problem,
            )
            self.transport.abortConnection()

    def failed(self, failure: Failure) -> None:
        """Drop the connection for the reason in ``failure``."""
        self.cut(failure.getErrorMessage())

    def ready(self) -> int:
        """
        Return how many bytes can be sent without waiting for the disk or for the blob to grow.

        If there are none, :meth:`go_on` is called when there are; if they are few, more are read
        ahead.
        """
        if self._ahead <= self.offset + self._margin and not self._pending:
            self._look_ahead()
        return self._ahead - self.offset

    @abstractmethod
    def go_on(self) -> None:
        """Send what has become ready."""

    @abstractmethod
    def stopped(self) -> None:
        """Give up what is still under way at the end of the transfer."""

    # ``_ahead`` is the offset up to which the blob can be read without waiting for the disk;
    # ``_margin`` how far ahead of the client it is read: far in a cold file; ``_pending`` whether
    # the transfer waits for a read ahead, or for the blob to grow.

    def _look_ahead(self) -> None:
        first = self._ahead
        count = min(self.piece, self.here - first)
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
            self.go_on()

    def _look(self) -> None:
        if self.end is None:
            self.end = self.reader.size
        available = self.reader.available
        self.here = available if self.end is None else min(available, self.end)

    def _grown(self, _: None, beyond: int) -> None:
        self._growth = None
        self._look()
        if self.here <= beyond and self.here != self.end:
            raise EOFError("the blob is shorter than promised")
        self.progress()

    def _stalled(self) -> None:
        if self._growth is None:
            self.cut(f"stalled for {self._stall:g} s")

    def _end(self) -> None:
        self.ended = True
        self._turns.leave(self.step)
        self.stopped()
        if self._growth is not None:
            self._growth.cancel()
        self._deadline.cancel()

    def _request_ended(self, outcome: Failure | None) -> None:
        if self.ended:
            return
        if outcome is None:
            self.cut("finished before its end")
        self._end()
        self._done.callback(False)

    def _cancelled(self, _: Deferred[bool]) -> None:
        self._end()
        self.transport.abortConnection()


@implementer(IPushProducer)
class Relay(Transfer):
    """
    Sends pieces that it reads, each when the transport has sent the one before: for TLS, and for
    the chunks of a blob whose length is not known yet.

    It takes a buffer of the budget only while it has a piece to send.
    """

    def __init__(
        self,
        request: RegistryRequest,
        reader: BlobReader,
        first: int,
        length: int | None,
        budget: BufferBudget,
    ) -> None:
        super().__init__(request, reader, first, length)
        self._budget = budget
        self._most = _LEAST_BUFFER
        self._turn: Deferred[None] | None = None
        self._granted: Deferred[None] = succeed(None)
        self._resumed: Deferred[None] | None = None
        self._waiting: Deferred[None] | None = None

    def register(self) -> None:
        if not self.reader.in_memory:
            self._most = self.part(_LEAST_BUFFER, _MOST_BUFFER)
        self.request.registerProducer(self, True)
        Deferred.fromCoroutine(self._pump()).addErrback(self.failed)

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
        """The connection is lost: the request ends next, and with it the transfer."""

    def go_on(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopped(self) -> None:
        self._granted.cancel()
        # So that the pump ends.
        self.resumeProducing()
        self.go_on()
        self.step()

    def step(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.callback(None)

    async def _pump(self) -> None:
        if self.end is None:
            await self._begin_unmeasured()
        while self.offset != self.end:
            size = min(self._most, self.ready())
            if not size:
                # They may have come by now, or the transfer may have failed.
                if self._pending and not self.ended:
                    self._waiting = Deferred()
                    await self._waiting
                if self.ended:
                    return
                continue
            if self._turns.crowded:
                self._turn = Deferred()
                self._turns.ask(self.step)
                await self._turn
                if self.ended:
                    return
            self._granted = self._budget.acquire(size)
            await self._granted
            self.progress()
            try:
                self._relay(size)
            finally:
                self._budget.release(size)
            if self._resumed is not None:
                self.wait_for_client()
                await self._resumed
                self.progress()
            if self.ended or not self.client_took():
                return
        self.complete()

    async def _begin_unmeasured(self) -> None:
        if self.request.clientproto == b"HTTP/1.1":
            self.request.write(b"")
            return
        # HTTP/1.0 has no chunks: the body would end where the connection does, cut off or not.
        while self.end is None:
            await self.more()
        length = self.end - self.offset
        self.request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % length])
        self.request.write(b"")

    def _relay(self, size: int) -> None:
        """Hand a piece to the transport."""
        try:
            piece = self.reader.read_now(self.offset, size)
        except OSError as error:
            self.reader.failed(error)
            raise
        if len(piece) < size:
            raise EOFError("the file is shorter than it was")
        self.request.write(piece)
        self.advance(size)


SMALL = 64 * 1024  # a body of up to this size is read at once and written with its headers
_WINDOW = 4 * 1024 * 1024  # how far a cold file is read ahead

# Seconds after which a client that reads too few of its large answers may try again.
_RETRY_SECONDS = 5


@frozen
class FileSender:
    """
    Sends blobs as response bodies.

    :param in_thread: calls a function with arguments in a thread, as ``deferToThread`` does.
    :param patience: how slow a client may be, unless the blob has no more bytes to send yet.
    :param in_memory: whether the filesystem keeps all blobs in memory, and does not tell.
    :param answers: the memory for answers of more than :data:`SMALL` bytes that are no blobs.
    """

    timers: Timers
    in_thread: InThread
    budget: BufferBudget
    patience: Patience = Patience()
    in_memory: bool = False
    answers: Shares = field(factory=lambda: Shares(8 << 20, 4 << 20, 256, 32 << 20))

    def has_room(self, request: RegistryRequest, size: int) -> bool:
        """Whether an answer of ``size`` bytes would not wait in :meth:`room`."""
        return self.answers.has_room(request.owner, min(size, self.answers.share))

    @asynccontextmanager
    async def room(self, request: RegistryRequest, size: int) -> AsyncIterator[None]:
        """
        Wait for the memory of an answer of ``size`` bytes, and keep it until the end of the
        context.

        An answer larger than an owner's share takes the whole share.

        :raises TooManyRequests: if too many answers to the owner of ``request`` wait already.
        """
        size = min(size, self.answers.share)
        owner = request.owner
        try:
            granted = self.answers.acquire(owner, size)
        except ShareExhausted:
            raise TooManyRequests(
                f"too many large answers to {owner} are not read: read those first, and try again"
                f" in {_RETRY_SECONDS} s",
                None,
                {"Retry-After": str(_RETRY_SECONDS)},
            ) from None
        await granted
        try:
            yield
        finally:
            self.answers.release(owner, size)

    async def send(
        self, request: RegistryRequest, blob: OpenBlob, first: int, length: int | None
    ) -> bool:
        """
        Send the headers set on ``request`` and ``length`` bytes of ``blob`` from ``first`` on, as
        they become available; with ``None`` all bytes up to the end, wherever that will be.

        The headers go at once.  Without a length they go without ``Content-Length``, and the body
        is chunked (RFC 9112, 7.1); to a client of HTTP/1.0 they wait until the length is known.

        Closes ``blob`` in every case, when no thread reads it any more.  Returns ``True`` when all
        bytes have been handed to the connection and the request can be finished; ``False`` when the
        client is gone, or has been dropped.  A client never gets a complete response with bytes
        missing.
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
                return await unmeasured.start(self.timers, self.patience)
            if length <= SMALL and first + length <= blob.available:
                if blob.content is not None:
                    content = reader.read_now(first, length)
                else:
                    content = reader.cached(first, length) or await reader.read(first, length)
                if len(content) == length:
                    request.write(content)
                    return not request.gone
                # The file is shorter than it was, which the transfer will meet as well.
            request.write(b"")
            transfer: Transfer
            if blob.content is None and _possible(request):
                transfer = _Sendfile(request, reader, first, length)
            else:
                transfer = Relay(request, reader, first, length, self.budget)
            return await transfer.start(self.timers, self.patience)
        finally:
            reader.close()


def _possible(request: RegistryRequest) -> bool:
    """Whether bytes can go to the socket itself, after all that the channel has written."""
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
    Sends by ``os.sendfile``, as a pull producer on the TCP transport, which asks for more when its
    own buffer is empty.

    When all that is available has been sent, the transport is left alone until there is more.
    """

    _begun = False
    _taken_over = False

    def register(self) -> None:
        unsent = self.part(_LEAST_UNSENT, _MOST_UNSENT)
        with suppress(OSError, AttributeError):  # a UNIX socket; not Linux
            self.transport.getHandle().setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent
            )
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, False)

    def stopped(self) -> None:
        """Nothing is under way between two turns."""

    def unregister(self) -> None:
        self.transport.unregisterProducer()
        self.transport.registerProducer(self.channel, True)

    def resumeProducing(self) -> None:
        if not self._begun:
            # Called by registerProducer: the headers may be in the buffer, or sent already.
            self._begun = True
            self.go_on()
            return
        if not self.client_took():
            return
        if not self._taken_over:
            # The transport may have paused the channel before; it resumes only this producer.
            self._taken_over = True
            self.channel.resumeProducing()
        self._turns.ask(self.step)

    def step(self) -> None:
        ready = self.ready()
        if ready > 0:
            self._send(min(ready, self.piece))

    def stopProducing(self) -> None:
        """The connection is lost: the request ends next, and with it the transfer."""

    def _send(self, count: int) -> None:
        try:
            sent = os.sendfile(self.transport.fileno(), self.reader.fileno(), self.offset, count)
        except BlockingIOError:
            self.go_on()
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
            self.go_on()
        elif self.offset == self.end:
            self.complete()
        else:
            self._wait()

    def go_on(self) -> None:
        """Let the transport call :meth:`resumeProducing` when the client has taken enough."""
        self.wait_for_client()
        self.transport.startWriting()
