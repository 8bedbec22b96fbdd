"""Scrubbing: reading again, slowly, everything that is stored; docs/operating.md, "Scrub"."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from attrs import define, field
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.catalog.database import Damaged
from artifactd.catalog.repair import ListedBlob, RepairCatalog
from artifactd.kit.deferreds import RunInThread, Stopped
from artifactd.kit.janitor import Pace, pages
from artifactd.oci.errors import RegistryError
from artifactd.oci.names import Digest
from artifactd.registry.metrics import DamageCounters
from artifactd.registry.upkeep.damage import Damage
from artifactd.settings.settings import Settings
from artifactd.store.blobs import SHELVES, BlobStore
from artifactd.store.examine import Examination, ScrubLock, ScrubPosition

_log = Logger()

_ROW = 4096  # bytes of the rate that looking for one row's file costs
_WRITE_EVERY = 30.0  # seconds of reading that a crash may cost


@define(eq=False)
class Scrubber:
    """
    Checks the catalog, hashes every published blob and looks for the file of every listed one,
    round after round.

    :param settings: ``scrub_rate``, ``scrub_pause`` and ``quarantine_keep``.
    :param clock: measures the pauses.
    :param now: seconds since the epoch.
    """

    blobs: BlobStore
    repairs: RepairCatalog
    damage: Damage
    lock: ScrubLock
    settings: Settings
    run_in_thread: RunInThread
    clock: IReactorTime
    counters: DamageCounters
    now: Callable[[], float] = time.time
    _pace: Pace = field(init=False)
    _position: ScrubPosition = field(factory=ScrubPosition, init=False)
    _written: float = field(default=0.0, init=False)
    _is_checked: bool = field(default=False, init=False)

    @_pace.default
    def _(self) -> Pace:
        return Pace(self.clock)

    async def run(self) -> None:
        """
        Do a round, or the rest of an unfinished one, if a round is due and no other process scrubs.

        :raises OSError: if the lock, or the position in it, can't be used.
        """
        if not self.settings.scrub_rate or self._pace.is_stopped:
            return
        if not await self.run_in_thread(self.lock.claim):
            return
        try:
            self._position = await self.run_in_thread(self.lock.read)
            begins = (self._position.shelf, self._position.after) == (0, "")
            rests = begins and self.now() < self._position.ended + self.settings.scrub_pause
            # Nobody can mend it while this process has it open.
            if (begins and not rests) or (self._position.wrong and not self._is_checked):
                await self._catalog()
            if not rests:
                await self._round()
        except Stopped:
            await self._write()
        finally:
            self.lock.release()

    def stop(self) -> None:
        """
        Make :meth:`run` return: at once from a pause.  The next run goes on at the same place.
        """
        self._pace.stop()
        self.repairs.stop()

    async def _catalog(self) -> None:
        """Check the catalog, table by table: each is read as it is at one moment."""
        wrong = ""
        try:
            for table in await self.repairs.tables():
                wrong = wrong or await self.repairs.integrity_of(table)
        except Damaged as error:
            wrong = str(error.__cause__)
        self._is_checked = True
        if wrong != self._position.wrong:
            if wrong:
                _log.critical(
                    "the catalog is damaged: {wrong}; nothing is collected any more: stop the"
                    " registry and restore a backup",
                    wrong=wrong,
                )
            self._position = replace(self._position, wrong=wrong)
            await self._write()

    async def _round(self) -> None:
        if self.settings.quarantine_keep:
            await self._expire(self.now() - self.settings.quarantine_keep)
        self._written = self.clock.seconds()
        while self._position.shelf < SHELVES:
            await self._shelf(self._position.shelf)
            self._position = replace(self._position, shelf=self._position.shelf + 1, after="")
            await self._write()
        await self._rows()
        self._position = ScrubPosition(ended=self.now(), wrong=self._position.wrong)
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
        try:
            published = await self.blobs.published(shelf, math.inf)
        except OSError as error:
            _log.error("blobs/*/{shelf:02x} can't be listed: {error}", shelf=shelf, error=error)
            return
        for text, digest in sorted((str(digest), digest) for digest, _ in published):
            if text <= self._position.after:
                continue
            try:
                await self._blob(digest)
            except OSError as error:
                _log.error("{digest} can't be scrubbed: {error}", digest=digest, error=error)
            self._position = replace(self._position, after=text)
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
            await self._pace.spend(count, self.settings.scrub_rate)

    async def _rows(self) -> None:
        """Look for the files of all rows: a blob without a file is on no shelf."""
        async for rows in pages(self.repairs.listed_blobs, "", lambda row: str(row.digest)):
            for digest in await self.run_in_thread(self._without_file, rows):
                await self.damage.missing(digest)
            await self._pace.spend(len(rows) * _ROW, self.settings.scrub_rate)

    def _without_file(self, rows: Sequence[ListedBlob]) -> list[Digest]:
        found = []
        for row in rows:
            with suppress(OSError):  # its shelf can't be listed either, which was told
                if row.lost_at is None and not self.blobs.is_there(row.digest):
                    found.append(row.digest)
        return found

    async def _write(self) -> None:
        await self.run_in_thread(self.lock.write, self._position)
        self._written = self.clock.seconds()
