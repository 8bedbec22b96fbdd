"""A fill on a disk that takes no more, or gives back less."""

from __future__ import annotations

import errno
import os

from artifactd.oci.names import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store.fills import FillInfo, FillState, blob_name
from tests.store.filling import CONTENT, DIGEST, INFO, NAME, FillFilesTestCase
from tests.store.fixture import FullDisk, RecordedProducer

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class FullDiskTests(FillFilesTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.disk = FullDisk(1 << 30, NO_SPACE)
        self.stores = self.open_stores(self.disk)

    async def test_what_went_in_stays_and_the_upstream_is_stopped(self) -> None:
        session, producer, told = await self.claimed(), RecordedProducer(), list[int]()
        session.watch(told.append)
        session.registerProducer(producer, True)
        self.disk.room = 7
        session.write(b"hello ")
        session.write(b"world")
        session.write(b"more")
        for _ in range(2):
            error = await self.assert_raises(OSError, session.flush())
            self.assertEqual(errno.ENOSPC, error.errno)
        self.assertEqual("stop", producer.told[-1])
        self.assertEqual((7, 7, 7), (session.offset, session.written, told[-1]))
        self.assertEqual(0, self.budget.used)
        await self.assert_raises(OSError, session.computed())
        await self.assert_raises(OSError, session.stage())
        await session.close()
        self.disk.room = 100
        again = await self.claimed()
        again.write(b"orld")
        self.assertEqual(DIGEST, await again.computed())

    async def test_an_upstream_that_comes_later_is_stopped_at_once(self) -> None:
        self.disk.room = 3
        session, producer = await self.claimed(), RecordedProducer()
        session.write(b"hello")
        session.registerProducer(producer, True)
        self.assertEqual(["stop"], producer.told)

    async def test_extents_that_do_not_all_fit_are_taken_as_far_as_they_do(self) -> None:
        await self.recorded(0, CONTENT)
        self.disk.room = 7
        session = await self.claimed()
        told: list[int] = []
        session.watch(told.append)
        await self.assert_raises(OSError, session.take_extents(None))
        self.assertEqual((7, 7, [7]), (session.offset, session.written, told))

    async def test_a_fill_that_can_not_be_synced_is_not_tried_again(self) -> None:
        # The second fsync would succeed, and the bytes be lost all the same.
        await self.kept()
        session = await self.claimed()
        view = await self.viewed()
        self.disk.failing = {"sync"}
        await self.assert_raises(OSError, session.stage())
        self.assert_looks(view, FillState.FAILED, 6)
        self.assertEqual([], self.below("fills") + self.below("staging"))

    async def test_what_can_not_be_described_leaves_what_was_known(self) -> None:
        session = await self.claimed()
        await session.describe(INFO)
        self.disk.room = 3
        await self.assert_raises(OSError, session.describe(FillInfo(12)))
        self.assertEqual((INFO, INFO), (session.info, await self.stores.fills.info(DIGEST)))
        self.assertEqual([NAME, f"{NAME}.info"], self.below("fills"))


class LengthTests(FillFilesTestCase):
    async def test_a_fill_that_was_cut_short_is_an_error(self) -> None:
        content = b"hello world and more"
        digest = Digest.of(content)
        await self.left(content, digest=digest)
        session = await self.claimed(digest)
        os.truncate(self.fills / blob_name("docker.io", digest), 5)
        error = await self.assert_raises(OSError, session.computed())
        self.assertIn("shorter than it was", str(error))
        session.restart()
        session.write(content)
        await self.assert_raises(OSError, session.flush())

    async def test_extents_that_were_cut_short_are_an_error(self) -> None:
        await self.recorded(0, CONTENT)
        extents = next(self.fills.glob("*.extents"))
        os.truncate(extents, 5)
        session = await self.claimed()
        error = await self.assert_raises(OSError, session.take_extents(None))
        self.assertIn("shorter than its map says", str(error))
        self.assertEqual(5, session.written)

    async def test_an_extent_takes_no_room_before_its_beginning(self) -> None:
        first = 1 << 30
        await self.recorded(first, CONTENT)
        extents = next(self.fills.glob("*.extents")).stat()
        self.assertEqual(first + 11, extents.st_size)
        self.assertLess(extents.st_blocks * 512, 1 << 20)
        span = ByteRange(first, first + 10)
        found = await self.stores.fills.find_extent(DIGEST, span)
        assert found is not None
        self.assertEqual(CONTENT, os.pread(found.fileno(), 100, first))
        found.close()
