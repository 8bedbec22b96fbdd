"""The file of a catalog: how it is read and written."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Generic, Protocol, TypeVar, cast

from attrs import field, frozen
from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from artifactd.catalog.records import nothing
from artifactd.oci.errors import Unavailable

_T = TypeVar("_T")

# From SQLite's errors to the registry's.

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


# Connections to SQLite, each in a thread of its own.


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


# Group commit: writes that come together share one transaction, and so one fsync.

# More in one transaction would gain little and keep other processes from the lock for longer.
_BATCH = 64


@frozen(eq=False)
class _Write(Generic[_T]):
    interaction: Callable[[sqlite3.Connection], _T]
    committed: Callable[[], None]
    last: bool
    done: Deferred[_T] = field(factory=Deferred)

    def run(self, connection: sqlite3.Connection) -> _T | Failure:
        """
        Run inside the batch's transaction; what fails is undone and concerns nobody else.

        :raises sqlite3.Error: if SQLite has given up the whole transaction.
        """
        connection.execute("SAVEPOINT write")
        outcome: _T | Failure
        try:
            outcome = self.interaction(connection)
        except Exception:
            if not connection.in_transaction:  # SQLite may do so, on a full disk for one
                raise
            outcome = translated(Failure())
            connection.execute("ROLLBACK TO write")
        connection.execute("RELEASE write")
        return outcome

    def settle(self, outcome: object) -> None:
        """The transaction is committed, and ``outcome`` is what :meth:`run` gave."""
        if not isinstance(outcome, Failure):
            try:
                self.committed()
            except OSError as error:
                _log.warn("left to the sweep: {error}", error=error)
            except Exception:
                _log.failure("something is left over from a write that is committed")


class Writer:
    """
    Runs interactions one after the other on the one connection that writes.

    What is queued while a transaction is in flight goes into the next one together, each
    interaction inside a savepoint of its own.

    :param connections: exactly one.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._queue: deque[_Write[Any]] = deque()
        self._committing = False

    def run(
        self,
        interaction: Callable[[sqlite3.Connection], _T],
        committed: Callable[[], None] = nothing,
        *,
        last: bool = False,
    ) -> Deferred[_T]:
        """
        The result of ``interaction``, when it is durable.  It runs in a thread and may block.

        ``committed`` is called in that thread, once its transaction is committed; if it raises,
        that is logged.

        ``last``: nothing that is queued behind it goes into its transaction, so that what acts on
        its outcome outside the database acts on what is committed.

        Cancelled before its transaction has begun, it never runs; later, it is committed
        nevertheless.

        :raises Exception: what ``interaction`` raised; then nothing of it has been written.
        :raises Unavailable: if the transaction could not be begun or committed.
        """
        write = _Write(interaction, committed, last)
        self._queue.append(write)
        if not self._committing:
            self._commit_next()
        return write.done

    async def close(self) -> None:
        """Wait for what is queued, then close the connection."""
        with suppress(Unavailable):  # what was queued before has failed too, and its callers know
            await self.run(lambda _: None)
        await self._connections.close()

    def _commit_next(self) -> None:
        batch: list[_Write[Any]] = []
        while self._queue and len(batch) < _BATCH:
            write = self._queue.popleft()
            if write.done.called:  # cancelled
                continue
            batch.append(write)
            if write.last:
                break
        self._committing = bool(batch)
        if not batch:
            return

        def settle(outcomes: Sequence[object]) -> None:
            for write, outcome in zip(batch, outcomes, strict=True):
                write.done.callback(outcome)

        def give_up(failure: Failure) -> None:
            for write in batch:
                write.done.errback(failure)

        def go_on(outcome: _T) -> _T:
            self._commit_next()
            return outcome

        committed = self._connections.run(partial(_transact, batch))
        committed.addCallbacks(settle, give_up).addBoth(go_on)


def _transact(batch: Sequence[_Write[Any]], connection: sqlite3.Connection) -> list[object]:
    # At once, not at the first write: a transaction that has read before another process wrote
    # can't write any more, however long it waits (SQLITE_BUSY_SNAPSHOT).
    connection.execute("BEGIN IMMEDIATE")
    outcomes = [write.run(connection) for write in batch]
    connection.execute("COMMIT")
    for write, outcome in zip(batch, outcomes, strict=True):
        write.settle(outcome)
    return outcomes


# Results of reads, kept for as long as nobody, in any process, has committed anything.

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class DataVersion:
    """
    A number that changes with every commit of any other connection, in this process or another.

    Asking takes some microseconds and never waits, so it is done in the reactor's thread, on a
    connection that does nothing else: a connection's own commits would not count
    (https://sqlite.org/pragma.html#pragma_data_version).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def __call__(self) -> int | None:
        """The number now, or ``None`` if it can't be told."""
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
            version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            # Never a new connection instead: it would count from the beginning again.
            return None
        return version

    def close(self) -> None:
        """Close the connection; to be called before the last of the others is closed."""
        if self._connection is not None:
            self._connection.close()


class ReadCache(Generic[_K, _V]):
    """
    The results of recent reads by what was asked, the least recently used dropped first.

    :param version: tells the version of the data; ``None`` where that is not known.
    :param limit: results kept at most.
    :param keep: whether a result may be kept; one that takes much memory should not.
    """

    def __init__(
        self,
        version: Callable[[], int | None],
        limit: int,
        keep: Callable[[_V], bool] = lambda _: True,
    ) -> None:
        self._version = version
        self._limit = limit
        self._keep = keep
        self._valid_at: int | None = None
        self._results: OrderedDict[_K, _V] = OrderedDict()

    async def get(self, key: _K, read: Callable[[], Awaitable[_V]]) -> _V:
        """
        The result of the last ``read`` for ``key``, or of a new one if anything has been committed
        since then.
        """
        # Before the read: a commit between the two makes the result newer than its version, which
        # costs another read; the other way round it would be older, and wrong.
        version = self._version()
        if version is None or version != self._valid_at:
            self._results.clear()
            self._valid_at = version
        elif key in self._results:
            self._results.move_to_end(key)
            return self._results[key]
        result = await read()
        if version is not None and version == self._valid_at and self._keep(result):
            self._results[key] = result
            if len(self._results) > self._limit:
                self._results.popitem(last=False)
        return result


_log = Logger()


class Database:
    """
    The connections of this process to the catalog at ``path``.

    Nothing is opened and no thread started before the first call, so it may be made before a fork.

    :param readers: how many reads go on at the same time, each in a thread.
    :param busy_timeout: seconds to wait for another process that is writing.
    :ivar now: seconds since the epoch.
    :ivar version: changes with every commit.
    """

    def __init__(
        self,
        path: Path,
        reactor: IReactorFromThreads,
        *,
        readers: int,
        busy_timeout: float,
        now: Callable[[], float],
    ) -> None:
        self.now = now
        self.version = DataVersion(path)
        self._damage: Damaged | None = None
        self._readers = Connections(path, reactor, readers, busy_timeout, prepare_reader)
        self._writer = Writer(Connections(path, reactor, 1, busy_timeout, prepare_writer))

    def read(self, query: Callable[[Connection], _T]) -> Deferred[_T]:
        """The result of ``query``, all of whose statements see one snapshot."""
        return self._readers.run(partial(in_snapshot, query)).addErrback(self._noted)

    def write(
        self,
        interaction: Callable[[Connection], _T],
        committed: Callable[[], None] = nothing,
        *,
        last: bool = False,
    ) -> Deferred[_T]:
        """
        As :meth:`artifactd.catalog.database.Writer.run`; but once the file was seen to be damaged,
        nothing is written any more: what would be decided by it may be wrong.
        """
        if self._damage is not None:
            return fail(self._damage)
        return self._writer.run(interaction, committed, last=last).addErrback(self._noted)

    def check(self) -> None:
        """:raises Damaged: if the file was seen to be so, since the start."""
        if self._damage is not None:
            raise self._damage

    def _noted(self, failure: Failure) -> Failure:
        if isinstance(failure.value, Damaged) and self._damage is None:
            self._damage = failure.value
            _log.critical("nothing is written any more: {error}", error=failure.value.message)
        return failure

    async def close(self) -> None:
        """Wait for what is in flight and close."""
        self.version.close()
        await self._readers.close()
        await self._writer.close()
