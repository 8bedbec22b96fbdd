"""Numbered migrations: ``schema/NNNN.sql`` makes version N of the schema out of N-1."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from importlib import resources
from pathlib import Path

from artifactd.catalog.copies import copy, opened, sync
from artifactd.catalog.errors import advice
from artifactd.kit.start import StartError
from artifactd.store.files import FileOperations

_OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
_APPLICATION_ID = 0x61727464  # as in 0001.sql


def migrate(
    path: Path,
    exclusive: Callable[[], AbstractContextManager[None]],
    steps: Sequence[str] | None = None,
    files: FileOperations | None = None,
    occupied: Callable[[], bool] = lambda: False,
) -> None:
    """
    Bring the catalog at ``path`` to the schema that this release works with, creating it if there
    is none.  Blocks; to be called before the reactor runs.

    Before each step a copy is kept as ``<name>.before-<version>``.  A step is done whole or not at
    all, so that a failure or crash leaves a catalog of an older version.

    :param exclusive: makes sure that no other process uses the catalog, or raises StartError; not
        called if there is nothing to do.
    :param steps: the SQL scripts, the first one making version 1; by default the package's.
    :param occupied: whether the store has blobs: a new catalog would list none of them, and they
        would be collected.
    :raises StartError: if the catalog can't be opened or migrated, is of a newer release, or has
        been lost.
    """
    _check_sqlite()
    scripts = _scripts() if steps is None else steps
    files = files or FileOperations()
    try:
        if path.exists():
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                if _version(db, path, len(scripts)) == len(scripts):
                    # Who has made it may have been killed before it came to this.
                    return sync(path.parent, files)
        with exclusive(), closing(sqlite3.connect(path, isolation_level=None)) as db:
            # Asked again: another process may just have done it.
            version = _version(db, path, len(scripts))
            if _is_empty(db) and occupied():
                raise StartError(
                    f"the catalog {path} is lost, and there are blobs beside it, which a new one"
                    " would not list: put a backup of it there, or choose an empty data folder"
                )
            _use_wal(db, path)
            for number in range(version + 1, len(scripts) + 1):
                _step(db, path, number, scripts[number - 1], files)
            sync(path.parent, files)
    except (sqlite3.Error, OSError) as error:
        raise StartError(f"can't open the catalog {path}: {advice(error)}") from error


def check_current(path: Path, name: Path) -> None:
    """
    See that the catalog at ``path``, a copy of the one at ``name``, has the schema of this release.
    Blocks.

    :raises StartError: if it is older or newer, or can't be read.
    """
    latest = len(_scripts())
    try:
        with closing(sqlite3.connect(path)) as db:
            version = _version(db, name, latest)
    except sqlite3.Error as error:
        raise StartError(f"can't read the catalog {name}: {advice(error)}") from error
    if version < latest:
        raise StartError(
            f"the catalog {name} has schema {version}, made by an older release, and this one works"
            f" with {latest}: start the daemon of this release once, or use the older release"
        )


def _check_sqlite() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise StartError(
            f"SQLite {sqlite3.sqlite_version} is too old: use a Python with {oldest} or newer"
        )
    if sqlite3.threadsafety == 0:
        raise StartError("this SQLite is built without threads: use a Python with another")


def _scripts() -> list[str]:
    folder = resources.files("artifactd.catalog") / "schema"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [file.read_text("utf-8") for file in files]


def _version(db: sqlite3.Connection, path: Path, latest: int) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    application: int = db.execute("PRAGMA application_id").fetchone()[0]
    if application != _APPLICATION_ID and not _is_empty(db):
        raise StartError(f"{path} is a database of another program: choose another data folder")
    if version > latest:
        raise StartError(
            f"the catalog {path} has schema {version}, made by a newer release, and this one knows"
            f" {latest}: install the newer release, or restore a backup made before it"
        )
    return version


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _use_wal(db: sqlite3.Connection, path: Path) -> None:
    mode: str = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StartError(
            f"the filesystem of {path} can't share memory between processes, which the catalog"
            " needs: put the data folder on a local disk"
        )


def _step(
    db: sqlite3.Connection, path: Path, number: int, script: str, files: FileOperations
) -> None:
    if not _is_empty(db):
        kept = path.with_name(f"{path.name}.before-{number}")
        with opened(path.parent) as folder:
            files.unlink(folder, kept.name)  # of an attempt at this same step
        copy(db, kept, files)
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(script):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    except sqlite3.Error as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise StartError(
            f"the catalog {path} can't be brought to schema {number} and stays as it was: {error}"
        ) from error


def _statements(script: str) -> Iterator[str]:
    """One by one: ``executescript`` would commit what came before it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
