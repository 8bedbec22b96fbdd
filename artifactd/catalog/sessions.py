"""Sessions of the page that were ended by logging out."""

from __future__ import annotations

from sqlite3 import Connection

from artifactd.catalog.database import OnDatabase, read, write


class SessionCatalog(OnDatabase):
    """
    Sessions that have ended before their time, shared by all processes on the data folder.

    A session is known by 16 random bytes; times are in seconds since the epoch.
    """

    @read
    def is_ended(self, db: Connection, session: bytes) -> bool:
        """Whether a session was ended."""
        row = db.execute("SELECT 1 FROM ended_session WHERE id = ?", (session,)).fetchone()
        return row is not None

    @write
    def end(self, db: Connection, session: bytes, until: float) -> None:
        """
        End a session, and forget those that would have ended by now.

        :param until: when it would end by itself.
        """
        db.execute("DELETE FROM ended_session WHERE until <= ?", (self.database.now(),))
        db.execute(
            "INSERT INTO ended_session (id, until) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (session, until),
        )
