"""Group commit: writes that come together share one transaction, and so one fsync."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactd.catalog.connections import Connections
from artifactd.catalog.errors import translated
from artifactd.catalog.interfaces import nothing
from artifactd.oci.errors import Unavailable

_T = TypeVar("_T")

_log = Logger()

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
