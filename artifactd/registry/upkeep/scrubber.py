"""Scrubbing: everything that is stored is read again, slowly; docs/operating.md, "Scrub"."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.catalog.repair import ListedBlob, RepairCatalog
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.digest import Digest
from artifactd.oci.errors import RegistryError
from artifactd.registry.metrics import DamageCounters
from artifactd.registry.upkeep.damage import Damage
from artifactd.store.interfaces import SHELVES, BlobStore, Examination, ScrubLock, ScrubPosition

_log = Logger()

_PAGE = 64  # rows looked for in one turn of a thread
_ROW = 4096  # bytes that looking for one counts as
_WRITE_EVERY = 30.0  # seconds of reading that a crash may cost


@frozen
class ScrubRules:
    """
    :ivar rate: bytes per second that are read at most; 0: nothing is.
    :ivar pause: seconds between the end of a round and the next.
    :ivar keep: seconds for which what was quarantined stays; 0: for ever.
    """

    rate: int
    pause: float
    keep: float = 0.0


class _Stopped(Exception):
    """The scrubber was stopped."""


@define(eq=False)
class Scrubber:
    """
    Hashes everything that is published, and looks for everything that is listed, round by round.

    :param clock: of its pauses.
    :param now: seconds since the epoch.
    """

    blobs: BlobStore
    repairs: RepairCatalog
    damage: Damage
    lock: ScrubLock
    rules: ScrubRules
    run_in_thread: RunInThread
    clock: IReactorTime
    counters: DamageCounters
    now: Callable[[], float] = time.time
    _position: ScrubPosition = field(factory=ScrubPosition, init=False)
    _written: float = field(default=0.0, init=False)
    _pausing: Deferred[None] | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    async def run(self) -> None:
        """
        One round, or the rest of one that was begun, if it is time for it and no other process is
        at it.

        :raises OSError: if the store can't be looked at.
        """
        if not self.rules.rate or self._stopped:
            return
        if not await self.run_in_thread(self.lock.claim):
            return
        try:
            self._position = await self.run_in_thread(self.lock.read)
            due = self._position.ended + self.rules.pause
            if (self._position.shelf, self._position.after) == (0, "") and self.now() < due:
                return
            await self._round()
        except _Stopped:
            await self._write()
        finally:
            self.lock.release()

    def stop(self) -> None:
        """Go no further; where it is will be remembered."""
        self._stopped = True
        if self._pausing is not None:
            self._pausing.cancel()

    async def _round(self) -> None:
        if self.rules.keep:
            await self._expire(self.now() - self.rules.keep)
        self._written = self.clock.seconds()
        while self._position.shelf < SHELVES:
            await self._shelf(self._position.shelf)
            self._position = evolve(self._position, shelf=self._position.shelf + 1, after="")
            await self._write()
        await self._rows()
        self._position = ScrubPosition(ended=self.now())
        await self._write()
        self.counters.rounds.inc()

    async def _expire(self, before: float) -> None:
        for name, digest in await self.blobs.expired(before):
            try:
                examination = await self.blobs.examine_expired(name, digest)
                try:
                    # A disk that was away for a minute may have brought good bytes there.
                    await self._read(examination)
                    await self.damage.expire(name, examination)
                finally:
                    examination.close()
            except (OSError, RegistryError) as error:
                _log.error("{name} stays in quarantine: {error}", name=name, error=error)

    async def _shelf(self, shelf: int) -> None:
        found = await self.blobs.published(shelf, math.inf)
        for text, digest in sorted((str(digest), digest) for digest, _ in found):
            if text <= self._position.after:
                continue
            try:
                await self._blob(digest)
            except OSError as error:
                _log.error("{digest} can't be scrubbed: {error}", digest=digest, error=error)
            self._position = evolve(self._position, after=text)
            if self.clock.seconds() - self._written >= _WRITE_EVERY:
                await self._write()

    async def _blob(self, digest: Digest) -> None:
        examination = await self.blobs.examine(digest)
        if examination is None:
            return  # removed in this moment
        try:
            await self._read(examination)
            if examination.flaw is not None:
                await self.damage.quarantine(examination)
        finally:
            examination.close()

    async def _read(self, examination: Examination) -> None:
        while count := await examination.step():
            self.counters.scrubbed.inc(count)
            await self._pause(count)

    async def _rows(self) -> None:
        """What has no file is on no shelf."""
        after = ""
        while rows := await self.repairs.listed_blobs(after, _PAGE):
            after = str(rows[-1].digest)
            for digest in await self.run_in_thread(self._without_file, rows):
                await self.damage.missing(digest)
            await self._pause(len(rows) * _ROW)

    def _without_file(self, rows: Sequence[ListedBlob]) -> list[Digest]:
        return [
            row.digest
            for row in rows
            if row.lost_at is None and not self.blobs.is_there(row.digest)
        ]

    async def _pause(self, count: int) -> None:
        if not self._stopped:
            self._pausing = deferLater(self.clock, count / self.rules.rate, lambda: None)
            try:
                await self._pausing
            except CancelledError:
                if not self._stopped:
                    raise
            finally:
                self._pausing = None
        if self._stopped:
            raise _Stopped

    async def _write(self) -> None:
        await self.run_in_thread(self.lock.write, self._position)
        self._written = self.clock.seconds()
