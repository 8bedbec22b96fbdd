"""A catalog's way into a backup: a copy of what is committed, then in the place of an older one."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from artifactd.catalog import damage
from artifactd.catalog.copies import copy, opened
from artifactd.catalog.repair import ListedBlob
from artifactd.kit.start import StartError
from artifactd.oci.digest import Digest
from artifactd.store.files import FileOperations


def copy_catalog(catalog: Path, target: Path, files: FileOperations | None = None) -> None:
    """
    Write a consistent copy of ``catalog``, in use or not, to ``target``; an older one goes.

    Blocks.

    :raises StartError: if ``catalog`` can't be read.
    :raises OSError: if ``target`` can't be written.
    """
    files = files or FileOperations()
    with opened(target.parent) as folder:
        files.unlink(folder, target.name)
    # Not read-only: where nobody else has it open, reading a WAL needs its index to be made.
    address = f"{catalog.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True)) as db:
            copy(db, target, files)
    except sqlite3.Error as error:
        raise StartError(f"can't copy the catalog {catalog}: {error}") from error


def listed_blobs(catalog: Path) -> Sequence[ListedBlob]:
    """What ``catalog`` lists, lost or not.  Blocks."""
    with closing(sqlite3.connect(catalog)) as db:
        rows = db.execute("SELECT digest, size, lost_at FROM blob").fetchall()
    return [ListedBlob(Digest.parse(digest), size, lost_at) for digest, size, lost_at in rows]


def settle(
    catalog: Path, right: Mapping[Digest, int], absent: Iterable[Digest], files: FileOperations
) -> list[Digest]:
    """
    Let a copy of a catalog, which nobody else has open, say what lies beside it.  Durable after.
    Blocks.

    :param right: is there, whatever the copy says, in that many bytes.
    :param absent: is not there: images of upstreams go on without, for others it is noted.
    :return: those of ``absent`` that images have which were pushed.
    """
    lost: list[Digest] = []
    with closing(sqlite3.connect(catalog, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("BEGIN IMMEDIATE")
        at = time.time()
        db.executemany(
            "UPDATE blob SET lost_at = NULL, size = ? WHERE digest = ?",
            [(size, str(digest)) for digest, size in right.items()],
        )
        for digest in absent:
            damage.lose(db, digest, lambda: True, at)
            damage.drop_lost(db, digest, at)
            lost += [digest] if damage.holders(db, digest, 1) else []
        db.execute("COMMIT")
    fd = os.open(catalog, os.O_RDONLY)
    try:
        files.sync(fd)
    finally:
        os.close(fd)
    return lost


def replace_catalog(copied: Path, catalog: Path, files: FileOperations) -> None:
    """
    Put ``copied`` in the place of ``catalog``, durably.  Blocks; nobody may have either open.

    :raises OSError: if it can't be done.
    """
    # What was left in the old one's log would be taken for the new one's.
    with opened(catalog.parent) as folder, opened(copied.parent) as source:
        for suffix in ("-wal", "-shm"):
            files.unlink(folder, catalog.name + suffix)
        files.sync(folder)
        files.rename(source, copied.name, folder, catalog.name)
        files.sync(folder)
