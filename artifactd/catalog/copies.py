"""Consistent copies of a catalog that is in use."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from artifactd.store.files import FileOperations


def copy(source: sqlite3.Connection, target: Path, files: FileOperations) -> None:
    """
    Write what ``source`` sees to ``target``, durably; at no time does ``target`` hold less.

    Inside a transaction of ``source`` that is the transaction's snapshot, however much other
    connections write meanwhile; they are not held up.

    :raises FileExistsError: if there is a ``target``.
    :raises OSError, sqlite3.Error: if it can't be written; then there is no ``target``.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    partial = target.with_name(f".{target.name}.partial")
    with opened(target.parent) as folder:
        files.unlink(folder, partial.name)  # of an attempt that was cut short
        fd = files.create(folder, partial.name)  # its OSError says more than SQLite's error
        try:
            with closing(sqlite3.connect(partial)) as copied:
                copied.execute("PRAGMA journal_mode = OFF")  # a copy cut short is thrown away
                source.backup(copied, sleep=0)
            files.sync(fd)
            files.rename(folder, partial.name, folder, target.name)
        except BaseException:
            files.unlink(folder, partial.name)
            raise
        finally:
            os.close(fd)
        files.sync(folder)


def sync(folder: Path, files: FileOperations) -> None:
    """fsync a folder."""
    with opened(folder) as fd:
        files.sync(fd)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
