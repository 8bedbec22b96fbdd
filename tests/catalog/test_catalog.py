"""Upload sessions, repositories, several processes, the cache of reads, backups and locks."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any
from uuid import UUID, uuid4

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessValue

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.migrations import configure_repositories, copy_catalog
from artifactd.catalog.records import ManifestPut, Precondition, UploadRecord
from artifactd.kit.start import StartError
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Algorithm, Digest, ImageName, Tag
from tests.catalog.fixture import (
    APP,
    LEASE,
    REACTOR,
    V1,
    CatalogTestCase,
    add_upload,
    confirmed,
    manifest,
)


def opened(at: float) -> str:
    """The id of a session that was opened ``at`` seconds since the epoch."""
    return f"{UUID(int=int(at * 1000) << 80 | uuid4().int >> 48)}.owner.seal"


class UploadTests(CatalogTestCase):
    async def test_a_session_ends_once(self) -> None:
        upload_id, other = opened(1.0), opened(1.0)
        self.assertFalse(await self.catalog.is_upload_ended(upload_id))
        self.assertTrue(await self.catalog.end_upload(upload_id))
        self.assertFalse(await self.catalog.end_upload(upload_id))
        self.assertTrue(await self.catalog.is_upload_ended(upload_id))
        self.assertFalse(await self.catalog.is_upload_ended(other))

    async def test_one_that_was_just_opened_is_not_read_and_its_end_is_seen_in_each_process(
        self,
    ) -> None:
        other = Catalog(Database(self.path, REACTOR))
        self.addCleanup(other.database.close)
        reading, reads = Database.read, []

        def read(database: Database, query: Callable[[Connection], Any]) -> Deferred[Any]:
            reads.append(query)
            return reading(database, query)

        self.patch(Database, "read", read)
        for ends in (self.catalog, other):
            upload_id = opened(time.time())
            self.catalog.upload_opened(upload_id)
            await other.end_upload(opened(time.time()))  # of another session
            self.assertFalse(await self.catalog.is_upload_ended(upload_id))
            self.assertEqual(reads, [])
            await ends.end_upload(upload_id)
            self.assertTrue(await self.catalog.is_upload_ended(upload_id))
            self.assertTrue(await other.is_upload_ended(upload_id))
            reads.clear()

    async def test_it_is_known_by_its_uuid_whatever_stands_behind_that(self) -> None:
        upload_id = opened(1.0)
        await self.catalog.end_upload(upload_id)
        self.assertTrue(await self.catalog.is_upload_ended(upload_id.partition(".")[0] + ".x"))

    async def test_what_is_removed_when_it_ends_is_removed_behind_the_commit(self) -> None:
        ended: list[bool] = []
        upload_id = opened(1.0)

        def release() -> None:
            with closing(sqlite3.connect(self.path)) as db:
                ended.append(bool(db.execute("SELECT 1 FROM ended_upload").fetchone()))

        await self.catalog.end_upload(upload_id, release)
        self.assertEqual([True], ended)

    async def test_the_ends_of_old_sessions_are_forgotten_page_by_page(self) -> None:
        for at in (10.0, 10.001, 10.002, 10.003, 10.004):
            await self.catalog.end_upload(opened(at))
        self.assertEqual(2, await self.catalog.forget_ended_uploads(10.003, 2))
        self.assertEqual(1, await self.catalog.forget_ended_uploads(10.003, 2))
        self.assertEqual(0, await self.catalog.forget_ended_uploads(10.003, 2))
        self.assertEqual(2, await self.catalog.forget_ended_uploads(11.0, 9))


class OldUploadTests(CatalogTestCase):
    """Sessions that an older release has opened, which have rows."""

    async def opened(self, *ids: str) -> None:
        for upload_id in ids:
            record = self.session(upload_id)
            await self.catalog.database.write(partial(add_upload, record=record))

    def session(self, upload_id: str) -> UploadRecord:
        return UploadRecord(upload_id, APP, Algorithm.SHA512, 12.5)

    async def test_one_is_remembered_as_it_was(self) -> None:
        await self.opened("u1")
        self.assertEqual(self.session("u1"), await self.catalog.upload("u1"))
        self.assertIsNone(await self.catalog.upload("u2"))

    async def test_one_ends_once(self) -> None:
        await self.opened("u1")
        self.assertTrue(await self.catalog.end_upload("u1"))
        self.assertFalse(await self.catalog.end_upload("u1"))
        self.assertIsNone(await self.catalog.upload("u1"))

    async def test_they_are_listed_by_id_page_by_page(self) -> None:
        await self.opened("c", "a", "d", "b")
        first = await self.catalog.uploads("", 3)
        self.assertEqual(["a", "b", "c"], [upload.id for upload in first])
        self.assertEqual([self.session("d")], await self.catalog.uploads("c", 3))

    async def test_one_makes_no_image_known(self) -> None:
        await self.opened("u1")
        self.assertIsNone(await self.catalog.tags(APP, None, None))
        self.assertEqual([], await self.images("local", "", 10))


class RepositoryTests(CatalogTestCase):
    TEAM_APP = ImageName("local", "team/app")

    def refusal(self, *names: str, default: str | None = "local") -> str | None:
        """Start a process with these repositories; what stops the start."""
        try:
            configure_repositories(self.path, names, default)
        except StartError as error:
            return str(error)
        return None

    async def test_a_repository_that_hides_no_image_can_be_added(self) -> None:
        await self.put(b"{}", image=ImageName("local", "teams"))
        await self.put(b"{}", image=ImageName("local", "team-x/app"))
        self.assertIsNone(self.refusal("local"))
        self.assertIsNone(self.refusal("local", "team"))

    async def test_a_repository_that_would_hide_an_image_is_refused_by_name(self) -> None:
        self.refusal("local")
        await self.put(b"{}", image=self.TEAM_APP)
        for _ in range(2):  # a refusal must not count as having been configured
            reason = self.refusal("local", "team")
            assert reason is not None
            self.assertIn('"team"', reason)
            self.assertIn('"team/app"', reason)

    async def test_a_name_that_has_lost_its_manifests_is_free_again(self) -> None:
        digest = await self.put(b"{}", image=self.TEAM_APP)
        await self.catalog.delete_manifest(self.TEAM_APP, digest, allow_held=False, actor="anne")
        self.assertIsNone(self.refusal("local", "team"))

    async def test_a_repository_configured_all_along_hides_nothing_new(self) -> None:
        self.refusal("local", "team")
        await self.put(b"{}", image=self.TEAM_APP)  # pushed as local/team/app
        self.assertIsNone(self.refusal("local", "team"))

    async def test_a_repository_taken_out_and_added_again_counts_as_added(self) -> None:
        self.refusal("local", "team")
        self.refusal("local")
        await self.put(b"{}", image=self.TEAM_APP)
        self.assertIsNotNone(self.refusal("local", "team"))

    async def test_without_a_default_nothing_is_hidden(self) -> None:
        await self.put(b"{}", image=self.TEAM_APP)
        self.assertIsNone(self.refusal("local", "team", default=None))

    async def test_images_of_other_repositories_are_not_hidden(self) -> None:
        await self.put(b"{}", image=ImageName("elsewhere", "team/app"))
        self.assertIsNone(self.refusal("local", "elsewhere", "team"))


class SharedTests(CatalogTestCase):
    """One catalog, several processes."""

    def setUp(self) -> None:
        super().setUp()
        self.second = self.open_catalog()

    async def test_what_one_process_commits_the_other_sees_at_once(self) -> None:
        for number in range(20):
            writer, reader = (
                (self.catalog, self.second) if number % 2 else (self.second, self.catalog)
            )
            digest = Digest.of(b"%d" % number)
            self.assertIsNone(await reader.blob_size(APP, digest))
            await writer.add_blob(APP, digest, number, confirmed)
            self.assertEqual(number, await reader.blob_size(APP, digest))

    async def test_a_tag_that_one_process_moves_is_moved_for_the_other(self) -> None:
        tag = Tag.parse("v1")
        for content in (b"1", b"2", b"3"):
            digest = await self.put(content, "v1")
            found = await self.second.manifest(APP, tag)
            assert found is not None
            self.assertEqual(digest, found.digest)
        await self.second.delete_tag(APP, tag, actor="bob")
        self.assertIsNone(await self.catalog.manifest(APP, tag))

    async def test_processes_that_write_at_the_same_time_lose_nothing(self) -> None:
        digests = [Digest.of(b"%d" % number) for number in range(100)]
        await gatherResults(
            Deferred.fromCoroutine(
                (self.catalog, self.second)[number % 2].add_blob(APP, digest, number, confirmed)
            )
            for number, digest in enumerate(digests)
        )
        sizes = [await self.catalog.blob_size(APP, digest) for digest in digests]
        self.assertEqual(list(range(100)), sizes)

    async def test_of_two_processes_that_create_a_tag_one_wins(self) -> None:
        absent = Precondition(if_none_match=("*",))
        puts = [
            ManifestPut(APP, manifest(content), (Tag.parse("v1"),), absent)
            for content in (b"1", b"2")
        ]
        outcomes: list[str] = []
        deferreds = [
            Deferred.fromCoroutine(catalog.put_manifest(put, confirmed))
            for catalog, put in zip((self.catalog, self.second), puts, strict=True)
        ]
        for deferred in deferreds:
            deferred.addCallbacks(
                lambda _: outcomes.append("put"), lambda failure: outcomes.append(failure.type.code)
            )
            await deferred
        self.assertEqual(["DENIED", "put"], sorted(outcomes))
        self.assertEqual(1, len(await self.catalog.tag_movements(APP, Tag.parse("v1"))))


class SharedFileTests(CatalogTestCase):
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
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)

        def version() -> object:
            return other.execute("PRAGMA data_version").fetchone()

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
        await self.catalog.promise_manifest(APP, Digest.of(b"{}"), expires=True)
        size = Deferred.fromCoroutine(self.catalog.promise_blob(APP, blob.digest))
        self.assertEqual(4, self.successResultOf(size))
        promised = self.catalog.promise_manifest(APP, Digest.of(b"{}"), expires=True)
        self.assertIsNotNone(self.successResultOf(Deferred.fromCoroutine(promised)))

    async def test_a_commit_of_another_process_is_seen_at_once(self) -> None:
        await self.put(b"{}", "v1")
        self.assertIsNotNone(await self.catalog.manifest(APP, V1))
        script = (
            "import sys; from pathlib import Path; from tests.rows import writing\n"
            "with writing(Path(sys.argv[1])) as db: db.execute('DELETE FROM tag')"
        )
        self.assertEqual(
            0,
            await getProcessValue(
                sys.executable,
                ["-c", script, str(self.path.resolve())],
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
            ),
        )
        self.assertIsNone(await self.catalog.manifest(APP, V1))

    async def test_a_manifest_with_large_annotations_is_not_kept_in_memory(self) -> None:
        await self.put(manifest(b"{}", annotations={"a": "x" * 200_000}), "v1")
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
        await self.assert_raises(Unavailable, self.catalog.end_upload("u1"))
