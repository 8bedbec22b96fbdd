"""The file of a catalog: how it is read and written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactd.catalog.cache import DataVersion
from artifactd.catalog.connections import (
    Connections,
    in_snapshot,
    prepare_reader,
    prepare_writer,
)
from artifactd.catalog.errors import Damaged
from artifactd.catalog.interfaces import nothing
from artifactd.catalog.writer import Writer

_T = TypeVar("_T")

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
        As :meth:`artifactd.catalog.writer.Writer.run`; but once the file was seen to be damaged,
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
