"""What every store of fills does with extents: parts of a blob that come before the rest."""

from __future__ import annotations

from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store.fills import FillInfo
from tests.contracts.storage import Stores
from tests.contracts.storage_fills import CONTENT, DIGEST, INFO, FillTestCase, read
from tests.contracts.storage_uploads import MEBIBYTE

LONG = bytes(range(251)) * (20 * MEBIBYTE // 251)
LONG_DIGEST = Digest.of(LONG)


class ExtentTestCase(FillTestCase):
    async def found(
        self, first: int, last: int, digest: Digest = DIGEST, stores: Stores | None = None
    ) -> bytes | None:
        """The bytes ``first`` to ``last``, or ``None`` if the extents don't have them all."""
        span = ByteRange(first, last)
        file = await (stores or self.stores).fills.find_extent(digest, span)
        if file is None:
            return None
        try:
            return read(file, span.length, first)
        finally:
            file.close()


class ExtentContract(ExtentTestCase):
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


class ExtentsInFillsContract(ExtentTestCase):
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
