"""The cache of reads gives the result that a read would give."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessValue
from twisted.trial.unittest import TestCase

from artifactd.catalog.database import RESULT, DataVersion, ReadCache


class ReadCacheTests(TestCase):
    """
    :ivar version: of the data.
    :ivar stored: the data: what a read tells.
    :ivar reads: how often it was read.
    """

    def setUp(self) -> None:
        self.version: int | None = 1
        self.stored: str | None = "old"
        self.reads = 0
        self.cache: ReadCache[str, str | None] = ReadCache(
            lambda: self.version, 128 * RESULT, lambda result: len(result or "")
        )

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
        self.stored = "d"
        self.assertEqual("d", await self.cache.get("a", self.read))

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


class DataVersionTests(TestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(self.db.close)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("CREATE TABLE number (n)")
        self.version = DataVersion(self.path)
        self.addCleanup(self.version.close)

    def test_it_stays_while_nothing_is_committed(self) -> None:
        before = self.version()
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("INSERT INTO number VALUES (1)")
        self.assertIsNotNone(before)
        self.assertEqual(before, self.version())

    def test_it_changes_with_every_commit_of_any_connection(self) -> None:
        seen = {self.version()}
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            for connection in (self.db, other, self.db, other):
                connection.execute("INSERT INTO number VALUES (1)")
                seen.add(self.version())
        self.assertEqual(5, len(seen))

    def test_it_changes_with_a_commit_after_a_checkpoint(self) -> None:
        self.db.execute("INSERT INTO number VALUES (1)")
        self.version()
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = self.version()
        self.db.execute("INSERT INTO number VALUES (2)")
        self.assertNotEqual(before, self.version())

    async def test_it_changes_with_a_commit_of_another_process(self) -> None:
        script = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
            "db.execute('INSERT INTO number VALUES (1)'); db.commit()"
        )
        before = self.version()
        self.assertEqual(0, await getProcessValue(sys.executable, ["-c", script, str(self.path)]))
        self.assertNotEqual(before, self.version())

    def test_asking_keeps_no_snapshot_open(self) -> None:
        self.version()
        self.db.execute("INSERT INTO number VALUES (1)")
        busy, *_ = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.assertEqual(0, busy)

    def test_it_is_unknown_while_another_process_locks_everybody_out(self) -> None:
        self.db.execute("PRAGMA journal_mode = DELETE")
        self.db.execute("BEGIN EXCLUSIVE")
        self.assertIsNone(self.version())
        self.db.execute("COMMIT")
        self.assertIsNotNone(self.version())

    def test_it_is_unknown_where_it_cannot_be_told(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.assertIsNone(DataVersion(folder)())
        self.version.close()
        self.assertIsNotNone(self.version())
