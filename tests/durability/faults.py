"""A disk, and a process, that fail at a chosen moment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from attrs import define, field
from twisted.trial.unittest import TestCase

from artifactd.store.files import FileOperations

READING = frozenset({"read"})


@define(eq=False)
class FailingFiles(FileOperations):
    """
    Lets one of its operations fail, or all.

    :ivar count: operations so far, since :meth:`arm`.
    :ivar failed: the names of those that have failed, since then.
    """

    count: int = 0
    failed: list[str] = field(factory=list)
    _error: int = 0
    _at: int | None = None
    _spared: frozenset[str] = frozenset()
    _opens: bool = False

    def arm(self, error: int, at: int | None = None, spared: frozenset[str] = frozenset()) -> None:
        """
        Fail with ``error``.

        :param at: the one operation that does; ``None``: all, until :meth:`disarm`.
        :param spared: the names of operations that neither count nor fail.
        """
        self.count, self.failed = 0, []
        self._error, self._at, self._spared, self._opens = error, at, spared, False

    def arm_opening(self, test: TestCase, error: int, at: int | None = None) -> None:
        """As :meth:`arm`, for the opening of files of the store, until ``test`` ends."""
        self.arm(error, at)
        self._opens = True
        if getattr(os.open, "files", None) is self:
            return
        opening = os.open

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if self._opens and dir_fd is not None:
                self._step("open")
            return opening(path, flags, mode, dir_fd=dir_fd)

        opened.files = self  # type: ignore[attr-defined]
        test.patch(os, "open", opened)

    def disarm(self) -> None:
        """Fail no more."""
        self._error, self._opens = 0, False

    def _operation(self, name: str) -> None:
        if not self._opens and name not in self._spared:
            self._step(name)

    def _step(self, name: str) -> None:
        number, self.count = self.count, self.count + 1
        if self._error and self._at in (None, number):
            self.failed.append(name)
            raise OSError(self._error, os.strerror(self._error), name)

    def make_directory(self, directory: int, name: str) -> None:
        self._operation("make_directory")
        super().make_directory(directory, name)

    def create(self, directory: int, name: str) -> int:
        self._operation("create")
        return super().create(directory, name)

    def write(self, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        self._operation("write")
        return super().write(fd, pieces, offset)

    def allocate(self, fd: int, size: int) -> None:
        self._operation("allocate")
        super().allocate(fd, size)

    def append(self, fd: int, piece: bytes) -> int:
        self._operation("append")
        return super().append(fd, piece)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._operation("read")
        return super().read(fd, size, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._operation("truncate")
        super().truncate(fd, size)

    def set_mode(self, fd: int, mode: int) -> None:
        self._operation("set_mode")
        super().set_mode(fd, mode)

    def sync(self, fd: int) -> None:
        self._operation("sync")
        super().sync(fd)

    def sync_data(self, fd: int) -> None:
        self._operation("sync_data")
        super().sync_data(fd)

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        self._operation("link")
        super().link(directory, name, target, target_name)

    def rename(self, directory: int, name: str, target: int, target_name: str) -> None:
        self._operation("rename")
        super().rename(directory, name, target, target_name)

    def unlink(self, directory: int, name: str) -> None:
        self._operation("unlink")
        super().unlink(directory, name)
