"""Maps of extents: what they say, and what a crash may make of them."""

from __future__ import annotations

import errno
import os

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci.names import Digest
from artifactd.store.extents import ExtentMap
from artifactd.store.fills import FillInfo, blob_name
from tests.store.filling import CONTENT, DIGEST, INFO, ExtentTestCase, read
from tests.store.fixture import (
    MEBIBYTE,
    FullDisk,
    ThreadedTestCase,
    WatchedFiles,
)

LONG = bytes(range(251)) * (20 * MEBIBYTE // 251)


LONG_DIGEST = Digest.of(LONG)


class ExtentTests(ThreadedTestCase, ExtentTestCase):
    async def test_what_was_recorded_is_found_at_its_offset(self) -> None:
        await self.recorded(6, b"wor")
        for stores in (self.stores, self.open_stores()):
            self.assertEqual(b"wor", await self.found(6, 8, stores=stores))
            self.assertEqual(b"o", await self.found(7, 7, stores=stores))

    async def test_what_is_not_all_there_is_not_found(self) -> None:
        self.assertIsNone(await self.found(6, 8))
        await self.recorded(6, b"wor")
        for first, last in ((5, 8), (6, 9), (0, 0), (9, 9), (0, 10)):
            self.assertIsNone(await self.found(first, last), (first, last))
        self.assertIsNone(await self.found(6, 8, Digest.of(b"other")))

    async def test_what_was_not_recorded_is_not_found(self) -> None:
        session = await self.extent(6, b"wor")
        self.assertEqual(9, await session.flush())
        self.assertIsNone(await self.found(6, 8))
        await session.close()
        self.assertIsNone(await self.found(6, 8))

    async def test_it_can_be_read_while_it_comes(self) -> None:
        session = await self.extent(6, b"")
        self.assertEqual((6, 6), (session.offset, session.written))
        told: list[int] = []
        session.watch(told.append)
        reader = session.reader()
        self.addCleanup(reader.close)
        session.write(b"wor")
        self.assertEqual((9, 9), (session.offset, await session.flush()))
        self.assertEqual(([9], b"wor"), (told, read(reader, 3, 6)))

    async def test_it_may_be_recorded_in_steps(self) -> None:
        session = await self.extent(6, b"wo")
        await session.record()
        self.assertEqual(b"wo", await self.found(6, 7))
        self.assertIsNone(await self.found(6, 8))
        await session.record()
        session.write(b"rld")
        await session.record()
        self.assertEqual(b"world", await self.found(6, 10))

    async def test_an_empty_one_is_nothing(self) -> None:
        session = await self.extent(6, b"")
        await session.record()
        self.assertIsNone(await self.found(6, 6))

    async def test_neighbours_and_what_overlaps_are_one(self) -> None:
        parts = (b"wor", 6), (b"hel", 0), (b"lo ", 3), (b"orld", 7), (b"o", 7)
        for content, first in parts:
            await self.recorded(first, content)
        self.assertEqual(CONTENT, await self.found(0, 10))

    async def test_several_processes_may_add_the_same_at_once(self) -> None:
        sessions = [await self.extent(2, b"llo w", stores=self.open_stores()) for _ in range(3)]
        for session in sessions:
            await session.record()
        for session in sessions:
            await session.close()
        self.assertEqual(b"llo w", await self.found(2, 6))

    async def test_a_part_that_outlives_what_it_belonged_to_leaves_nothing(self) -> None:
        session = await self.extent(2, b"llo")
        reader = session.reader()
        self.addCleanup(reader.close)
        await self.stores.fills.discard(DIGEST)
        await self.recorded(6, b"wor")
        session.write(b" w")
        await session.record()
        self.assertEqual(b"llo w", read(reader, 5, 2))
        self.assertIsNone(await self.found(2, 4))
        self.assertEqual(b"wor", await self.found(6, 8))

    async def test_what_the_upstream_has_told_is_kept_with_it(self) -> None:
        await self.extent(2, b"llo")
        self.assertEqual(INFO, await self.stores.fills.info(DIGEST))
        self.assertEqual(INFO, (await self.claimed()).info)

    async def test_but_no_more_than_is_known(self) -> None:
        for told, known in (
            (FillInfo(None), FillInfo(None)),
            (INFO, INFO),
            (FillInfo(11), INFO),
            (FillInfo(None), INFO),
        ):
            await self.extent(2, b"llo", info=told)
            self.assertEqual(known, await self.stores.fills.info(DIGEST))

    async def test_it_is_written_while_somebody_has_the_fill(self) -> None:
        session = await self.filled(b"hello")
        await self.recorded(6, b"world", stores=self.open_stores())
        self.assertEqual(b"world", await self.found(6, 10))
        self.assertEqual(5, session.written)


class ExtentsInFillsTests(ThreadedTestCase, ExtentTestCase):
    async def test_the_fill_takes_what_lies_at_its_end(self) -> None:
        await self.recorded(6, b"world")
        session = await self.filled(b"hello ")
        told: list[int] = []
        session.watch(told.append)
        self.assertEqual(5, await session.take_extents(None))
        self.assertEqual((11, 11, [11]), (session.offset, session.written, told))
        self.assertEqual(0, await session.take_extents(None))
        self.assertEqual(CONTENT, read(await self.viewed()))
        self.assertEqual(DIGEST, await session.computed())

    async def test_and_goes_on_after_it(self) -> None:
        await self.recorded(0, b"hello")
        session = await self.claimed()
        self.assertEqual(5, await session.take_extents(11))
        session.write(b" world")
        self.assertEqual(11, session.offset)
        self.assertEqual(DIGEST, await session.computed())

    async def test_only_from_its_end_on(self) -> None:
        await self.recorded(4, b"o wor")
        session = await self.filled(b"hello ")
        self.assertEqual(3, await session.take_extents(None))
        session.write(b"ld")
        self.assertEqual(DIGEST, await session.computed())

    async def test_not_beyond_a_gap(self) -> None:
        await self.recorded(7, b"orld")
        session = await self.filled(b"hello ")
        self.assertEqual(0, await session.take_extents(None))
        self.assertEqual(6, session.written)

    async def test_not_beyond_the_offset_it_is_told(self) -> None:
        await self.recorded(6, b"world and more")
        session = await self.filled(b"hello ")
        self.assertEqual(5, await session.take_extents(11))
        self.assertEqual(0, await session.take_extents(11))
        self.assertEqual(0, await session.take_extents(3))
        self.assertEqual(DIGEST, await session.computed())

    async def test_where_nothing_is_there_is_nothing_to_take(self) -> None:
        session = await self.claimed()
        self.assertEqual(0, await session.take_extents(None))
        self.assertIsNone(await session.next_extent())

    async def test_a_long_one_is_taken_in_turns(self) -> None:
        await self.recorded(3, LONG[3:], digest=LONG_DIGEST)
        session = await self.filled(LONG[:3], digest=LONG_DIGEST)
        turns = []
        while taken := await session.take_extents(len(LONG)):
            turns.append(taken)
        self.assertEqual([16 * MEBIBYTE, len(LONG) - 3 - 16 * MEBIBYTE], turns)
        self.assertEqual(LONG_DIGEST, await session.computed())

    async def test_the_next_one_is_the_first_behind_its_end(self) -> None:
        for first, size in ((0, MEBIBYTE + 5), (2 * MEBIBYTE, MEBIBYTE), (4 * MEBIBYTE, MEBIBYTE)):
            await self.recorded(first, LONG[first : first + size], digest=LONG_DIGEST)
        session = await self.claimed(LONG_DIGEST)
        self.assertEqual(2 * MEBIBYTE, await session.next_extent())
        await session.take_extents(None)
        self.assertEqual(MEBIBYTE + 5, session.written)
        self.assertEqual(2 * MEBIBYTE, await session.next_extent())
        session.write(LONG[MEBIBYTE + 5 : 2 * MEBIBYTE])
        await session.flush()
        self.assertEqual(4 * MEBIBYTE, await session.next_extent())

    async def test_a_short_one_is_not_worth_going_round(self) -> None:
        await self.recorded(MEBIBYTE, LONG[MEBIBYTE : 2 * MEBIBYTE - 1], digest=LONG_DIGEST)
        session = await self.claimed(LONG_DIGEST)
        self.assertIsNone(await session.next_extent())
        await self.recorded(2 * MEBIBYTE - 1, LONG[:1], digest=LONG_DIGEST)
        self.assertEqual(MEBIBYTE, await session.next_extent())

    async def test_extents_that_are_complete_become_the_blob(self) -> None:
        for first, last in ((6, 11), (0, 6)):
            await self.recorded(first, CONTENT[first:last])
        session = await self.claimed()
        self.assertEqual(INFO, session.info)
        self.assertEqual(11, await session.take_extents(11))
        self.assertEqual(DIGEST, await session.computed())
        staged = await session.stage()
        await staged.publish()
        staged.release()
        await self.assert_blob(CONTENT)
        self.assertIsNone(await self.found(0, 0))


NAME = blob_name("docker.io", DIGEST)


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


class TornMapTests(ExtentTestCase):
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
