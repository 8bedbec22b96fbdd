"""What every way to send a blob has in common: reading it, a deadline, one end."""
# twisted.web is half annotated: most of Request is not.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactd.store.interfaces import OpenBlob
from artifactd.web.request import RegistryRequest

InThread = Callable[..., Deferred[Any]]

# Linux reads at least this much of a cold file at a time, in bytes.
_STRIDE = 128 * 1024
_SCRATCH = 256 * 1024

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


@define(eq=False)
class BlobReader:
    """Reads a blob; closes it when asked to and no thread reads."""

    _blob: OpenBlob
    _in_thread: InThread
    _in_memory: bool = False
    _reading: int = 0
    _closing: bool = False

    @property
    def size(self) -> int | None:
        return self._blob.size

    @property
    def available(self) -> int:
        return self._blob.available

    def wait(self, beyond: int) -> Deferred[None]:
        return self._blob.wait(beyond)

    def fileno(self) -> int:
        return self._blob.fileno()

    def close(self) -> None:
        self._closing = True
        if not self._reading:
            self._blob.close()

    def cached(self, first: int, length: int) -> bytes | None:
        """The bytes, if they can be had without waiting for the disk."""
        if not _NOWAIT:
            return None
        buffer = bytearray(length)
        try:
            got = os.preadv(self._blob.fileno(), [buffer], first, _NOWAIT)
        except OSError:  # some are on disk, or the filesystem can't tell
            return None
        return bytes(buffer) if got == length else None

    def is_cached(self, first: int, length: int) -> bool:
        """Whether a read of these bytes would not wait for the disk, as far as samples tell."""
        if self._in_memory:
            return True
        samples = range(first, first + length, _STRIDE)
        return all(self.cached(sample, 1) is not None for sample in samples)

    def read(self, first: int, length: int) -> Deferred[bytes]:
        """Read in a thread: fewer bytes than ``length`` if the file ends before."""
        return self._run(os.pread, length, first)

    def read_ahead(self, first: int, length: int) -> Deferred[None]:
        """Get bytes into the page cache, in a thread."""
        return self._run(_touch, length, first)

    def _run(self, read: Callable[[int, int, int], Any], length: int, first: int) -> Deferred[Any]:
        # Cancelling what is returned leaves the thread alone, and us waiting for it.
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
        """Reading has failed; sending, too, where the kernel does both: then it may be no fault."""
        if error.errno == errno.EIO:
            self._blob.failed(error)

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


class Transfer:
    """
    The body of one response: bytes of a file that may still grow, a deadline, one end.

    :ivar offset: where the next byte to send is in the blob.
    :ivar end: the offset behind the last one; ``None`` as long as nobody knows.
    :ivar here: the offset before which bytes can be sent, as seen last; at most ``end``.
    """

    _log = Logger()

    def __init__(
        self, request: RegistryRequest, reader: BlobReader, first: int, length: int | None
    ) -> None:
        self.request = request
        self.channel = request.channel
        self.transport = request.channel.transport
        self.reader = reader
        self.offset = first
        self.end = None if length is None else first + length
        self.ended = False
        self._stall = 0.0
        self._clock: IReactorTime
        self._deadline: IDelayedCall | None = None
        self._growth: Deferred[None] | None = None
        self._done: Deferred[bool] = Deferred(self._cancelled)
        self._look()

    def start(self, clock: IReactorTime, stall: float) -> Deferred[bool]:
        """
        Fires with whether all was sent, when the connection is free again or lost.

        :param stall: seconds without progress after which the connection is dropped.
        """
        self.request.notifyFinish().addBoth(self._request_ended)
        self._clock, self._stall = clock, stall
        self._deadline = clock.callLater(stall, self._stalled)
        self.register()
        return self._done

    def live(self) -> bool:
        """Whether there is somebody to send to."""
        return not self.ended

    def register(self) -> None:
        """Become the producer of the connection."""
        raise NotImplementedError

    def unregister(self) -> None:
        """Give the connection back."""
        raise NotImplementedError

    def more(self) -> Deferred[None]:
        """
        Fires once :attr:`here` is further than it is now, or known to be :attr:`end`.

        Until then the client has no deadline, since it is not the client that we wait for.  The
        end of the transfer cancels it.

        :raises EOFError: if the blob ends before what was promised.
        :raises OSError: if the bytes will never come.
        """
        beyond = max(self.offset, self.here)
        self._growth = growth = self.reader.wait(beyond)
        return growth.addCallback(self._grown, beyond)

    def advance(self, count: int) -> None:
        """``count`` more bytes are with the connection."""
        self.offset += count
        self.progress()

    def progress(self) -> None:
        """The client takes bytes, or it is not the client that we wait for."""
        if self._deadline is not None:
            self._deadline.reset(self._stall)
        elif not self.ended:
            self._deadline = self._clock.callLater(self._stall, self._stalled)

    def complete(self) -> None:
        """All bytes are with the connection."""
        self._end()
        self.unregister()
        self._done.callback(True)

    def cut(self, problem: str) -> None:
        """What was promised can't be delivered: the connection has to die."""
        if not self.ended:
            self._log.warn(
                "response to {path} cut off, request {request_id}: {problem}",
                path=self.request.path.decode("latin-1"),
                request_id=self.request.request_id,
                problem=problem,
            )
            self.transport.abortConnection()

    def failed(self, failure: Failure) -> None:
        """:meth:`cut`, with the reason from ``failure``."""
        self.cut(failure.getErrorMessage())

    def stopped(self) -> None:
        """Nothing more is to be sent."""

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
        self._deadline = None
        if self._growth is None:
            self.cut(f"stalled for {self._stall:g} s")

    def _end(self) -> None:
        self.ended = True
        self.stopped()
        if self._growth is not None:
            self._growth.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

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
