"""The cache of reads gives the result that a read would give."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from random import Random

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from artifactd.catalog.cache import FOLLOWED, RESULT, ReadCache, Version, Versions
from artifactd.catalog.catalog import Catalog
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.catalog.repair import RepairCatalog
from artifactd.oci.errors import RegistryError, Unavailable
from artifactd.oci.names import Digest, ImageName, Reference
from tests.catalog.fixture import (
    ALPINE,
    APP,
    EVER,
    OTHER,
    V1,
    V2,
    CatalogTestCase,
    manifest,
    new_catalog,
)
from tests.programs import reactor


class ReadCacheTests(TestCase):
    """
    :ivar version: of the data.
    :ivar named: the names that versions were asked for.
    :ivar stored: the data: what a read tells.
    :ivar reads: how often it was read.
    """

    def setUp(self) -> None:
        self.version: int | None = 1
        self.stored: str | None = "old"
        self.reads = 0
        self.named: list[str] = []
        self.cache: ReadCache[str, str | None] = ReadCache(
            self.version_of, lambda key: key[0], 128 * RESULT, lambda result: len(result or "")
        )

    def version_of(self, name: str) -> Version | None:
        self.named.append(name)
        return None if self.version is None else (self.version, 0, 0)

    async def read(self) -> str | None:
        self.reads += 1
        return self.stored

    async def test_a_result_is_read_once(self) -> None:
        self.assertEqual(["old"] * 3, [await self.cache.get("a", self.read) for _ in range(3)])
        self.assertEqual(1, self.reads)

    async def test_that_there_is_nothing_is_a_result_too(self) -> None:
        self.stored = None
        self.assertEqual([None] * 2, [await self.cache.get("a", self.read) for _ in range(2)])
        self.assertEqual(1, self.reads)

    async def test_each_question_has_its_own_result(self) -> None:
        await self.cache.get("a", self.read)
        self.stored = "other"
        self.assertEqual("other", await self.cache.get("b", self.read))
        self.assertEqual("old", await self.cache.get("a", self.read))

    async def test_after_a_commit_everything_is_read_anew(self) -> None:
        await self.cache.get("a", self.read)
        self.version, self.stored = 2, "new"
        self.assertEqual("new", await self.cache.get("a", self.read))

    async def test_a_read_that_a_commit_overtakes_is_not_kept(self) -> None:
        slow: Deferred[str | None] = Deferred()
        overtaken = Deferred.fromCoroutine(self.cache.get("a", lambda: slow))
        self.version, self.stored = 2, "new"
        self.assertEqual("new", await self.cache.get("b", self.read))
        slow.callback("old")
        self.assertEqual("old", await overtaken)
        self.assertEqual("new", await self.cache.get("a", self.read))

    async def test_a_commit_right_before_the_read_only_costs_another_read(self) -> None:
        async def commit_and_read() -> str | None:
            self.version, self.stored = 2, "new"
            return await self.read()

        self.assertEqual("new", await self.cache.get("a", commit_and_read))
        self.assertEqual("new", await self.cache.get("a", self.read))
        self.assertEqual(2, self.reads)

    async def test_without_a_version_nothing_is_kept(self) -> None:
        await self.cache.get("a", self.read)
        self.version = None
        for self.stored in ("b", "c"):
            self.assertEqual(self.stored, await self.cache.get("a", self.read))
        self.version = 1
        self.assertEqual("old", await self.cache.get("a", self.read))

    async def test_a_result_rests_on_the_version_of_what_its_key_names(self) -> None:
        await self.cache.get("app", self.read)
        await self.cache.get("busybox", self.read)
        self.assertEqual(["a", "b"], self.named)

    async def test_a_read_that_fails_is_not_kept(self) -> None:
        async def fail() -> str:
            raise ValueError

        await self.assertFailure(Deferred.fromCoroutine(self.cache.get("a", fail)), ValueError)
        self.assertEqual("old", await self.cache.get("a", self.read))

    async def test_what_was_used_longest_ago_is_dropped_first(self) -> None:
        self.stored = "a" * RESULT  # so that 64 of them are kept
        keys = [str(n) for n in range(64)]
        for key in (*keys, "0", "more"):
            await self.cache.get(key, self.read)
        self.assertEqual(65, self.reads)
        await self.cache.get("0", self.read)
        self.assertEqual(65, self.reads)
        await self.cache.get("1", self.read)
        self.assertEqual(66, self.reads)

    async def test_they_are_counted_by_their_size(self) -> None:
        for size, most in ((0, 128), (RESULT, 64), (2 * RESULT, 42)):
            self.version = size
            self.stored, self.reads = "a" * size, 0
            for _ in range(2):
                for key in range(most):
                    await self.cache.get(str(key), self.read)
            self.assertEqual(most, self.reads)
            await self.cache.get("more", self.read)
            await self.cache.get("0", self.read)
            self.assertEqual(most + 2, self.reads)

    async def test_what_is_too_large_is_not_kept(self) -> None:
        self.stored = "a" * (2 * RESULT + 1)
        for _ in range(2):
            await self.cache.get("a", self.read)
        self.assertEqual(2, self.reads)


# No cached result rests on these columns.
_UNREAD = {
    "image": {"id"},
    "tag": {"moved_at", "pushed_at", "pulled_at"},
    "manifest": {"id", "pushed_at", "used_at", "pulled_at", "held_size"},
    "blob_link": {"used_at"},
    "blob": {"id", "created_at"},
    "origin": set[str](),
    "webhook_event": {"id", "webhook", "subject", "message", "at", "event"},
    "ended_upload": set[str](),
}


class VersionsTests(TestCase):
    """:ivar versions: as two processes see them."""

    def setUp(self) -> None:
        self.path = new_catalog(self)
        self.file, self.clock = Path(self.mktemp()), Clock()
        first, second = (Versions(self.file, self.path, self.clock.seconds) for _ in range(2))
        self.versions = first, second
        self.db = [sqlite3.connect(self.path, isolation_level=None) for _ in self.versions]
        for versions, db in zip(self.versions, self.db, strict=True):
            self.addCleanup(db.close)
            versions.follow(db)
        self.db[0].execute("INSERT INTO image (repository, name) VALUES ('local', 'app')")
        self.db[0].execute("INSERT INTO blob VALUES (1, 'sha256:00', 1, 1, NULL)")
        self.versions[0].begin()

    def begin(self, process: int, *statements: str) -> None:
        self.versions[process].begin()
        self.db[process].execute("BEGIN IMMEDIATE")
        for statement in statements:
            self.db[process].execute(statement)
        self.versions[process].announce(self.db[process])
        self.db[process].execute("COMMIT")

    def told(self, name: str = "local/app") -> Version | None:
        """The version of ``name`` in the first process; in the other one it is the same."""
        first, second = (versions(name) for versions in self.versions)
        # The last number is that of the file, which each process counts for itself.
        self.assertEqual(first and first[:2], second and second[:2])
        return first

    def test_a_commit_changes_the_versions_of_the_images_it_touches(self) -> None:
        before, others = self.told(), self.told("local/other")
        self.assertIsNotNone(before)
        self.begin(0, "INSERT INTO blob_link VALUES (1, 1, NULL, NULL)")
        self.assertIsNone(self.told())
        self.versions[0].settle()
        self.assertNotIn(self.told(), (None, before))
        self.assertEqual(others, self.told("local/other"))

    def test_what_is_lost_changes_all_of_them(self) -> None:
        before = self.told("local/other")
        self.begin(1, "UPDATE blob SET lost_at = 1")
        self.assertIsNone(self.told("local/other"))
        self.versions[1].settle()
        self.assertNotIn(self.told("local/other"), (None, before))

    def test_what_only_costs_a_read_changes_none(self) -> None:
        self.begin(0, "INSERT INTO blob_link VALUES (1, 1, 5, NULL)")
        self.versions[0].settle()
        before = self.told()
        self.begin(0, "UPDATE blob_link SET used_at = 6", "INSERT INTO repository VALUES ('r')")
        self.assertEqual(before, self.told())

    def test_a_late_settlement_does_not_settle_for_the_next_writer(self) -> None:
        self.begin(0, "UPDATE image SET known_at = 1")
        self.begin(1, "UPDATE image SET known_at = 2")
        self.versions[0].settle()
        self.assertIsNone(self.told())
        self.versions[1].settle()
        settled = self.told()
        self.assertIsNotNone(settled)
        self.versions[0].settle()
        self.assertEqual(settled, self.told())

    def test_a_late_settlement_takes_nothing_back(self) -> None:
        self.begin(0, "UPDATE image SET known_at = 1")
        self.begin(1, "UPDATE image SET known_at = 2")
        self.versions[1].settle()
        settled = self.told()
        self.versions[0].settle()
        self.assertEqual(settled, self.told())

    def test_what_was_rolled_back_is_not_announced_with_the_next_transaction(self) -> None:
        self.db[0].execute("BEGIN")
        self.db[0].execute("UPDATE image SET known_at = 1")
        self.db[0].execute("ROLLBACK")
        before = self.told()
        self.begin(0)
        self.assertEqual(before, self.told())

    def test_the_first_transaction_of_a_process_mends_what_a_dead_writer_left(self) -> None:
        before = self.told()
        self.begin(0, "UPDATE image SET known_at = 1", "UPDATE blob SET lost_at = 1")
        self.assertIsNone(self.told("local/other"))
        self.begin(1)
        self.versions[1].settle()
        self.assertNotIn(self.told(), (None, before))
        self.assertIsNotNone(self.told("local/other"))

    def test_so_does_one_of_256_later_ones(self) -> None:
        for _ in range(256):
            self.begin(1)
            self.versions[1].settle()
        self.begin(0, "UPDATE image SET known_at = 1")
        self.assertIsNone(self.told())
        self.begin(1)
        self.assertIsNone(self.told())
        self.versions[1].settle()
        mended = self.told()
        self.assertIsNotNone(mended)
        # The writer was not dead, only slow.
        self.versions[0].settle()
        self.assertEqual(mended, self.told())

    def test_a_commit_that_fails_is_settled_with_the_next_one(self) -> None:
        before = self.told()
        self.versions[0].begin()
        self.db[0].execute("BEGIN IMMEDIATE")
        self.db[0].execute("UPDATE image SET known_at = 1")
        self.versions[0].announce(self.db[0])
        self.db[0].execute("ROLLBACK")
        self.assertIsNone(self.told())
        self.begin(0, "INSERT INTO image (repository, name) VALUES ('local', 'other')")
        self.assertIsNone(self.told())
        self.versions[0].settle()
        self.assertNotIn(self.told(), (None, before))

    def test_a_commit_is_refused_where_its_versions_cannot_be_told(self) -> None:
        versions = Versions(Path(self.mktemp()) / "absent" / "file", self.path)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            versions.follow(db)
            db.execute("BEGIN IMMEDIATE")
            versions.announce(db)  # nothing
            db.execute("UPDATE image SET known_at = 1")
            self.assertRaises(Unavailable, versions.announce, db)

    def test_a_file_that_is_gone_is_left_by_all(self) -> None:
        for _ in range(3):
            self.begin(0, "UPDATE image SET known_at = 1")
            self.versions[0].settle()
        before = self.told()
        self.file.unlink()
        # A process that starts makes another file.
        self.db[1].close()
        started = Versions(self.file, self.path, self.clock.seconds)
        self.db[1] = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(self.db[1].close)
        started.follow(self.db[1])
        self.versions = self.versions[0], started
        self.assertIsNotNone(started("local/app"))
        self.clock.advance(1)
        # Its numbers come to those of the old one, and mean something else.
        for _ in range(4):
            self.begin(1, "UPDATE image SET known_at = 3")
            self.assertIsNone(self.told())
            self.versions[1].settle()
            self.assertNotIn(self.told(), (None, before))
        self.file.unlink()
        self.begin(0, "UPDATE image SET known_at = 4")  # a writer does not wait for the next look
        self.clock.advance(1)
        self.assertIsNone(self.told())

    def test_what_was_raised_in_a_file_that_is_gone_is_settled_there(self) -> None:
        for _ in range(3):
            self.begin(0, "UPDATE image SET known_at = 1")
            self.versions[0].settle()
        self.begin(0, "UPDATE image SET known_at = 2")
        self.file.unlink()
        self.clock.advance(1)
        before = self.told()
        self.assertIsNotNone(before)
        self.versions[0].settle()
        self.assertEqual(before, self.told())
        for _ in range(5):
            self.begin(1, "UPDATE image SET known_at = 3")
            self.assertIsNone(self.told())
            self.versions[1].settle()
            self.assertIsNotNone(self.told())

    def test_none_is_told_where_the_file_cannot_be_made(self) -> None:
        self.assertIsNone(Versions(Path(self.mktemp()) / "absent" / "file", self.path)("local/app"))

    def test_each_column_is_followed_or_not_read(self) -> None:
        for table, columns in FOLLOWED.items():
            rows = self.db[0].execute("SELECT name FROM pragma_table_info(?)", (table,))
            self.assertEqual({name for (name,) in rows}, _UNREAD[table] | set(columns))
            self.assertEqual(set(), _UNREAD[table] & set(columns))


class KilledTests(CatalogTestCase):
    KILLED = """
import os, signal, sys
from pathlib import Path
from tests.rows import announced
with announced(Path(sys.argv[1])) as db:
    db.execute("DELETE FROM tag WHERE name = 'v1'")
os.kill(os.getpid(), signal.SIGKILL)
"""

    async def test_what_a_writer_committed_that_was_killed_before_it_said_so_is_seen(self) -> None:
        await self.put(b"{}", "v1", "v2")
        await self.put(b"{}", "v1", image=OTHER)
        for image in (APP, OTHER):
            self.assertIsNotNone(await self.catalog.manifest(image, V1))
        *_, ended = await getProcessOutputAndValue(
            sys.executable,
            ["-c", self.KILLED, str(self.path.resolve())],
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
        ).addErrback(lambda failure: failure.value)
        self.assertEqual(ended, signal.SIGKILL)
        versions = self.catalog.database.versions
        for _ in range(2):
            self.assertIsNone(await self.catalog.manifest(APP, V1))
            self.assertIsNone(versions(str(APP)))
        # Another process mends it with whatever it writes first.
        await self.open_catalog().database.write(lambda _: None)
        self.assertIsNotNone(versions(str(APP)))
        self.assertIsNone(await self.catalog.manifest(APP, V1))


class RaceTests(CatalogTestCase):
    """
    Two processes move tags at the same time, and ask for them.

    :ivar known: the newest place of each image's tag that anybody was told of, as a writer or as a
        reader.  None who asks later is told of an older one.
    """

    IMAGES = APP, OTHER, ImageName("local", "third")

    async def test_no_read_is_older_than_what_anybody_was_told_before_it(self) -> None:
        self.order = {Digest.of(b"%d" % n): n for n in range(40)}
        for image in self.IMAGES:
            for n in range(len(self.order)):
                await self.put(b"%d" % n, *(["v1"] if n == 0 else []), image=image)
        self.known = dict.fromkeys(self.IMAGES, 0)
        self.cached = 0
        catalogs = [self.catalog, self.open_catalog()]
        self.writing = len(self.IMAGES)
        await gatherResults(
            [Deferred.fromCoroutine(self.move(image, catalogs)) for image in self.IMAGES]
            + [
                Deferred.fromCoroutine(self.look(Random(f"11 {n}"), catalogs[n % 2]))
                for n in range(6)
            ]
        )
        self.assertEqual(set(self.known.values()), {len(self.order) - 1})
        self.assertGreater(self.cached, 100)

    async def move(self, image: ImageName, catalogs: list[Catalog]) -> None:
        for digest, n in list(self.order.items())[1:]:
            catalog = catalogs[n % 2]
            await catalog.point_tag(image, V1, digest, actor="anne")
            self.known[image] = max(n, self.known[image])
            await turn()
        self.writing -= 1

    async def look(self, random: Random, catalog: Catalog) -> None:
        while self.writing:
            image = random.choice(self.IMAGES)
            least = self.known[image]
            looking = Deferred.fromCoroutine(catalog.manifest(image, V1))
            self.cached += looking.called
            record = await looking
            assert record is not None
            n = self.order[record.digest]
            self.assertGreaterEqual(n, least)
            self.known[image] = max(n, self.known[image])
            if random.random() < 0.3:
                await turn()


def turn() -> Deferred[None]:
    """A turn of the reactor, in which others go on."""
    return deferLater(reactor, 0, lambda: None)


class HistoryTests(CatalogTestCase):
    """Two processes write; what each has cached is what a read of the rows tells."""

    async def test_a_random_history(self) -> None:
        random = Random(11)
        catalogs = [self.catalog, self.open_catalog()]
        remotes = [RemoteCatalog(catalog.database) for catalog in catalogs]
        digests = [Digest.of(b"%d" % n) for n in range(4)]
        for _ in range(150):
            self.time += 3600
            n = random.randrange(2)
            catalog, remote = catalogs[n], remotes[n]
            self.catalog = catalog
            image, content = random.choice((APP, OTHER)), b"%d" % random.randrange(4)
            match random.randrange(9):
                case 0:
                    await self.blob(content, image)
                case 1 | 2:
                    await self.put(content, random.choice(("v1", "v2")), image=image)
                case 3:
                    await self.ignoring(catalog.delete_tag(image, V1, actor="bob"))
                case 4:
                    deleting = catalog.delete_manifest(
                        image, Digest.of(content), allow_held=False, actor="bob"
                    )
                    await self.ignoring(deleting)
                case 5:
                    await GarbageCatalog(catalog.database).collect_untagged("local", EVER, 9)
                case 6:
                    await RepairCatalog(catalog.database).lose_blob(
                        Digest.of(content), lambda: True
                    )
                case 7:
                    cached = manifest(content)
                    await remote.cache_manifest(ALPINE, cached, V1, lambda: None)
                case 8:
                    await self.ignoring(remote.purge(ALPINE, Digest.of(content)))
            await self.assert_told(catalogs, remotes, digests)

    async def ignoring(self, call: object) -> None:
        """What is not there can't be deleted."""
        try:
            await call  # type: ignore[misc]  # a coroutine of any kind
        except Exception as error:
            self.assertIsInstance(error, RegistryError)

    async def assert_told(
        self,
        catalogs: list[Catalog],
        remotes: list[RemoteCatalog],
        digests: list[Digest],
    ) -> None:
        fresh = self.open_catalog()
        remote = RemoteCatalog(fresh.database)
        for image in (APP, OTHER, ALPINE):
            references: tuple[Reference, ...] = (V1, V2, *digests)
            for reference in references:
                told = [await each.manifest(image, reference) for each in (*catalogs, fresh)]
                self.assertEqual(told[:2], [told[2]] * 2)
            for digest in digests:
                sizes = [await each.blob_size(image, digest) for each in (*catalogs, fresh)]
                self.assertEqual(sizes[:2], [sizes[2]] * 2)
            known = [await each.is_known(image) for each in (*remotes, remote)]
            self.assertEqual(known[:2], [known[2]] * 2)
        tags = [await each.cached_tag(ALPINE, V1) for each in (*remotes, remote)]
        self.assertEqual(tags[:2], [tags[2]] * 2)
        await fresh.database.close()
