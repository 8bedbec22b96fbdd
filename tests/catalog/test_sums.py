"""What images and manifests hold, kept while it changes: the same as a look at all rows tells."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from sqlite3 import Connection, connect

from twisted.trial.unittest import TestCase

from artifactd.catalog.migrations import SCHEMA, migrate
from artifactd.catalog.overview import Overview
from artifactd.catalog.records import ManifestPut
from artifactd.catalog.repair import RepairCatalog
from artifactd.oci.errors import RegistryError
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import Digest
from tests.catalog.fixture import (
    ALPINE,
    APP,
    BUSYBOX,
    EVER,
    OTHER,
    V1,
    V2,
    GarbageCatalogTestCase,
    confirmed,
    descriptor,
    index,
    manifest,
    schema_folder,
)

_BLOBS = [b"a" * 1, b"b" * 20, b"c" * 300, b"d" * 4000]

Sums = dict[int, tuple[int, int, int, float | None, float | None]]


def counted(db: Connection) -> Sums:
    """Tags, size, own size, last push and last pull of each image as they are kept."""
    rows = db.execute("SELECT image_id, tags, size, own, pushed_at, pulled_at FROM image_count")
    return {image: tuple(told) for image, *told in rows}


def looked_at(db: Connection) -> Sums:
    """The same by a look at all rows, of catalogs out of which no manifest has gone."""
    sizes = dict(db.execute("SELECT id, size FROM blob"))
    holders = defaultdict(set)
    for image, blob in db.execute(
        "SELECT image_id, blob_id FROM blob_link"
        " UNION SELECT image_id, blob.id FROM manifest JOIN blob USING (digest)"
    ):
        holders[blob].add(image)
    sums: Sums = {}
    for (image,) in db.execute("SELECT id FROM image").fetchall():
        held = [blob for blob, images in holders.items() if image in images]
        own = [blob for blob in held if holders[blob] == {image}]
        (tags,) = db.execute("SELECT count(*) FROM tag WHERE image_id = ?", (image,)).fetchone()
        pushed, *pulls = db.execute(
            "SELECT max(pushed_at), max(used_at), max(pulled_at),"
            " (SELECT max(pulled_at) FROM tag WHERE image_id = ?1) FROM manifest"
            " WHERE image_id = ?1",
            (image,),
        ).fetchone()
        pulled = max((each for each in pulls if each is not None), default=None)
        size = sum(sizes[blob] for blob in held)
        sums[image] = (tags, size, sum(sizes[blob] for blob in own), pushed, pulled)
    return sums


def sizes_kept(db: Connection) -> dict[int, int]:
    """The sizes of manifests, where they are known."""
    return dict(db.execute("SELECT id, held_size FROM manifest WHERE held_size IS NOT NULL"))


def sizes_looked_at(db: Connection) -> dict[int, int]:
    """The sizes of all pushed manifests by a look at all rows."""
    sizes = dict(db.execute("SELECT digest, size FROM blob"))
    rows = db.execute("SELECT id, image_id, digest FROM manifest").fetchall()
    manifests = {(image, digest): number for number, image, digest in rows}
    held = {
        *manifests,
        *db.execute("SELECT image_id, digest FROM blob_link JOIN blob ON id = blob_id"),
    }
    entries = defaultdict(list)
    for number, digest in db.execute("SELECT manifest_id, digest FROM manifest_entry"):
        entries[number].append(digest)
    found = {}
    for number, image, digest in rows:
        below, left = set(), [digest]
        while left:
            each = left.pop()
            if each not in below:
                below.add(each)
                left += entries[manifests.get((image, each), 0)]
        found[number] = sum(sizes[each] for each in below if (image, each) in held)
    pushed = db.execute("SELECT id FROM manifest WHERE used_at IS NULL")
    return {number: found[number] for (number,) in pushed}


def _execute(statement: str, db: Connection) -> None:
    db.execute(statement)


class SumTests(GarbageCatalogTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.overview = Overview(self.catalog.database)
        self.repair = RepairCatalog(self.catalog.database)

    async def size(self, digest: Digest) -> int | None:
        """What is kept of the size of a manifest of ``APP``."""

        def kept(db: Connection) -> int | None:
            row = db.execute(
                "SELECT held_size FROM manifest JOIN image ON image.id = image_id"
                " WHERE name = ? AND digest = ?",
                (APP.image, str(digest)),
            ).fetchone()
            return None if row is None else row[0]

        return await self.catalog.database.read(kept)

    async def test_a_push_sums_up_what_the_manifest_holds_each_once(self) -> None:
        layer = await self.blob(b"layer")
        one, two = (manifest(each, blobs=[layer]) for each in (b"one", b"two"))
        for each in (one, two):
            await self.put(each)
        both = index(b"[]", [descriptor(b"one"), descriptor(b"two")])
        digest = await self.put(both, "v1")
        self.assertEqual([8, 8], [await self.size(each.digest) for each in (one, two)])
        self.assertEqual(5 + 3 + 3 + 2, await self.size(digest))
        (tag,) = await self.overview.tags(APP, None, 10)
        self.assertEqual(13, tag.size)

    async def test_a_size_that_is_not_true_any_more_is_forgotten_and_summed_up_again(self) -> None:
        layer = await self.blob(b"layer")
        child = await self.put(manifest(b"child", blobs=[layer]))
        top = await self.put(index(b"[]", [descriptor(b"child")]), "v1")
        nested = await self.put(index(b"{}", [descriptor(b"[]")]), "v2")
        other = await self.put(b"other", "v3")
        await self.catalog.delete_blob(APP, layer.digest, allow_held=True)
        self.assertEqual([None] * 3, [await self.size(each) for each in (child, top, nested)])
        self.assertEqual(5, await self.size(other))
        seen = {each.tag: each.size for each in await self.overview.tags(APP, None, 10)}
        self.assertEqual({"v1": 7, "v2": 9, "v3": 5}, seen)
        self.assertEqual(3, await self.garbage.note_sizes(10))
        self.assertEqual([5, 7, 9], [await self.size(each) for each in (child, top, nested)])
        self.assertEqual(0, await self.garbage.note_sizes(10))
        await self.blob(b"layer")
        self.assertEqual([None] * 3, [await self.size(each) for each in (child, top, nested)])

    async def test_few_manifests_are_summed_up_in_one_transaction_if_they_hold_much(self) -> None:
        blobs = [await self.blob(b"%d" % number) for number in range(1100)]
        digests = [await self.put(manifest(each, blobs=blobs)) for each in (b"a", b"b", b"c")]
        await self.catalog.delete_blob(APP, blobs[0].digest, allow_held=True)
        self.assertEqual(2, await self.garbage.note_sizes(10))
        self.assertEqual(1, await self.garbage.note_sizes(10))
        self.assertNotIn(None, [await self.size(each) for each in digests])

    async def test_what_comes_from_an_upstream_is_not_summed_up_ahead(self) -> None:
        await self.cache(manifest(b"one", blobs=[descriptor(b"layer")]), "v1")
        self.assertEqual(0, await self.garbage.note_sizes(10))
        sizes = [(await self.overview.tags(ALPINE, None, 10))[0].size]
        await self.fill(b"layer")
        sizes.append((await self.overview.tags(ALPINE, None, 10))[0].size)
        self.assertEqual([3, 8], sizes)

    async def test_when_an_image_was_last_pushed_and_pulled_outlives_its_manifests(self) -> None:
        digest = await self.put(b"one", "v1")
        self.time += 5
        await self.delete(digest)
        (seen,) = await self.overview.images([APP])
        self.assertEqual((0, 0, 1000.0), (seen.tags, seen.size, seen.pushed))

    async def test_counts_that_are_wrong_or_gone_are_found_and_counted_anew(self) -> None:
        for image in (APP, OTHER):
            layer = await self.blob(b"layer", image)
            await self.put(manifest(b"one", blobs=[layer]), "v1", image=image)
        await self.cache(manifest(b"one", blobs=[layer]), "v1")
        right = await self.counts()
        self.assertEqual([], list(await self.repair.slips(10)))
        for damage in (
            "UPDATE image_count SET tags = 7 WHERE image_id = 1",
            "UPDATE image_count SET size = size + 1",
            "UPDATE image_count SET own = 1",
            "DELETE FROM image_count",
            "UPDATE repository_count SET images = 0",
            "UPDATE repository_count SET tags = tags + 1",
            "DELETE FROM repository_count",
            "UPDATE repository_usage SET size = 0",
            "DELETE FROM repository_usage",
            "UPDATE repository_blob SET links = links + 1",
            "DELETE FROM repository_blob",
            "INSERT INTO repository_blob VALUES ('elsewhere', 1, 1)",
        ):
            await self.catalog.database.write(partial(_execute, damage))
            slips = await self.repair.slips(10)
            self.assertEqual({"count"}, {each.kind for each in slips}, damage)
            await self.repair.mend()
            self.assertEqual(right, await self.counts(), damage)
            self.assertEqual([], list(await self.repair.slips(10)), damage)

    async def counts(self) -> list[list[tuple[object, ...]]]:
        """All rows that triggers have counted, but for the times."""
        queries = (
            "SELECT image_id, tags, size, own FROM image_count ORDER BY image_id",
            "SELECT * FROM repository_count ORDER BY repository",
            "SELECT * FROM repository_usage WHERE size > 0 ORDER BY repository",
            "SELECT * FROM repository_blob ORDER BY repository, blob_id",
        )
        return await self.catalog.database.read(
            lambda db: [db.execute(query).fetchall() for query in queries]
        )

    def contents(self, chance: random.Random) -> Manifest:
        """A manifest of some blobs, or an index of some manifests, at most two deep."""
        some = chance.sample(_BLOBS, chance.randrange(4))
        child = manifest(b"m%d" % chance.randrange(4), blobs=[descriptor(each) for each in some])
        if chance.random() < 0.5:
            return child
        names = [b"m%d" % chance.randrange(4), b"i%d" % chance.randrange(2)]
        below = [descriptor(each) for each in names[: chance.randrange(1, 3)]]
        return index(b"i%d" % chance.randrange(3), below)

    async def test_after_any_history_both_are_what_a_look_at_it_all_tells(self) -> None:
        chance = random.Random(11)
        catalog, garbage, remote = self.catalog, self.garbage, self.remote
        for _ in range(300):
            self.time += 1
            image, cached = chance.choice([APP, OTHER]), chance.choice([ALPINE, BUSYBOX])
            content, put = chance.choice(_BLOBS), self.contents(chance)
            digest, tag = Digest.of(content), chance.choice([V1, V2])
            pushed = ManifestPut(image, put, (tag,), sparse="images")
            attempts: list[Callable[[], Awaitable[object]]] = [
                partial(catalog.add_blob, image, digest, len(content), confirmed),
                partial(catalog.mount_blob, image, digest, OTHER),
                partial(catalog.put_manifest, pushed, confirmed),
                partial(catalog.put_manifest, pushed, confirmed),
                partial(catalog.add_blob, image, put.digest, len(put.content), confirmed),
                partial(catalog.delete_blob, image, digest, allow_held=True),
                partial(catalog.delete_blob, image, put.digest, allow_held=True),
                partial(catalog.delete_tag, image, tag, actor=""),
                partial(catalog.delete_manifest, image, put.digest, allow_held=True, actor=""),
                partial(garbage.undelete, image, None, ""),
                partial(garbage.note_sizes, 2),
                partial(garbage.collect_links, self.time, 3),
                partial(garbage.collect_orphaned, self.time, 3),
                partial(garbage.collect_bytes, EVER, 3),
                partial(remote.release_image, image),
                partial(remote.cache_manifest, cached, put, tag, confirmed),
                partial(remote.add_blobs, [cached], digest, len(content), confirmed),
                partial(remote.purge, cached, tag),
                partial(self.repair.correct_size, digest, len(content) + chance.randrange(2)),
                partial(self.repair.rebuild_manifest, image, put),
            ]
            with contextlib.suppress(RegistryError):
                await chance.choice(attempts)()
            told, looked = await catalog.database.read(lambda db: (counted(db), looked_at(db)))
            self.assertEqual(
                {image: sums[:3] for image, sums in looked.items()},
                {image: sums[:3] for image, sums in told.items()},
            )
            for image_id, (*_, last_pushed, last_pulled) in looked.items():
                self.assertGreaterEqual(told[image_id][3] or 0, last_pushed or 0)
                self.assertGreaterEqual(told[image_id][4] or 0, last_pulled or 0)
            kept, right = await catalog.database.read(
                lambda db: (sizes_kept(db), sizes_looked_at(db))
            )
            self.assertEqual({each: right.get(each) for each in kept}, kept)
            slips = await self.repair.slips(10)
            self.assertEqual([], [each for each in slips if each.kind == "count"])
        while await garbage.note_sizes(100):
            pass
        kept, right = await catalog.database.read(lambda db: (sizes_kept(db), sizes_looked_at(db)))
        self.assertEqual(right, kept)
        self.assertGreater(len(kept), 3)


class MigrationTests(TestCase):
    def test_a_catalog_of_an_older_release_is_counted_when_it_is_migrated(self) -> None:
        scripts = [file.read_text() for file in sorted(SCHEMA.iterdir(), key=lambda f: f.name)]
        path = Path(self.mktemp())
        migrate(path, nullcontext, schema_folder(self, *scripts[:8]))
        with closing(connect(path, isolation_level=None)) as db:
            db.executescript(_OLDER)
        migrate(path, nullcontext)
        with closing(connect(path)) as db:
            sums = counted(db)
            self.assertEqual(looked_at(db), sums)
            self.assertEqual({1: (2, 115, 15, 3.0, 9.0), 2: (0, 120, 20, 4.0, 8.0)}, sums)
            self.assertEqual({}, sizes_kept(db))


# Two images have blob 1, and each a blob and a manifest of its own; the first has its manifest as a
# blob, too.
_OLDER = """
    INSERT INTO image VALUES (1, 'local', 'a', 1.0), (2, 'docker.io', 'b', 1.0);
    INSERT INTO blob VALUES (1, 'sha256:1', 100, 0, NULL), (2, 'sha256:2', 10, 0, NULL),
        (3, 'sha256:3', 5, 0, NULL), (4, 'sha256:4', 20, 0, NULL);
    INSERT INTO blob_link VALUES (1, 1, NULL, NULL), (2, 1, 1.0, NULL), (1, 2, NULL, NULL),
        (1, 3, NULL, NULL);
    INSERT INTO manifest (id, image_id, digest, media_type, annotations, pushed_at, used_at)
        VALUES (1, 1, 'sha256:3', '', '{}', 3.0, NULL), (2, 2, 'sha256:4', '', '{}', 4.0, 8.0);
    INSERT INTO tag (image_id, name, manifest_id, moved_at, pulled_at)
        VALUES (1, 'v1', 1, 1.0, 9.0), (1, 'v2', 1, 1.0, NULL);
"""
