"""Reading what is stored to see whether it still is what it was; docs/operating.md, "Scrub"."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from artifactd.oci.digest import Digest


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
