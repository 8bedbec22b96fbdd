"""Blobs: reading, shelves, publication."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from artifactd.oci.names import Algorithm, Digest
from artifactd.store.blobs import SHELVES, OpenBlob
from tests.store.fixture import ThreadedTestCase

EVER = 1e12
"""Seconds since the epoch."""


class BlobReadingTests(ThreadedTestCase):
    async def opened(self, digest: Digest) -> OpenBlob:
        blob = await self.stores.blobs.open(digest)
        assert blob is not None
        self.addCleanup(blob.close)
        return blob

    async def test_what_was_never_pushed_is_not_there(self) -> None:
        self.assertIsNone(await self.stores.blobs.open(Digest.of(b"never")))
        self.assertIsNone(await self.stores.blobs.read(Digest.of(b"never")))

    async def test_an_open_blob_can_be_read_anywhere(self) -> None:
        await self.published(b"some bytes")
        blob = await self.opened(Digest.of(b"some bytes"))
        self.assertEqual(10, blob.size)
        self.assertEqual(b"bytes", os.pread(blob.fileno(), 100, 5))
        self.assertEqual(b"some", os.pread(blob.fileno(), 4, 0))

    async def test_an_open_blob_may_be_closed_twice(self) -> None:
        await self.published(b"blob")
        blob = await self.opened(Digest.of(b"blob"))
        fd = blob.fileno()
        blob.close()
        blob.close()
        with self.assertRaises(OSError):
            os.fstat(fd)

    async def test_a_blob_taken_away_can_be_read_on_by_who_has_it_open(self) -> None:
        staged = await self.published(b"blob")
        blob = await self.opened(staged.digest)
        await staged.withdraw(self.rows.forget)
        self.assertEqual(b"blob", os.pread(blob.fileno(), 100, 0))

    async def test_a_blob_may_be_empty(self) -> None:
        await self.published(b"")
        await self.assert_blob(b"")
        self.assertEqual(0, (await self.opened(Digest.of(b""))).size)

    async def test_sha512_is_an_address_of_its_own(self) -> None:
        digest = Digest.of(b"blob", Algorithm.SHA512)
        staged = await self.stores.blobs.stage(digest, b"blob")
        await staged.publish()
        await self.assert_blob(b"blob", digest)
        await self.assert_no_blob(Digest.of(b"blob"))

    async def test_every_byte_value_comes_back(self) -> None:
        content = bytes(range(256)) * 5000
        await self.published(content)
        await self.assert_blob(content)

    async def test_a_blob_is_seen_by_other_processes(self) -> None:
        await self.published(b"blob", self.open_stores())
        await self.assert_blob(b"blob")

    async def test_a_store_that_works_is_writable(self) -> None:
        await self.stores.blobs.check_writable()
        self.assertEqual(
            0, len(await self.stores.blobs.sweep(self.rows.forget)), "it left something"
        )


class ShelfTests(ThreadedTestCase):
    async def on_shelf(self, digest: Digest, before: float) -> list[tuple[Digest, int]]:
        return list(await self.stores.blobs.published(int(digest.encoded[:2], 16), before))

    async def test_what_was_published_is_on_one_shelf_with_its_size(self) -> None:
        staged = await self.published(b"blob")
        staged.release()
        self.assertEqual([(staged.digest, 4)], await self.on_shelf(staged.digest, EVER))
        others = [
            await self.stores.blobs.published(shelf, EVER)
            for shelf in range(SHELVES)
            if shelf != int(staged.digest.encoded[:2], 16)
        ]
        self.assertEqual([], [found for found in others if found])

    async def test_what_was_published_later_is_not_told(self) -> None:
        before = time.time() - 60
        staged = await self.published(b"blob")
        self.assertEqual([], await self.on_shelf(staged.digest, before))
        staged.release()
        self.assertEqual([], await self.on_shelf(staged.digest, before))


class PublicationTests(ThreadedTestCase):
    async def test_a_staged_blob_is_not_seen(self) -> None:
        staged = await self.stores.blobs.stage(Digest.of(b"blob"), b"blob")
        self.assertEqual((Digest.of(b"blob"), 4), (staged.digest, staged.size))
        await self.assert_no_blob(staged.digest)

    async def test_a_published_blob_stays_when_the_staged_copy_goes(self) -> None:
        staged = await self.published(b"blob")
        staged.confirm()
        staged.release()
        await self.assert_blob(b"blob")

    async def test_a_blob_without_a_row_goes_when_it_is_withdrawn(self) -> None:
        staged = await self.published(b"blob")
        await staged.withdraw(self.rows.forget)
        await self.assert_no_blob(staged.digest)
        self.assertEqual([staged.digest], self.rows.asked)

    async def test_a_catalog_may_answer_at_once(self) -> None:
        staged = await self.published(b"blob")
        await staged.withdraw(lambda digest, unlink: unlink())
        await self.assert_no_blob(staged.digest)

    async def test_a_blob_with_a_row_stays_when_another_push_of_it_is_withdrawn(self) -> None:
        self.rows.needed.add(Digest.of(b"blob"))
        (await self.published(b"blob")).release()
        again = await self.published(b"blob")
        await again.withdraw(self.rows.forget)
        await self.assert_blob(b"blob")

    async def test_a_blob_may_be_withdrawn_before_it_is_published(self) -> None:
        staged = await self.stores.blobs.stage(Digest.of(b"blob"), b"blob")
        await staged.withdraw(self.rows.forget)
        await self.assert_no_blob(staged.digest)

    async def test_two_processes_may_publish_the_same_blob_at_once(self) -> None:
        other = self.open_stores()
        first = await self.stores.blobs.stage(Digest.of(b"blob"), b"blob")
        second = await other.blobs.stage(Digest.of(b"blob"), b"blob")
        await first.publish()
        await second.publish()
        for staged in (second, first):
            staged.confirm()
            staged.release()
        await self.assert_blob(b"blob")

    async def test_a_blob_withdrawn_by_one_push_is_confirmed_by_another(self) -> None:
        for withdrawn in (0, 1):
            with self.subTest(withdrawn=withdrawn):
                pushes = [await self.published(b"blob"), await self.published(b"blob")]
                gone, stays = pushes[withdrawn], pushes[1 - withdrawn]
                await gone.withdraw(self.rows.forget)
                stays.confirm()
                await self.assert_blob(b"blob")
                await stays.withdraw(self.rows.forget)
                await self.assert_no_blob(stays.digest)

    async def test_a_sweep_leaves_alone_what_is_being_pushed(self) -> None:
        staged = await self.published(b"blob")
        swept = await self.open_stores().blobs.sweep(self.rows.forget)
        staged.confirm()
        staged.release()
        self.assertEqual(([], []), (swept, self.rows.asked))
        await self.assert_blob(b"blob")

    async def test_a_sweep_finds_nothing_where_all_went_well(self) -> None:
        (await self.published(b"blob")).release()
        await (await self.published(b"other")).withdraw(self.rows.forget)
        self.rows.asked.clear()
        self.assertEqual(0, len(await self.stores.blobs.sweep(self.rows.forget)))
        self.assertEqual([], self.rows.asked)

    async def test_if_the_catalog_fails_the_sweep_does_it_later(self) -> None:
        staged = await self.published(b"blob")
        asked = []

        def fail(digest: Digest, unlink: Callable[[], None]) -> object:
            asked.append(digest)
            raise TimeoutError

        await self.assert_raises(TimeoutError, staged.withdraw(fail))
        self.assertEqual(1, len(await self.stores.blobs.sweep(self.rows.forget)))
        self.assertEqual(asked, self.rows.asked)
        await self.assert_no_blob(staged.digest)
        self.assertEqual(0, len(await self.stores.blobs.sweep(self.rows.forget)))
