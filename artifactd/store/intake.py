"""From a producer into a file: hashing, appending in threads, and flow control."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar, Generic, TypeVar

import msgspec
from attrs import define, field
from cachetools import LRUCache
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IProducer,
    IPushProducer,
    IReactorTime,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import Aside, Serial, offer_nobody, uncancelled
from artifactd.kit.shared import Notes
from artifactd.oci.names import Algorithm, Digest
from artifactd.store.files import Directory, FileOperations, split
from artifactd.store.publication import StagedBlob, Staging

READ = 1024 * 1024
"""Bytes read back at once."""

TURN = 16 * READ
"""The most bytes read back in one turn of a thread."""


class RunningDigest:
    """A hash over bytes that arrive piece by piece, ``length`` of them so far."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.length = 0
        self._hasher = hashlib.new(algorithm)

    def update(self, piece: bytes | memoryview) -> None:
        """Hash the next bytes.  Blocks; lets other threads run."""
        self._hasher.update(piece)
        self.length += len(piece)

    def after(self, pieces: Iterable[bytes | memoryview]) -> RunningDigest:
        """The state after ``pieces`` too; this one stays as it is.  Blocks, as :meth:`update`."""
        state = self.copy()
        for piece in pieces:
            state.update(piece)
        return state

    def copy(self) -> RunningDigest:
        """A copy of the present state."""
        copy = RunningDigest.__new__(RunningDigest)
        copy.algorithm, copy.length = self.algorithm, self.length
        copy._hasher = self._hasher.copy()
        return copy

    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return Digest(self.algorithm, self._hasher.hexdigest())


Stamp = tuple[int, int]
"""
Tells a file from one that had its name before: its inode, and when it was written to last.

Whoever writes to it holds its lock; so it is what it was while its stamp is the same.
"""


class Told(msgspec.Struct, frozen=True):
    """What one process tells the others of an upload: the digest of its first ``length`` bytes."""

    length: int
    digest: str
    stamp: Stamp


class RunningDigests:
    """
    An LRU cache of the hash states of uploads that are not being written to now.

    Bytes of an upload whose state is not cached are read back and hashed.  A state is that of one
    file, as it was written to last: an upload that ends in another process, or can't be published
    there, may be begun anew, with other bytes, before this one knows of it.

    A state can't be given to another process, but its digest can.  A client has several
    connections, each to one worker, and may close an upload by another one than it came by.

    :param limit: how many states are kept.
    :param notes: where the digests of large uploads are told; ``None``: nowhere.
    """

    def __init__(self, limit: int = 1024, notes: Notes | None = None) -> None:
        self._kept: LRUCache[str, tuple[RunningDigest, Stamp]] = LRUCache(limit)
        self._notes = notes

    def keep(self, upload_id: str, running: RunningDigest, stamp: Stamp) -> None:
        """Cache the state of an upload, whose file has ``stamp``."""
        self._kept[upload_id] = running, stamp
        if self._notes is not None and running.length > READ:
            told = Told(running.length, str(running.digest()), stamp)
            self._notes.note(upload_id, Told).update(lambda _: told)

    def told(
        self, upload_id: str, algorithm: Algorithm, length: int, stamp: Stamp
    ) -> Digest | None:
        """
        The digest of all ``length`` bytes of a claimed upload, whose file has ``stamp``, if a
        process of this daemon has hashed them as they came.
        """
        if self._notes is None or length <= READ:
            return None
        told = self._notes.note(upload_id, Told).read()
        if told is None or (told.length, told.stamp) != (length, stamp):
            return None
        digest = Digest.parse(told.digest)
        return digest if digest.algorithm == algorithm else None

    def take(self, upload_id: str, algorithm: Algorithm) -> tuple[RunningDigest, Stamp | None]:
        """
        Take the state of an upload out of the cache; a fresh one, without a stamp, if it has none
        of ``algorithm``.

        Once the upload is claimed, the caller compares its length and the stamp with those of the
        file.
        """
        running, stamp = self._kept.pop(upload_id, (None, None))
        if running is None or running.algorithm != algorithm:
            return RunningDigest(algorithm), None
        return running, stamp

    def forget(self, upload_id: str) -> None:
        """Drop the state of an upload that has ended."""
        self._kept.pop(upload_id, None)


Offer = Callable[[Callable[[], object]], object]

# Fewer bytes than this are hashed sooner than another thread wakes up.
_ASIDE = 256 * 1024

# More pieces than this are joined: writing them one by one would cost more than the copy.
_PIECES = 64


@define(eq=False)
class AppendedFile:
    """
    A file that grows at its end.  All methods block; one call at a time.

    :ivar name: its name in its directory.
    :ivar fd: a descriptor open for reading and writing.
    :ivar size: the offset at which the file ends.
    :ivar handed_over: whether another object closes ``fd``.
    """

    name: str
    fd: int
    size: int
    _files: FileOperations
    handed_over: bool = field(default=False, init=False)

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """
        Write ``pieces``.

        :raises OSError: if not all could be written.  What was written stays.
        """
        self._write([b"".join(pieces)] if len(pieces) > _PIECES else pieces)

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        while pieces:
            written = self._files.write(self.fd, pieces, self.size)
            self.size += written
            pieces = split(pieces, written)[1]

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


@define(eq=False)
class HashedFile(AppendedFile):
    """
    A locked file that grows, in a directory of the store, until it is staged or discarded.

    What is appended is written by one thread, and at the same time hashed by another one, if there
    is a core for that.

    :param offer: gives another thread the chance to call a function: :meth:`Threads.offer`.
    :ivar running: the hash state, over at most ``size`` bytes.
    :ivar ended: whether the file has left its directory.
    """

    running: RunningDigest
    _directory: Directory
    _offer: Offer = field(default=offer_nobody, kw_only=True)
    ended: bool = field(default=False, init=False)

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        first = self.size
        if self.running.length != first:  # what is not hashed is read back later
            super()._write(pieces)
            return
        hashing = Aside(partial(self.running.after, pieces))
        if sum(map(len, pieces)) >= _ASIDE:
            self._offer(hashing.begin)
        try:
            super()._write(pieces)
        except OSError:
            self.running = self.running.after(split(pieces, self.size - first)[0])
            raise
        self.running = hashing.result()

    def catch_up(self, running: RunningDigest) -> None:
        """Read back at most 16 MiB of the bytes that ``running`` has not hashed, and hash them."""
        end = min(self.size, running.length + TURN)
        while running.length < end:
            running.update(self._read(min(READ, end - running.length), running.length))

    def is_there(self) -> bool:
        """Whether the file has neither been staged nor discarded by any process."""
        return not self.ended and self._directory.holds(self.name, os.fstat(self.fd))

    def move(self, staging: Staging, digest: Digest) -> StagedBlob:
        """
        Move it to the staged files, with its lock.

        :raises FileNotFoundError: if it is no longer there.
        """
        if not self.is_there():
            raise FileNotFoundError(errno.ENOENT, "no longer there", self.name)
        name = staging.move_in(self._directory, self.name, digest, self.fd)
        self.ended = self.handed_over = True
        return staging.synced(digest, name, self.fd)

    def _read(self, size: int, offset: int) -> bytes:
        piece = self._files.read(self.fd, size, offset)
        if not piece:
            raise OSError(errno.EIO, "shorter than it was", self.name)
        return piece


async def hashed(file: HashedFile, running: RunningDigest, threads: Serial) -> Digest:
    """
    The digest of ``file``, to which nothing is being written.

    Reads the bytes that ``running`` has not hashed.

    :raises OSError: if it can't be read.
    """
    while running.length < file.size:
        await threads.compute(lambda: file.catch_up(running))
    return running.digest()


BATCH = 960 * 1024
"""
Bytes that are gathered before a thread writes them, unless they are flushed: somewhat less than one
read of the transport brings, the framing of chunks included, so that each read may be a batch.
"""

HIGH_WATER = 2 * BATCH
# Not below a batch, nor what one read brings: else a batch would be waited for with nothing to do.
LOW_WATER = 1024 * 1024
"""Unwritten bytes, including those in the thread, at which the producer is paused and resumed."""

LINGER = 0.003
"""Seconds for which bytes are gathered at most, where there is a clock."""

_F = TypeVar("_F", bound=AppendedFile)


@implementer(IConsumer)
@define(eq=False)
class FileConsumer(Generic[_F]):
    """
    An ``IConsumer`` that appends to a file: a thread writes one batch while the next one gathers.

    Its producer is paused while the disk is slower than it, or the budget of buffers is used up.

    :param gather: bytes of a batch; less if the consumer is flushed or the budget is used up.
    :param clock: with one, bytes are written after :data:`LINGER` seconds at the latest.
    :ivar offset: where the next byte will go: in the blob, from 0.
    :ivar written: the offset up to which bytes are in the file, so that others may read them.
    """

    high_water: ClassVar[int] = HIGH_WATER
    low_water: ClassVar[int] = LOW_WATER

    _file: _F
    _budget: BufferBudget
    _threads: Serial
    _gather: int
    _clock: IReactorTime | None = field(default=None, kw_only=True)
    offset: int = field(init=False)
    written: int = field(init=False)
    # The offset of the producer: less than ``offset`` while it sends bytes again.
    _position: int = field(init=False)
    _backlog: list[bytes] = field(factory=list, init=False)
    _gathered: int = field(default=0, init=False)
    _in_thread: int = field(default=0, init=False)
    _failure: Failure | None = field(default=None, init=False)
    _producer: IPushProducer | None = field(default=None, init=False)
    _held: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False)
    _watching: list[Callable[[int], None]] = field(factory=list, init=False)
    _lingering: IDelayedCall | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.offset = self.written = self._position = self._file.size
        self._budget.join(self)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """``IConsumer``; ``streaming`` is always true."""
        if not streaming:
            raise ValueError("a file takes a push producer")
        if self._producer is not None:
            raise RuntimeError("a file has one producer at a time")
        self._producer, self._paused = IPushProducer(producer), False
        if self._failure is not None:
            self._producer.stopProducing()
        else:
            self._control()

    def unregisterProducer(self) -> None:
        """``IConsumer``."""
        self._producer = None

    def write(self, data: bytes) -> None:
        """``IConsumer``: take ``data``.  After a failure, or the close, it is dropped."""
        if self._failure is not None or self._closed or not data:
            return
        self._backlog.append(data)
        self._gathered += len(data)
        self._position += len(data)
        self.offset = max(self.offset, self._position)
        self._budget.take(self, len(data))
        self._pump()
        self._control()

    def hold(self) -> None:
        """``Buffering``: the budget is used up; write out what is here."""
        self._held = True
        self._pump()
        self._control()

    def go_on(self) -> None:
        """``Buffering``: the budget has room again."""
        self._held = False
        self._control()

    def watch(self, grown: Callable[[int], None]) -> None:
        """Call ``grown`` with :attr:`written` whenever that has grown, in the reactor's thread."""
        self._watching.append(grown)

    async def flush(self) -> int:
        """
        Wait until all that was taken is in the file; :attr:`written` then.

        :raises OSError: if any of it could not be written.
        """
        await self._drained()
        if self._failure is not None:
            self._failure.raiseException()
        return self.written

    async def close(self) -> None:
        """Wait for what is in flight, then close the file.  Further calls do nothing."""
        if not self._closed:
            self._closed = True
            await uncancelled(ensureDeferred(self._close()))

    async def _close(self) -> None:
        await self._drained()
        await self._threads.idle()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._budget.leave(self)
        await self._let_go()

    async def _let_go(self) -> None:
        if not self._file.handed_over:
            await self._threads.run(self._file.close)

    def _drained(self) -> Deferred[None]:
        drained: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(drained)
        self._pump()
        self._tell_if_drained()
        return drained

    def _tell_if_drained(self) -> None:
        if not self._in_thread and not self._backlog:
            waiting, self._waiting = self._waiting, []
            for drained in waiting:
                drained.callback(None)

    def _pump(self) -> None:
        if self._in_thread or not self._backlog:
            return
        if self._gathered >= self._gather or self._waiting or self._budget.pressed:
            self._write_out()
        elif self._clock is not None and self._lingering is None:
            self._lingering = self._clock.callLater(LINGER, self._lingered)

    def _lingered(self) -> None:
        self._lingering = None
        if self._backlog and not self._in_thread:
            self._write_out()

    def _write_out(self) -> None:
        batch, self._backlog = self._backlog, []
        self._in_thread, self._gathered = self._gathered, 0
        writing = self._threads.compute(partial(self._file.append, batch))
        writing.addCallbacks(self._wrote, self._failed)

    def _wrote(self, _: None) -> None:
        size, self._in_thread = self._in_thread, 0
        grown = self._file.size  # read before the next thread changes it
        self._pump()
        self._tell_growth(grown)
        self._budget.release(size)
        self._control()
        self._tell_if_drained()

    def _failed(self, failure: Failure) -> None:
        self._failure = failure
        dropped = self._in_thread + self._gathered
        self._backlog, self._in_thread, self._gathered = [], 0, 0
        self.offset = self._position = self._file.size
        self._tell_growth(self._file.size)
        self._budget.release(dropped)
        if self._producer is not None:
            self._producer.stopProducing()
        self._tell_if_drained()

    def _tell_growth(self, size: int) -> None:
        if size > self.written:
            self.written = size
            for grown in self._watching:
                grown(size)

    def _control(self) -> None:
        """Pause or resume the producer, as the disk and the budget allow."""
        if self._producer is None or self._failure is not None:
            return
        unwritten = self._gathered + self._in_thread
        pause = self._held or unwritten >= (self.low_water + 1 if self._paused else self.high_water)
        if pause and not self._paused:
            self._paused = True
            self._producer.pauseProducing()
        elif self._paused and not pause:
            self._paused = False
            self._producer.resumeProducing()
