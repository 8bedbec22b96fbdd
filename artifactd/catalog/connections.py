"""Connections to SQLite, each in a thread of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, cast

from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from artifactd.catalog.errors import translated
from artifactd.oci.errors import Unavailable

_T = TypeVar("_T")


class _Pool(Protocol):
    """What is used of ``adbapi.ConnectionPool``, which bears no types."""

    running: bool
    threadpool: ThreadPool
    connections: dict[int, sqlite3.Connection]

    def start(self) -> None: ...

    def runWithConnection(self, func: Callable[[sqlite3.Connection], _T], /) -> Deferred[_T]: ...  # noqa: N802

    def close(self) -> None: ...


def prepare_writer(connection: sqlite3.Connection) -> None:
    """Commits are on disk when they return; readers never wait for them."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def prepare_reader(connection: sqlite3.Connection) -> None:
    """Let a connection read only."""
    connection.execute("PRAGMA query_only = ON")


def in_snapshot(query: Callable[[sqlite3.Connection], _T], connection: sqlite3.Connection) -> _T:
    """Let all statements of ``query`` see the same; as the work of :meth:`Connections.run`."""
    connection.execute("BEGIN")  # which run() ends
    return query(connection)


class Connections:
    """
    A bounded number of connections to one database.  Threads and connections come into being when
    they are first needed, so that a daemon may still fork after this has been made.

    :param reactor: an ``IReactorCore`` too.
    :param threads: how many connections, each with its thread.
    :param busy_timeout: seconds that a connection waits for locks of other connections.
    :param prepare: called with each new connection.
    """

    def __init__(
        self,
        path: Path,
        reactor: IReactorFromThreads,
        threads: int,
        busy_timeout: float,
        prepare: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._reactor = reactor
        self._pool: _Pool = cast(Callable[..., _Pool], ConnectionPool)(
            "sqlite3",
            str(path),
            timeout=busy_timeout,
            isolation_level=None,  # no BEGIN but our own
            check_same_thread=False,  # only so that close() may close them all in one thread
            cp_min=1,
            cp_max=threads,
            cp_reactor=reactor,
            cp_openfun=prepare,
        )
        self._in_flight: set[Deferred[object]] = set()
        self._closed = False

    def run(self, work: Callable[[sqlite3.Connection], _T]) -> Deferred[_T]:
        """
        Call ``work`` with a connection, in its thread; then commit the transaction that ``work``
        may have begun, or roll it back if ``work`` raised.

        Cancelling the result does not stop ``work``; :meth:`close` waits for it all the same.

        :raises Unavailable: if the database can't be used now.
        """
        if self._closed:
            return fail(Unavailable("the registry is shutting down: try again later"))
        if not self._pool.running:
            self._pool.start()
        result: Deferred[_T] = Deferred()
        working = self._pool.runWithConnection(work)
        in_flight = cast(Deferred[object], working)
        self._in_flight.add(in_flight)

        def ended(outcome: _T | Failure) -> _T | Failure:
            self._in_flight.discard(in_flight)
            return outcome

        working.addBoth(ended).addErrback(translated).chainDeferred(result)
        return result

    async def close(self) -> None:
        """Wait for what is in flight, then close the connections and end the threads."""
        if self._closed:
            return
        self._closed = True
        await DeferredList(list(self._in_flight))
        if self._pool.running:
            # Closing the last connection to a database checkpoints it, so: in a thread.
            await deferToThreadPool(self._reactor, self._pool.threadpool, self._disconnect)
        self._pool.close()  # joins threads that are idle by now

    def _disconnect(self) -> None:
        for connection in self._pool.connections.values():
            connection.close()
        self._pool.connections.clear()
