"""No query of the catalog reads a whole table."""

from __future__ import annotations

import sqlite3

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog import blobs, garbage, images, manifests, remote
from artifactd.catalog.records import ManifestPut, Precondition, UploadRecord, nothing
from artifactd.catalog.remote import CachedPage, Held
from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.names import ImageName, Tag
from tests.catalog.fixture import new_catalog
from tests.contracts.catalog import APP, OTHER, confirmed, descriptor, index, manifest

V1 = Tag.parse("v1")
ALPINE = ImageName("docker.io", "library/alpine")
DIGEST = Digest.of(b"blob")


class PlanTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.db = sqlite3.connect(new_catalog(self), isolation_level=None)
        self.addCleanup(self.db.close)
        self.db.execute("PRAGMA foreign_keys = ON")
        self.statements: list[str] = []
        self.db.set_trace_callback(self.statements.append)

    def scans(self) -> list[str]:
        """The steps that read all rows of a table, in whatever has been executed."""
        self.db.set_trace_callback(None)
        executed = [s for s in self.statements if s.startswith(("SELECT", "DELETE", "UPDATE", "I"))]
        self.assertNotEqual([], executed)
        steps = [
            (step, statement)
            for statement in executed
            for *_, step in self.db.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]
        return [
            f"{step}: {statement}"
            for step, statement in steps
            # json_each is the list we gave it ourselves.
            if step.startswith("SCAN") and "VIRTUAL TABLE" not in step and "CONSTANT" not in step
        ]

    def put(self, *names: str) -> None:
        child = manifest(b"child", blobs=[descriptor(b"blob")], subject=DIGEST)
        blobs.add(self.db, APP, DIGEST, 4, confirmed, "u1", 1.0)
        manifests.put(self.db, ManifestPut(APP, child), confirmed, 1.0)
        wanted = tuple(Tag.parse(name) for name in names)
        condition = Precondition(if_none_match=("*",))
        holder = index(b"[]", [descriptor(b"child")])
        manifests.put(self.db, ManifestPut(APP, holder, wanted, condition), confirmed, 1.0)

    def test_pushing_scans_nothing(self) -> None:
        self.put("v1", "v2")
        blobs.mount(self.db, OTHER, DIGEST, APP, 1.0, 0.0)
        blobs.mount(self.db, OTHER, DIGEST, None, 1.0, 0.0)
        blobs.forget(self.db, DIGEST, lambda: None)
        self.assertEqual([], self.scans())

    def test_pulling_and_listing_scan_nothing(self) -> None:
        blobs.size(self.db, APP, DIGEST)
        manifests.find(self.db, APP, DIGEST)
        manifests.find(self.db, APP, V1)
        manifests.referrers(self.db, APP, DIGEST, None, None, 10)
        manifests.referrers(self.db, APP, DIGEST, "text/x", str(DIGEST), 10)
        self.put("v1")
        images.tag_names(self.db, APP, None, 10)
        images.tag_names(self.db, APP, "v1", None)
        images.tag_movements(self.db, APP, V1)
        images.image_names(self.db, "local", "", 10)
        self.assertEqual([], self.scans())

    def test_deleting_scans_nothing(self) -> None:
        self.put("v1", "v2")
        images.delete_tag(self.db, APP, V1, actor="anne", at=1.0)
        for content in (b"[]", b"child"):
            digest = Digest.of(content)
            manifests.delete(self.db, APP, digest, allow_held=False, actor="anne", at=1.0)
        blobs.delete(self.db, APP, DIGEST, allow_held=False, actor="anne", at=1.0)
        self.assertEqual([], self.scans())

    def test_what_a_repository_holds_is_never_looked_at_whole(self) -> None:
        with images.within_quota(self.db, "local", 1):
            images.usage_size(self.db, "local")
        self.assertEqual([], self.scans())

    def test_upload_sessions_are_found_by_id(self) -> None:
        record = UploadRecord("u1", ImageName("local", "app"), Algorithm.SHA256, 1.0)
        images.add_upload(self.db, record, nothing, 0)
        owned = UploadRecord("u2", ImageName("local", "app"), Algorithm.SHA256, 1.0, "anne")
        images.add_upload(self.db, owned, nothing, 5)
        images.find_upload(self.db, "u1")
        images.upload_page(self.db, "", 10)
        images.delete_upload(self.db, "u1")
        self.assertEqual([], self.scans())

    def fill(self) -> None:
        """An index, a manifest and a blob come from upstream."""
        remote.add_remote_blob(self.db, [ALPINE], DIGEST, 4, confirmed, 1.0)
        child = manifest(b"child", blobs=[descriptor(b"blob")])
        remote.cache_manifest(self.db, ALPINE, child, None, confirmed, 1.0)
        holder = index(b"[]", [descriptor(b"child")])
        remote.cache_manifest(self.db, ALPINE, holder, V1, confirmed, 1.0)

    def test_what_comes_from_upstream_is_kept_without_a_scan(self) -> None:
        self.fill()
        remote.point_tag(self.db, ALPINE, V1, Digest.of(b"child"), 2.0)
        remote.keep_tag(self.db, ALPINE, V1, DIGEST, 2.0)
        remote.link_remote_blob(self.db, ALPINE, DIGEST, 2.0)
        remote.put_page(self.db, ALPINE, "tags", CachedPage(b"{}", {"n": "1"}, None, 1.0))
        images.remember_origin(self.db, "alpine", "docker.io")
        self.assertEqual([], self.scans())

    def test_pulling_from_remote_images_scans_nothing(self) -> None:
        self.fill()
        remote.find_tag(self.db, ALPINE, V1)
        remote.find_page(self.db, ALPINE, "tags")
        images.find_known(self.db, ALPINE)
        blobs.size_anywhere(self.db, DIGEST)
        images.find_origin(self.db, "alpine")
        self.assertEqual([], self.scans())

    def test_evicting_scans_nothing(self) -> None:
        self.fill()
        used = {(ALPINE, DIGEST): 2.0, (ALPINE, Digest.of(b"[]")): 2.0}
        remote.touch(self.db, used)
        remote.held_bytes(self.db, "docker.io")
        held = remote.least_used(self.db, "docker.io", 9.0, 0, 10)
        self.assertEqual(3, len(remote.drop(self.db, held, 9.0)))
        self.assertEqual([], self.scans())

    def test_purging_and_releasing_scan_nothing(self) -> None:
        for reference in (V1, DIGEST, None):
            self.fill()
            remote.purge(self.db, ALPINE, reference, 1.0)
        images.make_known(self.db, APP, 1.0)
        images.release(self.db, APP, 1.0)
        self.assertEqual([], self.scans())

    def collect(self, at: float) -> None:
        """What is of no use since ``at``, to its end."""
        for _ in range(2):
            garbage.collect_untagged(self.db, "local", at, 10, at)
            garbage.collect_links(self.db, at, 10)
            garbage.collect_deleted(self.db, at, 10)
            garbage.collect_bytes(self.db, at, 10)
        garbage.unlisted(self.db, [DIGEST])

    def test_collecting_scans_nothing(self) -> None:
        self.put("v1", "v2")
        manifests.delete(self.db, APP, Digest.of(b"[]"), allow_held=False, actor="anne", at=2.0)
        self.collect(3.0)
        self.assertEqual([], self.scans())
        self.assertEqual([], self.db.execute("SELECT digest FROM blob").fetchall())

    def test_bringing_back_scans_nothing(self) -> None:
        self.put("v1", "v2")
        other = Digest.of(b"other")
        blobs.add(self.db, APP, other, 5, confirmed, None, 1.0)
        blobs.delete(self.db, APP, other, allow_held=False, actor="anne", at=2.0)
        for content in (b"[]", b"child"):
            digest = Digest.of(content)
            manifests.delete(self.db, APP, digest, allow_held=False, actor="anne", at=2.0)
        for reference in (V1, other, None):
            garbage.undelete(self.db, APP, reference, "anne", 3.0)
        self.assertEqual([], self.scans())

    def test_renewing_a_lease_scans_nothing(self) -> None:
        blobs.add(self.db, APP, DIGEST, 4, confirmed, None, 1.0)
        self.assertEqual(4, blobs.promise(self.db, APP, DIGEST, 2.0, 1.0))
        manifests.promise(self.db, APP, DIGEST, 2.0, 1.0)
        self.assertEqual([], self.scans())

    def test_what_is_collected_comes_out_of_an_index_in_its_order(self) -> None:
        for query, values in (
            (garbage.UNTAGGED, (1.0, "local", 10)),
            (garbage.LINKS, (1.0, 10)),
            (garbage.DELETED_MANIFESTS, (1.0, 10)),
            (garbage.DELETED_TAGS, (1.0, 10)),
            (garbage.DELETED_BLOBS, (1.0, 10)),
            (garbage.LOOSE, (1.0, 10)),
        ):
            plan = self.db.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
            steps = [step for *_, step in plan]
            self.assertFalse([s for s in steps if s.startswith("SCAN") or "B-TREE" in s], steps)

    def steps(self) -> list[str]:
        """Of all that has been executed."""
        self.db.set_trace_callback(None)
        return [
            step
            for statement in self.statements
            for *_, step in self.db.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]

    def test_what_is_least_used_comes_out_of_an_index_without_being_sorted(self) -> None:
        remote.least_used(self.db, "docker.io", 9.0, 0, 10)
        steps = self.steps()
        for used in ("blob_link_used", "manifest_used"):
            self.assertEqual(1, sum(used in step for step in steps), steps)
        self.assertFalse([step for step in steps if "B-TREE FOR ORDER BY" in step])

    def test_the_oldest_pages_come_out_of_an_index_without_their_bodies(self) -> None:
        remote.put_page(self.db, ALPINE, "tags", CachedPage(b"{}", None, None, 1.0))
        steps = self.steps()
        self.assertTrue([s for s in steps if "COVERING INDEX upstream_page_fetched" in s], steps)
        self.assertFalse([step for step in steps if "B-TREE FOR ORDER BY" in step])

    def test_what_is_dropped_is_found_by_its_key_not_by_its_time(self) -> None:
        for is_manifest in (False, True):
            remote.drop(self.db, [Held(ALPINE, DIGEST, 4, 1.0, is_manifest)], 1.0)
        remote.touch(self.db, {(ALPINE, DIGEST): 1.0})
        self.assertFalse([step for step in self.steps() if "_used" in step])

    def test_listings_come_out_of_an_index_in_their_order(self) -> None:
        self.put("v1")
        manifests.referrers(self.db, APP, DIGEST, None, None, 10)
        images.tag_names(self.db, APP, None, 10)
        images.tag_movements(self.db, APP, V1)
        images.image_names(self.db, "local", "", 10)
        images.upload_page(self.db, "", 10)
        self.db.set_trace_callback(None)
        sorted_afterwards = [
            statement
            for statement in self.statements
            if statement.startswith("SELECT")
            for *_, step in self.db.execute(f"EXPLAIN QUERY PLAN {statement}")
            if "TEMP B-TREE" in step
        ]
        self.assertEqual([], sorted_afterwards)

    def test_referrers_are_found_by_their_subject(self) -> None:
        manifests.referrers(self.db, APP, DIGEST, "text/x", None, 10)
        self.db.set_trace_callback(None)
        [query] = self.statements
        plan = [step for *_, step in self.db.execute(f"EXPLAIN QUERY PLAN {query}")]
        self.assertTrue(any("manifest_referrer" in step for step in plan), plan)

    def test_every_foreign_key_has_an_index_for_the_rows_that_use_it(self) -> None:
        tables = [name for (name,) in self.db.execute("SELECT name FROM pragma_table_list")]
        for table in tables:
            for *_, column in self.db.execute(
                'SELECT "from" FROM pragma_foreign_key_list(?)', (table,)
            ):
                plan = self.db.execute(
                    f"EXPLAIN QUERY PLAN SELECT 1 FROM {table} WHERE {column} = 1"
                )
                self.assertTrue(plan.fetchone()[-1].startswith("SEARCH"), f"{table}.{column}")
