"""The file of a catalog: how it is read and written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from artifactd.catalog.cache import DataVersion
from artifactd.catalog.connections import (
    Connections,
    in_snapshot,
    prepare_reader,
    prepare_writer,
)
from artifactd.catalog.interfaces import nothing
from artifactd.catalog.writer import Writer

_T = TypeVar("_T")


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
        self._readers = Connections(path, reactor, readers, busy_timeout, prepare_reader)
        self._writer = Writer(Connections(path, reactor, 1, busy_timeout, prepare_writer))

    def read(self, query: Callable[[Connection], _T]) -> Deferred[_T]:
        """The result of ``query``, all of whose statements see one snapshot."""
        return self._readers.run(partial(in_snapshot, query))

    def write(
        self,
        interaction: Callable[[Connection], _T],
        committed: Callable[[], None] = nothing,
        *,
        last: bool = False,
    ) -> Deferred[_T]:
        """As :meth:`artifactd.catalog.writer.Writer.run`."""
        return self._writer.run(interaction, committed, last=last)

    async def close(self) -> None:
        """Wait for what is in flight and close."""
        self.version.close()
        await self._readers.close()
        await self._writer.close()
