"""Proofs that callers may have images of an upstream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Connection

from artifactd.catalog.database import OnDatabase, read, write

_AT_ONCE = 500  # variables of one statement


class ProofCatalog(OnDatabase):
    """
    Proofs that callers may have images of an upstream, shared by all processes on the data folder.

    A proof is known by a keyed hash of 32 bytes; times are in seconds since the epoch.
    """

    @read
    def proofs(self, db: Connection, ids: Sequence[bytes]) -> Mapping[bytes, float]:
        """When those of ``ids`` that are known expire; they may have expired already."""
        found: dict[bytes, float] = {}
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            places = ", ".join("?" * len(some))
            found |= db.execute(
                f"SELECT id, expires_at FROM access_proof WHERE id IN ({places})", some
            ).fetchall()
        return found

    @write
    def add_proofs(self, db: Connection, ids: Sequence[bytes], expires_at: float) -> None:
        """Store proofs, or renew those that are known.  Proofs that have expired are deleted."""
        db.execute("DELETE FROM access_proof WHERE expires_at <= ?", (self.database.now(),))
        db.executemany(
            "INSERT INTO access_proof (id, expires_at) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET expires_at = excluded.expires_at",
            [(each, expires_at) for each in ids],
        )
