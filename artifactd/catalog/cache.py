"""The cache of reads, and the versions of images that tell which of its results are still true."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from sqlite3 import Connection, Error
from typing import Generic, TypeVar
from zlib import crc32

from cachetools import LRUCache

from artifactd.oci.errors import Unavailable

RESULT = 1 << 10
"""Bytes that a result of average size takes in a :class:`ReadCache`, with its key."""

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

Version = tuple[int, int]

_SLOTS = 1 << 14
_EVERYTHING = 0  # the slot that all versions rest on
_NUMBER = 8  # bytes

FOLLOWED = {
    "image": ("repository", "name", "known_at"),
    "tag": ("image_id", "name", "manifest_id", "checked_at", "candidate", "candidate_at"),
    "manifest": (
        *("image_id", "digest", "media_type", "artifact_type", "subject", "annotations"),
        "free_since",
    ),
    "blob_link": ("image_id", "blob_id", "unheld_since"),
    "blob": ("digest", "size", "lost_at"),
    "origin": ("name", "repository"),
}
"""
The tables that cached results are read from, and the columns of these whose change makes results
untrue.  Every row that comes or goes does so too, but those of ``blob``: a result rests on such a
row only while another one refers to it.
"""

# What the triggers say to Versions.follow, by table; {row} is NEW or OLD.
_SAID = {
    "image": "changed_name({row}.repository || '/' || {row}.name)",
    "tag": "changed_image({row}.image_id)",
    "manifest": "changed_image({row}.image_id)",
    "blob_link": "changed_image({row}.image_id)",
    "blob": "changed_everything()",
    "origin": "changed_name({row}.name)",
}


def _triggers() -> str:
    """Temporary triggers: other programs on the catalog don't have their functions."""
    script = []
    for table, columns in FOLLOWED.items():
        events: list[tuple[str, list[str]]] = [("UPDATE OF " + ", ".join(columns), ["OLD", "NEW"])]
        if table != "blob":
            events += [("INSERT", ["NEW"]), ("DELETE", ["OLD"])]
        for event, rows in events:
            said = " ".join(f"SELECT {_SAID[table].format(row=row)};" for row in rows)
            name = f"version_{table}_{event.split()[0].lower()}"
            script.append(
                f"CREATE TEMP TRIGGER {name} AFTER {event} ON main.{table} BEGIN {said} END;"
            )
    return "\n".join(script)


class Versions:
    """
    A version of each image that changes with every commit that touches it, in this process or
    another.

    All processes on the catalog map one file.  It has two numbers for each of 16,384 slots, and an
    image's slot is a hash of its name: images that share one only cost each other a read.  A writer
    raises the first number of a slot inside its transaction, where no other process can be, and
    lets the second one follow once the transaction is durable.  A version is known only while both
    are the same.  So a result that was read under a known version is true as long as that version
    is.

    A writer that dies between the two leaves an unknown version.  The image's reads are slower
    then, never wrong, until the next commit that touches the slot or the next start of a process.

    :param path: of the file, beside the catalog.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap | None = None
        self._begun = self._done = memoryview(b"").cast("Q")
        # Of the transaction that this process has in flight; in the writer's thread only.
        self._images: set[int] = set()
        self._names: set[str] = set()
        self._everything = False
        self._raised: dict[int, int] = {}

    def __call__(self, name: str) -> Version | None:
        """
        The version of what ``name`` names, an image or an unprefixed name; ``None`` while a commit
        is under way or nothing can be told.  It takes less than a microsecond.
        """
        if self._map is None:
            try:
                self._open()
            except OSError:
                return None
        slot = _slot_of(name)
        own, everything = self._begun[slot], self._begun[_EVERYTHING]
        if own != self._done[slot] or everything != self._done[_EVERYTHING]:
            return None
        return own, everything

    def follow(self, writer: Connection) -> None:
        """
        Have ``writer`` tell here what its transactions touch; mend what a dead writer has left.
        """
        writer.create_function("changed_image", 1, self._images.add)
        writer.create_function("changed_name", 1, self._names.add)
        writer.create_function("changed_everything", 0, self._change_everything)
        writer.executescript(_triggers())
        with suppress(OSError, Error):  # then the next commits mend it, one slot each
            self._mend(writer)

    def _mend(self, writer: Connection) -> None:
        if self._map is None:
            self._open()
        if self._begun == self._done:
            return
        writer.execute("BEGIN IMMEDIATE")  # nobody else is in a transaction from here on
        for slot in range(_SLOTS):
            if self._begun[slot] != self._done[slot]:
                # Raised, because a writer that lives may have committed and not settled yet.
                self._begun[slot] = self._done[slot] = self._begun[slot] + 1
        writer.execute("COMMIT")

    def _change_everything(self) -> None:
        self._everything = True

    def begin(self) -> None:
        """Forget what a transaction that was rolled back has touched."""
        self._images.clear()
        self._names.clear()
        self._everything = False
        self._raised.clear()

    def announce(self, writer: Connection) -> None:
        """
        Make the versions of what the transaction of ``writer`` has touched unknown, right before
        its commit.

        :raises Unavailable: if the file can't be used: others would go on with what is untrue.
        """
        slots = {_slot_of(name) for name in self._names}
        for image in self._images:
            query = "SELECT repository || '/' || name FROM image WHERE id = ?"
            row = writer.execute(query, (image,)).fetchone()
            if row is not None:  # else the trigger of its own row has told the name
                slots.add(_slot_of(row[0]))
        if self._everything:
            slots.add(_EVERYTHING)
        if slots and self._map is None:
            try:
                self._open()
            except OSError as error:
                raise Unavailable(f"the file {self._path} can't be used: {error}") from error
        for slot in slots:
            self._raised[slot] = self._begun[slot] = self._begun[slot] + 1

    def settle(self) -> None:
        """Make the versions known again, now that the transaction is durable."""
        for slot, number in self._raised.items():
            # Another process may have raised and settled the slot since.
            if self._done[slot] < number:
                self._done[slot] = number
        self._raised.clear()

    def _open(self) -> None:
        size = 2 * _SLOTS * _NUMBER
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        try:
            # A page of a mapped file that finds no room on the disk would kill the process.
            if os.fstat(file).st_size < size:
                os.posix_fallocate(file, 0, size)
            self._map = mmap(file, size)
        finally:
            os.close(file)
        numbers = memoryview(self._map).cast("Q")
        self._begun, self._done = numbers[:_SLOTS], numbers[_SLOTS:]

    def close(self) -> None:
        """Let go of the file; versions are still told, by opening it once more."""
        self._map = None
        self._begun = self._done = memoryview(b"").cast("Q")


def _slot_of(name: str) -> int:
    return crc32(name.encode()) % (_SLOTS - 1) + 1


class ReadCache(Generic[_K, _V]):
    """
    An LRU cache of recent reads.  A commit of any process ends the results that rest on an image
    that it touches.

    :param versions: of the images.
    :param name: returns the name of the image, or the unprefixed name, that the result for a key
        rests on.
    :param limit: bytes of the results that are kept, :data:`RESULT` of them for each one and its
        key.
    :param size: returns how many bytes a result takes beyond that.  One of more than a 64th of
        ``limit`` is not kept.
    """

    def __init__(
        self,
        versions: Callable[[str], Version | None],
        name: Callable[[_K], str],
        limit: int,
        size: Callable[[_V], int] = lambda _: 0,
    ) -> None:
        self._versions = versions
        self._name = name
        self._size = size
        self._largest = limit // 64
        self._results: LRUCache[_K, tuple[Version, _V]]
        self._results = LRUCache(limit, lambda kept: RESULT + size(kept[1]))

    async def get(self, key: _K, read: Callable[[], Awaitable[_V]]) -> _V:
        """
        The cached result for ``key`` if nothing has been committed that it rests on, else the
        result of ``read``.  A cached result comes without a turn of the reactor.
        """
        # Asked before the read: then a commit between the two costs another read.  Asked after it,
        # an old result would be kept under the new version.
        version = self._versions(self._name(key))
        kept = self._results.get(key)
        if kept is not None and kept[0] == version:
            return kept[1]
        result = await read()
        if version is not None and self._size(result) <= self._largest:
            self._results[key] = (version, result)
        return result
