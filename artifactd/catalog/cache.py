"""Results of reads, kept for as long as nobody, in any process, has committed anything."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

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
