"""Migrations: whole or not at all, and never without a copy."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from importlib import resources
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.migrations import migrate
from artifactd.catalog.records import ManifestPut, ManifestRecord, TagMovement
from artifactd.catalog.remote import RemoteCatalog
from artifactd.kit.start import StartError
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import ImageName, Tag
from tests.catalog.fixture import REACTOR
from tests.contracts.catalog import APP, OTHER, confirmed, descriptor, index, manifest

FIRST = "PRAGMA application_id = 0x61727464;\nCREATE TABLE number (n); -- of version 1\n"
SECOND = """
ALTER TABLE number ADD COLUMN square;
CREATE TRIGGER square AFTER INSERT ON number BEGIN
    UPDATE number SET square = n * n WHERE n = new.n;
END;
"""
BROKEN = "INSERT INTO number VALUES (99, NULL);\nSELECT nonsense;\n"


class MigrationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "catalog.sqlite"
        self.path.parent.mkdir()
        self.taken = 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.taken += 1
        yield

    def migrate(self, *steps: str) -> None:
        migrate(self.path, self.exclusive, steps)

    def execute(self, statement: str, path: Path | None = None) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(path or self.path, isolation_level=None)) as db:
            return db.execute(statement).fetchall()

    def version(self, path: Path | None = None) -> object:
        return self.execute("PRAGMA user_version", path)[0][0]

    def files(self) -> set[str]:
        return {file.name for file in self.path.parent.iterdir()}

    def test_a_fresh_catalog_is_created_with_the_lock_and_without_a_copy(self) -> None:
        self.migrate(FIRST, SECOND)
        self.assertEqual(2, self.version())
        self.assertEqual([("wal",)], self.execute("PRAGMA journal_mode"))
        self.assertEqual(1, self.taken)
        self.assertNotIn("catalog.sqlite.before-1", self.files())

    def test_the_schema_of_this_release_is_numbered_from_1_and_applies(self) -> None:
        migrate(self.path, nullcontext)
        names = sorted(f.name for f in (resources.files("artifactd.catalog") / "schema").iterdir())
        self.assertEqual([f"{n + 1:04}.sql" for n in range(len(names))], names)
        self.assertEqual(len(names), self.version())
        self.assertEqual([("ok",)], self.execute("PRAGMA integrity_check"))

    def test_a_current_catalog_is_left_alone(self) -> None:
        self.migrate(FIRST)
        before = self.path.read_bytes()
        self.migrate(FIRST)
        self.assertEqual(1, self.taken)
        self.assertEqual(before, self.path.read_bytes())

    def test_an_older_catalog_is_migrated_after_a_copy_was_made(self) -> None:
        self.migrate(FIRST)
        self.execute("INSERT INTO number VALUES (3)")
        self.migrate(FIRST, SECOND)
        self.execute("INSERT INTO number (n) VALUES (4)")
        self.assertEqual([(3, None), (4, 16)], self.execute("SELECT * FROM number ORDER BY n"))
        copy = self.path.with_name("catalog.sqlite.before-2")
        self.assertEqual(1, self.version(copy))
        self.assertEqual([(3,)], self.execute("SELECT * FROM number", copy))

    def test_a_step_that_fails_leaves_the_catalog_as_it_was(self) -> None:
        self.migrate(FIRST, SECOND)
        error = self.assertRaises(StartError, self.migrate, FIRST, SECOND, BROKEN)
        self.assertIn("schema 3", str(error))
        self.assertIn("nonsense", str(error))
        self.assertEqual(2, self.version())
        self.assertEqual([], self.execute("SELECT * FROM number"))

    def test_steps_before_the_one_that_fails_are_kept_and_it_can_be_tried_again(self) -> None:
        self.assertRaises(StartError, self.migrate, FIRST, SECOND, BROKEN)
        self.assertEqual(2, self.version())
        self.execute("INSERT INTO number (n) VALUES (5)")
        self.migrate(FIRST, SECOND, "DROP TABLE number;")
        self.assertEqual(3, self.version())
        copy = self.path.with_name("catalog.sqlite.before-3")
        self.assertEqual([(5, 25)], self.execute("SELECT * FROM number", copy))

    def test_while_others_use_the_catalog_nothing_is_done(self) -> None:
        def in_use() -> AbstractContextManager[None]:
            raise StartError("in use by process 7")

        self.migrate(FIRST)
        error = self.assertRaises(StartError, migrate, self.path, in_use, [FIRST, SECOND])
        self.assertEqual("in use by process 7", str(error))
        self.assertEqual(1, self.version())
        self.assertNotIn("catalog.sqlite.before-2", self.files())

    def test_what_another_process_has_just_done_is_not_done_again(self) -> None:
        @contextmanager
        def after_another() -> Iterator[None]:
            self.migrate(FIRST, SECOND)
            yield

        self.migrate(FIRST)
        migrate(self.path, after_another, [FIRST, SECOND])
        self.assertEqual(2, self.version())

    def test_a_catalog_of_a_newer_release_is_not_touched(self) -> None:
        self.migrate(FIRST, SECOND)
        before = self.path.read_bytes()
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn("newer release", str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual(before, self.path.read_bytes())

    def test_a_database_of_another_program_is_not_touched(self) -> None:
        self.execute("CREATE TABLE theirs (n)")
        before = self.path.read_bytes()
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn("another program", str(error))
        self.assertEqual(before, self.path.read_bytes())

    def test_a_file_that_is_no_database_is_not_touched(self) -> None:
        self.path.write_bytes(b"not a database" * 100)
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn(str(self.path), str(error))
        self.assertEqual(b"not a database" * 100, self.path.read_bytes())

    def test_a_folder_that_is_not_there_stops_the_start(self) -> None:
        self.path = self.path / "nowhere" / "catalog.sqlite"
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn(str(self.path), str(error))

    def test_an_old_sqlite_stops_the_start(self) -> None:
        self.patch(sqlite3, "sqlite_version_info", (3, 34, 1))
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn("3.37", str(error))
        self.assertFalse(self.path.exists())


V1 = Tag.parse("v1")
BLOB, MANIFEST = Digest.of(b"blob"), Digest.of(b"{}")

# What version 1 wrote for a blob, and for a manifest that holds it under one tag.
CONTENT_OF_VERSION_1 = f"""
INSERT INTO repository VALUES ('local');
INSERT INTO image VALUES (1, 'local', 'app', 10.0);
INSERT INTO blob VALUES (1, '{BLOB}', 4, 9.0), (2, '{MANIFEST}', 2, 10.0);
INSERT INTO blob_link VALUES (1, 1);
INSERT INTO manifest VALUES (1, 1, '{MANIFEST}', '{OCI_MANIFEST}', NULL, NULL, '{{}}', 10.0);
INSERT INTO manifest_entry VALUES (1, '{BLOB}', 'blob', 1);
INSERT INTO tag VALUES (1, 'v1', 1, 10.0);
INSERT INTO tag_movement VALUES (1, 1, 'v1', 'anne', 10.0, NULL, '{MANIFEST}');
"""


class Version1Tests(TestCase):
    """A catalog of version 1, migrated to the schema of this release."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "catalog.sqlite"
        self.path.parent.mkdir()
        script = resources.files("artifactd.catalog") / "schema" / "0001.sql"
        migrate(self.path, nullcontext, [script.read_text("utf-8")])
        with closing(sqlite3.connect(self.path)) as db:
            db.executescript(CONTENT_OF_VERSION_1)
        migrate(self.path, nullcontext)
        self.catalog = Catalog(Database(self.path, REACTOR, now=lambda: 20.0))
        self.addCleanup(self.catalog.database.close)
        self.remote = RemoteCatalog(self.catalog.database)

    async def test_all_that_was_there_is_there(self) -> None:
        self.assertEqual(4, await self.catalog.blob_size(APP, BLOB))
        record = ManifestRecord(MANIFEST, 2, OCI_MANIFEST)
        self.assertEqual(record, await self.catalog.manifest(APP, V1))
        self.assertEqual(["v1"], await self.catalog.tags(APP, None, None))
        self.assertEqual(
            [TagMovement("v1", "anne", 10.0, None, MANIFEST)],
            await self.catalog.tag_movements(APP, V1),
        )
        self.assertTrue(await self.remote.is_known(APP))

    async def test_nothing_of_it_goes_by_itself(self) -> None:
        await self.remote.touch({(APP, BLOB): 30.0, (APP, MANIFEST): 30.0})
        self.assertEqual([], await self.remote.least_used("local", 1e9, 0, 10))
        self.assertIsNone(await self.remote.purge(APP, None))
        self.assertIsNone(await self.remote.cached_tag(APP, V1))
        self.assertEqual(4, await self.catalog.blob_size(APP, BLOB))

    async def test_it_is_pushed_to_and_deleted_from_as_before(self) -> None:
        await self.catalog.add_blob(APP, BLOB, 4, confirmed)
        await self.catalog.delete_manifest(APP, MANIFEST, allow_held=False, actor="bob")
        await self.catalog.delete_blob(APP, BLOB, allow_held=False)
        self.assertEqual([], await self.catalog.tags(APP, None, None))
        self.assertIsNone(await self.catalog.blob_size(APP, BLOB))

    async def test_what_comes_from_upstream_is_kept_beside_it(self) -> None:
        alpine = ImageName("docker.io", "library/alpine")
        self.assertEqual(4, await self.remote.link_blob(alpine, BLOB))
        await self.remote.cache_manifest(alpine, manifest(b"{}"), V1, confirmed)
        held = await self.remote.least_used("docker.io", 1e9, 0, 10)
        self.assertEqual(2, len(held))
        self.assertEqual([], await self.remote.drop(held))
        self.assertIsNotNone(await self.catalog.manifest(APP, V1))


LOOSE, HELD, ORPHAN = (descriptor(content) for content in (b"loose", b"held", b"orphan"))
CHILD, UNTAGGED = manifest(b"child"), manifest(b"untagged", subject=Digest.of(b"gone"))
REFERRER = manifest(b"referrer", subject=Digest.of(b"child"))
INDEX = index(b"[]", [descriptor(b"child")])
TAGGED = manifest(b"tagged", blobs=[HELD])
ROWS = f"""
INSERT INTO image VALUES (1, 'local', 'app', 10.0), (2, 'docker.io', 'library/alpine', 10.0);
INSERT INTO blob VALUES (1, '{LOOSE.digest}', 5, 9.0), (2, '{HELD.digest}', 4, 9.0),
 (3, '{ORPHAN.digest}', 6, 9.0), (4, '{CHILD.digest}', 5, 9.0), (5, '{UNTAGGED.digest}', 8, 9.0),
 (6, '{REFERRER.digest}', 8, 9.0), (7, '{INDEX.digest}', 2, 9.0), (8, '{TAGGED.digest}', 6, 9.0);
INSERT INTO blob_link (image_id, blob_id, used_at) VALUES (1, 1, NULL), (1, 2, NULL), (2, 2, 9.0);
INSERT INTO manifest VALUES (1, 1, '{CHILD.digest}', 'x', NULL, NULL, '{{}}', 10.0, NULL),
 (2, 1, '{UNTAGGED.digest}', 'x', NULL, '{UNTAGGED.subject}', '{{}}', 10.0, NULL),
 (3, 1, '{REFERRER.digest}', 'x', NULL, '{REFERRER.subject}', '{{}}', 10.0, NULL),
 (4, 1, '{INDEX.digest}', 'x', NULL, NULL, '{{}}', 10.0, NULL),
 (5, 1, '{TAGGED.digest}', 'x', NULL, NULL, '{{}}', 10.0, NULL),
 (6, 2, '{TAGGED.digest}', 'x', NULL, NULL, '{{}}', 10.0, 10.0);
INSERT INTO manifest_entry VALUES (1, '{CHILD.digest}', 'manifest', 4),
 (1, '{HELD.digest}', 'blob', 5);
INSERT INTO tag (image_id, name, manifest_id, moved_at) VALUES (1, 'v1', 5, 10.0),
 (1, 'v2', 4, 10.0);
"""


class Version2Tests(TestCase):
    """A catalog of version 2, whose deletions left everything where it was."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "catalog.sqlite"
        self.path.parent.mkdir()
        schema = resources.files("artifactd.catalog") / "schema"
        steps = [(schema / f"000{n}.sql").read_text("utf-8") for n in (1, 2)]
        migrate(self.path, nullcontext, steps)
        with closing(sqlite3.connect(self.path)) as db:
            db.executescript(ROWS)
        self.before = time.time()
        migrate(self.path, nullcontext)
        self.catalog = Catalog(Database(self.path, REACTOR))
        self.addCleanup(self.catalog.database.close)
        self.garbage = GarbageCatalog(self.catalog.database)

    async def collected(self, before: float) -> set[str]:
        """What goes that is of no use since ``before``."""
        return {
            each.name
            for collecting in (
                self.garbage.collect_untagged("local", before, 10),
                self.garbage.collect_links(before, 10),
                self.garbage.collect_bytes(before, 10),
            )
            for each in await collecting
        }

    async def test_the_time_of_what_nothing_holds_begins_with_the_migration(self) -> None:
        self.assertEqual(set(), await self.collected(self.before - 1))
        self.assertEqual(
            {str(UNTAGGED.digest), str(LOOSE.digest), str(ORPHAN.digest)},
            await self.collected(time.time() + 1),
        )

    async def test_all_else_is_pulled_and_pushed_as_before(self) -> None:
        await self.collected(time.time() + 1)
        for pushed in (CHILD, REFERRER, INDEX, TAGGED):
            self.assertIsNotNone(await self.catalog.manifest(APP, pushed.digest))
        await self.catalog.mount_blob(OTHER, HELD.digest, APP)
        put = ManifestPut(OTHER, TAGGED, (V1,))
        await self.catalog.put_manifest(put, confirmed)
        self.assertEqual(["v1"], await self.catalog.tags(OTHER, None, None))
