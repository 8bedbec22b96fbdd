"""No query of the catalog reads a whole table."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar
from uuid import uuid4

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog import garbage
from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.events import Outbox
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.overview import DeletedAfter, Overview, TagAfter, TagOrder
from artifactd.catalog.records import ImageSpan, ManifestPut, Precondition, nothing
from artifactd.catalog.remote import CachedPage, Held, RemoteCatalog
from artifactd.catalog.webhooks import WebhookCatalog
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.settings.values import ReceiverUrl
from artifactd.settings.webhooks import WebhookSettings
from tests.catalog.fixture import (
    APP,
    OTHER,
    REACTOR,
    confirmed,
    descriptor,
    index,
    manifest,
    new_catalog,
)

_T = TypeVar("_T")

V1 = Tag.parse("v1")
ALPINE = ImageName("docker.io", "library/alpine")
DIGEST = Digest.of(b"blob")


class AtOnce(Database):
    """
    A database that answers at once, on one connection, and remembers the statements.

    :ivar time: the time now.
    """

    def __init__(self, path: Path) -> None:
        self.time = 1.0
        super().__init__(path, REACTOR, now=lambda: self.time)
        self.versions.close()
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA foreign_keys = ON")
        self.statements: list[str] = []
        self.db.set_trace_callback(self.statements.append)

    def read(self, query: Callable[[Connection], _T]) -> Deferred[_T]:
        return succeed(query(self.db))

    def write(
        self,
        interaction: Callable[[Connection], _T],
        committed: Callable[[], None] | None = None,
        *,
        last: bool = False,
        long: str | None = None,
        frees: bool = False,
    ) -> Deferred[_T]:
        return succeed(interaction(self.db))


class PlanTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.database = AtOnce(new_catalog(self))
        self.db, self.statements = self.database.db, self.database.statements
        self.addCleanup(self.db.close)
        self.addCleanup(self.database.versions.close)
        self.catalog = Catalog(self.database, lease=0.0)
        self.remote = RemoteCatalog(self.database)
        self.garbage = GarbageCatalog(self.database)

    def do(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.successResultOf(Deferred.fromCoroutine(call))

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
            # json_each is the list we gave it ourselves; a subquery's own steps are here too.
            if step.startswith("SCAN")
            and not any(told in step for told in ("VIRTUAL TABLE", "CONSTANT", "(subquery"))
        ]

    def put(self, *names: str) -> None:
        child = manifest(b"child", blobs=[descriptor(b"blob")], subject=DIGEST)
        self.do(self.catalog.add_blob(APP, DIGEST, 4, confirmed, upload=f"{uuid4()}.seal"))
        self.do(self.catalog.put_manifest(ManifestPut(APP, child), confirmed))
        wanted = tuple(Tag.parse(name) for name in names)
        condition = Precondition(if_none_match=("*",))
        holder = index(b"[]", [descriptor(b"child")])
        self.do(self.catalog.put_manifest(ManifestPut(APP, holder, wanted, condition), confirmed))

    def delete(self, *contents: bytes) -> None:
        for content in contents:
            digest = Digest.of(content)
            self.do(self.catalog.delete_manifest(APP, digest, allow_held=False, actor="anne"))

    def delete_blob(self, digest: Digest) -> None:
        self.do(self.catalog.delete_blob(APP, digest, allow_held=False, actor="anne"))

    def test_pushing_scans_nothing(self) -> None:
        self.put("v1", "v2")
        self.do(self.catalog.mount_blob(OTHER, DIGEST, APP))
        self.do(self.catalog.mount_blob(OTHER, DIGEST, None))
        self.do(self.catalog.forget_blob(DIGEST, nothing))
        self.assertEqual([], self.scans())

    def test_pulling_and_listing_scan_nothing(self) -> None:
        self.do(self.catalog.blob_size(APP, DIGEST))
        self.do(self.catalog.manifest(APP, DIGEST))
        self.do(self.catalog.manifest(APP, V1))
        self.do(self.catalog.referrers(APP, DIGEST, None, None, 10))
        self.do(self.catalog.referrers(APP, DIGEST, "text/x", str(DIGEST), 10))
        self.put("v1")
        self.do(self.catalog.tags(APP, None, 10))
        self.do(self.catalog.tags(APP, "v1", None))
        self.do(self.catalog.tag_movements(APP, V1))
        self.do(self.catalog.images_between([ImageSpan("local", "", "~")], 10))
        self.assertEqual([], self.scans())

    def test_deleting_scans_nothing(self) -> None:
        self.put("v1", "v2")
        self.do(self.catalog.delete_tag(APP, V1, actor="anne"))
        self.delete(b"[]", b"child")
        self.delete_blob(DIGEST)
        self.assertEqual([], self.scans())

    def test_a_repository_is_never_read_whole_for_its_quota(self) -> None:
        self.do(self.catalog.add_blob(APP, DIGEST, 4, confirmed, quota=10))
        self.do(self.catalog.repository_size("local"))
        self.assertEqual([], self.scans())

    def test_events_for_webhooks_are_written_and_read_without_a_scan(self) -> None:
        self.database.outbox = Outbox.of({"ci": WebhookSettings(url=ReceiverUrl("http://ci"))})
        self.put("v1", "v2")
        self.delete(b"[]", b"child")
        webhooks = WebhookCatalog(self.database)
        (head,) = self.do(webhooks.heads("ci", 5))
        self.do(webhooks.failed(head.message, "it answers 500", 2.0))
        self.do(webhooks.delivered(head.message))
        self.do(webhooks.drop("ci", 0.0, 10))
        self.do(webhooks.message(head.message.id))
        self.assertTrue(self.do(webhooks.messages("ci", 0, 10)))
        self.assertEqual(1, self.do(webhooks.replay("ci", 0.0)))
        self.assertEqual([], self.scans())

    def test_upload_sessions_are_found_by_id(self) -> None:
        self.do(self.catalog.upload("u1"))
        self.do(self.catalog.uploads("", 10))
        for upload_id in ("u1", f"{uuid4()}.seal"):
            self.do(self.catalog.end_upload(upload_id))
            self.do(self.catalog.is_upload_ended(f"{uuid4()}.seal"))
        self.do(self.catalog.forget_ended_uploads(1.0, 10))
        self.assertEqual([], self.scans())

    def fill(self) -> None:
        """Fetch an index, a manifest and a blob from upstream."""
        self.do(self.remote.add_blobs([ALPINE], DIGEST, 4, confirmed))
        child = manifest(b"child", blobs=[descriptor(b"blob")])
        self.do(self.remote.cache_manifest(ALPINE, child, None, confirmed))
        holder = index(b"[]", [descriptor(b"child")])
        self.do(self.remote.cache_manifest(ALPINE, holder, V1, confirmed))

    def test_what_comes_from_upstream_is_kept_without_a_scan(self) -> None:
        self.fill()
        self.do(self.remote.point_tag(ALPINE, V1, Digest.of(b"child")))
        self.do(self.remote.keep_tag(ALPINE, V1, DIGEST))
        self.do(self.remote.link_blob(ALPINE, DIGEST))
        self.do(self.remote.cache_page(ALPINE, "tags", CachedPage(b"{}", {"n": "1"}, None, 1.0)))
        self.do(self.remote.set_origin("alpine", "docker.io"))
        self.assertEqual([], self.scans())

    def test_pulling_from_remote_images_scans_nothing(self) -> None:
        self.fill()
        self.do(self.remote.cached_tag(ALPINE, V1))
        self.do(self.remote.cached_page(ALPINE, "tags"))
        self.do(self.remote.is_known(ALPINE))
        self.do(self.remote.stored_size("docker.io", DIGEST))
        self.do(self.remote.origin("alpine"))
        self.assertEqual([], self.scans())

    def test_evicting_scans_nothing(self) -> None:
        self.fill()
        used = {(ALPINE, DIGEST): 2.0, (ALPINE, Digest.of(b"[]")): 2.0}
        self.do(self.remote.touch(used))
        self.do(self.remote.held_bytes("docker.io"))
        held = self.do(self.remote.least_used("docker.io", 9.0, 0, 10))
        self.assertEqual(3, len(self.do(self.remote.drop(held))))
        self.assertEqual([], self.scans())

    def test_purging_and_releasing_scan_nothing(self) -> None:
        for reference in (V1, DIGEST, None):
            self.fill()
            self.do(self.remote.lacking(ALPINE, reference))
            self.do(self.remote.purge(ALPINE, reference))
        self.put()
        self.delete(b"[]", b"child")
        self.do(self.remote.release_image(APP))
        self.assertEqual([], self.scans())

    def test_a_page_of_images_reads_what_these_images_have_and_no_more(self) -> None:
        self.do(Overview(self.database).images([APP, OTHER]))
        (scan,) = [step for step in self.steps() if step.startswith("SCAN")]
        self.assertIn("wanted", scan)  # the list we gave it ourselves

    def test_images_and_tags_of_all_repositories_have_been_counted(self) -> None:
        self.put("v1", "v2")
        self.fill()
        self.db.execute("INSERT INTO image (repository, name) VALUES ('local', 'b'), ('gone', 'a')")
        into_tag = "INSERT INTO tag (image_id, name, manifest_id, moved_at)"
        self.db.execute(f"{into_tag} VALUES (3, 't', 1, 1.0)")
        self.db.execute(
            f"{into_tag} SELECT 4, name, 1, 1.0 FROM tag WHERE image_id = 1 ORDER BY name LIMIT 3"
        )
        self.db.execute("INSERT INTO repository VALUES ('docker.io'), ('local'), ('other')")
        self.statements.clear()
        usage = self.do(Overview(self.database).usage())
        self.assertEqual(
            [("docker.io", 1, 1), ("local", 1, 3), ("other", 0, 0)],
            [(each.repository, each.images, each.tags) for each in usage],
        )
        # Each has a row for each repository.
        self.assertEqual(
            ["repository", "repository_count", "repository_usage"],
            sorted(step.split()[1] for step in self.steps()),
        )

    def collect(self, at: float) -> None:
        """Collect everything that has been unused since ``at``."""
        self.database.time = at
        for _ in range(2):
            self.do(self.garbage.collect_untagged("local", at, 10))
            self.do(self.garbage.collect_orphaned(at, 10))
            self.do(self.garbage.collect_links(at, 10))
            self.do(self.garbage.collect_deleted(at, 10))
            self.do(self.garbage.collect_bytes(at, 10))
        self.do(self.garbage.unlisted([DIGEST]))

    def test_collecting_scans_nothing(self) -> None:
        self.put("v1", "v2")
        self.database.time = 2.0
        self.delete(b"[]")
        self.collect(3.0)
        self.assertEqual([], self.scans())
        self.assertEqual([], self.db.execute("SELECT digest FROM blob").fetchall())

    def test_bringing_back_scans_nothing(self) -> None:
        self.put("v1", "v2")
        other = Digest.of(b"other")
        self.do(self.catalog.add_blob(APP, other, 5, confirmed))
        self.database.time = 2.0
        self.delete_blob(other)
        self.delete(b"[]", b"child")
        for reference in (V1, other, None):
            self.do(self.garbage.undelete(APP, reference, "anne"))
        self.assertEqual([], self.scans())

    def test_renewing_a_lease_scans_nothing(self) -> None:
        self.put()
        self.do(self.catalog.add_blob(APP, Digest.of(b"other"), 5, confirmed))
        self.database.time = 2.0
        before = len(self.statements)
        self.assertEqual(5, self.do(self.catalog.promise_blob(APP, Digest.of(b"other"))))
        self.do(self.catalog.promise_manifest(APP, Digest.of(b"[]"), expires=True))
        renewed = [s for s in self.statements[before:] if s.startswith("UPDATE")]
        self.assertEqual(2, len(renewed))
        self.assertEqual([], self.scans())

    def test_what_is_collected_comes_out_of_an_index_in_its_order(self) -> None:
        named: dict[str, object] = {"before": 1.0, "limit": 10}
        queries: list[tuple[str, tuple[object, ...] | dict[str, object]]] = [
            (garbage.UNTAGGED, (1.0, "local", 10)),
            (garbage.ORPHANED, named),
            (garbage.LINKS, (1.0, 10)),
            (garbage.DELETED_MANIFESTS, named),
            (garbage.DELETED_TAGS, named),
            (garbage.DELETED_BLOBS, named),
            (garbage.LOOSE, (1.0, 10)),
        ]
        for query, values in queries:
            steps = self.plan(query, values)
            self.assertFalse([s for s in steps if s.startswith("SCAN") or "B-TREE" in s], steps)

    def test_what_is_collected_of_one_image_is_found_without_those_of_others(self) -> None:
        for query in (
            garbage.ORPHANED_OF,
            garbage.DELETED_MANIFESTS_OF,
            garbage.DELETED_TAGS_OF,
            garbage.DELETED_BLOBS_OF,
        ):
            first, *more = self.plan(query, {"before": 1.0, "limit": 10, "image": 1})
            self.assertIn("image_id=?", first)
            self.assertFalse([step for step in more if step.startswith("SCAN")])

    def plan(self, query: str, values: tuple[object, ...] | dict[str, object]) -> list[str]:
        plan = self.db.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
        return [step for *_, step in plan]

    def steps(self) -> list[str]:
        """Of all that has been executed."""
        self.db.set_trace_callback(None)
        return [
            step
            for statement in self.statements
            for *_, step in self.db.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]

    def test_what_is_least_used_comes_out_of_an_index_without_being_sorted(self) -> None:
        self.do(self.remote.least_used("docker.io", 9.0, 0, 10))
        steps = self.steps()
        for used in ("blob_link_used", "manifest_used"):
            self.assertEqual(1, sum(used in step for step in steps), steps)
        self.assertFalse([step for step in steps if "B-TREE FOR ORDER BY" in step])

    def test_the_oldest_pages_come_out_of_an_index_without_their_bodies(self) -> None:
        self.do(self.remote.cache_page(ALPINE, "tags", CachedPage(b"{}", None, None, 1.0)))
        steps = self.steps()
        self.assertTrue([s for s in steps if "COVERING INDEX upstream_page_fetched" in s], steps)
        self.assertFalse([step for step in steps if "B-TREE FOR ORDER BY" in step])

    def test_what_is_dropped_is_found_by_its_key_not_by_its_time(self) -> None:
        for is_manifest in (False, True):
            self.do(self.remote.drop([Held(ALPINE, DIGEST, 4, 1.0, is_manifest)]))
        self.do(self.remote.touch({(ALPINE, DIGEST): 1.0}))
        self.assertFalse([step for step in self.steps() if "_used" in step])

    def test_listings_come_out_of_an_index_in_their_order(self) -> None:
        self.put("v1")
        self.do(self.catalog.referrers(APP, DIGEST, None, None, 10))
        self.do(self.catalog.tags(APP, None, 10))
        self.do(self.catalog.images_between([ImageSpan("local", "", "~")], 10, None, "*a*"))
        for newest_first in (False, True):
            for tag in (V1, None):
                reading = self.catalog.tag_movements(APP, tag, 5, 10, newest_first=newest_first)
                self.do(reading)
        self.do(self.catalog.tag_at(APP, V1, 5.0))
        overview = Overview(self.database)
        for order in TagOrder:
            self.do(overview.tags(APP, TagAfter(0.5, "a"), 10, "v*", order))
        self.do(self.catalog.uploads("", 10))
        self.db.set_trace_callback(None)
        sorted_afterwards = [
            statement
            for statement in self.statements
            if statement.startswith("SELECT")
            for *_, step in self.db.execute(f"EXPLAIN QUERY PLAN {statement}")
            if "TEMP B-TREE" in step
        ]
        self.assertEqual([], sorted_afterwards)

    def test_what_was_deleted_is_found_by_the_time(self) -> None:
        self.do(Overview(self.database).deleted(None, DeletedAfter(5.0, 1, "v1", "tag"), 10))
        steps = [step for step in self.steps() if "AS deleted" in step or "deleted" in step]
        indexes = ["deleted_blob_at", "deleted_manifest_at", "deleted_tag_at"]
        self.assertEqual(indexes, sorted(step.split("INDEX ")[1].split()[0] for step in steps))

    def test_what_was_deleted_from_an_image_comes_out_of_an_index_in_its_order(self) -> None:
        self.put("v1")
        self.statements.clear()
        after = DeletedAfter(5.0, 1, "v1", "tag")
        for place in (None, after):
            self.do(Overview(self.database).deleted(APP, place, 10))
        steps = self.steps()
        self.assertEqual([], [step for step in steps if "B-TREE" in step or "SCAN" in step])
        for kind in ("tag", "manifest", "blob"):
            found = [step for step in steps if f"INDEX deleted_{kind}_of" in step]
            self.assertEqual(2, len(found), steps)
            self.assertTrue(all("(image_id=? AND (deleted_at," in step for step in found), found)

    def test_referrers_are_found_by_their_subject(self) -> None:
        self.do(self.catalog.referrers(APP, DIGEST, "text/x", None, 10))
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
