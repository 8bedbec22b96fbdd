"""Sessions of the page that were ended by logging out."""

from __future__ import annotations

from sqlite3 import Connection

from artifactd.catalog.database import OnDatabase, read, write

MOST = 1000
"""Sessions of one account that are known to have ended, each by itself."""

_ACCOUNT = 8  # bytes of a session's id that are its account's; as many are not


class SessionCatalog(OnDatabase):
    """
    Sessions that have ended before their time, shared by all processes on the data folder.

    A session is known by 16 bytes: eight of its account, and eight random ones.  Times are in
    seconds since the epoch.
    """

    @read
    def is_ended(self, db: Connection, session: bytes, until: float) -> bool:
        """
        Whether a session was ended.

        :param until: when it would end by itself.
        """
        row = db.execute(
            "SELECT 1 FROM ended_session WHERE id = ? OR (id = ? AND until >= ?)",
            (session, _all_of(session), until),
        ).fetchone()
        return row is not None

    @write
    def end(self, db: Connection, session: bytes, until: float) -> None:
        """
        End a session, and forget those that would have ended by now.

        If more than :data:`MOST` of its account have ended, one row stands for them from then on:
        it ends all sessions of the account that began no later than the last of them.

        :param until: when it would end by itself.
        """
        db.execute("DELETE FROM ended_session WHERE until <= ?", (self.database.now(),))
        db.execute(
            "INSERT INTO ended_session (id, until) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (session, until),
        )
        of = "FROM ended_session WHERE id BETWEEN ? AND ?"
        its = _all_of(session), session[:_ACCOUNT] + b"\xff" * _ACCOUNT
        count, latest = db.execute(f"SELECT count(*), max(until) {of}", its).fetchone()
        if count > MOST:
            db.execute(f"DELETE {of}", its)
            db.execute(
                "INSERT INTO ended_session (id, until) VALUES (?, ?)", (_all_of(session), latest)
            )


def _all_of(session: bytes) -> bytes:
    """The id of the row that stands for many sessions of an account."""
    return session[:_ACCOUNT] + bytes(_ACCOUNT)
