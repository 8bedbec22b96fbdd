"""No query of the catalog reads a whole table."""

from __future__ import annotations

import sqlite3

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog import blobs, images, manifests, tags, uploads
from artifactd.catalog.interfaces import ManifestPut, Precondition, UploadRecord, nothing
from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.name import ImageName, Tag
from tests.catalog.fixture import new_catalog
from tests.contracts.catalog import APP, OTHER, confirmed, descriptor, index, manifest

V1 = Tag.parse("v1")
DIGEST = Digest.of(b"blob")


class PlanTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.db = sqlite3.connect(new_catalog(self), isolation_level=None)
        self.addCleanup(self.db.close)
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
        blobs.mount(self.db, OTHER, DIGEST, APP)
        blobs.mount(self.db, OTHER, DIGEST, None)
        blobs.forget(self.db, DIGEST, lambda: None)
        self.assertEqual([], self.scans())

    def test_pulling_and_listing_scan_nothing(self) -> None:
        blobs.size(self.db, APP, DIGEST)
        manifests.find(self.db, APP, DIGEST)
        manifests.find(self.db, APP, V1)
        manifests.referrers(self.db, APP, DIGEST, None, None, 10)
        manifests.referrers(self.db, APP, DIGEST, "text/x", str(DIGEST), 10)
        self.put("v1")
        tags.names(self.db, APP, None, 10)
        tags.names(self.db, APP, "v1", None)
        tags.movements(self.db, APP, V1)
        images.names(self.db, "local", "", 10)
        self.assertEqual([], self.scans())

    def test_deleting_scans_nothing(self) -> None:
        self.put("v1", "v2")
        tags.delete(self.db, APP, V1, actor="anne", at=1.0)
        for content in (b"[]", b"child"):
            digest = Digest.of(content)
            manifests.delete(self.db, APP, digest, allow_held=False, actor="anne", at=1.0)
        blobs.delete(self.db, APP, DIGEST, allow_held=False)
        self.assertEqual([], self.scans())

    def test_upload_sessions_are_found_by_id(self) -> None:
        record = UploadRecord("u1", ImageName("local", "app"), Algorithm.SHA256, 1.0)
        uploads.add(self.db, record, nothing)
        uploads.find(self.db, "u1")
        uploads.page(self.db, "", 10)
        uploads.delete(self.db, "u1")
        self.assertEqual([], self.scans())

    def test_listings_come_out_of_an_index_in_their_order(self) -> None:
        self.put("v1")
        manifests.referrers(self.db, APP, DIGEST, None, None, 10)
        tags.names(self.db, APP, None, 10)
        tags.movements(self.db, APP, V1)
        images.names(self.db, "local", "", 10)
        uploads.page(self.db, "", 10)
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
