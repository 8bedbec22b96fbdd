"""Recording all that a daemon does to its data folder, in order, and what it promises."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from twisted.trial.unittest import TestCase

from artifactd.store.files import FileOperations
from tests.durability.events import (
    Answered,
    Asked,
    Committed,
    Committing,
    Cut,
    Entry,
    Event,
    Mode,
    Opened,
    Released,
    Synced,
    Wrote,
)

_FULL = 2
CATALOG = "catalog.sqlite3"


class Recording(FileOperations):
    """
    Does what it is told, and remembers it.

    :ivar events: in the order in which they happened, over all threads.
    :ivar root: the number of the directory that the data folder lies in.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.root = -1
        self._lock = RLock()
        # By device and inode.  Each file is held open, so that no other file gets its number.
        self._numbers: dict[tuple[int, int], int] = {}
        self._held: list[int] = []
        # Files that SQLite writes: what is in them is looked up when they are synced.
        self._foreign: set[int] = set()

    def close(self) -> None:
        """Let go of all files."""
        for fd in self._held:
            os.close(fd)

    @contextmanager
    def _doing(self, *events: Event) -> Iterator[None]:
        """What is done inside and its ``events`` are one step to others."""
        with self._lock:
            yield
            self.events += events

    def adopt(self, folder: Path) -> None:
        """Begin with what is in the data folder ``folder`` already, all of it durable."""
        root = os.open(folder.parent, os.O_RDONLY)
        self._number(root)
        self._adopt(root, folder.name)
        os.close(root)
        with sqlite3.connect(folder / CATALOG) as database:
            self.events.append(Committed(database.serialize(), True))
        database.close()

    def _adopt(self, directory: int, name: str) -> None:
        fd = os.open(name, os.O_RDONLY, dir_fd=directory)
        number, status = self._number(fd), os.fstat(fd)
        is_folder = stat.S_ISDIR(status.st_mode)
        self.events.append(Entry((self._number(directory), name), number, is_folder))
        self.events.append(Synced(self._number(directory)))
        if is_folder:
            for below in os.listdir(fd):
                if not below.startswith(CATALOG):
                    self._adopt(fd, below)
        else:
            self.events.append(Wrote(number, 0, os.pread(fd, status.st_size, 0)))
            self.events.append(Mode(number, stat.S_IMODE(status.st_mode)))
            self.events.append(Synced(number))
        os.close(fd)

    # -- promises

    def asked(self, key: str, content: bytes | None) -> None:
        """As :class:`Asked`."""
        self._add(Asked(key, content))

    def answered(self, key: str) -> None:
        """As :class:`Answered`."""
        self._add(Answered(key))

    def released(self, *keys: str) -> None:
        """As :class:`Released`."""
        for key in keys:
            self._add(Released(key))

    def opened(self, path: str) -> None:
        """As :class:`Opened`."""
        self._add(Opened(path))

    def _add(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    # -- the catalog

    def record_catalog(self, test: TestCase, path: Path) -> None:
        """Record from now on what is committed to the database at ``path``, until the test ends."""
        connect, recording = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql != "COMMIT":
                    return super().execute(sql, *parameters)
                return recording.commit(self, super().execute)

        def recorded(database: Any, *args: Any, **more: Any) -> sqlite3.Connection:
            if str(database) == str(path):
                more["factory"] = Connection
            opened: sqlite3.Connection = connect(database, *args, **more)
            return opened

        test.patch(sqlite3, "connect", recorded)

    def commit(
        self, connection: sqlite3.Connection, execute: Callable[[str], sqlite3.Cursor]
    ) -> sqlite3.Cursor:
        """Commit, and remember what there is then."""
        level = execute("PRAGMA synchronous").fetchone()[0]
        self._add(Committing())
        done = execute("COMMIT")
        self._add(Committed(connection.serialize(), level >= _FULL))
        return done

    # -- FileOperations

    def make_directory(self, directory: int, name: str) -> None:
        with self._lock:
            super().make_directory(directory, name)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
            self._held.append(fd)
            self.events.append(Entry((self._number(directory), name), self._number(fd), True))

    def create(self, directory: int, name: str) -> int:
        with self._lock:
            fd = super().create(directory, name)
            number = self._number(fd)
            self.events.append(self._entry(directory, name, number))
            if name.endswith(".partial"):
                self._foreign.add(number)
            return fd

    def write(self, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        with self._lock:
            written = super().write(fd, pieces, offset)
            content = b"".join(pieces)[:written]
            self.events.append(Wrote(self._number(fd), offset, content))
            return written

    def append(self, fd: int, piece: bytes) -> int:
        with self._lock:
            offset = os.fstat(fd).st_size
            written = super().append(fd, piece)
            self.events.append(Wrote(self._number(fd), offset, piece[:written]))
            return written

    def truncate(self, fd: int, size: int) -> None:
        with self._doing(Cut(self._number(fd), size)):
            super().truncate(fd, size)

    def set_mode(self, fd: int, mode: int) -> None:
        with self._doing(Mode(self._number(fd), mode)):
            super().set_mode(fd, mode)

    def sync(self, fd: int) -> None:
        with self._lock:
            number, status = self._number(fd), os.fstat(fd)
            super().sync(fd)
            if number in self._foreign:
                self.events.append(Wrote(number, 0, os.pread(fd, status.st_size, 0)))
            self.events.append(Synced(number))

    def sync_data(self, fd: int) -> None:
        with self._doing(Synced(self._number(fd))):
            super().sync_data(fd)

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        with self._lock:
            super().link(directory, name, target, target_name)
            number = self._named(target, target_name)
            self.events.append(self._entry(target, target_name, number))

    def rename(self, directory: int, name: str, target: int, target_name: str) -> None:
        with self._lock:
            number = self._named(directory, name)
            super().rename(directory, name, target, target_name)
            self.events.append(self._entry(target, target_name, number))
            self.events.append(self._entry(directory, name, None))

    def unlink(self, directory: int, name: str) -> None:
        with self._lock:
            try:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return
            super().unlink(directory, name)
            self.events.append(self._entry(directory, name, None))

    # -- numbers

    def _entry(self, directory: int, name: str, number: int | None) -> Entry:
        return Entry((self._number(directory), name), number)

    def _named(self, directory: int, name: str) -> int:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
        try:
            return self._number(fd)
        finally:
            os.close(fd)

    def _number(self, fd: int) -> int:
        status = os.fstat(fd)
        identity = status.st_dev, status.st_ino
        known = self._numbers.get(identity)
        if known is None:
            known = self._numbers[identity] = len(self._numbers)
            self._held.append(os.dup(fd))
            if stat.S_ISDIR(status.st_mode) and self.root < 0:
                self.root = known
        return known
