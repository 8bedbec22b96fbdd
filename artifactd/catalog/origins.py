"""Which remote repository answers for an unprefixed name."""

from __future__ import annotations

from sqlite3 import Connection


def find(db: Connection, name: str) -> str | None:
    """``RemoteCatalog.origin``."""
    row = db.execute("SELECT repository FROM origin WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def remember(db: Connection, name: str, repository: str) -> str:
    """``RemoteCatalog.set_origin``."""
    db.execute(
        "INSERT INTO origin (name, repository) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (name, repository),
    )
    return find(db, name) or repository
