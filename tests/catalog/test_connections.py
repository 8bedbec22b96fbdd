"""Connections in threads."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event
from threading import enumerate as living_threads

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import TestCase

from artifactd.catalog.database import Connections, in_snapshot, prepare_reader, prepare_writer
from artifactd.oci.errors import Unavailable
from tests.catalog.fixture import REACTOR


def pragma(name: str, connection: sqlite3.Connection) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def is_open(connection: sqlite3.Connection) -> bool:
    return pragma("query_only", connection) == 1


class ConnectionsTests(TestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def open(self, threads: int = 2) -> Connections:
        connections = Connections(self.path, REACTOR, threads, 1.5, prepare_reader)
        self.addCleanup(connections.close)
        return connections

    def test_before_the_first_call_there_is_no_thread_and_no_file(self) -> None:
        before = set(living_threads())
        self.open()
        self.assertLessEqual(set(living_threads()), before)
        self.assertFalse(self.path.exists())

    async def test_the_writer_commits_to_disk_and_keeps_references_whole(self) -> None:
        writer = Connections(self.path, REACTOR, 1, 1.5, prepare_writer)
        self.addCleanup(writer.close)
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        settings = await writer.run(lambda db: [pragma(name, db) for name in names])
        self.assertEqual(["wal", 2, 1, 1500], settings)

    async def test_a_reader_cannot_write(self) -> None:
        refused = self.open().run(lambda db: db.execute("CREATE TABLE t (n)"))
        error = await self.assertFailure(refused, Unavailable)
        self.assertIn("SQLITE_READONLY", str(error))

    async def test_work_goes_on_in_as_many_threads_as_there_are_connections(self) -> None:
        here, there = Event(), Event()

        def meet(mine: Event, other: Event) -> bool:
            mine.set()
            return other.wait(60)

        connections = self.open(2)
        met = [connections.run(lambda _: meet(here, there))]
        met.append(connections.run(lambda _: meet(there, here)))
        self.assertEqual([True, True], await gatherResults(met))

    async def test_the_statements_of_one_read_see_the_same_whatever_is_committed(self) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as writer:
            prepare_writer(writer)
            writer.execute("CREATE TABLE t (n)")

        def count_twice(db: sqlite3.Connection) -> list[int]:
            counts = []
            for _ in range(2):
                counts += [n for (n,) in db.execute("SELECT count(*) FROM t")]
                with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
                    other.execute("INSERT INTO t VALUES (1)")
            return counts

        connections = self.open(1)
        self.assertEqual([0, 0], await connections.run(partial(in_snapshot, count_twice)))
        self.assertEqual([2, 2], await connections.run(partial(in_snapshot, count_twice)))

    async def test_after_an_error_a_connection_is_usable_and_in_no_transaction(self) -> None:
        def fail(db: sqlite3.Connection) -> None:
            db.execute("BEGIN")
            raise ValueError

        connections = self.open(1)
        await self.assertFailure(connections.run(fail), ValueError)
        self.assertFalse(await connections.run(lambda db: db.in_transaction))

    async def test_a_file_that_cannot_be_opened_is_unavailable_until_it_can(self) -> None:
        self.path.mkdir()
        connections = self.open(1)
        error = await self.assertFailure(connections.run(is_open), Unavailable)
        self.assertIn("SQLITE_CANTOPEN", str(error))
        self.path.rmdir()
        self.assertTrue(await connections.run(is_open))

    async def test_closing_waits_for_work_whose_caller_has_gone(self) -> None:
        event, ended = Event(), Event()

        def work(_: sqlite3.Connection) -> None:
            event.wait(60)
            ended.set()

        others = ThreadPool(1, 1)
        others.start()
        self.addCleanup(others.stop)
        connections = self.open()
        cancelled = connections.run(work)
        cancelled.cancel()
        await self.assertFailure(cancelled, CancelledError)
        closed = Deferred.fromCoroutine(connections.close())
        for _ in range(3):
            await deferToThreadPool(REACTOR, others, lambda: None)
        self.assertNoResult(closed)
        event.set()
        await closed
        self.assertTrue(ended.is_set())

    async def test_work_after_closing_is_refused(self) -> None:
        connections = self.open()
        await connections.run(is_open)
        await connections.close()
        await connections.close()
        await self.assertFailure(connections.run(is_open), Unavailable)

    async def test_closing_leaves_one_file_and_no_thread(self) -> None:
        before = set(living_threads())
        writer = Connections(self.path, REACTOR, 1, 1.5, prepare_writer)
        await writer.run(lambda db: db.execute("CREATE TABLE t (n)"))
        self.assertTrue(self.path.with_name(f"{self.path.name}-wal").exists())
        await writer.close()
        self.assertFalse(self.path.with_name(f"{self.path.name}-wal").exists())
        self.assertLessEqual(set(living_threads()), before)
        with closing(sqlite3.connect(self.path)) as db:
            self.assertEqual("t", db.execute("SELECT name FROM sqlite_schema").fetchone()[0])
