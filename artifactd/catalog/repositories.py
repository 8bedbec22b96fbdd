"""Which repositories are configured, seen to before a process serves any of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from artifactd.catalog.errors import advice
from artifactd.kit.start import StartError


def configure_repositories(path: Path, names: Collection[str], default: str | None) -> None:
    """
    Remember which repositories are configured, in the catalog at ``path``.

    Blocks; to be called before the reactor runs, after
    :func:`artifactd.catalog.migrations.migrate`.

    :param default: the repository whose images are named without a prefix.
    :raises StartError: if one that was not configured before would hide images of ``default`` whose
        names begin with its own.
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
