"""What a recording consists of: what was done to the disk, and what clients were told."""

from __future__ import annotations

from attrs import frozen

Name = tuple[int, str]
"""A name in a directory, which is told by its number."""


@frozen
class Entry:
    """
    A name was given to a file or a directory, or taken away; a renaming does both.

    :ivar number: of what it names from now on, or ``None``.
    :ivar folder: whether that is a directory.
    """

    name: Name
    number: int | None
    folder: bool = False


@frozen
class Wrote:
    """Bytes went into a file."""

    number: int
    offset: int
    content: bytes


@frozen
class Cut:
    """A file has another size."""

    number: int
    size: int


@frozen
class Mode:
    """A file has other permissions."""

    number: int
    mode: int


@frozen
class Synced:
    """fsync(2) or fdatasync(2) has returned, for a file or a directory."""

    number: int


@frozen
class Committing:
    """A transaction of the catalog is about to be committed."""


@frozen
class Committed:
    """
    It is.

    :ivar catalog: the whole database as it is now.
    :ivar durable: whether the commit has been synced (``PRAGMA synchronous`` of ``FULL``).
    """

    catalog: bytes
    durable: bool


@frozen
class Asked:
    """
    A client has asked for a change: from now on ``key`` may have ``content``.

    :ivar key: a path of the API.
    :ivar content: what GET answers then; ``None``: 404.
    """

    key: str
    content: bytes | None


@frozen
class Answered:
    """It was told that this is so."""

    key: str


@frozen
class Released:
    """Nothing is promised of ``key`` any more: it may go, by itself, from now on."""

    key: str


@frozen
class Opened:
    """
    A client was told of an upload session.

    :ivar path: of the API.
    """

    path: str


OnDisk = Entry | Wrote | Cut | Mode | Synced | Committing | Committed
Event = OnDisk | Asked | Answered | Released | Opened
