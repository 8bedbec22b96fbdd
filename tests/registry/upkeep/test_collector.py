"""What the collector takes away, how fast, and when it does not; on a real catalog and store."""

from __future__ import annotations

import time
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.garbage import Collected, Garbage, GarbageCatalog
from artifactd.catalog.records import ManifestPut
from artifactd.catalog.repair import RepairCatalog
from artifactd.catalog.retention import RetentionCatalog
from artifactd.oci.errors import NameUnknown
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.registry.content import publish
from artifactd.registry.metrics import Counters
from artifactd.registry.upkeep import collector
from artifactd.registry.upkeep.collector import Collector, NotNow
from artifactd.registry.upkeep.retention import Retention
from artifactd.registry.upkeep.sweep import Sweep
from artifactd.settings.settings import LocalSettings, RetentionRule, Settings
from artifactd.settings.values import Duration, Untagged
from artifactd.store.examine import ScrubLock, ScrubPosition
from artifactd.store.folder import FolderCollectionLock, collection_held
from artifactd.store.publication import StagedBlob
from tests.catalog.fixture import descriptor, index, manifest, new_catalog
from tests.programs import reactor
from tests.store.fixture import StoreTestCase

APP, OTHER = ImageName("local", "app"), ImageName("local", "other")
LEASE, GRACE, UNTAGGED = 100.0, 1000.0, "150s"


def settings(untagged: str = UNTAGGED, rate: int = 0) -> Settings:
    return Settings(
        grace=Duration(GRACE),
        lease=Duration(LEASE),
        gc_rate=rate,
        repository={"local": LocalSettings(untagged=Untagged(untagged))},
    )


SETTINGS = settings()
KINDS = ("judged", "kept", "dropped")  # of figures of retention


class CollectorTests(StoreTestCase):
    """
    :ivar time: of the catalog and the collector, in seconds since the epoch.
    :ivar collected: what has gone.
    """

    def setUp(self) -> None:
        super().setUp()
        self.time = time.time()
        self.catalog = Catalog(
            Database(new_catalog(self), reactor, now=lambda: self.time), lease=LEASE
        )
        self.addCleanup(self.catalog.database.close)
        self.garbage = GarbageCatalog(self.catalog.database)
        self.clock = Clock()
        self.counters = Counters()
        self.collected: list[Collected] = []
        self.locks = Path(self.mktemp())
        self.locks.mkdir()
        self.collector = self.new_collector()

    def new_collector(
        self, retention: Retention | None = None, *, removes: bool = True
    ) -> Collector:
        """That of another process."""
        return Collector(
            self.catalog,
            self.garbage,
            RepairCatalog(self.catalog.database),
            retention
            or Retention(
                RetentionCatalog(self.catalog.database), SETTINGS.repository, lambda: self.time
            ),
            self.stores.blobs,
            FolderCollectionLock(self.locks),
            ScrubLock(self.locks),
            SETTINGS,
            self.run_in_thread,
            self.clock,
            self.counters.collection,
            lambda: self.time,
            removes,
            self.collected.append,
        )

    async def collect(self, after: float = 0.0) -> list[Garbage]:
        """Why what goes ``after`` so many seconds does."""
        self.time += after
        self.collected.clear()
        await self.collector.run()
        return [each.why for each in self.collected]

    async def stage(self, content: bytes) -> StagedBlob:
        return await self.stores.blobs.stage(Digest.of(content), content)

    async def push(self, content: bytes, image: ImageName = APP) -> Digest:
        """A blob."""
        staged = await self.stage(content)
        await publish(
            staged,
            self.catalog,
            lambda: self.catalog.add_blob(
                image, staged.digest, staged.size, staged.confirm, staged.release
            ),
        )
        return staged.digest

    async def put(self, pushed: Manifest, *tags: str, image: ImageName = APP) -> Digest:
        staged = await self.stage(pushed.content)
        put = ManifestPut(image, pushed, tuple(map(Tag.parse, tags)))
        await publish(
            staged,
            self.catalog,
            lambda: self.catalog.put_manifest(put, staged.confirm, staged.release),
        )
        return pushed.digest

    async def image(self, *tags: str) -> Digest:
        """A manifest, and the blob that it holds."""
        await self.push(b"blob")
        return await self.put(manifest(b"{}", blobs=[descriptor(b"blob")]), *tags)

    def counted(self, name: str) -> float:
        lines = self.counters.metrics.moment().exposition().decode().splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith(f"artifactd_{name}")
        )

    async def test_more_than_a_page_of_each_kind_goes_in_one_run(self) -> None:
        self.patch(collector, "PAGE", 2)
        for number in range(5):
            await self.push(b"blob %d" % number)
            await self.put(manifest(b"untagged %d" % number))
        why = await self.collect(LEASE + 200.0)
        self.assertEqual((why.count(Garbage.LEASE), why.count(Garbage.UNTAGGED)), (5, 5))
        why = await self.collect(GRACE + 1.0)
        self.assertEqual((why.count(Garbage.DELETED), why.count(Garbage.BYTES)), (5, 10))

    async def test_a_tag_that_no_rule_keeps_goes_and_its_manifest_as_an_untagged_one(self) -> None:
        old = await self.put(manifest(b"1"), "v1")
        self.time += 1
        await self.put(manifest(b"2"), "v2")
        self.collector.retention = Retention(
            self.collector.retention.catalog,
            {"local": LocalSettings(retention=(RetentionRule(newest=1),))},
            lambda: self.time,
        )
        self.assertEqual([Garbage.RETENTION], await self.collect())
        self.assertEqual(("v1", APP), (self.collected[0].name, self.collected[0].image))
        self.assertEqual([Garbage.UNTAGGED], await self.collect(150))
        self.assertEqual(str(old), self.collected[0].name)
        restored = await self.garbage.undelete(APP, Tag.parse("v1"), "test")
        self.assertEqual(((old,), ("v1",)), (restored.manifests, restored.tags))

    async def test_retention_is_counted_by_repository(self) -> None:
        for tag in ("v1", "v2", "v3"):
            await self.put(manifest(tag.encode()), tag)
            self.time += 1
        with_rules = LocalSettings(retention=(RetentionRule(newest=1),))
        repositories = {"local": with_rules, "other": LocalSettings()}
        catalog = self.collector.retention.catalog
        of_local = 'total{repository="local"}'
        self.collector = self.new_collector(Retention(catalog, repositories, lambda: self.time))
        lines = self.counters.metrics.moment().exposition().decode()
        self.assertIn(f"artifactd_retention_dropped_{of_local} 0.0", lines)
        self.assertNotIn("artifactd_retention_last_run_timestamp_seconds{", lines)

        await self.collector.retain(lambda image: image == "local/none")
        self.assertEqual(self.counted("retention_last_run_timestamp_seconds{"), 0)
        await self.collect()
        counted = [self.counted(f"retention_{each}_{of_local}") for each in KINDS]
        self.assertEqual(counted, [3, 1, 2])
        last_run = 'retention_last_run_timestamp_seconds{repository="local"}'
        self.assertEqual(self.counted(last_run), self.time)
        await self.collect(1)
        counted = [self.counted(f"retention_{each}_{of_local}") for each in KINDS]
        self.assertEqual(counted, [4, 2, 2])
        self.assertEqual(self.counted(last_run), self.time)
        self.assertEqual(self.counted('retention_judged_total{repository="other"}'), 0)

    async def test_a_tagged_image_stays_whole(self) -> None:
        await self.image("v1")
        self.assertEqual([], await self.collect(1e9))
        await self.assert_blob(b"blob")
        await self.assert_blob(b"{}")

    async def test_a_deleted_image_goes_step_by_step(self) -> None:
        digest = await self.image("v1")
        await self.catalog.delete_manifest(APP, digest, allow_held=False, actor="bob")
        self.assertEqual([], await self.collect(LEASE - 1))
        self.assertEqual([Garbage.LEASE], await self.collect(1))
        await self.assert_blob(b"blob")
        self.assertEqual([], await self.collect(GRACE - LEASE - 1))
        self.assertEqual(
            [Garbage.DELETED, Garbage.DELETED, Garbage.BYTES, Garbage.BYTES], await self.collect(1)
        )
        await self.assert_no_blob(digest)
        await self.assert_no_blob(Digest.of(b"blob"))
        self.assertEqual([], self.below("blobs"))

    async def index(self, image: ImageName = APP) -> tuple[Digest, list[Digest]]:
        """An index of an index of a manifest with a blob; all that belongs to it."""
        await self.push(b"blob", image)
        child = manifest(b"child", blobs=[descriptor(b"blob")])
        inner = index(b"inner", [descriptor(b"child")])
        outer = index(b"outer", [descriptor(b"inner")])
        for each in (child, inner):
            await self.put(each, image=image)
        await self.put(outer, "v1", image=image)
        belonging = [inner.digest, child.digest, Digest.of(b"blob")]
        return outer.digest, belonging

    async def delete(self, digest: Digest, image: ImageName = APP) -> None:
        await self.catalog.delete_manifest(image, digest, allow_held=False, actor="bob")

    async def test_what_a_deleted_index_kept_goes_a_lease_after_it(self) -> None:
        self.collector.settings = settings("keep")
        outer, _ = await self.index()
        self.assertEqual([], await self.collect(1e9))
        await self.delete(outer)
        self.assertEqual([], await self.collect(LEASE - 1))
        self.assertEqual([Garbage.ORPHANED], await self.collect(1))
        self.assertEqual([Garbage.ORPHANED], await self.collect(LEASE))
        self.assertEqual([Garbage.LEASE], await self.collect(LEASE))
        await self.collect(GRACE)
        self.assertEqual([], self.below("blobs"))

    async def test_at_once_all_that_a_deleted_index_kept_goes_in_one_run(self) -> None:
        self.collector.settings, self.collector.at_once = settings("keep"), True
        outer, belonging = await self.index()
        await self.delete(outer)
        await self.collect()
        for digest in (outer, *belonging):
            await self.assert_no_blob(digest)

    async def test_at_once_of_one_image_nothing_goes_that_others_have_or_deleted(self) -> None:
        self.patch(collector, "PAGE", 2)
        self.collector.settings, self.collector.at_once = settings("keep"), True
        self.collector.only = APP
        outer, belonging = await self.index(OTHER)
        mine = await self.put(manifest(b"mine"), "mine")
        shared = await self.put(manifest(b"shared"), "shared")
        await self.put(manifest(b"shared"), "shared", image=OTHER)
        for digest in (mine, shared):
            await self.delete(digest)
        await self.delete(outer, OTHER)
        await self.collect()
        self.assertEqual({APP, None}, {each.image for each in self.collected})
        await self.assert_no_blob(mine)
        await self.assert_blob(b"shared")
        restored = await self.garbage.undelete(OTHER, outer, "carol")
        self.assertEqual((outer,), restored.manifests)
        for digest in (outer, *belonging):
            self.assertIsNotNone(await self.stores.blobs.read(digest))

    async def test_of_an_image_that_there_is_not_nothing_is_collected(self) -> None:
        self.collector.only = ImageName("local", "absent")
        await self.assert_raises(NameUnknown, self.collector.run())

    async def test_what_was_never_held_goes_after_lease_and_grace(self) -> None:
        digest = await self.push(b"blob")
        self.assertEqual([Garbage.LEASE], await self.collect(GRACE - 1))
        await self.assert_blob(b"blob")
        self.assertEqual([Garbage.BYTES], await self.collect(1))
        await self.assert_no_blob(digest)

    async def test_untagged_manifests_go_where_the_rules_say_so(self) -> None:
        await self.image()
        self.collector.settings = settings("keep")
        self.assertEqual([], await self.collect(1e9))
        self.collector.settings = SETTINGS
        self.assertEqual([Garbage.UNTAGGED], await self.collect())

    async def test_an_untagged_manifest_stays_for_a_lease_at_least(self) -> None:
        self.collector.settings = settings("1s")
        await self.image()
        self.assertEqual([], await self.collect(LEASE - 1))
        self.assertEqual([Garbage.UNTAGGED], await self.collect(1))

    async def test_files_that_no_row_lists_go_after_the_grace_period(self) -> None:
        staged = await self.published(b"stray")
        staged.release()
        await self.image("v1")
        self.assertEqual([], await self.collect(GRACE - 60))
        self.assertEqual([Garbage.STRAY], await self.collect(120))
        await self.assert_no_blob(staged.digest)
        await self.assert_blob(b"blob")
        self.assertEqual(1, self.counted('gc_collected_total{why="stray"}'))

    async def test_what_others_have_put_into_the_store_stays(self) -> None:
        await self.push(b"blob")
        [folder] = (self.path / "blobs" / "sha256").iterdir()
        (folder / "notes.txt").write_text("mine")
        self.assertNotIn(Garbage.STRAY, await self.collect(1e9))
        self.assertTrue((folder / "notes.txt").exists())

    async def test_a_push_of_what_is_just_taken_away_as_a_stray_is_whole(self) -> None:
        staged = await self.published(b"late")
        self.assertEqual([Garbage.STRAY], await self.collect(1e9))
        await self.catalog.add_blob(APP, staged.digest, 4, staged.confirm, staged.release)
        await self.assert_blob(b"late")

    async def test_a_process_that_dies_between_row_and_file_leaves_it_to_the_sweep(self) -> None:
        digest = await self.push(b"blob")
        self.time += 1e9
        dying = self.new_collector(removes=False)
        await dying.run()
        await self.assert_blob(b"blob")
        stores = self.stores
        sweep = Sweep(self.catalog, stores.blobs, stores.uploads, stores.all_fills, 60.0)
        self.assertEqual(1, await sweep.run())
        await self.assert_no_blob(digest)

    async def test_what_goes_is_counted(self) -> None:
        await self.push(b"blob")
        await self.push(b"other")
        await self.collect(1e9)
        self.assertEqual(2, self.counted('gc_collected_total{why="lease"}'))
        self.assertEqual(2, self.counted('gc_collected_total{why="bytes"}'))
        self.assertEqual((9, 1), (self.counted("gc_bytes_total"), self.counted("gc_runs_total")))

    # -- how fast, and whether at all

    async def test_it_pauses_between_its_steps_to_keep_its_rate(self) -> None:
        for n in range(3):
            await self.push(b"%d" % n)
        self.collector.settings = settings(rate=2)
        self.time += 1e9
        # Three files are looked at, three links go, and three blobs.
        running = Deferred.fromCoroutine(self.collector.run())
        paused = 0.0
        while not running.called:
            await self.catalog.database.check()  # once round, so that a step under way ends
            for call in self.clock.getDelayedCalls():
                paused += call.getTime() - self.clock.seconds()
                self.clock.advance(call.getTime() - self.clock.seconds())
        await running
        self.assertEqual(4.5, paused)
        self.assertEqual(4.5, self.counted("gc_seconds_total"))

    async def test_stopped_in_a_pause_it_ends_and_another_goes_on(self) -> None:
        await self.push(b"blob")
        self.collector.settings = settings(rate=1)
        self.time += 1e9
        running = Deferred.fromCoroutine(self.collector.run([]))
        while not self.clock.getDelayedCalls():
            await self.catalog.database.check()
        self.collector.stop()
        await self.assert_raises(NotNow, running)
        self.assertEqual([], self.clock.getDelayedCalls())
        await self.new_collector().run()
        self.assertEqual([Garbage.LEASE, Garbage.BYTES], [each.why for each in self.collected])

    async def test_one_process_collects_at_a_time(self) -> None:
        other = FolderCollectionLock(self.locks)
        other.claim()
        error = await self.assert_raises(NotNow, self.collector.run())
        self.assertIn("another process", str(error))
        other.release()
        await self.collector.run()

    async def test_while_a_backup_is_made_nothing_goes(self) -> None:
        await self.push(b"blob")
        with collection_held(self.locks):
            error = await self.assert_raises(NotNow, self.collect(1e9))
        self.assertIn("backup", str(error))
        self.assertEqual([], self.collected)
        self.assertEqual([Garbage.LEASE, Garbage.BYTES], await self.collect())

    async def test_while_the_catalog_is_damaged_nothing_goes(self) -> None:
        await self.push(b"blob")
        scrub = ScrubLock(self.locks)
        self.assertTrue(scrub.claim())
        self.addCleanup(scrub.release)
        scrub.write(ScrubPosition(wrong="row 1 missing from index blob_by_size"))
        error = await self.assert_raises(NotNow, self.collect(1e9))
        self.assertIn("row 1 missing from index blob_by_size", str(error))
        self.assertEqual([], self.collected)
        scrub.write(ScrubPosition())
        self.assertEqual([Garbage.LEASE, Garbage.BYTES], await self.collect())

    async def test_where_a_file_cannot_be_removed_the_rest_goes(self) -> None:
        await self.push(b"blob")
        other = await self.push(b"other")
        [file] = self.path.rglob(Digest.of(b"blob").encoded)
        file.unlink()
        file.mkdir()
        await self.collect(1e9)
        await self.assert_no_blob(other)
        self.assertEqual([Digest.of(b"blob")], await self.catalog.dropped_blobs("", 10))
        file.rmdir()
