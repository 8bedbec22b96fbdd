"""
Memory that all worker processes of one daemon share: what has to hold over all of them.

What stands there is a cache: a daemon that starts begins with nothing.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import secrets
import struct
import weakref
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Generic, Self, TypeVar
from zlib import crc32

import msgspec
from twisted.internet.interfaces import IReactorTime

# The memory: a header, the latest moment of each table, the tables of moments, the tables of notes,
# and the pages.  Pages of it that were never written take no memory.
_HEADER = struct.Struct("@32s16s16s")
_LATEST = 128  # where the latest moments are
_LAYOUT = b"artifactd shared memory 1"
_SECTION = 4096  # bytes; the header, and what others start at a multiple of

# A table of moments: buckets of eight tags and their eight moments.
_WAYS = 8
_BUCKETS = 4096
_BUCKET = 16 * _WAYS  # bytes
_TAGS = struct.Struct(f"@{_WAYS}Q")
_MOMENTS = struct.Struct(f"@{_WAYS}d")
_LOCATED = 4096  # keys whose places are remembered
_STEP = 64.0  # seconds

# A table of notes: buckets of four notes.  A note has a tag, the number of its writing, the time of
# that, the size and the checksum of its text, and the text.
_NOTES = 4
_NOTEBOOK = 512  # buckets
_NOTE = 1024  # bytes
_NOTE_HEAD = struct.Struct("@QQdII")
_NOTE_TAG = struct.Struct("@QQ")

PAGES = 256
"""The most processes of one daemon that have a page."""

PAGE = 256 << 10
"""Bytes of a page."""

# Attempts to get a lock, between which others run.  A process that is stopped while it has the lock
# must stop no other: a count may be wrong then.
_TRIES = 200
_LOCK = struct.Struct("@hhqqi")  # struct flock; fcntl(2)


class Table(IntEnum):
    """The tables of moments.  Keys of one table take no room of another."""

    ADDRESS_RATES = 0
    USER_RATES = 1
    NAME_FAILURES = 2
    ADDRESS_FAILURES = 3


class Notebook(IntEnum):
    """The tables of notes: of what the settings name, of what clients bring up, and of uploads."""

    HOSTS = 0
    URLS = 1
    UPLOADS = 2


_FIRST_NOTE = _SECTION + len(Table) * _BUCKETS * _BUCKET
_FIRST_PAGE = _FIRST_NOTE + len(Notebook) * _NOTEBOOK * _NOTES * _NOTE
_SIZE = _FIRST_PAGE + PAGES * PAGE


class SharedMemory:
    """
    Memory that processes share which have inherited its descriptor.

    Locks on it end with the process that holds them, however it ends.  They exclude other
    processes, and other objects of this class; threads of one process have to take turns by
    themselves.

    :param descriptor: of memory that :meth:`create` has made; it stays the caller's.
    :raises ValueError: if it is other memory, as of another version of the program.
    :ivar descriptor: the same, to be passed on to processes.
    :ivar id: a name of the memory that tells nothing of its secret, in hexadecimal digits.
    :ivar words: all of it, as unsigned integers of 64 bits.
    :ivar doubles: all of it, as floating-point numbers.
    """

    def __init__(self, descriptor: int) -> None:
        # Locks belong to an opening of the file: each object, in each process, needs its own.
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        weakref.finalize(self, os.close, own)
        if os.fstat(own).st_size != _SIZE:
            raise ValueError("memory of another version")
        self.descriptor, self._own = descriptor, own
        self.bytes = mmap.mmap(own, _SIZE)
        layout, name, self._secret = _HEADER.unpack_from(self.bytes)
        if layout.rstrip(b"\0") != _LAYOUT:
            raise ValueError("memory of another version")
        self.id = name.hex()
        view = memoryview(self.bytes)
        self.words, self.doubles = view.cast("Q"), view.cast("d")

    @classmethod
    def create(cls) -> Self:
        """Make new memory.  Its descriptor is closed when the object is gone."""
        descriptor = os.memfd_create("artifactd")
        try:
            os.ftruncate(descriptor, _SIZE)
            header = _HEADER.pack(_LAYOUT, secrets.token_bytes(16), secrets.token_bytes(16))
            os.pwrite(descriptor, header, 0)
            memory = cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(memory, os.close, descriptor)
        return memory

    def hashed(self, key: str) -> tuple[int, int]:
        """
        Return two numbers for ``key``: a tag, never 0, and one that tells where it may stand.

        Without the secret of this memory, made with it, nobody can tell the key, or others that
        stand in the same place.
        """
        text = key.encode(errors="surrogatepass")
        hashed = blake2b(text, key=self._secret, digest_size=16).digest()
        return int.from_bytes(hashed[:8]) or 1, int.from_bytes(hashed[8:])

    def lock(self, at: int) -> None:
        """
        Lock the byte ``at``; go on without a lock where another process keeps it for long.

        :meth:`unlock` it within microseconds.
        """
        for _ in range(_TRIES):
            if self.try_lock(at):
                return
            os.sched_yield()

    def try_lock(self, at: int) -> bool:
        """Lock the byte ``at``, for good, unless another process has it; return whether it did."""
        try:
            self._control(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, at)
        except BlockingIOError:
            return False
        return True

    def unlock(self, at: int) -> None:
        """Unlock the byte ``at``."""
        self._control(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, at)

    def is_locked(self, at: int) -> bool:
        """Whether another object than this one has locked the byte ``at``."""
        return self._control(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, at) != fcntl.F_UNLCK

    def _control(self, command: int, kind: int, at: int) -> int:
        asked = _LOCK.pack(kind, os.SEEK_SET, at, 1, 0)
        return int(_LOCK.unpack(fcntl.fcntl(self._own, command, asked))[0])


class Moments:
    """
    A table of moments: times by key, most of which soon lie in the past.

    A moment says all of a bucket that leaks or fills evenly: when it will be empty, or full.  A key
    that does not stand in the table has the moment 0, long past.

    The table has room for 32,768 keys, eight in each place.  A ninth takes the place of the one
    with the earliest moment: that whose loss matters least.

    :ivar latest: has one number: no moment of the table is later; up to 64 seconds too late.
    """

    def __init__(self, memory: SharedMemory, table: Table) -> None:
        self._memory = memory
        self._first = _SECTION + table * _BUCKETS * _BUCKET
        self._latest_at = _LATEST + table * 8
        self.latest = memory.doubles[self._latest_at // 8 :][:1]
        self._located = lru_cache(_LOCATED)(self._locate)

    def get(self, key: str) -> float:
        """Return the moment of ``key``; takes no lock."""
        tag, at = self._located(key)
        tags = _TAGS.unpack_from(self._memory.bytes, at)
        return self._memory.doubles[at // 8 + _WAYS + tags.index(tag)] if tag in tags else 0.0

    def update(self, key: str, change: Callable[[float], float]) -> float:
        """
        Set the moment of ``key`` to what ``change`` returns for the one before, and return it.

        No other process changes it meanwhile.
        """
        memory = self._memory
        tag, at = self._located(key)
        memory.lock(at)
        try:
            tags = _TAGS.unpack_from(memory.bytes, at)
            if tag in tags:
                slot = at // 8 + tags.index(tag)
                moment = self._foretold(change(memory.doubles[slot + _WAYS]))
                memory.doubles[slot + _WAYS] = moment
            elif moment := self._foretold(change(0.0)):
                moments = _MOMENTS.unpack_from(memory.bytes, at + _WAYS * 8)
                slot = at // 8 + moments.index(min(moments))
                # If the process is killed in between, nothing counts for either key.
                memory.doubles[slot + _WAYS] = 0.0
                memory.words[slot] = tag
                memory.doubles[slot + _WAYS] = moment
            return moment
        finally:
            memory.unlock(at)

    def _foretold(self, moment: float) -> float:
        """Return ``moment``, when :attr:`latest` is no earlier."""
        if moment > self.latest[0]:
            self._memory.lock(self._latest_at)
            try:
                # In steps, so that it is rare.
                self.latest[0] = max(self.latest[0], math.ceil(moment / _STEP) * _STEP)
            finally:
                self._memory.unlock(self._latest_at)
        return moment

    def _locate(self, key: str) -> tuple[int, int]:
        tag, place = self._memory.hashed(key)
        return tag, self._first + place % _BUCKETS * _BUCKET


_T = TypeVar("_T", bound=msgspec.Struct)
_encoder = msgspec.msgpack.Encoder()


@lru_cache
def _decoder(kind: type[_T]) -> msgspec.msgpack.Decoder[_T]:
    return msgspec.msgpack.Decoder(kind)


class Notes:
    """
    A table of notes: small values by key.

    It has room for 2,048 of them, four in each place; a fifth takes the place of the one that was
    written the longest time ago.
    """

    def __init__(self, memory: SharedMemory, notebook: Notebook, clock: IReactorTime) -> None:
        self._memory, self._clock = memory, clock
        self._first = _FIRST_NOTE + notebook * _NOTEBOOK * _NOTES * _NOTE

    def note(self, key: str, kind: type[_T]) -> Note[_T]:
        """Return the note of ``key``, whose values are of ``kind``, a frozen struct."""
        tag, place = self._memory.hashed(key)
        at = self._first + place % _NOTEBOOK * _NOTES * _NOTE
        return Note(self._memory, tag, at, kind, self._clock)


class Note(Generic[_T]):
    """
    A value that all processes see; :meth:`Notes.note` returns it.

    A value of at most 990 bytes, in MessagePack.
    """

    def __init__(
        self, memory: SharedMemory, tag: int, at: int, kind: type[_T], clock: IReactorTime
    ) -> None:
        self._memory, self._tag, self._at, self._clock = memory, tag, at, clock
        words = memory.words[at // 8 : (at + _NOTES * _NOTE) // 8]
        self._tags = words[:: _NOTE // 8]  # of the notes in the same place
        self._decoder = _decoder(kind)
        self._value: _T | None = None
        # Where the value stood, and the number of its writing.
        self._known = 0, 0

    def read(self) -> _T | None:
        """Return the value, or ``None`` if there is none; takes a lock only after a change."""
        at, number = self._known
        if at and _NOTE_TAG.unpack_from(self._memory.bytes, at) == (self._tag, number):
            return self._value
        if self._find() is None:
            return None
        self._memory.lock(self._at)
        try:
            return self._read()
        finally:
            self._memory.unlock(self._at)

    def update(self, change: Callable[[_T | None], _T | None]) -> None:
        """
        Set the value to what ``change`` returns for the one before; ``None``: there is none.

        No other process changes it meanwhile.
        """
        self._memory.lock(self._at)
        try:
            before = self._read()
            after = change(before)
            if after != before:
                self._write(after)
        finally:
            self._memory.unlock(self._at)

    def _find(self) -> int | None:
        tags = self._tags.tolist()
        return self._at + tags.index(self._tag) * _NOTE if self._tag in tags else None

    def _read(self) -> _T | None:
        self._known, self._value = (0, 0), None
        at = self._find()
        if at is not None:
            _, number, _, size, checksum = _NOTE_HEAD.unpack_from(self._memory.bytes, at)
            start = at + _NOTE_HEAD.size
            text = self._memory.bytes[start : start + min(size, _NOTE)]
            # Half of it is written if a process was killed.
            if crc32(text) == checksum:
                self._value = self._decoder.decode(text)
            self._known = at, number
        return self._value

    def _write(self, value: _T | None) -> None:
        memory, at = self._memory, self._find()
        if at is None:
            slots = range(self._at, self._at + _NOTES * _NOTE, _NOTE)
            at = min(slots, key=lambda slot: memory.doubles[slot // 8 + 2])
        number = memory.words[at // 8 + 1] + 1
        if value is None:
            _NOTE_HEAD.pack_into(memory.bytes, at, 0, number, 0.0, 0, 0)
            self._known, self._value = (0, 0), None
            return
        text = _encoder.encode(value)
        if len(text) > _NOTE - _NOTE_HEAD.size:
            raise ValueError("too large for a note")
        now = self._clock.seconds()
        _NOTE_HEAD.pack_into(memory.bytes, at, self._tag, number, now, len(text), crc32(text))
        start = at + _NOTE_HEAD.size
        memory.bytes[start : start + len(text)] = text
        self._known, self._value = (at, number), value


def page_at(number: int) -> int:
    """Return where the page of that number begins, 0 to :data:`PAGES`."""
    return _FIRST_PAGE + number * PAGE
