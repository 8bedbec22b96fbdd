"""What the registry asks of a store of bytes; ``tests/contracts`` holds every backend to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer, IPushProducer

from artifactd.oci.digest import Algorithm, Digest

# Reading what is stored to see whether it still is what it was; docs/operating.md, "Scrub".


class Examination(Protocol):
    """
    A published blob that is being hashed, piece by piece; :meth:`close` ends it.

    :ivar size: of its file in bytes, when it was opened.
    :ivar flaw: what is wrong with it, once :meth:`step` has come to the end; ``None``: nothing.
    :ivar is_unreadable: whether that is an error of the disk, which may be over one day.
    """

    digest: Digest
    size: int
    flaw: str | None
    is_unreadable: bool

    async def step(self) -> int:
        """Read and hash the next piece, in a thread; how many bytes that was, 0 at the end."""

    def is_published(self) -> bool:
        """
        Whether what was read is still what is published.  Blocks; called in the catalog's thread,
        inside its write transaction.
        """

    def quarantine(self) -> bool:
        """
        Take what was read out of the store, durably, if it is still what is published; whether it
        was.  It is kept apart with a record of its flaw, and who has it open gets no more of it.
        Blocks; called as :meth:`is_published`.

        :raises OSError: if it can't be moved.
        """

    def close(self) -> None:
        """Close the file; further calls do nothing."""


@frozen
class ScrubPosition:
    """
    How far a round of scrubbing has come.  Times are in seconds since the epoch.

    :ivar shelf: the one of the store that is next; all of them are done where it is ``SHELVES``.
    :ivar after: the text of the last digest there that is done; empty before the first.
    :ivar ended: when the round before this one ended; 0.0 if there was none.
    """

    shelf: int = 0
    after: str = ""
    ended: float = 0.0


class ScrubLock(Protocol):
    """Who of all the processes that use a store scrubs it, and how far that has come."""

    def claim(self) -> bool:
        """
        Be the one who scrubs, until :meth:`release` or the end of the process; whether nobody does
        already.  Blocks.  :raises OSError: if it can't be told.
        """

    def release(self) -> None:
        """Let others scrub."""

    def read(self) -> ScrubPosition:
        """Where to go on; at the beginning where that can't be told.  Blocks."""

    def write(self, position: ScrubPosition) -> None:
        """Remember it, also over a restart; after a crash perhaps an older one.  Blocks."""


SHELVES = 256
"""By the first two digits of the encoded digest."""


class Damaged(OSError):
    """What is published under a digest has other bytes."""


SHELVES = 256
"""By the first two digits of the encoded digest."""


class UploadMissing(Exception):
    """There are no staged bytes under this id."""


class UploadBusy(Exception):
    """
    Another request, of this process or another, is writing to the upload.

    :ivar offset: bytes staged at the time of asking.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class OpenBlob(Protocol):
    """
    A blob open for reading.  Whoever opened it calls :meth:`close`, or hands the descriptor on.

    Its bytes may still be coming (a fill): then those before :attr:`available` may be read.

    :ivar size: in bytes; ``None`` as long as nobody knows.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def available(self) -> int:
        """The offset before which all bytes that the reader may have are here; never shrinks."""

    def wait(self, beyond: int) -> Deferred[None]:
        """
        Fires once :attr:`available` is above ``beyond``, or it is known that the blob ends there.
        May be cancelled.

        :raises OSError: if that will never be.
        """

    def fileno(self) -> int:
        """
        A descriptor to read with ``os.pread`` and ``os.sendfile``, to be asked for before each.

        :raises OSError: if its bytes were found to be wrong since it was opened.
        """

    def failed(self, error: OSError) -> None:
        """Reading with :meth:`fileno` has failed: whoever answers for the bytes may look why."""

    def close(self) -> None:
        """Close the descriptor; further calls do nothing."""


class StagedBlob(Protocol):
    """
    Verified, synced bytes on their way to being a blob.

    The order that no crash and no concurrent deletion can break (architecture.md, "Publication"):
    ``publish``; then, inside the catalog's write transaction that inserts the row, ``confirm``;
    after the commit, in the same thread, ``release``.  If the transaction fails, ``withdraw``.
    """

    digest: Digest
    size: int

    async def publish(self) -> None:
        """Make the bytes visible under their digest, durably, and keep the staged copy."""

    def confirm(self) -> None:
        """
        See that the published name is still there, and publish again if it is not.

        Blocks; called in the catalog's thread, inside its write transaction.
        """

    def release(self) -> None:
        """
        Drop the staged copy: the row is committed.  Blocks; called in the catalog's thread.

        :raises OSError: if it can't be dropped, which a sweep will do then.
        """

    async def withdraw(self, forget: Callable[[Digest, Callable[[], None]], object]) -> None:
        """
        The row could not be written: drop the staged copy.  ``forget`` is
        :meth:`artifactd.catalog.catalog.Catalog.forget_blob`, which decides whether the
        published name goes too.
        """


class BlobStore(Protocol):
    """Immutable bytes by digest, deduplicated over everything that is stored."""

    async def open(self, digest: Digest) -> OpenBlob | None:
        """The blob, or ``None`` if there is none.  :raises OSError: if it can't be read."""

    async def read(self, digest: Digest) -> bytes | None:
        """
        All bytes of a small blob (a manifest), or ``None``.

        :raises Damaged: if its bytes do not have ``digest`` any more.
        :raises OSError: if it can't be read.
        """

    async def stage(self, digest: Digest, content: bytes) -> StagedBlob:
        """Write and sync ``content``, whose digest the caller has computed, without showing it."""

    def remove(self, digest: Digest) -> None:
        """
        Remove a blob's bytes, if they are here; who has it open may go on reading.  Blocks; called
        in the catalog's thread, by :meth:`artifactd.catalog.catalog.Catalog.forget_blob`.

        :raises OSError: if it can't be done now, for one while a copy of the store is made.
        """

    def is_there(self, digest: Digest) -> bool:
        """Whether anything is published under ``digest``.  Blocks, as :meth:`remove`."""

    async def examine(self, digest: Digest, size: int | None = None) -> Examination | None:
        """
        Begin to read a blob to see whether its bytes are right; ``None`` if there is none.

        :param size: what it should have, in bytes: of another one nothing is read.
        :raises OSError: if it can't be opened.
        """

    async def make_durable(self, digest: Digest) -> None:
        """
        See that what is published under ``digest`` outlasts a loss of power, and can be read.

        :raises OSError: if it can't be done; FileNotFoundError: if there is nothing.
        """

    async def expired(self, before: float) -> Sequence[tuple[str, Digest]]:
        """
        What was quarantined before ``before``, in seconds since the epoch: the names of the files,
        and what they should have been.
        """

    async def examine_expired(self, name: str, digest: Digest) -> Examination:
        """Begin to read it once more.  :raises OSError: if it can't be opened, or is gone."""

    async def stage_expired(self, name: str, digest: Digest) -> StagedBlob:
        """Stage it, whose bytes are right after all; it stays in quarantine, too."""

    async def remove_expired(self, name: str) -> None:
        """Remove it and its record."""

    async def sweep(self, forget: Callable[[Digest, Callable[[], None]], object]) -> int:
        """
        Remove what dead processes left staged; how many files went.

        ``forget`` is :meth:`artifactd.catalog.catalog.Catalog.forget_blob`.
        """

    async def published(self, shelf: int, before: float) -> Sequence[tuple[Digest, int]]:
        """
        What is published on one of the :data:`SHELVES`, and was before ``before``, in seconds since
        the epoch, with its size in bytes; whether the catalog lists it or not.
        """

    async def check_writable(self) -> None:
        """:raises OSError: if nothing can be written."""


class CollectionLock(Protocol):
    """Who of all the processes that use a store collects what is of no use in it."""

    def claim(self) -> bool:
        """
        Be the one who collects, until :meth:`release` or the end of the process; whether nobody
        does already.  Blocks.

        :raises OSError: if it can't be told.
        """

    def release(self) -> None:
        """Let others collect."""

    def step(self) -> AbstractContextManager[bool]:
        """
        Whether collection may go on by one step, during which nobody can hold it off; not while
        somebody does.  To be called by who has claimed it; does not block.
        """


class UploadSession(Protocol):
    """
    An upload, claimed: nobody else can write to it until :meth:`close`.

    It is an ``IConsumer``: the bytes written are appended, hashed once on the way in a thread,
    and its producer is paused while the disk is slower than the sender or the process's budget of
    transfer buffers is used up.
    """

    id: str
    offset: int  # bytes staged when claimed, plus those written since, whether on disk yet or not

    def registerProducer(self, producer: IPushProducer | IPullProducer, streaming: bool) -> None:
        """``IConsumer``; ``streaming`` is always true."""

    def unregisterProducer(self) -> None:
        """``IConsumer``."""

    def write(self, data: bytes) -> None:
        """``IConsumer``: take ``data``.  Once writing has failed the rest is dropped."""

    async def flush(self) -> int:
        """
        Wait until all that was written is in the staged bytes; the offset after it.

        :raises OSError: if any of it could not be written; the bytes before it are staged.
        """

    async def rollback(self, offset: int) -> None:
        """Cut the staged bytes back to ``offset``, which is not before the offset at the claim."""

    async def digest(self, algorithm: Algorithm) -> Digest:
        """
        The digest of all that is staged.  Does not read the bytes again when this process has
        hashed them with ``algorithm`` as they came.
        """

    async def stage(self, digest: Digest) -> StagedBlob:
        """
        Sync the bytes and turn them into a staged blob; ``digest`` is theirs, as :meth:`digest`
        told.  Afterwards the upload exists no more (:meth:`close` is still due).

        :raises UploadMissing: if the upload was discarded meanwhile.
        """

    async def still_there(self) -> bool:
        """Whether the upload has not been discarded since it was claimed."""

    async def discard(self) -> None:
        """Remove the staged bytes."""

    async def close(self) -> None:
        """Wait for what is in flight, then let go of the claim."""


class UploadStore(Protocol):
    """The staged bytes of uploads, by id; what is staged survives the process."""

    def create(self, upload_id: str) -> None:
        """
        Begin an empty upload.  Blocks; called in the catalog's thread, inside the transaction that
        inserts its row.

        :raises FileExistsError: if there is one of that id.
        """

    async def begin(self, upload_id: str, algorithm: Algorithm) -> UploadSession:
        """:meth:`create` and :meth:`claim`, for an upload that needs no row."""

    async def claim(self, upload_id: str, algorithm: Algorithm) -> UploadSession:
        """
        Take the upload for writing, to be hashed with ``algorithm``.

        :raises UploadMissing: if there is no such upload.
        :raises UploadBusy: if somebody else holds it.
        """

    async def offset(self, upload_id: str) -> int:
        """Bytes staged so far.  :raises UploadMissing: if there is no such upload."""

    async def discard(self, upload_id: str) -> None:
        """Remove the upload, whoever holds it.  Does nothing if there is none."""

    async def idle(self, seconds: float) -> Iterable[str]:
        """The ids of uploads that nobody has written to for ``seconds`` and nobody holds."""
