"""Maps of extents: what they say, and what a crash may make of them."""

from __future__ import annotations

import errno
import os

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from artifactd.store.extents import ExtentMap
from tests.contracts.storage_extents import ExtentTestCase
from tests.contracts.storage_fills import CONTENT, DIGEST, INFO
from tests.store.fixture import FilesystemTestCase, FullDisk, WatchedFiles

NAME = f"sha256-{DIGEST.encoded}"
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
UUID = "01234567-89ab-cdef-0123-456789abcdef"


class MapTests(SynchronousTestCase):
    def spans(self, *records: str) -> list[tuple[int, int]]:
        found = ExtentMap.parse("blob", (UUID + "".join(records)).encode())
        assert found is not None
        self.assertEqual(f"blob.{UUID}.extents", found.name)
        return [(span.first, span.last) for span in found.spans]

    def test_it_may_have_no_records(self) -> None:
        self.assertEqual([], self.spans())

    def test_spans_are_in_order_and_have_gaps_between_them(self) -> None:
        records = ("\n50-59.", "\n0-9.", "\n10-19.", "\n15-30.", "\n17-18.", "\n32-32.")
        self.assertEqual([(0, 30), (32, 32), (50, 59)], self.spans(*records))

    def test_a_torn_record_counts_for_nothing(self) -> None:
        for torn in ("", "\n", "\n5", "\n50-", "\n50-5", "\n50-59"):
            self.assertEqual([(0, 9)], self.spans("\n0-9.", torn), torn)

    def test_nor_does_it_spoil_the_next_one(self) -> None:
        for torn in ("\n", "\n5", "\n50-", "\n50-5", "\n50-59"):
            self.assertEqual([(0, 9), (20, 29)], self.spans("\n0-9.", torn, "\n20-29."), torn)

    def test_what_is_no_record_counts_for_nothing(self) -> None:
        for strange in ("\0" * 40, "\n9-0.", "\n-1-5.", "\n1-2-3.", "\n1.", "\n٣-٤.", "x"):
            self.assertEqual([(20, 29)], self.spans(strange, "\n20-29."), strange)

    def test_what_names_no_file_is_no_map(self) -> None:
        for content in (b"", b"\0" * 60, b"../../etc/passwd\n0-9.", UUID[:-1].encode()):
            self.assertIsNone(ExtentMap.parse("blob", content))


class TornMapTests(FilesystemTestCase, ExtentTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.map = self.path / "fills" / f"{NAME}.map"

    async def test_a_process_that_died_while_recording_spoils_nothing(self) -> None:
        await self.recorded(0, b"hello ")
        with self.map.open("ab") as file:
            file.write(b"\n6-1")
        self.assertEqual(b"hello ", await self.found(0, 5))
        self.assertIsNone(await self.found(6, 6))
        await self.recorded(8, b"rld")
        self.assertEqual(b"rld", await self.found(8, 10))
        self.assertIsNone(await self.found(6, 8))

    async def test_a_full_disk_may_tear_a_record(self) -> None:
        disk = FullDisk(1 << 30, NO_SPACE)
        stores = self.open_stores(disk)
        session = await self.extent(0, b"hello", stores=stores)
        await session.flush()
        disk.room = 2
        await self.assert_raises(OSError, session.record())
        self.assertIsNone(await self.found(0, 4))
        await self.recorded(6, b"world")
        self.assertEqual(b"world", await self.found(6, 10))

    async def test_bytes_that_can_not_be_synced_are_never_recorded(self) -> None:
        # The second fdatasync would succeed, and the bytes be lost all the same.
        disk = FullDisk(1 << 30, NO_SPACE)
        session = await self.extent(0, b"hello", stores=self.open_stores(disk))
        disk.failing = {"sync"}
        await self.assert_raises(OSError, session.record())
        disk.failing = set()
        await session.record()
        session.write(b" world")
        await session.record()
        self.assertIsNone(await self.found(0, 4))
        self.assertEqual(b" world", await self.found(5, 10))

    async def test_a_disk_that_is_full_keeps_no_half_of_a_map(self) -> None:
        session = await self.claimed()
        await session.describe(INFO)
        before = self.below("fills")
        disk = FullDisk(0, NO_SPACE)
        fills = self.open_stores(disk).fills
        for disk.room in (0, 20):
            await self.assert_raises(OSError, fills.add_extent(DIGEST, 0, INFO))
            self.assertEqual(before, self.below("fills"))

    async def test_a_map_that_a_power_cut_has_emptied_is_begun_anew(self) -> None:
        await self.recorded(0, b"hello")
        os.truncate(self.map, 0)
        self.assertIsNone(await self.found(0, 4))
        await self.recorded(6, b"world")
        self.assertIsNone(await self.found(0, 4))
        self.assertEqual(b"world", await self.found(6, 10))

    async def test_so_is_one_without_its_extents(self) -> None:
        await self.recorded(0, b"hello")
        next(self.map.parent.glob("*.extents")).unlink()
        self.assertIsNone(await self.found(0, 4))
        session = await self.claimed()
        self.assertEqual(0, await session.take_extents(None))
        await self.recorded(6, b"world")
        self.assertIsNone(await self.found(0, 4))
        self.assertEqual(b"world", await self.found(6, 10))

    async def test_of_two_that_begin_at_once_both_write_into_one_file(self) -> None:
        faster: list[Deferred[None]] = []

        def begin() -> None:
            if not faster:
                adding = self.recorded(0, b"hello", stores=self.open_stores())
                faster.append(ensureDeferred(adding))

        files = WatchedFiles()
        slower = self.open_stores(files)
        files.look = begin
        await self.recorded(5, b" world", stores=slower)
        self.successResultOf(faster[0])
        self.assertEqual(CONTENT, await self.found(0, 10))
        self.assertEqual(1, len(list(self.map.parent.glob("*.extents"))))
        self.assertEqual([], list(self.map.parent.glob("*.new")))
