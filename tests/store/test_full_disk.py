"""A disk that takes no more."""

from __future__ import annotations

import errno
import os
import zlib
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

from artifactd.oci.names import Algorithm, Digest
from artifactd.store.files import FileOperations
from artifactd.store.folder import RESERVE
from artifactd.store.uploads import UploadMissing, UploadSession
from tests.store.fixture import MEBIBYTE, FullDisk, RecordedProducer, StoreTestCase

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class FullDiskTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.disk = FullDisk(1000 * MEBIBYTE, NO_SPACE)
        self.stores = self.open_stores(self.disk)
        self.upload_id = str(uuid4())

    async def claimed(self) -> UploadSession:
        return await self.stores.uploads.claim(self.upload_id, Algorithm.SHA256)

    async def full(self, room: int, *pieces: bytes) -> UploadSession:
        """A session that has written ``pieces`` where there is only ``room`` for some."""
        self.new_upload(self.upload_id)
        self.disk.room = room
        session = await self.claimed()
        for piece in pieces:
            session.write(piece)
        await self.assert_raises(OSError, session.flush())
        return session

    async def test_what_went_in_stays_and_is_hashed(self) -> None:
        session = await self.full(7, b"hello ", b"world")
        self.assertEqual(7, session.offset)
        await session.close()
        self.assertEqual(7, await self.stores.uploads.offset(self.upload_id))
        self.disk.room = 100
        again = await self.claimed()
        again.write(b"orld")
        self.assertEqual(Digest.of(b"hello world"), await again.digest(Algorithm.SHA256))
        await again.close()

    async def test_what_another_thread_has_hashed_counts_only_as_far_as_it_went_in(self) -> None:
        self.stores = self.open_stores(self.disk, offer=lambda begin: begin())
        half = MEBIBYTE // 2
        session = await self.full(half, b"x" * MEBIBYTE)
        await session.close()
        elsewhere = self.open_stores().uploads
        await elsewhere.append(self.upload_id, Algorithm.SHA256, [b"y" * half], half)
        again = await self.claimed()
        digest = Digest.of(b"x" * half + b"y" * half)
        self.assertEqual(digest, await again.digest(Algorithm.SHA256))
        await again.close()

    async def test_a_chunk_that_does_not_fit_leaves_the_upload_as_it_was(self) -> None:
        self.new_upload(self.upload_id)
        append = partial(self.stores.uploads.append, self.upload_id, Algorithm.SHA256)
        await append([b"hello "], None)
        self.disk.room = 3
        await self.assert_raises(OSError, append([b"wo", b"rld"], None))
        self.assertEqual(6, await self.stores.uploads.offset(self.upload_id))
        digest = Digest.of(b"hello world")
        closing = self.stores.uploads.close(self.upload_id, Algorithm.SHA256, [b"world"], 6, digest)
        self.disk.room = 3
        await self.assert_raises(OSError, closing)
        self.assertEqual(6, await self.stores.uploads.offset(self.upload_id))
        self.disk.room = 100
        session, staged = await self.stores.uploads.close(
            self.upload_id, Algorithm.SHA256, [b"world"], 6, digest
        )
        assert session is not None and staged is not None
        await staged.publish()
        staged.release()
        await session.close()
        self.assertEqual(b"hello world", await self.stores.blobs.read(digest))

    async def test_without_a_reserve_only_deleting_goes_on_until_there_is_room_for_two(
        self,
    ) -> None:
        blobs = self.stores.blobs
        await blobs.require_room()
        self.assertTrue(blobs.reserve.is_held())
        size = (self.path / RESERVE).stat().st_size
        blobs.reserve.give_back()
        self.assertFalse(blobs.reserve.is_held())
        for free, fits in ((0, False), (2 * size - 1, False), (2 * size, True)):
            disk = SimpleNamespace(f_bavail=free, f_frsize=1)
            self.patch(os, "statvfs", lambda _, disk=disk: disk)
            if fits:
                await blobs.require_room()
                await blobs.check_writable()
            else:
                for refused in (blobs.require_room(), blobs.check_writable()):
                    error = await self.assert_raises(OSError, refused)
                    self.assertEqual(errno.ENOSPC, error.errno)
            self.assertEqual(blobs.reserve.is_held(), fits)
        blobs.reserve.give_back()
        self.disk.failing = {"allocate"}
        await self.assert_raises(OSError, blobs.require_room())
        self.assertFalse((self.path / RESERVE).exists())

    async def test_where_nothing_can_be_allocated_the_reserve_is_written(self) -> None:
        """In bytes that no filesystem compresses, so that they take the room they are for."""
        reserve, allocate = self.stores.blobs.reserve, FileOperations.allocate
        for number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):

            def refused(*_: object, number: int = number) -> None:
                raise OSError(number, os.strerror(number))

            self.patch(FileOperations, "allocate", refused)
            reserve.give_back()
            self.disk.room = 4 * MEBIBYTE - 1
            error = await self.assert_raises(OSError, self.stores.blobs.require_room())
            self.assertEqual(errno.ENOSPC, error.errno)
            self.assertFalse((self.path / RESERVE).exists())
            self.disk.room = 4 * MEBIBYTE
            await self.stores.blobs.require_room()
            self.assertTrue(reserve.is_held())
            content = (self.path / RESERVE).read_bytes()
            self.assertGreaterEqual(len(zlib.compress(content, 1)), 4 * MEBIBYTE)
        self.patch(FileOperations, "allocate", allocate)

    async def test_the_sender_is_stopped_and_its_rest_dropped(self) -> None:
        self.new_upload(self.upload_id)
        self.disk.room = 10
        session, producer = await self.claimed(), RecordedProducer()
        session.registerProducer(producer, True)
        session.write(b"x" * MEBIBYTE)
        self.assertEqual("stop", producer.told[-1])
        session.write(b"more")
        self.assertEqual((10, 0), (session.offset, self.budget.used))
        await session.close()

    async def test_a_sender_that_comes_later_is_stopped_at_once(self) -> None:
        session, producer = await self.full(3, b"hello"), RecordedProducer()
        session.registerProducer(producer, True)
        self.assertEqual(["stop"], producer.told)
        await session.close()

    async def test_it_goes_on_failing_where_all_bytes_matter(self) -> None:
        session = await self.full(3, b"hello")
        for _ in range(2):
            error = await self.assert_raises(OSError, session.flush())
            self.assertEqual(errno.ENOSPC, error.errno)
        await self.assert_raises(OSError, session.digest(Algorithm.SHA256))
        await self.assert_raises(OSError, session.stage(Digest.of(b"hel")))
        await session.close()

    async def test_the_request_can_be_taken_back(self) -> None:
        session = await self.full(3, b"hello")
        await session.rollback(0)
        await session.close()
        self.assertEqual(0, await self.stores.uploads.offset(self.upload_id))

    async def test_a_manifest_that_does_not_fit_leaves_nothing(self) -> None:
        self.disk.room = 3
        await self.assert_raises(OSError, self.published(b"manifest"))
        self.assertEqual([], self.below("staging"))

    async def test_bytes_that_can_not_be_synced_are_not_staged(self) -> None:
        self.disk.failing = {"sync"}
        await self.assert_raises(OSError, self.published(b"blob"))
        self.assertEqual([], self.below("staging") + self.below("blobs"))

    async def test_an_upload_that_can_not_be_synced_is_not_tried_again(self) -> None:
        # The second fsync would succeed, and the bytes be lost all the same.
        self.new_upload(self.upload_id)
        session = await self.claimed()
        session.write(b"blob")
        await session.flush()
        self.disk.failing = {"sync"}
        await self.assert_raises(OSError, session.stage(Digest.of(b"blob")))
        await session.close()
        await self.assert_raises(UploadMissing, self.claimed())
        self.assertEqual([], self.below("uploads") + self.below("staging") + self.below("blobs"))

    async def test_an_upload_that_can_neither_be_written_nor_removed_is_let_go(self) -> None:
        digest = Digest.of(b"more than that")  # of bytes that need no file none would be made
        self.disk.room, self.disk.failing = 0, {"unlink"}
        closing = self.stores.uploads.close(
            self.upload_id, Algorithm.SHA256, [b"blob"], None, digest, create=True
        )
        await self.assert_raises(OSError, closing)
        await (await self.claimed()).close()  # nothing holds its lock

    async def test_a_name_that_can_not_be_made_durable_is_taken_back(self) -> None:
        staged = await self.stores.blobs.stage(Digest.of(b"blob"), b"blob")
        for failing in ("link", "sync"):
            self.disk.failing = {failing}
            await self.assert_raises(OSError, staged.publish())
        self.disk.failing = set()
        await staged.withdraw(self.rows.forget)
        self.assertEqual([], self.below("staging") + self.below("blobs"))

    async def test_a_full_disk_is_not_writable_and_keeps_no_probe(self) -> None:
        self.disk.room = 0
        await self.assert_raises(OSError, self.stores.blobs.check_writable())
        self.assertEqual([], self.below("staging"))
