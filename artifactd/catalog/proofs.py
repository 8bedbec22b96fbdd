"""Proofs of access, in the same file as everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Connection

from artifactd.catalog.database import Database

_AT_ONCE = 500  # variables of one statement


class ProofCatalog:
    """
    Proofs that callers may have images of an upstream, shared by all processes on the data folder.

    A proof is known by a keyed hash of 32 bytes; times are in seconds since the epoch.

    :param database: that of a :class:`artifactd.catalog.catalog.Catalog`, which closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def proofs(self, ids: Sequence[bytes]) -> Mapping[bytes, float]:
        """When those of ``ids`` that are known expire; they may have expired already."""
        return await self._database.read(lambda db: _find(db, ids))

    async def add_proofs(self, ids: Sequence[bytes], expires_at: float) -> None:
        """Remember proofs, whatever was known of them; those that have expired are forgotten."""
        now = self._database.now()
        await self._database.write(lambda db: _add(db, ids, expires_at, now))


def _find(db: Connection, ids: Sequence[bytes]) -> Mapping[bytes, float]:
    found: dict[bytes, float] = {}
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        places = ", ".join("?" * len(some))
        found |= db.execute(
            f"SELECT id, expires_at FROM access_proof WHERE id IN ({places})", some
        ).fetchall()
    return found


def _add(db: Connection, ids: Sequence[bytes], expires_at: float, now: float) -> None:
    db.execute("DELETE FROM access_proof WHERE expires_at <= ?", (now,))
    db.executemany(
        "INSERT INTO access_proof (id, expires_at) VALUES (?, ?)"
        " ON CONFLICT DO UPDATE SET expires_at = excluded.expires_at",
        [(each, expires_at) for each in ids],
    )
