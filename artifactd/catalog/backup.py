"""A catalog's way into a backup: a copy of what is committed, then in the place of an older one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from artifactd.catalog.copies import copy, sync
from artifactd.startup import StartError


def copy_catalog(catalog: Path, target: Path) -> None:
    """
    Write a consistent copy of ``catalog``, in use or not, to ``target``; an older one goes.

    Blocks.

    :raises StartError: if ``catalog`` can't be read.
    :raises OSError: if ``target`` can't be written.
    """
    target.unlink(missing_ok=True)
    # Not read-only: where nobody else has it open, reading a WAL needs its index to be made.
    address = f"{catalog.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True)) as db:
            copy(db, target)
    except sqlite3.Error as error:
        raise StartError(f"can't copy the catalog {catalog}: {error}") from error


def replace_catalog(copied: Path, catalog: Path) -> None:
    """
    Put ``copied`` in the place of ``catalog``, durably.  Blocks; nobody may have either open.

    :raises OSError: if it can't be done.
    """
    # What was left in the old one's log would be taken for the new one's.
    for suffix in ("-wal", "-shm"):
        catalog.with_name(catalog.name + suffix).unlink(missing_ok=True)
    sync(catalog.parent)
    copied.rename(catalog)
    sync(catalog.parent)
