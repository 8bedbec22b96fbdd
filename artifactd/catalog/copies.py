"""Consistent copies of a catalog that is in use."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path


def copy(source: sqlite3.Connection, target: Path) -> None:
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
    partial.write_bytes(b"")  # raises an OSError, which says more than SQLite's error
    try:
        with closing(sqlite3.connect(partial)) as copied:
            copied.execute("PRAGMA journal_mode = OFF")  # a copy cut short is thrown away
            source.backup(copied, sleep=0)
        sync(partial)
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    """
    fsync a file or a folder.

    Never the file of a catalog that is open: closing any descriptor of it drops SQLite's locks
    (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
