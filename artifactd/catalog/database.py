"""The connections to the catalog's file: snapshots and group commit."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from attrs import field, frozen
from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactd.catalog.cache import Versions
from artifactd.catalog.events import Outbox
from artifactd.kit.deferreds import Threads, uncancelled
from artifactd.oci.errors import Unavailable

_T = TypeVar("_T")
_P = ParamSpec("_P")

_log = Logger()

# -- errors of SQLite, told as the registry's

_LOCKED = "another process holds its lock for long: try again, and look for what holds it"
_UNWRITABLE = "it may not be written: look at the owner and permissions of the data folder"
_DAMAGED = "its file is damaged: stop the registry and restore a backup"

# Conditions of the machine or of other processes; any other error of SQLite is a bug of ours.
_CONDITIONS = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_FULL: "its disk is full: free some space",
    sqlite3.SQLITE_IOERR: "its disk fails to read or write: look at the system's log",
    sqlite3.SQLITE_NOMEM: "memory has run out",
    sqlite3.SQLITE_PERM: _UNWRITABLE,
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: (
        "a file can't be opened: look at the data folder, and whether temporary files can be made"
        " in /var/tmp or /tmp"
    ),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}


class Damaged(Unavailable):
    """The catalog's file does not hold what SQLite has written there."""


class DiskFull(Unavailable):
    """The catalog's disk has no room for a write."""


_KINDS: dict[int, type[Unavailable]] = {
    sqlite3.SQLITE_CORRUPT: Damaged,
    sqlite3.SQLITE_NOTADB: Damaged,
    sqlite3.SQLITE_FULL: DiskFull,
}


def advice(error: Exception) -> str:
    """One line of text: ``error``, and what the operator can do about it."""
    code = getattr(error, "sqlite_errorcode", None)
    reason = None if code is None else _CONDITIONS.get(code & 0xFF)
    return f"{error}: {reason}" if reason else str(error)


def translated(failure: Failure) -> Failure:
    """
    Turn an error of SQLite that the operator can do something about into :class:`Unavailable`,
    whose message says what.  Any other failure is returned as it is.
    """
    error = failure.value
    # https://sqlite.org/rescode.html; errors of the sqlite3 module itself have no code.
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:
        return failure
    reason = _CONDITIONS.get(code & 0xFF)  # without its extension
    if reason is None:
        return failure
    kind = _KINDS.get(code & 0xFF, Unavailable)
    unavailable = kind(f"the catalog can't be used ({error.sqlite_errorname}): {reason}")
    unavailable.__cause__ = error
    return Failure(unavailable)


# -- connections, each in a thread of its own


def prepare_writer(connection: Connection) -> None:
    """Set up the connection that writes: a commit is on disk when it returns."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def prepare_reader(connection: Connection) -> None:
    """Set up a connection that reads: it refuses to write."""
    connection.execute("PRAGMA query_only = ON")


def in_snapshot(query: Callable[[Connection], _T], connection: Connection) -> _T:
    """Run ``query`` so that all its statements see one snapshot; for :meth:`Connections.run`."""
    connection.execute("BEGIN")  # run() ends the transaction
    return query(connection)


class _PoolReactor:
    """
    The reactor of an ``adbapi`` pool that uses ``threads`` in place of its own.

    The pool does not start before its threads have been replaced: :meth:`Connections.run` does it.
    """

    def __init__(self, reactor: Any, threads: Threads) -> None:
        self.callFromThread = threads.callFromThread
        self.addSystemEventTrigger = reactor.addSystemEventTrigger
        self.removeSystemEventTrigger = reactor.removeSystemEventTrigger

    def callWhenRunning(self, start: Callable[[], object]) -> None:
        """Do nothing."""


class Connections:
    """
    A pool of connections to one database.  Threads and connections are made when they are first
    needed, so that a daemon may still fork after the pool has been made.

    :param reactor: an ``IReactorCore`` too.
    :param threads: the most connections at a time, each with its own thread.
    :param busy_timeout: seconds that a connection waits for locks of other connections.
    :param prepare: called with each new connection.
    :param took: called with the seconds that each call has taken, its wait for a thread included.
    :ivar threads: those of the connections.
    """

    def __init__(
        self,
        path: Path,
        reactor: IReactorFromThreads,
        threads: int,
        busy_timeout: float,
        prepare: Callable[[Connection], None],
        took: Callable[[float], object] = lambda _: None,
    ) -> None:
        self.threads = Threads(reactor, threads, "catalog")
        self._took = took
        # Any: adbapi has no type annotations.
        self._pool: Any = cast(Callable[..., Any], ConnectionPool)(
            "sqlite3",
            str(path),
            timeout=busy_timeout,
            isolation_level=None,  # the sqlite3 module begins no transaction by itself
            check_same_thread=False,  # close() closes all of them in one thread
            cp_min=1,
            cp_max=threads,
            cp_reactor=_PoolReactor(reactor, self.threads),
            cp_openfun=prepare,
        )
        self._pool.threadpool = self.threads
        self._in_flight: set[Deferred[Any]] = set()
        self._closed = False

    def run(self, work: Callable[[Connection], _T]) -> Deferred[_T]:
        """
        Call ``work`` with a connection, in the connection's thread.  If ``work`` began a
        transaction, it is committed then, or rolled back if ``work`` raised.

        Cancelling the result does not stop ``work``, and :meth:`close` still waits for it.

        :raises Unavailable: if the database can't be used now.
        """
        if self._closed:
            return fail(Unavailable("the registry is shutting down: try again later"))
        if not self._pool.running:
            self._pool.start()
        began = time.monotonic()
        working: Deferred[_T] = self._pool.runWithConnection(work)
        self._in_flight.add(working)

        def ended(outcome: _T | Failure) -> _T | Failure:
            self._took(time.monotonic() - began)
            self._in_flight.discard(working)
            return outcome

        return uncancelled(working.addBoth(ended).addErrback(translated))

    async def close(self) -> None:
        """Wait for the work in flight, then close the connections and end the threads."""
        if self._closed:
            return
        self._closed = True
        await DeferredList(list(self._in_flight))
        if self._pool.running:
            # In a thread: closing the last connection to a database checkpoints it.
            await self.threads.run(self._disconnect)
        self._pool.close()  # joins threads that are idle by now

    def _disconnect(self) -> None:
        for connection in self._pool.connections.values():
            connection.close()
        self._pool.connections.clear()


# -- group commit: writes that come together share one transaction, and so one fsync

# A larger transaction would gain little and keep other processes from the lock for longer.
_BATCH = 64


@frozen(eq=False)
class _Write(Generic[_T]):
    interaction: Callable[[Connection], _T]
    committed: Callable[[], None] | None
    last: bool
    done: Deferred[_T] = field(factory=Deferred)

    def run(self, connection: Connection) -> _T | Failure:
        """
        Run inside the batch's transaction.  A failure undoes this write alone.

        :raises sqlite3.Error: if SQLite has rolled back the whole transaction.
        """
        connection.execute("SAVEPOINT write")
        outcome: _T | Failure
        try:
            outcome = self.interaction(connection)
        except Exception:
            if not connection.in_transaction:  # rolled back by SQLite, on a full disk for example
                raise
            outcome = translated(Failure())
            connection.execute("ROLLBACK TO write")
        connection.execute("RELEASE write")
        return outcome

    def settle(self, outcome: object) -> None:
        """Call ``committed``, now that the transaction is, unless this write failed."""
        if self.committed is not None and not isinstance(outcome, Failure):
            try:
                self.committed()
            except OSError as error:
                _log.warn("a file was not removed, the sweep will do it: {error}", error=error)
            except Exception:
                _log.failure("cleaning up after a committed write has failed")


class Writer:
    """
    Runs interactions one after the other on the one connection that writes.

    All interactions that are queued while a transaction is in flight share the next one, each
    inside a savepoint of its own.  Those that take long have a transaction each, in turns with
    those of the others, and their owners take turns.  So a short one waits for one of them at
    most, however many there are.

    :param connections: a pool of exactly one connection.
    :param versions: learn which images each transaction touches, if they follow the connection.
    """

    def __init__(self, connections: Connections, versions: Versions) -> None:
        self._connections = connections
        self._versions = versions
        self._queue: deque[_Write[Any]] = deque()
        self._long: dict[str, deque[_Write[Any]]] = {}  # by owner; no queue in it is empty
        self._was_long = False  # the last transaction
        self._committing = False
        # Whether a commit has failed that the log may hold whole, if the disk could not sync it:
        # nobody sees it now, but a start after a crash would, when its bytes are gone.
        self._in_doubt = False  # in the writer's thread only

    def run(
        self,
        interaction: Callable[[Connection], _T],
        committed: Callable[[], None] | None = None,
        *,
        last: bool = False,
        long: str | None = None,
    ) -> Deferred[_T]:
        """
        Run ``interaction`` in the writer's thread, where it may block; its result comes when its
        transaction is durable.

        Cancelled before its transaction has begun, the interaction never runs; later, it is
        committed nevertheless.

        :param committed: called in the same thread after the commit; errors it raises are logged.
        :param last: nothing that is queued behind it shares its transaction.
        :param long: the owner of an interaction that takes many milliseconds; ``None``: it is
            short.
        :raises Exception: anything ``interaction`` raised; then it has written nothing.
        :raises Unavailable: if the transaction could not be begun or committed.
        """
        write = _Write(interaction, committed, last)
        queue = self._queue if long is None else self._long.setdefault(long, deque())
        queue.append(write)
        if not self._committing:
            self._commit_next()
        return write.done

    @property
    def queued(self) -> int:
        """The number of interactions that wait for a transaction."""
        return len(self._queue) + sum(map(len, self._long.values()))

    async def close(self) -> None:
        """Wait for the queued writes, then close the connection."""
        while True:
            with suppress(Unavailable):  # then the writes before it have failed too, and were told
                await self.run(lambda _: None)
            if not self._long:
                break
        await self._connections.close()

    def _next_batch(self) -> list[_Write[Any]]:
        """Take the writes of the next transaction from the queues; none: there are no more."""
        batch = self._next_short() if self._was_long else []
        long = [] if batch else self._next_long()
        self._was_long = bool(long)
        return batch or long or self._next_short()

    def _next_short(self) -> list[_Write[Any]]:
        batch: list[_Write[Any]] = []
        while self._queue and len(batch) < _BATCH:
            write = self._queue.popleft()
            if write.done.called:  # cancelled
                continue
            batch.append(write)
            if write.last:
                break
        return batch

    def _next_long(self) -> list[_Write[Any]]:
        while self._long:
            owner = next(iter(self._long))
            queue = self._long.pop(owner)
            write = queue.popleft()
            if queue:
                self._long[owner] = queue  # behind the other owners
            if not write.done.called:
                return [write]
        return []

    def _commit_next(self) -> None:
        batch = self._next_batch()
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

        committed = self._connections.run(partial(self._transact, batch))
        committed.addCallbacks(settle, give_up).addBoth(go_on)

    def _transact(self, batch: Sequence[_Write[Any]], connection: Connection) -> list[object]:
        if self._in_doubt:
            # A commit overwrites what the failed one has left in the log.
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {version}")
            self._in_doubt = False
        versions = self._versions
        versions.begin()
        # IMMEDIATE takes the lock now.  A transaction that reads first, and writes after another
        # process has written, fails with SQLITE_BUSY_SNAPSHOT, whatever the timeout.
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [write.run(connection) for write in batch]
        versions.announce(connection)
        try:
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            # On a full disk the log has no end of it.
            self._in_doubt = error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL
            raise
        versions.settle()
        for write, outcome in zip(batch, outcomes, strict=True):
            write.settle(outcome)
        return outcomes


# -- reading and writing the catalog


class Database:
    """
    The connections of this process to the catalog at ``path``, which
    :func:`artifactd.catalog.migrations.migrate` has made.

    Nothing is opened and no thread started before the first call, so a daemon may still fork.

    :param readers: the most reads at the same time, each in a thread.
    :param busy_timeout: seconds to wait for another process that is writing.
    :param now: tells the time in seconds since the epoch, in any thread.
    :param make_room: called in the writer's thread when the disk is full, before what frees space
        is tried once more; raises OSError if there is no room.  ``None``: it is not tried again.
    :param outbox: is told, inside their transactions, of the changes that webhooks want to know.
    :param read_took, write_took: called with the seconds that each read and each transaction has
        taken, its wait for a thread included.
    :ivar versions: of the images; each changes with every commit that touches the image.
    """

    def __init__(
        self,
        path: Path,
        reactor: IReactorFromThreads,
        *,
        readers: int = 4,
        busy_timeout: float = 5.0,
        now: Callable[[], float] = time.time,
        make_room: Callable[[], None] | None = None,
        read_took: Callable[[float], object] = lambda _: None,
        write_took: Callable[[float], object] = lambda _: None,
        outbox: Outbox | None = None,
    ) -> None:
        self.now = now
        self.outbox = outbox or Outbox()
        self._make_room = make_room
        self.versions = Versions(path.with_name(f"{path.name}-versions"), path)
        self._damage: Damaged | None = None
        self._readers = Connections(path, reactor, readers, busy_timeout, prepare_reader, read_took)

        def prepare(connection: Connection) -> None:
            prepare_writer(connection)
            self.versions.follow(connection)

        self._writer = Writer(
            Connections(path, reactor, 1, busy_timeout, prepare, write_took), self.versions
        )

    @property
    def reader_threads(self) -> Threads:
        """The threads in which reads run."""
        return self._readers.threads

    @property
    def writes_queued(self) -> int:
        """The number of writes that wait for a transaction."""
        return self._writer.queued

    def read(self, query: Callable[[Connection], _T]) -> Deferred[_T]:
        """Run ``query`` in a reader's thread; all its statements see one snapshot."""
        return self._readers.run(partial(in_snapshot, query)).addErrback(self._note_damage)

    def write(
        self,
        interaction: Callable[[Connection], _T],
        committed: Callable[[], None] | None = None,
        *,
        last: bool = False,
        long: str | None = None,
        frees: bool = False,
    ) -> Deferred[_T]:
        """
        Run ``interaction`` in the group commit, see :meth:`Writer.run`.

        :param frees: whether it leads to the removal of bytes: on a full disk it is run once more,
            with what ``make_room`` gives back.
        :raises Damaged: once any call has found the file damaged.  Nothing is written from then
            on, because damaged rows lead to wrong decisions.
        """
        if self._damage is not None:
            return fail(self._damage)
        make_room = self._make_room

        def retry(failure: Failure) -> Failure | Deferred[_T]:
            if make_room is None or not failure.check(DiskFull):
                return failure

            def again(db: Connection) -> _T:
                make_room()
                return interaction(db)

            return self._writer.run(again, committed, last=last, long=long)

        writing = self._writer.run(interaction, committed, last=last, long=long)
        if frees:
            writing.addErrback(retry)
        return writing.addErrback(self._note_damage)

    async def check(self) -> None:
        """
        :raises Damaged: if any call has found the file damaged since the start.
        :raises Unavailable: if the catalog can't be read, or can't be locked for writing.
        """
        if self._damage is not None:
            raise self._damage
        await self.read(lambda db: db.execute("SELECT 1 FROM image LIMIT 1").fetchone())
        await self.write(lambda _: None)  # takes the lock, and writes nothing

    def _note_damage(self, failure: Failure) -> Failure:
        if isinstance(failure.value, Damaged) and self._damage is None:
            self._damage = failure.value
            _log.critical(
                "the catalog is read-only from now on: {error}", error=failure.value.message
            )
        return failure

    async def close(self) -> None:
        """Wait for the calls in flight, then close all connections."""
        await self._readers.close()
        await self._writer.close()
        self.versions.close()


class OnDatabase:
    """
    A class whose methods run SQL on ``database``; see :func:`read` and :func:`write`.

    :ivar database: shared by all parts of the catalog; its maker closes it.
    """

    def __init__(self, database: Database) -> None:
        self.database = database


_S = TypeVar("_S", bound=OnDatabase)


def read(
    method: Callable[Concatenate[_S, Connection, _P], _T],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """
    Run a method in a reader's thread, all its statements in one snapshot.

    The method is written with the connection as its first argument.  Callers leave that out, and
    await the result.
    """

    @wraps(method)
    async def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self.database.read(lambda db: method(self, db, *args, **kwargs))

    return call


def write(
    method: Callable[Concatenate[_S, Connection, _P], _T],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """
    Run a method in the group commit; written and called as with :func:`read`.

    Its result comes when its transaction is durable.  If it raises, it has written nothing.
    """

    @wraps(method)
    async def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self.database.write(lambda db: method(self, db, *args, **kwargs))

    return call


def write_freeing(
    method: Callable[Concatenate[_S, Connection, _P], _T],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """Run a method as :func:`write` does, also on a full disk: it leads to the removal of bytes."""

    @wraps(method)
    async def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self.database.write(lambda db: method(self, db, *args, **kwargs), frees=True)

    return call


def write_last(
    method: Callable[Concatenate[_S, Connection, _P], _T],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """
    Run a method as :func:`write_freeing` does, as the last one of its transaction.

    For methods that delete rows of ``blob``: a ``Catalog.forget_blob`` in the same transaction
    would remove bytes whose rows come back if the commit fails.
    """

    @wraps(method)
    async def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self.database.write(
            lambda db: method(self, db, *args, **kwargs), last=True, frees=True
        )

    return call
