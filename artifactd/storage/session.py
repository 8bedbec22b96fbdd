"""An upload in the reactor's world: what arrives, what a thread is writing, and flow control."""

from __future__ import annotations

from functools import partial

from attrs import define, field
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.oci.digest import Algorithm, Digest
from artifactd.storage.blobs import FilesystemStagedBlob
from artifactd.storage.budget import BufferBudget
from artifactd.storage.hashing import RunningDigest, RunningDigests
from artifactd.storage.staging import Staging
from artifactd.storage.threads import Serial, outlive
from artifactd.storage.uploads import UploadFile

BATCH = 1024 * 1024
"""Bytes gathered before a thread is worth its while, if nobody is waiting."""

HIGH_WATER = 2 * BATCH
# Not below a batch: less than one would neither be written nor let the producer go on.
LOW_WATER = BATCH
"""Bytes not written yet, the batch in the thread included, that pause and resume the producer."""


@implementer(IConsumer)
@define(eq=False)
class FilesystemUploadSession:
    """
    A claimed upload (:class:`artifactd.storage.interfaces.UploadSession`).

    One batch at a time is hashed and written in a thread while the next one gathers.
    """

    _file: UploadFile
    _staging: Staging
    _digests: RunningDigests
    _budget: BufferBudget
    _threads: Serial
    id: str = field(init=False)
    offset: int = field(init=False)
    _backlog: list[bytes] = field(factory=list, init=False)
    _gathered: int = field(default=0, init=False)
    _in_thread: int = field(default=0, init=False)
    _failure: Failure | None = field(default=None, init=False)
    _producer: IPushProducer | None = field(default=None, init=False)
    _held: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.id, self.offset = self._file.id, self._file.size
        self._budget.join(self)

    # -- IConsumer

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """``IConsumer``; ``streaming`` is always true."""
        if not streaming:
            raise ValueError("an upload takes a push producer")
        if self._producer is not None:
            raise RuntimeError("an upload has one producer at a time")
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
        self.offset += len(data)
        self._budget.take(self, len(data))
        self._pump()
        self._control()

    # -- Buffering

    def hold(self) -> None:
        """The budget is used up: take no more in, and write out what is there."""
        self._held = True
        self._pump()
        self._control()

    def go_on(self) -> None:
        """There is room again."""
        self._held = False
        self._control()

    # -- UploadSession

    async def flush(self) -> int:
        """Wait until all that was written is in the staged bytes; the offset after it."""
        await self._drained()
        if self._failure is not None:
            self._failure.raiseException()
        return self.offset

    async def rollback(self, offset: int) -> None:
        """Cut the staged bytes back to ``offset``, which is not before the offset at the claim."""
        await self._drained()
        await self._threads.run(partial(self._file.cut, offset))
        self.offset = offset

    async def digest(self, algorithm: Algorithm) -> Digest:
        """The digest of all that is staged, read back only where it wasn't hashed as it came."""
        await self.flush()
        running = self._file.running
        if running.algorithm != algorithm:
            running = RunningDigest(algorithm)
        while running.length < self._file.size:
            await self._threads.run(partial(self._file.catch_up, running))
        return running.digest()

    async def stage(self, digest: Digest) -> FilesystemStagedBlob:
        """Sync the bytes and turn them into a staged blob."""
        await self.flush()
        return await self._threads.run(
            partial(self._file.stage, self._staging, digest), FilesystemStagedBlob.abandon
        )

    async def still_there(self) -> bool:
        """Whether the upload has not been discarded since it was claimed."""
        return await self._threads.run(self._file.is_there)

    async def discard(self) -> None:
        """Remove the staged bytes."""
        await self._threads.run(self._file.discard)

    async def close(self) -> None:
        """Wait for what is in flight, then let go of the claim.  Further calls do nothing."""
        if not self._closed:
            self._closed = True
            await outlive(ensureDeferred(self._close()))

    async def _close(self) -> None:
        await self._drained()
        await self._threads.idle()
        self._budget.leave(self)
        if not self._file.ended:
            self._digests.keep(self.id, self._file.running)
        if not self._file.handed_over:
            await self._threads.run(self._file.close)

    # -- flow

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
        if self._gathered >= BATCH or self._waiting or self._budget.pressed:
            batch, self._backlog = self._backlog, []
            self._in_thread, self._gathered = self._gathered, 0
            writing = self._threads.run(partial(self._file.append, batch))
            writing.addCallbacks(self._written, self._failed)

    def _written(self, _: None) -> None:
        size, self._in_thread = self._in_thread, 0
        self._pump()
        self._budget.release(size)
        self._control()
        self._tell_if_drained()

    def _failed(self, failure: Failure) -> None:
        self._failure = failure
        dropped = self._in_thread + self._gathered
        self._backlog, self._in_thread, self._gathered = [], 0, 0
        self.offset = self._file.size
        self._budget.release(dropped)
        if self._producer is not None:
            self._producer.stopProducing()
        self._tell_if_drained()

    def _control(self) -> None:
        """Pause or resume the producer, as the disk and the budget allow."""
        if self._producer is None or self._failure is not None:
            return
        unwritten = self._gathered + self._in_thread
        pause = self._held or unwritten >= (LOW_WATER + 1 if self._paused else HIGH_WATER)
        if pause and not self._paused:
            self._paused = True
            self._producer.pauseProducing()
        elif self._paused and not pause:
            self._paused = False
            self._producer.resumeProducing()
