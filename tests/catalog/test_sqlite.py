"""What only the catalog of SQLite does: snapshots, the cache, backups, locks."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessValue

from artifactd.catalog.catalog import LEASE, Catalog
from artifactd.catalog.database import Database, DataVersion
from artifactd.catalog.migrations import copy_catalog
from artifactd.oci.digest import Digest
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Tag
from tests.catalog.fixture import REACTOR, SQLiteCatalogTestCase
from tests.contracts.catalog import APP, manifest

V1 = Tag.parse("v1")


class SQLiteTests(SQLiteCatalogTestCase):
    def test_it_is_a_catalog(self) -> None:
        catalog: Catalog = self.open_catalog()  # which the type checker sees to
        self.assertIsInstance(catalog, Catalog)

    async def test_what_was_read_before_is_answered_without_a_thread(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(b"{}", "v1")
        await self.catalog.blob_size(APP, blob.digest)
        record = await self.catalog.manifest(APP, V1)
        size = Deferred.fromCoroutine(self.catalog.blob_size(APP, blob.digest))
        self.assertEqual(4, self.successResultOf(size))
        found = Deferred.fromCoroutine(self.catalog.manifest(APP, V1))
        self.assertEqual(record, self.successResultOf(found))

    async def test_a_head_writes_only_where_a_lease_has_to_be_renewed(self) -> None:
        held, unheld = await self.blob(b"held"), await self.blob(b"unheld")
        await self.put(manifest(b"{}", blobs=[held]))
        version = DataVersion(self.path)
        self.addCleanup(version.close)
        before = version()
        self.time += LEASE / 4 - 1
        for blob in (held, unheld):
            await self.catalog.promise_blob(APP, blob.digest)
            await self.catalog.mount_blob(APP, blob.digest, APP)
        self.assertEqual(before, version())
        self.time += 1
        await self.catalog.promise_blob(APP, held.digest)
        self.assertEqual(before, version())
        await self.catalog.promise_blob(APP, unheld.digest)
        self.assertNotEqual(before, version())

    async def test_what_was_promised_before_is_promised_without_a_thread(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(b"{}")
        await self.catalog.promise_blob(APP, blob.digest)
        await self.catalog.promise_manifest(APP, Digest.of(b"{}"))
        size = Deferred.fromCoroutine(self.catalog.promise_blob(APP, blob.digest))
        self.assertEqual(4, self.successResultOf(size))
        promised = self.catalog.promise_manifest(APP, Digest.of(b"{}"))
        self.assertIsNotNone(self.successResultOf(Deferred.fromCoroutine(promised)))

    async def test_a_commit_of_another_process_is_seen_at_once(self) -> None:
        await self.put(b"{}", "v1")
        self.assertIsNotNone(await self.catalog.manifest(APP, V1))
        script = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
            "db.execute('DELETE FROM tag'); db.commit()"
        )
        self.assertEqual(0, await getProcessValue(sys.executable, ["-c", script, str(self.path)]))
        self.assertIsNone(await self.catalog.manifest(APP, V1))

    async def test_a_manifest_with_large_annotations_is_not_kept_in_memory(self) -> None:
        await self.put(manifest(b"{}", annotations={"a": "x" * 5000}), "v1")
        await self.catalog.manifest(APP, V1)
        again = Deferred.fromCoroutine(self.catalog.manifest(APP, V1))
        self.assertNoResult(again)
        self.assertIsNotNone(await again)

    async def test_a_backup_is_a_catalog_as_it_was_then(self) -> None:
        await self.put(b"{}", "v1")
        target = Path(self.mktemp())
        copy_catalog(self.path, target)
        await self.put(b"[]", "v2")
        restored = Catalog(Database(target, REACTOR))
        self.addCleanup(restored.database.close)
        self.assertEqual(["v1"], await restored.tags(APP, None, None))
        self.assertIsNotNone(await restored.manifest(APP, V1))
        with closing(sqlite3.connect(target)) as db:
            self.assertEqual(("ok",), db.execute("PRAGMA integrity_check").fetchone())

    def test_a_backup_that_cannot_be_written_leaves_nothing(self) -> None:
        target = Path(self.mktemp()) / "nowhere" / "backup"
        self.assertRaises(OSError, copy_catalog, self.path, target)
        self.assertFalse(target.parent.exists())

    async def test_a_backup_holds_up_no_writer_and_shows_one_moment(self) -> None:
        for number in range(50):
            await self.blob(b"%d" % number)
        target = Path(self.mktemp())
        backup = deferToThread(copy_catalog, self.path, target)
        while not backup.called:
            await self.put(b"{}", "v1")
            await self.catalog.delete_tag(APP, V1, actor="anne")
        await backup
        with closing(sqlite3.connect(target)) as db:
            self.assertEqual((0,), db.execute("SELECT count(*) % 50 FROM blob_link").fetchone())
            self.assertEqual(("ok",), db.execute("PRAGMA integrity_check").fetchone())

    async def test_the_check_fails_while_the_catalog_cannot_be_locked(self) -> None:
        catalog = self.open_catalog(busy_timeout=0.01)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            error = await self.assert_raises(Unavailable, catalog.database.check())
        self.assertIn("SQLITE_BUSY", str(error))
        self.assertIsNone(await Deferred.fromCoroutine(catalog.database.check()))

    async def test_reading_goes_on_while_another_process_writes(self) -> None:
        await self.put(b"{}", "v1")
        catalog = self.open_catalog(busy_timeout=0.01)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("DELETE FROM tag")
            self.assertIsNotNone(await catalog.manifest(APP, V1))

    async def test_a_closed_catalog_answers_nothing(self) -> None:
        await self.put(b"{}", "v1")
        await self.catalog.manifest(APP, V1)
        await self.catalog.database.close()
        await self.catalog.database.close()
        await self.assert_raises(Unavailable, self.catalog.manifest(APP, V1))
        await self.assert_raises(Unavailable, self.catalog.delete_upload("u1"))
