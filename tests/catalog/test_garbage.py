"""Leases, and what is collected."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from threading import Event
from typing import Any

from twisted.internet.defer import ensureDeferred

from artifactd.catalog import garbage
from artifactd.catalog.garbage import Garbage
from artifactd.catalog.records import ManifestPut
from artifactd.catalog.repair import RepairCatalog
from artifactd.oci.errors import ManifestBlobUnknown
from artifactd.oci.manifest import Descriptor
from artifactd.oci.names import Digest, Tag
from tests.catalog.fixture import (
    ALPINE,
    APP,
    BUSYBOX,
    EVER,
    LEASE,
    OTHER,
    QUARTER,
    GarbageCatalogTestCase,
    confirmed,
    descriptor,
    index,
    manifest,
)
from tests.programs import wait_for


class LeaseTests(GarbageCatalogTestCase):
    async def test_a_blob_that_nothing_holds_goes_when_its_lease_is_over(self) -> None:
        blob = await self.blob(b"blob")
        self.time += LEASE - 1
        self.assertEqual([], await self.links())
        self.time += 1
        [collected] = await self.garbage.collect_links(self.time - LEASE, 100)
        self.assertEqual(
            (Garbage.LEASE, APP, str(blob.digest), 4, 1000.0),
            (collected.why, collected.image, collected.name, collected.size, collected.since),
        )
        self.assertIsNone(await self.catalog.blob_size(APP, blob.digest))

    async def test_a_blob_that_a_manifest_holds_stays(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(manifest(b"{}", blobs=[blob]))
        self.assertEqual([], await self.links(EVER))

    async def test_a_manifest_of_another_image_holds_nothing_here(self) -> None:
        blob = await self.blob(b"blob")
        await self.blob(b"blob", OTHER)
        await self.put(manifest(b"{}", blobs=[blob]), image=OTHER)
        self.assertEqual([(APP, str(blob.digest))], await self.links(EVER))

    async def test_the_lease_runs_from_when_the_last_holder_went(self) -> None:
        blob = await self.blob(b"blob")
        holders = [await self.put(manifest(b"%d" % n, blobs=[blob])) for n in range(2)]
        self.time += LEASE
        await self.delete(holders[0])
        self.time += LEASE
        self.assertEqual([], await self.links())
        await self.delete(holders[1])
        self.assertEqual([], await self.links(self.time - 1))
        self.assertEqual([(APP, str(blob.digest))], await self.links(self.time))

    async def test_a_manifest_without_its_blob_is_refused(self) -> None:
        blob = await self.blob(b"blob")
        await self.links(EVER)
        error = await self.assert_raises(
            ManifestBlobUnknown, self.put(manifest(b"{}", blobs=[blob]))
        )
        self.assertEqual({"digests": [str(blob.digest)]}, error.detail)

    async def test_what_was_promised_late_is_renewed_and_what_was_promised_early_is_not(
        self,
    ) -> None:
        early, late = await self.blob(b"early"), await self.blob(b"late")
        self.time += QUARTER - 1
        self.assertEqual(5, await self.catalog.promise_blob(APP, early.digest))
        self.time += 1
        self.assertEqual(4, await self.catalog.promise_blob(APP, late.digest))
        self.assertEqual([(APP, str(early.digest))], await self.links(self.time - 1))

    async def test_what_is_not_held_by_the_image_is_not_promised(self) -> None:
        blob = await self.blob(b"blob", OTHER)
        self.assertIsNone(await self.catalog.promise_blob(APP, blob.digest))

    async def test_what_went_is_not_promised(self) -> None:
        blob = await self.blob(b"blob")
        self.time += LEASE
        other = self.open_catalog()
        self.assertEqual(4, await other.blob_size(APP, blob.digest))
        await self.links(EVER)
        self.assertIsNone(await other.promise_blob(APP, blob.digest))

    async def test_asking_for_the_size_renews_nothing(self) -> None:
        blob = await self.blob(b"blob")
        self.time += LEASE
        await self.catalog.blob_size(APP, blob.digest)
        self.assertEqual([(APP, str(blob.digest))], await self.links())

    async def test_a_mount_and_an_upload_renew_the_lease(self) -> None:
        for renew in (self.mount_again, self.blob):
            blob = await self.blob(b"blob")
            self.time += QUARTER
            await renew(b"blob")
            self.assertEqual([], await self.links(self.time - 1))
            self.assertIn((APP, str(blob.digest)), await self.links(self.time))

    async def mount_again(self, content: bytes) -> None:
        await self.blob(content, OTHER)
        await self.catalog.mount_blob(APP, Digest.of(content), OTHER)

    async def test_what_came_from_upstream_is_left_to_eviction(self) -> None:
        await self.fill(b"layer")
        digest = await self.cache(manifest(b"{}"), "v1")
        self.assertEqual([], await self.links(EVER))
        self.assertEqual([], await self.untagged(repository=ALPINE.repository))
        await self.remote.purge(ALPINE, digest)
        self.assertEqual([], await self.deleted())

    async def test_what_came_from_upstream_and_is_pushed_then_has_a_lease(self) -> None:
        layer = await self.fill(b"layer")
        await self.blob(b"layer", ALPINE)
        self.assertEqual([(ALPINE, str(layer.digest))], await self.links(EVER))


class UntaggedTests(GarbageCatalogTestCase):
    async def tagged_index(self) -> tuple[Digest, Digest]:
        """An index, tagged v1, and the one manifest that it lists."""
        child = await self.put(manifest(b"child"))
        holder = index(b"[]", [Descriptor("text/x", child, 5)])
        return await self.put(holder, "v1"), child

    async def test_a_manifest_goes_when_it_was_without_a_tag_for_long(self) -> None:
        digest = await self.put(b"{}", "v1")
        self.time += 1
        await self.catalog.delete_tag(APP, Tag.parse("v1"), actor="bob")
        self.assertEqual([], await self.untagged(self.time - 1))
        self.assertEqual([str(digest)], await self.untagged(self.time))
        self.assertIsNone(await self.catalog.manifest(APP, digest))

    async def test_pushed_without_a_tag_its_time_runs_from_the_last_push(self) -> None:
        digest = await self.put(b"{}")
        self.time += 1
        await self.put(b"{}")
        self.assertEqual([], await self.untagged(self.time - 1))
        self.assertEqual([str(digest)], await self.untagged(self.time))

    async def test_of_two_whose_tag_moves_on_the_older_goes(self) -> None:
        old = await self.put(b"old", "v1")
        await self.put(b"new", "v1")
        self.assertEqual([str(old)], await self.untagged())

    async def test_another_tag_keeps_it(self) -> None:
        await self.put(b"{}", "v1", "v2")
        await self.catalog.delete_tag(APP, Tag.parse("v1"), actor="bob")
        self.assertEqual([], await self.untagged())

    async def test_children_live_with_their_index_and_have_their_time_when_it_has_gone(
        self,
    ) -> None:
        holder, child = await self.tagged_index()
        self.assertEqual([], await self.untagged())
        self.time += 1
        await self.catalog.delete_tag(APP, Tag.parse("v1"), actor="bob")
        self.time += 1
        self.assertEqual([str(holder)], await self.untagged(self.time - 1))
        self.assertEqual([], await self.untagged(self.time - 1))
        self.assertEqual([str(child)], await self.untagged(self.time))

    async def test_referrers_live_with_their_subject(self) -> None:
        referrer = manifest(b"signature", subject=Digest.of(b"{}"))
        early = await self.put(referrer)
        await self.put(b"{}", "v1")
        late = await self.put(manifest(b"sbom", subject=Digest.of(b"{}")))
        self.assertEqual([], await self.untagged())
        await self.delete(Digest.of(b"{}"))
        self.assertEqual({str(early), str(late)}, set(await self.untagged()))

    async def test_a_referrer_does_not_keep_its_subject(self) -> None:
        subject = await self.put(b"{}")
        await self.put(manifest(b"signature", subject=subject), "sig")
        self.assertEqual([str(subject)], await self.untagged())

    async def test_other_repositories_are_left_alone(self) -> None:
        await self.put(b"{}")
        self.assertEqual([], await self.untagged(repository="elsewhere"))

    async def test_what_was_promised_late_stays_for_longer(self) -> None:
        early, late = await self.put(b"early"), await self.put(b"late")
        self.time += QUARTER - 1
        self.assertIsNotNone(await self.catalog.promise_manifest(APP, early, expires=True))
        self.time += 1
        record = await self.catalog.promise_manifest(APP, late, expires=True)
        assert record is not None
        self.assertEqual(late, record.digest)
        self.assertEqual([str(early)], await self.untagged(self.time - 1))

    async def test_a_blob_that_comes_after_its_sparse_manifest_is_held(self) -> None:
        pushed = manifest(b"{}", blobs=[descriptor(b"blob")])
        await self.catalog.put_manifest(ManifestPut(APP, pushed, sparse="images"), confirmed)
        blob = await self.blob(b"blob")
        self.time += LEASE
        self.assertEqual([], await self.links())
        await self.delete(pushed.digest)
        self.assertEqual([(APP, str(blob.digest))], await self.links(self.time))

    async def test_what_is_not_there_is_not_promised(self) -> None:
        self.assertIsNone(await self.catalog.promise_manifest(APP, Tag.parse("v1"), expires=True))

    async def test_the_lease_of_its_blobs_runs_from_then(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(manifest(b"{}", blobs=[blob]))
        self.time += LEASE
        await self.untagged()
        self.assertEqual([], await self.links())
        self.assertEqual([(APP, str(blob.digest))], await self.links(self.time))

    async def test_a_page_at_a_time_goes(self) -> None:
        for n in range(5):
            await self.put(b"%d" % n)
        pages = [len(await self.garbage.collect_untagged("local", EVER, 2)) for _ in range(4)]
        self.assertEqual([2, 2, 1, 0], pages)


class OrphanTests(GarbageCatalogTestCase):
    """Where untagged manifests stay: those that only a deleted index kept go all the same."""

    async def index_of(self, *children: Digest, content: bytes = b"[]", tag: str = "v1") -> Digest:
        return await self.put(index(content, [Descriptor("text/x", c, 5) for c in children]), tag)

    async def orphan(self, content: bytes = b"child") -> Digest:
        """A manifest whose index a client has just deleted."""
        child = await self.put(manifest(content))
        await self.delete(await self.index_of(child))
        return child

    async def test_they_go_when_their_lease_is_over(self) -> None:
        self.time += 1
        child = await self.orphan()
        self.assertEqual([], await self.orphaned(self.time - 1))
        [collected] = await self.garbage.collect_orphaned(self.time, 100)
        self.assertEqual(
            (Garbage.ORPHANED, APP, str(child), 5, self.time),
            (collected.why, collected.image, collected.name, collected.size, collected.since),
        )
        self.assertIsNone(await self.catalog.manifest(APP, child))

    async def test_what_else_keeps_one_keeps_it(self) -> None:
        subject = await self.put(b"subject", "v2")
        children = [
            await self.put(manifest(b"1 tag"), "v3"),
            await self.put(manifest(b"other")),
            await self.put(manifest(b"refer", subject=subject)),
        ]
        await self.index_of(children[1], content=b"[ ]", tag="v4")
        await self.delete(await self.index_of(*children))
        self.assertEqual([], await self.orphaned())

    async def test_what_keeps_one_again_ends_that_for_good(self) -> None:
        ways = (self.tag_again, self.point_again, self.list_again, self.put_again)
        for n, again in enumerate(ways):
            child = await self.orphan(b"%d...." % n)
            self.time += 1
            await again(child, b"%d...." % n)
            self.assertEqual([], await self.orphaned())
            self.assertIsNotNone(await self.catalog.manifest(APP, child))

    async def tag_again(self, child: Digest, content: bytes) -> None:
        await self.put(manifest(content), "v2")
        await self.catalog.delete_tag(APP, Tag.parse("v2"), actor="bob")

    async def point_again(self, child: Digest, content: bytes) -> None:
        await self.catalog.point_tag(APP, Tag.parse("v2"), child, actor="bob")
        await self.catalog.delete_tag(APP, Tag.parse("v2"), actor="bob")

    async def list_again(self, child: Digest, content: bytes) -> None:
        await self.index_of(child, content=b"[  ]")

    async def put_again(self, child: Digest, content: bytes) -> None:
        await self.put(manifest(content))

    async def test_of_a_tag_that_moves_on_nothing_is_one(self) -> None:
        child = await self.put(manifest(b"child"))
        await self.index_of(child)
        await self.put(b"{}", "v1")
        self.assertEqual([], await self.orphaned())

    async def test_what_was_promised_late_stays_for_longer(self) -> None:
        child = await self.orphan()
        self.time += QUARTER
        promised = await self.catalog.promise_manifest(APP, child, expires=False)
        self.assertIsNotNone(promised)
        self.assertEqual([], await self.orphaned(self.time - 1))
        self.assertEqual([str(child)], await self.orphaned(self.time))

    async def test_what_one_kept_has_a_lease_more(self) -> None:
        child = await self.put(manifest(b"child"))
        inner = await self.put(index(b"[   ]", [Descriptor("text/x", child, 5)]))
        signature = await self.put(manifest(b"signature", subject=inner))
        await self.delete(await self.index_of(inner))
        self.time += LEASE
        self.assertEqual([str(inner)], await self.orphaned(self.time - LEASE))
        self.assertEqual([], await self.orphaned(self.time - 1))
        self.assertEqual({str(child), str(signature)}, set(await self.orphaned(self.time)))

    async def test_what_a_document_of_another_type_described_is_none(self) -> None:
        described = await self.put(manifest(b"child"))
        about = manifest(b"about", others=[described])
        await self.delete(await self.put(about))
        self.assertEqual([], await self.orphaned())

    async def test_the_lease_of_its_blobs_runs_from_then(self) -> None:
        blob = await self.blob(b"blob")
        child = await self.put(manifest(b"child", blobs=[blob]))
        await self.delete(await self.index_of(child))
        self.time += LEASE
        await self.orphaned()
        self.assertEqual([], await self.links())
        self.assertEqual([(APP, str(blob.digest))], await self.links(self.time))

    async def test_their_time_for_undelete_ends_with_that_of_their_index(self) -> None:
        child = await self.orphan()
        deleted = self.time
        self.time += LEASE
        await self.orphaned()
        self.assertIn(str(child), await self.deleted(deleted))


class PageTests(GarbageCatalogTestCase):
    async def test_a_transaction_deletes_few_entries_or_one_manifest(self) -> None:
        self.patch(garbage, "_ENTRIES", 10)
        for number, size in enumerate((6, 4, 1, 20, 20)):
            children = [descriptor(b"%d" % child) for child in range(size)]
            pushed = index(b"index %d" % number, children)
            self.time += 1
            await self.catalog.put_manifest(ManifestPut(APP, pushed, sparse="indexes"), confirmed)
        steps = (
            lambda: self.garbage.collect_untagged("local", EVER, 100),
            lambda: self.garbage.collect_deleted(EVER, 100),
        )
        for step in steps:
            taken = [len(await step()) for _ in range(5)]
            self.assertEqual((sum(taken), taken[-1]), (5, 0))
            self.assertGreaterEqual(sum(count > 0 for count in taken), 4)


class BytesTests(GarbageCatalogTestCase):
    async def test_bytes_go_when_the_last_link_has_gone(self) -> None:
        blob = await self.blob(b"blob")
        await self.blob(b"blob", OTHER)
        await self.put(manifest(b"{}", blobs=[blob]), image=OTHER)
        await self.links(EVER)
        self.assertEqual([], await self.bytes())
        await self.delete(Digest.of(b"{}"), OTHER)
        await self.deleted()
        await self.links(EVER)
        self.assertEqual({str(blob.digest), str(Digest.of(b"{}"))}, set(await self.bytes()))
        self.assertEqual([], await self.bytes())

    async def test_they_stay_for_as_long_as_somebody_asks(self) -> None:
        await self.blob(b"blob")
        self.time += 1
        await self.links(EVER)
        self.assertEqual([], await self.bytes(999.0))
        self.assertEqual(1, len(await self.bytes(1000.0)))

    async def test_they_are_dropped_until_they_are_forgotten(self) -> None:
        digest = (await self.blob(b"blob")).digest
        await self.links(EVER)
        await self.bytes()
        self.assertEqual([digest], await self.catalog.dropped_blobs("", 10))
        self.assertTrue(await self.catalog.forget_blob(digest, confirmed))
        self.assertEqual([], await self.catalog.dropped_blobs("", 10))

    async def test_no_bytes_go_before_it_is_committed_that_their_rows_have_gone(self) -> None:
        repairs = RepairCatalog(self.catalog.database)
        digests = [Digest.of(content) for content in (b"pushed", b"dropped", b"purged", b"lost")]
        await self.blob(b"pushed")
        await self.links(EVER)
        await self.fill(b"dropped", BUSYBOX)
        held = await self.remote.least_used("docker.io", EVER, 0, 10)
        for content in (b"purged", b"lost"):
            await self.fill(content)
        await repairs.lose_blob(digests[3], lambda: True)
        removals: Sequence[Callable[[], Coroutine[Any, Any, object]]] = (
            lambda: self.garbage.collect_bytes(EVER, 10),
            lambda: self.remote.drop(held),
            lambda: self.remote.purge(ALPINE, digests[2]),
            lambda: repairs.drop_lost(digests[3]),
        )
        writer = self.catalog.database._writer
        for digest, remove in zip(digests, removals, strict=True):
            listed: list[bool] = []

            def look(digest: Digest = digest, listed: list[bool] = listed) -> None:
                with closing(sqlite3.connect(self.path)) as other:
                    row = "SELECT count(*) FROM blob WHERE digest = ?"
                    listed.append(bool(other.execute(row, (str(digest),)).fetchone()[0]))

            begun, event = Event(), Event()

            def hold(_: object, begun: Event = begun, event: Event = event) -> bool:
                begun.set()
                return event.wait(60)

            holding = self.catalog.database.write(hold)
            await wait_for(begun.is_set)
            removing = ensureDeferred(remove())
            await wait_for(lambda: bool(writer._queue))
            forgetting = ensureDeferred(self.catalog.forget_blob(digest, look))
            event.set()
            for each in (holding, removing, forgetting):
                await each
            self.assertEqual([False], listed, digest)

    async def test_what_is_pushed_again_meanwhile_stays(self) -> None:
        digest = (await self.blob(b"blob")).digest
        await self.links(EVER)
        await self.blob(b"blob")
        self.assertEqual([], await self.bytes())
        await self.links(EVER)
        self.assertEqual([str(digest)], await self.bytes())

    async def test_what_is_pushed_again_after_its_row_has_gone_is_not_unlinked(self) -> None:
        digest = (await self.blob(b"blob")).digest
        await self.links(EVER)
        await self.bytes()
        await self.blob(b"blob")
        self.assertFalse(await self.catalog.forget_blob(digest, self.fail))

    async def test_an_image_of_an_upstream_needs_them_too(self) -> None:
        await self.blob(b"blob")
        await self.fill(b"blob")
        await self.links(EVER)
        self.assertEqual([], await self.bytes())

    async def test_what_eviction_may_not_take_is_collected_later(self) -> None:
        blob = await self.blob(b"blob")
        await self.fill(b"blob")
        held = await self.remote.least_used("docker.io", EVER, 0, 10)
        self.assertEqual([], await self.remote.drop(held))
        await self.links(EVER)
        self.assertEqual([str(blob.digest)], await self.bytes())

    async def test_those_of_a_released_image_go(self) -> None:
        blob = await self.blob(b"blob")
        await self.put(b"{}")
        await self.delete(Digest.of(b"{}"))
        await self.remote.release_image(APP)
        await self.deleted()
        self.assertEqual({str(blob.digest), str(Digest.of(b"{}"))}, set(await self.bytes()))

    async def test_what_is_not_listed_can_be_told(self) -> None:
        blob, stray = await self.blob(b"blob"), Digest.of(b"stray")
        pushed = await self.put(b"{}")
        self.assertEqual([stray], await self.garbage.unlisted([blob.digest, stray, pushed]))
