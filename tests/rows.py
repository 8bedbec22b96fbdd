"""What another process of artifactd writes to a catalog, as SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from artifactd.catalog.cache import Versions


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the catalog at ``path``; what is written with it is committed at the end."""
    with announced(path, settled=True) as db:
        yield db


@contextmanager
def announced(path: Path, *, settled: bool = False) -> Iterator[sqlite3.Connection]:
    """
    The same as :func:`writing`, but the versions of what is touched stay unknown unless
    ``settled``.
    """
    versions = Versions(path.with_name(f"{path.name}-versions"), path)
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as db:
        versions.follow(db)
        versions.begin()
        db.execute("BEGIN IMMEDIATE")
        yield db
        versions.announce(db)
        db.execute("COMMIT")
        if settled:
            versions.settle()
