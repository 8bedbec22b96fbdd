"""The cache of reads, and the versions of images that tell which of its results are still true."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Hashable, Iterator
from functools import lru_cache
from mmap import mmap
from pathlib import Path
from sqlite3 import Connection
from threading import Lock
from time import monotonic
from typing import Generic, TypeVar
from zlib import crc32

from cachetools import LRUCache

from artifactd.oci.errors import Unavailable

RESULT = 1 << 10
"""Bytes that a result of average size takes in a :class:`ReadCache`, with its key."""

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

Version = tuple[int, int, int]

_SLOTS = 1 << 16
_EVERYTHING = 0  # the slot that all versions rest on
_NUMBER = 8  # bytes
_MENDED = 256  # transactions from one look for what dead writers have left to the next
_CHUNK = 1024  # slots
_LOOK_EVERY = 1.0  # seconds between looks whether the file is still the same

WEBHOOKS = "webhooks"
"""The name whose version changes with the events that wait for webhooks."""

FOLLOWED = {
    "image": ("repository", "name", "known_at"),
    "tag": ("image_id", "name", "manifest_id", "checked_at", "candidate", "candidate_at"),
    "manifest": (
        *("image_id", "digest", "media_type", "artifact_type", "subject", "annotations"),
        *("free_since", "orphaned"),
    ),
    "blob_link": ("image_id", "blob_id", "unheld_since"),
    "blob": ("digest", "size", "lost_at"),
    "origin": ("name", "repository"),
    "webhook_event": ("delivered_at",),
    "ended_upload": ("id",),
}
"""
The tables that cached results are read from, and deliveries, and those of their columns whose
change makes results untrue.  Every row that comes or goes does so too, but those of ``blob``: a
result rests on such a row only while another one refers to it.
"""

# What the triggers say to Versions.follow, by table; {row} is NEW or OLD.
_SAID = {
    "image": "changed_name({row}.repository || '/' || {row}.name)",
    "tag": "changed_image({row}.image_id)",
    "manifest": "changed_image({row}.image_id)",
    "blob_link": "changed_image({row}.image_id)",
    "blob": "changed_everything()",
    "origin": "changed_name({row}.name)",
    "webhook_event": f"changed_name('{WEBHOOKS}')",
    "ended_upload": "changed_name(hex({row}.id))",
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


# Those that were raised and those that followed, of an mmap, which they keep open; and the number
# of the file: versions of one are none of another.
_Numbers = tuple[memoryview, memoryview, int]


class Versions:
    """
    A version of each image that changes with every commit that touches it, in this process or
    another.

    All processes on the catalog map one file.  It has two numbers for each of 65,536 slots, and an
    image's slot is a hash of its name: images that share one only cost each other a read.  A writer
    raises the first number of a slot inside its transaction, where no other process can be, and
    lets the second one follow once the transaction is durable, before its client is told.  A
    version is known only while both are the same.  So a result that was read under a known version
    is true as long as that version is.  docs/architecture.md, "What a commit makes untrue", has the
    reasons.

    A writer that dies between the two leaves an unknown version.  The image's reads are slower
    then, never wrong, until a commit touches the slot, or a writer looks for such slots: with the
    first of every 256 transactions of a process.

    A file that somebody removes or replaces meanwhile is left by each process: with its next commit
    that touches anything, and within a second of its next look at a version.

    :param path: of the file, beside the catalog.
    :param catalog: root makes the file for this one's owner.
    :param seconds: the time, in seconds; never set back.
    """

    def __init__(self, path: Path, catalog: Path, seconds: Callable[[], float] = monotonic) -> None:
        self._path, self._catalog, self._seconds = path, catalog, seconds
        self._closed = False
        self._numbers: _Numbers | None = None
        self._file = (0, 0)  # device and inode
        self._look_at = 0.0
        self._looking = Lock()  # both the reactor's thread and the writer's do
        # Of the transaction that this process has in flight; in the writer's thread only.
        self._images: set[int] = set()
        self._names: set[str] = set()
        self._everything = False
        self._raised: dict[int, int] = {}
        self._raised_in: _Numbers | None = None
        self._transactions = 0

    def __call__(self, name: str) -> Version | None:
        """
        The version of what ``name`` names, an image or an unprefixed name; ``None`` while a commit
        is under way or nothing can be told.  It takes less than a microsecond.
        """
        numbers = self._numbers
        if numbers is None or self._seconds() >= self._look_at:
            if self._closed:
                return None
            try:
                numbers = self._look()
            except OSError:
                return None
        begun, done, file = numbers
        slot = _slot_of(name)
        own, everything = begun[slot], begun[_EVERYTHING]
        if own != done[slot] or everything != done[_EVERYTHING]:
            return None
        return own, everything, file

    def follow(self, writer: Connection) -> None:
        """Have ``writer`` tell here what its transactions touch."""
        writer.create_function("changed_image", 1, self._images.add)
        writer.create_function("changed_name", 1, self._names.add)
        writer.create_function("changed_everything", 0, self._change_everything)
        writer.executescript(_triggers())

    def _change_everything(self) -> None:
        self._everything = True

    def begin(self) -> None:
        """Forget what a transaction that was rolled back has touched."""
        self._images.clear()
        self._names.clear()
        self._everything = False

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
        looks = self._transactions % _MENDED == 0
        if not (slots or looks):
            self._transactions += 1
            return
        try:
            numbers = self._look()
        except OSError as error:
            if not slots:
                return
            raise Unavailable(f"the file {self._path} can't be used: {error}") from error
        self._transactions += 1
        if numbers is not self._raised_in:
            self._raised.clear()  # what a failed commit has raised in a file that is gone
            self._raised_in = numbers
        begun, done, _ = numbers
        if looks:
            # No other writer is in a transaction now.  One that has just ended its own, and lives,
            # lets a smaller number follow, which changes nothing.
            slots.update(_unequal(begun, done))
        for slot in slots:
            self._raised[slot] = begun[slot] = begun[slot] + 1

    def settle(self) -> None:
        """
        Make the versions known again, now that the transaction is durable, and what an earlier one
        had made unknown, whose commit has failed.
        """
        if not self._raised:
            return
        assert self._raised_in is not None  # it was opened to raise them
        _, done, _ = self._raised_in
        for slot, number in self._raised.items():
            # Another process may have raised and settled the slot since.
            if done[slot] < number:
                done[slot] = number
        self._raised.clear()

    def _look(self) -> _Numbers:
        """
        Return the numbers of the file that is there now; make one if there is none.

        :raises OSError: if that can't be done.
        """
        with self._looking:
            try:
                found = os.stat(self._path)
            except FileNotFoundError:
                found = None
            numbers = self._numbers
            is_same = found is not None and self._file == (found.st_dev, found.st_ino)
            if numbers is None or not is_same:
                file = 0 if numbers is None else numbers[2] + 1
                numbers = self._numbers = (*self._open(), file)
            self._look_at = self._seconds() + _LOOK_EVERY
            return numbers

    def _open(self) -> tuple[memoryview, memoryview]:
        size = 2 * _SLOTS * _NUMBER
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:  # as SQLite does with its own files
                owner = os.stat(self._catalog)
                os.fchown(file, owner.st_uid, owner.st_gid)
            # A page of a mapped file that finds no room on the disk would kill the process.
            opened = os.fstat(file)
            if opened.st_size < size:
                os.posix_fallocate(file, 0, size)
            numbers = memoryview(mmap(file, size)).cast("Q")
        finally:
            os.close(file)
        self._file = opened.st_dev, opened.st_ino
        return numbers[:_SLOTS], numbers[_SLOTS:]

    def close(self) -> None:
        """Tell no version any more."""
        self._closed = True
        self._numbers = None


def _unequal(begun: memoryview, done: memoryview) -> Iterator[int]:
    """The slots whose numbers differ."""
    for start in range(0, _SLOTS, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        if bytes(begun[chunk]) != bytes(done[chunk]):
            yield from (slot for slot in range(*chunk.indices(_SLOTS)) if begun[slot] != done[slot])


@lru_cache(8192)
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

    def put(self, key: _K, result: _V) -> None:
        """Keep a result that is known without a read: nothing could have made it untrue yet."""
        version = self._versions(self._name(key))
        if version is not None:
            self._results[key] = (version, result)

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
