"""What a sweep takes away, and what it leaves; on a real catalog and a real store."""

from __future__ import annotations

import os
import time
from functools import partial
from sqlite3 import Connection
from uuid import uuid4

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.records import UploadRecord
from artifactd.oci.names import Algorithm, Digest, ImageName
from artifactd.registry.upkeep import sweep
from artifactd.registry.upkeep.sweep import Sweep
from artifactd.registry.upload_id import UploadIds
from artifactd.store.publication import StagedBlob
from tests.catalog.fixture import add_upload, new_catalog
from tests.programs import reactor
from tests.store.fixture import StoreTestCase

APP = ImageName("local", "app")
TIMEOUT = 3600.0
NEWBORN = 60.0


class SweepTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.catalog = Catalog(Database(new_catalog(self), reactor))
        self.addCleanup(self.catalog.database.close)

    async def sweep(self, upload_timeout: float = TIMEOUT) -> int:
        """What another process would sweep; how much went."""
        stores = self.open_stores()
        sweep = Sweep(self.catalog, stores.blobs, stores.uploads, stores.all_fills, upload_timeout)
        return await sweep.run()

    async def bytes_of_upload(self, age: float) -> str:
        """The id of staged bytes that were last written to ``age`` seconds ago, without a row."""
        upload_id = self.new_upload()
        at = time.time() - age
        os.utime(self.path / "uploads" / upload_id, (at, at))
        return upload_id

    async def row_of_upload(self, upload_id: str, age: float) -> None:
        """The row of a session that an older release has started ``age`` seconds ago."""
        record = UploadRecord(upload_id, APP, Algorithm.SHA256, time.time() - age)
        await self.catalog.database.write(partial(add_upload, record=record))

    async def upload(self, age: float) -> str:
        """The id of a session that nobody has written to for ``age`` seconds."""
        upload_id = await self.bytes_of_upload(age)
        await self.row_of_upload(upload_id, 10 * TIMEOUT)
        return upload_id

    async def dead_push(self, content: bytes) -> Digest:
        """What a process leaves that is killed between publishing a blob and writing its row."""
        staged = await self.published(content)
        assert isinstance(staged, StagedBlob)
        staged.abandon()
        return staged.digest

    async def test_idle_sessions_go_with_their_bytes(self) -> None:
        idle, active = await self.upload(TIMEOUT + 1), await self.upload(TIMEOUT - 60)
        self.assertEqual(await self.sweep(), 1)
        self.assertIsNone(await self.catalog.upload(idle))
        self.assertIsNotNone(await self.catalog.upload(active))
        self.assertEqual(self.below("uploads"), [active])

    async def test_a_session_stays_as_long_as_it_is_not_idle_and_ends_for_good_then(self) -> None:
        ids = [
            UploadIds(bytes(32), TIMEOUT).make(APP, Algorithm.SHA256, owner, time.time()).text
            for owner in (None, "ann", None, "ann")
        ]
        for upload_id in ids:
            self.new_upload(upload_id)
        for upload_id, age in zip(ids, (TIMEOUT - 60,) * 2 + (TIMEOUT + 1,) * 2, strict=True):
            at = time.time() - age
            os.utime(self.path / "uploads" / upload_id, (at, at))
        self.assertEqual(await self.sweep(), 2)
        self.assertEqual(self.below("uploads"), sorted(ids[:2]))
        ended = [await self.catalog.is_upload_ended(upload_id) for upload_id in ids]
        self.assertEqual(ended, [False, False, True, True])

    async def test_ends_of_sessions_are_forgotten_when_their_ids_have_expired(self) -> None:
        self.patch(sweep, "_PAGE", 2)
        ids = UploadIds(bytes(32), TIMEOUT)
        ages = (TIMEOUT + 2,) * 5 + (TIMEOUT - 60,) * 2
        ended = [ids.make(APP, Algorithm.SHA256, None, time.time() - age).text for age in ages]
        for upload_id in ended:
            await self.catalog.end_upload(upload_id)
        self.assertEqual(await self.sweep(), 0)
        noted = [await self.catalog.is_upload_ended(upload_id) for upload_id in ended]
        self.assertEqual(noted, [False] * 5 + [True] * 2)

    async def test_a_session_that_is_written_to_stays(self) -> None:
        upload_id = await self.upload(2 * TIMEOUT)
        session = await self.stores.uploads.claim(upload_id, Algorithm.SHA256)
        self.assertEqual(await self.sweep(), 0)
        await session.close()
        self.assertEqual(await self.sweep(), 1)

    async def test_a_timeout_shorter_than_a_minute_counts(self) -> None:
        await self.upload(20)
        self.assertEqual(await self.sweep(30), 0)
        self.assertEqual(await self.sweep(10), 1)

    async def test_bytes_without_a_session_go_unless_it_is_just_being_opened(self) -> None:
        await self.bytes_of_upload(NEWBORN + 1)
        newborn = await self.bytes_of_upload(NEWBORN - 30)
        self.assertEqual(await self.sweep(), 1)
        self.assertEqual(self.below("uploads"), [newborn])

    async def test_more_than_a_page_of_rows_without_bytes_go_in_one_sweep(self) -> None:
        self.patch(sweep, "_PAGE", 2)
        for _ in range(5):
            await self.row_of_upload(str(uuid4()), NEWBORN + 1)
        dropped = [Digest.of(b"%d" % number) for number in range(5)]

        def drop(db: Connection) -> None:
            rows = [(str(digest),) for digest in dropped]
            db.executemany("INSERT INTO dropped_blob (digest) VALUES (?)", rows)

        await self.catalog.database.write(drop)
        await self.sweep()
        self.assertEqual(await self.catalog.uploads("", 10), [])
        self.assertEqual(await self.catalog.dropped_blobs("", 10), [])

    async def test_sessions_without_bytes_go_unless_they_are_newborn(self) -> None:
        old, newborn = str(uuid4()), str(uuid4())
        await self.row_of_upload(old, NEWBORN + 1)
        await self.row_of_upload(newborn, NEWBORN - 30)
        self.assertEqual(await self.sweep(), 1)
        self.assertIsNone(await self.catalog.upload(old))
        self.assertIsNotNone(await self.catalog.upload(newborn))

    async def test_blobs_that_no_row_needs_go_with_what_was_staged(self) -> None:
        digest = await self.dead_push(b"stray")
        self.assertEqual(await self.sweep(), 1)
        self.assertEqual(self.below("staging"), [])
        await self.assert_no_blob(digest)

    async def test_blobs_that_a_row_needs_stay(self) -> None:
        digest = await self.dead_push(b"needed")
        await self.catalog.add_blob(APP, digest, 6, lambda: None)
        self.assertEqual(await self.sweep(), 1)
        self.assertEqual(self.below("staging"), [])
        await self.assert_blob(b"needed")

    async def test_a_push_under_way_is_left_alone(self) -> None:
        staged = await self.published(b"under way")
        self.assertEqual(await self.sweep(), 0)
        await self.catalog.add_blob(APP, staged.digest, staged.size, staged.confirm)
        staged.release()
        await self.assert_blob(b"under way")

    async def test_nothing_is_left_for_a_second_sweep(self) -> None:
        await self.upload(2 * TIMEOUT)
        await self.bytes_of_upload(2 * TIMEOUT)
        await self.row_of_upload(str(uuid4()), 2 * TIMEOUT)
        await self.dead_push(b"stray")
        self.assertEqual(await self.sweep(), 4)
        self.assertEqual(await self.sweep(), 0)
        self.assertEqual(self.below("."), ["artifactd.lock", "reserve"])
