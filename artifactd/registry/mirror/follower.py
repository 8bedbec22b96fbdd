"""A blob that is still being fetched, as its readers in this process see it."""

from __future__ import annotations

import errno
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred, succeed

from artifactd.oci.ranges import ByteRange
from artifactd.store.files import OpenFile

# Bytes at the end of an answer that are held back until the blob is verified.  A shorter answer is
# verified before its headers are sent.
HELD = 64 << 10


@define(eq=False)
class Progress:
    """
    The state of a fill or a part, and a signal when it changes.

    :ivar size: the size of the blob in bytes; ``None`` while it is unknown.
    :ivar answered: whether the upstream has begun to answer.
    :ivar written: the offset before which all bytes are in the file.
    :ivar verified: whether all bytes are there and have the digest.
    :ivar failure: the error that ended it before that.
    """

    size: int | None = None
    answered: bool = False
    written: int = 0
    verified: bool = False
    failure: Exception | None = None
    _waiting: dict[Deferred[None], None] = field(factory=dict, init=False)

    @property
    def ended(self) -> bool:
        """Whether the fetch is verified or has failed: the state is final."""
        return self.verified or self.failure is not None

    def grow(self, written: int) -> None:
        """Note that the file has ``written`` bytes."""
        if written > self.written:
            self.written = written
            self._tell()

    def answer(self, size: int | None) -> None:
        """Note the upstream's answer, and the size if it tells one."""
        if not self.answered or self.size is None:
            self.answered = True
            self.size = self.size if size is None else size
            self._tell()

    def verify(self) -> None:
        """Note that the file is the blob."""
        self.size, self.verified, self.answered = self.written, True, True
        self._tell()

    def fail(self, failure: Exception) -> None:
        """Note that the fetch has failed, unless it has ended before."""
        if not self.ended:
            self.failure = failure
            self._tell()

    def change(self) -> Deferred[None]:
        """A Deferred that fires after the next change; it may be cancelled."""
        changed: Deferred[None] = Deferred(lambda this: self._waiting.pop(this, None))
        self._waiting[changed] = None
        return changed

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for changed in waiting:
            if not changed.called:  # one of them may cancel another
                changed.callback(None)


@define(eq=False)
class SharedFile:
    """An open file with several readers; the last one closes it."""

    _file: OpenFile | SharedFile
    _readers: int = 1

    def share(self) -> SharedFile:
        """Count one more reader."""
        self._readers += 1
        return self

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        """Count one reader less."""
        self._readers -= 1
        if not self._readers:
            self._file.close()


class Share(SharedFile):
    """One follower's share of the file; calls ``left`` when it is closed."""

    def __init__(self, file: SharedFile, left: Callable[[], None]) -> None:
        super().__init__(file)
        self._left = left

    def close(self) -> None:
        super().close()
        self._left()


@define(eq=False)
class Follower:
    """
    One reader of a blob that is being fetched (:class:`artifactd.store.blobs.OpenBlob`).

    :param span: the part that is read; ``None``: all of the blob.
    :param hold: whether to hold back the last 64 KiB of the part until the blob is verified.
    """

    progress: Progress
    _file: SharedFile
    _span: ByteRange | None
    _hold: bool
    on_failure: Callable[[OSError], object] | None = field(default=None, init=False)
    on_close: Callable[[], object] | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def content(self) -> None:
        """``None``: the bytes are in a file."""

    @property
    def size(self) -> int | None:
        """Bytes of the blob; ``None`` while unknown."""
        return self.progress.size

    @property
    def available(self) -> int:
        """The offset before which all bytes may be read."""
        progress = self.progress
        if progress.verified or not self._hold:
            return progress.written
        if self._span is not None:
            return min(progress.written, self._span.last + 1 - HELD)
        if progress.size is not None:
            return min(progress.written, progress.size - HELD)
        return progress.written - HELD

    def wait(self, beyond: int) -> Deferred[None]:
        """Fires when more may be read; an OSError gives the reason if the fill fails."""
        if self.available > beyond or self.progress.verified:
            return succeed(None)
        return Deferred.fromCoroutine(self._beyond(beyond))

    async def _beyond(self, beyond: int) -> None:
        # A loop: Deferreds that wait for each other in a chain are cancelled recursively.
        while not (self.available > beyond or self.progress.verified):
            if self.progress.failure is not None:
                raise OSError(errno.EIO, str(self.progress.failure))
            await self.progress.change()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        """Stop following; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._file.close()
            if self.on_close is not None:
                self.on_close()
