"""From SQLite's errors to the registry's."""

from __future__ import annotations

import sqlite3

from twisted.python.failure import Failure

from artifactd.oci.errors import Unavailable

_LOCKED = "another process holds its lock for long: try again, and look for what holds it"
_UNWRITABLE = "it may not be written: look at the owner and permissions of the data folder"
_DAMAGED = "its file is damaged: stop the registry and restore a backup"

# Conditions of the machine or of other processes; any other error is a bug of ours.
_CONDITIONS = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_FULL: "its disk is full: free some space",
    sqlite3.SQLITE_IOERR: "its disk fails to read or write: look at the system's log",
    sqlite3.SQLITE_NOMEM: "memory has run out",
    sqlite3.SQLITE_PERM: _UNWRITABLE,
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: "its file can't be opened: look at the data folder",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}


_DAMAGES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Damaged(Unavailable):
    """What is in the catalog's file is not what SQLite has written there."""


def advice(error: Exception) -> str:
    """``error``, and what the operator can do about it, for one line of text."""
    code = getattr(error, "sqlite_errorcode", None)
    reason = None if code is None else _CONDITIONS.get(code & 0xFF)
    return f"{error}: {reason}" if reason else str(error)


def translated(failure: Failure) -> Failure:
    """
    ``failure``, or instead of it :class:`Unavailable`, saying what the operator can do, if the
    catalog can't be used as things are.
    """
    error = failure.value
    # https://sqlite.org/rescode.html; errors of the sqlite3 module itself have no code.
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:
        return failure
    reason = _CONDITIONS.get(code & 0xFF)  # without its extension
    if reason is None:
        return failure
    kind = Damaged if code & 0xFF in _DAMAGES else Unavailable
    unavailable = kind(f"the catalog can't be used ({error.sqlite_errorname}): {reason}")
    unavailable.__cause__ = error
    return Failure(unavailable)
