"""
The catalog's file before and beside the daemon: migrations, copies for backups, configured
repositories.

Migrations are numbered: ``schema/NNNN.sql`` makes version N of the schema out of version N-1.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from artifactd.catalog import repair
from artifactd.catalog.database import advice
from artifactd.catalog.repair import ListedBlob
from artifactd.kit.start import StartError
from artifactd.oci.names import Digest
from artifactd.store.files import PRIVATE, FileOperations

SCHEMA: Traversable = resources.files("artifactd.catalog") / "schema"
_OLDEST_SQLITE = (3, 37, 0)  # the first with STRICT tables
_APPLICATION_ID = 0x61727464  # the same as in 0001.sql

# -- consistent copies of a catalog that is in use


def copy(source: sqlite3.Connection, target: Path, files: FileOperations) -> None:
    """
    Copy the database of ``source`` to ``target``, durably.  ``target`` appears when it is whole.

    Inside a transaction of ``source`` the copy is the transaction's snapshot.  Other connections
    may write meanwhile.

    :raises FileExistsError: if there is a ``target``.
    :raises OSError, sqlite3.Error: if it can't be written; then there is no ``target``.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    partial = target.with_name(f".{target.name}.partial")
    with opened(target.parent) as folder:
        files.unlink(folder, partial.name)  # left by an attempt that was cut short
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
    """Make the names in a folder durable (fsync)."""
    with opened(folder) as fd:
        files.sync(fd)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder, and close its descriptor at the end of the context."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


# -- migrations


def migrate(
    path: Path,
    exclusive: Callable[[], AbstractContextManager[None]],
    schema: Traversable | None = None,
    files: FileOperations | None = None,
    occupied: Callable[[], bool] = lambda: False,
) -> None:
    """
    Bring the catalog at ``path`` to the schema that this release works with, creating it if there
    is none.  Blocks; to be called before the reactor runs.

    Before the first migration of a catalog that has a schema, a copy is kept as
    ``<name>.before-<version>``.  Each migration is one transaction, so that a failure or crash
    leaves a catalog of an older version.

    :param exclusive: makes sure that no other process uses the catalog, or raises StartError; not
        called if there is nothing to do.
    :param schema: the folder of the scripts; by default :data:`SCHEMA`.
    :param occupied: whether the store has blobs.  A new catalog would list none of them, and they
        would be collected.
    :raises StartError: if the catalog can't be opened or migrated, is of a newer release, or has
        been lost.
    """
    _check_sqlite()
    scripts = _scripts(schema or SCHEMA)
    files = files or FileOperations()
    try:
        _keep_private(path)
        if path.exists():
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                if _version(db, path, len(scripts)) == len(scripts):
                    # The process that made it may have been killed before it synced the folder.
                    return sync(path.parent, files)
        with exclusive(), closing(_create(path)) as db:
            # Another process may have migrated it meanwhile.
            version = _version(db, path, len(scripts))
            is_new = _is_empty(db)
            if is_new and occupied():
                raise StartError(
                    f"the catalog {path} is lost, and there are blobs beside it, which a new one"
                    " would not list: put a backup of it there, or choose an empty data folder"
                )
            _use_wal(db, path)
            if not is_new and version < len(scripts):
                _keep_copy(db, path, version + 1, files)
            for number in range(version + 1, len(scripts) + 1):
                _step(db, path, number, scripts[number - 1])
            sync(path.parent, files)
    except (sqlite3.Error, OSError) as error:
        raise StartError(f"can't open the catalog {path}: {advice(error)}") from error


def _keep_private(path: Path) -> None:
    """
    Let only this user read and write an existing catalog, and the files beside it: its log, its
    index, its copies.
    """
    # By name: closing a descriptor of a file would end all locks that SQLite has on it here.
    for file in path.parent.glob(f"{path.name}*"):
        # Another process that closes the catalog just now removes the log and the index.
        with suppress(FileNotFoundError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) != PRIVATE:
                file.chmod(PRIVATE)


def _create(path: Path) -> sqlite3.Connection:
    """
    Connect to the catalog, and make its file if there is none: for this user alone, whatever the
    umask.  SQLite gives the files beside it the same mode.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE))
    return sqlite3.connect(path, isolation_level=None)


def check_current(path: Path, name: Path) -> None:
    """
    Check that the catalog at ``path``, a copy of the one at ``name``, has the schema of this
    release.  Blocks.

    :raises StartError: if its schema is older or newer, or can't be read.
    """
    latest = len(_scripts(SCHEMA))
    try:
        with _read_alone(path) as db:
            version = _version(db, name, latest)
    except sqlite3.Error as error:
        raise StartError(f"can't read the catalog {name}: {advice(error)}") from error
    if version < latest:
        raise StartError(
            f"the catalog {name} has schema {version}, made by an older release, and this one works"
            f" with {latest}: start the daemon of this release once, or use the older release"
        )


def _read_alone(path: Path) -> closing[sqlite3.Connection]:
    """Connect to a copy that nothing writes to: SQLite makes no file beside it."""
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return closing(sqlite3.connect(address, uri=True))


def _check_sqlite() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise StartError(
            f"SQLite {sqlite3.sqlite_version} is too old: use a Python with {oldest} or newer"
        )
    if sqlite3.threadsafety == 0:
        raise StartError("this SQLite is built without threads: use a Python with another")


def _scripts(folder: Traversable) -> list[str]:
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


def _keep_copy(db: sqlite3.Connection, path: Path, number: int, files: FileOperations) -> None:
    kept = path.with_name(f"{path.name}.before-{number}")
    with opened(path.parent) as folder:
        files.unlink(folder, kept.name)  # left by an earlier attempt at the same migration
    copy(db, kept, files)


def _step(db: sqlite3.Connection, path: Path, number: int, script: str) -> None:
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
    """The statements of a script.  ``executescript`` would commit the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


# -- backups: copy the catalog, correct the copy, put it in the place of the last one


def copy_catalog(catalog: Path, target: Path, files: FileOperations | None = None) -> None:
    """
    Write a consistent copy of ``catalog``, in use or not, to ``target``, and replace an older
    copy there.  Blocks.

    :raises StartError: if ``catalog`` can't be read.
    :raises OSError: if ``target`` can't be written.
    """
    files = files or FileOperations()
    with opened(target.parent) as folder:
        # SQLite would take the log that a killed process has left of an older copy for this one's.
        for suffix in ("", "-wal", "-shm"):
            files.unlink(folder, target.name + suffix)
    # Not read-only: if no other process has it open, SQLite has to make the index of the WAL.
    address = f"{catalog.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True)) as db:
            copy(db, target, files)
    except sqlite3.Error as error:
        raise StartError(
            f"can't copy the catalog {catalog} to {target}: {advice(error)}"
        ) from error


def listed_bytes(catalog: Path) -> int:
    """
    The bytes of all blobs together that ``catalog`` lists, lost or not.  Blocks.

    :raises StartError: if ``catalog`` can't be read.
    """
    try:
        with closing(sqlite3.connect(catalog)) as db:
            (size,) = db.execute("SELECT coalesce(sum(size), 0) FROM blob").fetchone()
            return int(size)
    except sqlite3.Error as error:
        raise StartError(f"can't read the catalog {catalog}: {advice(error)}") from error


def listed_blobs(catalog: Path) -> Iterator[ListedBlob]:
    """
    All blobs that the copy ``catalog`` lists, lost or not, read one by one: there may be millions.
    Blocks.

    :raises StartError: if ``catalog`` can't be read.
    """
    try:
        with _read_alone(catalog) as db:
            for digest, size, lost_at in db.execute("SELECT digest, size, lost_at FROM blob"):
                yield ListedBlob(Digest.parse(digest), size, lost_at)
    except sqlite3.Error as error:
        raise StartError(f"can't read the catalog {catalog}: {advice(error)}") from error


def settle(
    catalog: Path, right: Mapping[Digest, int], absent: Iterable[Digest], files: FileOperations
) -> list[Digest]:
    """
    Make a copy of a catalog agree with the blobs that lie beside it, durably.  No other process
    may have it open.  Blocks.

    :param right: blobs that are there, with their sizes in bytes.
    :param absent: blobs that are not there.  They are taken out of images of upstreams, and noted
        as lost for the images to which they were pushed.
    :return: those of ``absent`` that were pushed.
    :raises StartError: if ``catalog`` can't be written.
    """
    lost: list[Digest] = []
    try:
        with closing(sqlite3.connect(catalog, isolation_level=None)) as db:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE")
            at = time.time()
            db.executemany(
                "UPDATE blob SET lost_at = NULL, size = ? WHERE digest = ?",
                [(size, str(digest)) for digest, size in right.items()],
            )
            for digest in absent:
                repair.note_lost(db, digest, at)
                repair.drop_lost(db, digest, at)
                lost += [digest] if repair.holders(db, digest, 1) else []
            db.execute("COMMIT")
            # Closing leaves in the log, without a word, what a full disk has no room for.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise StartError(f"can't correct the catalog {catalog}: {advice(error)}") from error
    fd = os.open(catalog, os.O_RDONLY)
    try:
        files.sync(fd)
    finally:
        os.close(fd)
    return lost


def replace_catalog(copied: Path, catalog: Path, files: FileOperations) -> None:
    """
    Put ``copied`` in the place of ``catalog``, durably.  No process may have either open.  Blocks.

    :raises OSError: if the file system refuses it.
    """
    # SQLite would take a log left by the old catalog for the new one's.
    with opened(catalog.parent) as folder, opened(copied.parent) as source:
        for suffix in ("-wal", "-shm"):
            files.unlink(folder, catalog.name + suffix)
        files.sync(folder)
        files.rename(source, copied.name, folder, catalog.name)
        files.sync(folder)


# -- the configured repositories, recorded before a process serves any of them


def configure_repositories(path: Path, names: Collection[str], default: str | None) -> None:
    """
    Record which repositories are configured, in the catalog at ``path``.

    Blocks; to be called before the reactor runs, after :func:`migrate`.

    :param default: the repository whose images are named without a prefix.
    :raises StartError: if a repository that was not configured before would hide images of
        ``default``, because their names begin with its name.
    """
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            _configure(db, set(names), default)
            db.execute("COMMIT")
    except sqlite3.Error as error:
        raise StartError(f"can't open the catalog {path}: {advice(error)}") from error


def _configure(db: sqlite3.Connection, names: set[str], default: str | None) -> None:
    before = {name for (name,) in db.execute("SELECT name FROM repository")}
    if default is not None:
        for added in sorted(names - before):
            _refuse_to_hide(db, added, default)
    db.executemany("DELETE FROM repository WHERE name = ?", [(n,) for n in before - names])
    db.executemany("INSERT INTO repository (name) VALUES (?)", [(n,) for n in names - before])


def _refuse_to_hide(db: sqlite3.Connection, added: str, default: str) -> None:
    hidden = db.execute(
        "SELECT name FROM image WHERE repository = ? AND name > ? AND name < ?"  # "0" follows "/"
        " AND EXISTS (SELECT 1 FROM manifest WHERE image_id = image.id) ORDER BY name LIMIT 1",
        (default, f"{added}/", f"{added}0"),
    ).fetchone()
    if hidden is not None:
        raise StartError(
            f'repository "{added}" would hide the image "{hidden[0]}" of "{default}": give the'
            " repository another name, or copy the images whose names begin with"
            f' "{added}/" to other names and delete their manifests'
        )
