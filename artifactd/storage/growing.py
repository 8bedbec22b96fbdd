"""
What the registry asks of a store of blobs that are still coming from an upstream.

Everything that a second process needs to follow a fill, or to take it over, lies in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from attrs import frozen
from twisted.internet.interfaces import IPullProducer, IPushProducer

from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.storage.interfaces import StagedBlob


class Contradicted(Exception):
    """Bytes that came again are not those that came before."""


@frozen
class FillInfo:
    """
    What an upstream has told of a blob, kept beside its bytes.

    :ivar size: in bytes; ``None`` where it didn't say.
    :ivar validator: the strong entity tag for ``If-Range``, or ``None``.
    """

    size: int | None
    validator: str | None = None


class FillState(Enum):
    """What has become of a fill, as its file tells anybody who has it open."""

    GROWING = "growing"  # or left alone: whoever can claim it goes on
    VERIFIED = "verified"  # the file is the blob
    FAILED = "failed"  # the file is unlinked


class GrowingFile(Protocol):
    """A file that grows, open for reading; a descriptor of its own, without the claim."""

    def fileno(self) -> int:
        """A descriptor to read with ``os.pread`` and ``os.sendfile``."""

    def close(self) -> None:
        """Close the descriptor; further calls do nothing."""


class FillView(GrowingFile, Protocol):
    """The fill of some process, seen from outside.  None of it waits for anything."""

    def look(self) -> tuple[FillState, int]:
        """Its state, and then the bytes in its file."""


class Appender(Protocol):
    """
    An ``IConsumer`` whose bytes go into a file, in threads, with flow control: its producer is
    paused while the disk is slower than it, or the process's budget of buffers is used up.  What
    comes is written at once, not gathered: somebody waits for it.

    :ivar offset: where the next byte will go: in the blob, from 0.
    :ivar written: the offset up to which bytes are in the file, so that others may read them.
    """

    offset: int
    written: int

    def registerProducer(self, producer: IPushProducer | IPullProducer, streaming: bool) -> None:
        """``IConsumer``; ``streaming`` is always true."""

    def unregisterProducer(self) -> None:
        """``IConsumer``."""

    def write(self, data: bytes) -> None:
        """``IConsumer``: take ``data``.  Once writing has failed the rest is dropped."""

    def watch(self, grown: Callable[[int], None]) -> None:
        """Call ``grown`` with :attr:`written` whenever that has grown, in the reactor's thread."""

    async def flush(self) -> int:
        """
        Wait until all that was taken is in the file; :attr:`written` then.

        :raises OSError: if any of it could not be written.
        """

    def reader(self) -> GrowingFile:
        """The file, open for reading once more."""

    async def close(self) -> None:
        """Wait for what is in flight, then let go.  Further calls do nothing."""


class FillSession(Appender, Protocol):
    """
    A fill, claimed: nobody else, in any process, appends to it until :meth:`close`, after which
    its bytes stay for whoever claims it next.

    Bytes never change once they are in the file: others may have read them, and sent them on.

    :ivar info: as last described, by this process or another; ``None``: never.
    """

    info: FillInfo | None

    async def describe(self, info: FillInfo) -> None:
        """Keep ``info`` for whoever follows the fill, or takes it over."""

    def restart(self) -> None:
        """
        What is written next is the blob from its first byte again: it is compared up to
        :attr:`offset` (which stays as it is), and appended from there on.  At the first difference
        :meth:`flush` raises :class:`Contradicted`, and the producer is stopped.

        To be called when nothing is in flight (after :meth:`flush`).  A comparison that has not
        come to its end is given up by :meth:`take_extents`.
        """

    @property
    def compared(self) -> bool:
        """Whether, since the last :meth:`restart`, all bytes have come that were here before."""

    async def take_extents(self, until: int | None) -> int:
        """
        Append what lies at :attr:`offset` in the extents of the blob without a gap, at most up to
        the offset ``until``; how many bytes that was.  To be called until it says 0: each call is
        one turn of a thread.  What is written next goes to :attr:`offset`.

        To be called when nothing is in flight (after :meth:`flush`).
        """

    async def next_extent(self) -> int | None:
        """Where the first extent of some length (1 MiB) behind :attr:`offset` begins, or None."""

    async def computed(self) -> Digest:
        """The digest of all bytes, by the blob's algorithm; hashed once as they came."""

    async def stage(self) -> StagedBlob:
        """
        The bytes are verified: sync them and stage them.  From then on every process that follows
        sees :attr:`FillState.VERIFIED`.  What was kept beside them goes.

        :raises OSError: if that fails; bytes that can't be synced are removed.
        """

    async def discard(self) -> None:
        """Remove the bytes and all that is kept beside them; followers see ``FAILED``."""


class ExtentSession(Appender, Protocol):
    """A part of a blob on its way into the extents."""

    async def record(self) -> None:
        """
        :meth:`flush`, then remember that the bytes from the beginning to :attr:`written` are here.
        """


class FillStore(Protocol):
    """Blobs that are coming, by digest; what has come survives the process."""

    async def claim(self, digest: Digest, *, create: bool = True) -> FillSession | None:
        """
        Take the fill of ``digest``, as far as it has come; begin it if there is none.

        ``None`` if another process, or another claim of this one, has it; without ``create`` also
        if there is none.  Never waits for a lock.
        """

    async def view(self, digest: Digest) -> tuple[FillView, FillInfo | None] | None:
        """The fill of ``digest`` and what is known of it, or ``None`` if there is none."""

    async def info(self, digest: Digest) -> FillInfo | None:
        """What is known of a blob that is coming, or of which there are extents."""

    async def is_staged(self, digest: Digest) -> bool:
        """
        Whether some process, this one included, has staged ``digest``, be it from a fill or from an
        upload, and has neither its row yet nor given that up.
        """

    async def find_extent(self, digest: Digest, span: ByteRange) -> GrowingFile | None:
        """A file that has the bytes ``span`` at their offsets, if the extents have all of them."""

    async def add_extent(self, digest: Digest, first: int, info: FillInfo) -> ExtentSession:
        """Begin to keep a part of a blob, from the offset ``first`` on."""

    async def discard(self, digest: Digest) -> None:
        """Remove what there is of a blob, unless somebody has claimed its fill."""

    async def sweep(self, seconds: float) -> int:
        """Remove what nobody has written to for ``seconds`` and nobody holds; how many blobs'."""
