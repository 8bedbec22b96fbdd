"""A claim that meets a removal."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, ensureDeferred

from artifactd.oci.ranges import ByteRange
from artifactd.store.files import Directory
from tests.store.filling import DIGEST, NAME, FillFilesTestCase, fill_directory
from tests.store.fixture import WatchedFiles


@define(eq=False)
class Removal:
    """Somebody who is removing a fill: has it locked, and goes on when told to."""

    path: Path
    waited: int = 0
    _fd: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._fd = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def pause(self, _: float) -> None:
        """Somebody waits."""
        self.waited += 1

    def finish(self, _: float) -> None:
        """Somebody waits; it has ended by then."""
        self.waited += 1
        self.path.unlink()
        os.close(self._fd)

    def give_up(self, _: float) -> None:
        """Somebody waits; by then there was nothing to remove."""
        self.waited += 1
        os.close(self._fd)


@frozen
class RemovedOnce(Directory):
    """A directory from which what is opened first is removed just after that."""

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
        opened = super().open_file(name, flags)
        if opened[1].st_size:
            os.unlink(name, dir_fd=self.fd)
        return opened


class RemovalTests(FillFilesTestCase):
    """A claim that meets a removal."""

    async def claim(
        self, pause: Callable[[Removal], Callable[[float], None]]
    ) -> tuple[int | None, int]:
        """The size of what was claimed, if it was, and how often that took waiting."""
        await self.left(b"hello")
        removal = Removal(self.fills / NAME)
        with Directory.open(self.fills) as directory:
            claimed = fill_directory(directory, pause(removal)).claim(NAME, DIGEST.algorithm, True)
            if claimed is None:
                return None, removal.waited
            claimed[0].close()
            return claimed[0].size, removal.waited

    async def test_begins_anew_when_that_is_over(self) -> None:
        self.assertEqual((0, 1), await self.claim(lambda removal: removal.finish))

    async def test_gets_what_was_not_removed_after_all(self) -> None:
        self.assertEqual((5, 1), await self.claim(lambda removal: removal.give_up))

    async def test_does_not_wait_for_what_takes_longer(self) -> None:
        self.assertEqual((None, 1), await self.claim(lambda removal: removal.pause))

    async def test_finds_out_if_the_fill_is_removed_before_it_is_locked(self) -> None:
        await self.left(b"hello")
        with Directory.open(self.fills) as directory:
            claimed = fill_directory(RemovedOnce(directory.path, directory.fd)).claim(
                NAME, DIGEST.algorithm, True
            )
            assert claimed is not None
            self.assertEqual((0, True), (claimed[0].size, claimed[0].is_there()))
            claimed[0].close()

    async def test_keeps_its_fill_if_there_was_none_to_lock(self) -> None:
        await self.recorded(6, b"wor")
        self.assertIn(NAME, await self.kept_by_who_begins_during_a_sweep(after=1))

    async def test_keeps_all_if_it_begins_when_the_fill_is_gone(self) -> None:
        await self.kept()
        expected = [NAME, f"{NAME}.info", f"{NAME}.map"]
        kept = await self.kept_by_who_begins_during_a_sweep(after=3)
        self.assertEqual(expected, [name for name in kept if not name.endswith(".extents")])
        span = ByteRange(6, 8)
        found = await self.stores.fills.find_extent(DIGEST, span)
        assert found is not None
        found.close()

    async def kept_by_who_begins_during_a_sweep(self, after: int) -> list[str]:
        """
        What files there are when the sweep has ended.

        :param after: how many files it has removed by then.
        """
        began: list[Deferred[None]] = []
        files = WatchedFiles()
        stores = self.open_stores(files)

        def look() -> None:
            began.append(ensureDeferred(self.kept() if len(began) == after - 1 else nothing()))

        async def nothing() -> None:
            pass

        files.look = look
        self.assertEqual(1, len(await stores.all_fills.sweep(0)))
        return self.below("fills")
