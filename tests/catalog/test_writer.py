"""Group commit, on a database with one table of numbers."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase

from artifactd.catalog.cache import Versions
from artifactd.catalog.database import Connections, Database, Writer, prepare_writer
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.records import nothing
from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import Digest
from tests.catalog.fixture import ALPINE, APP, EVER, REACTOR, V1, CatalogTestCase, manifest


def break_the_commit(db: sqlite3.Connection) -> int | None:
    """Write what a deferred constraint refuses."""
    return db.execute("INSERT INTO orphan VALUES (404)").lastrowid


def insert(number: int) -> Callable[[sqlite3.Connection], int]:
    """Write ``number`` and answer it."""

    def interaction(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO number VALUES (?)", (number,))
        return number

    return interaction


class FullDiskTests(CatalogTestCase):
    """A disk that is full until room is made."""

    def setUp(self) -> None:
        super().setUp()
        self.full, self.made, self.done = True, 0, 0
        self.database = Database(self.path, REACTOR, make_room=self.make_room)
        self.addCleanup(self.database.close)

    def make_room(self) -> None:
        self.made, self.full = self.made + 1, False

    def work(self, db: sqlite3.Connection) -> str:
        db.execute("INSERT INTO origin VALUES (?, 'docker.io')", (f"name-{self.made}",))
        if self.full:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        return "done"

    def committed(self) -> None:
        self.done += 1

    async def test_what_frees_space_is_tried_again_with_what_is_made(self) -> None:
        freed = await self.database.write(self.work, self.committed, frees=True)
        self.assertEqual(("done", 1, 1), (freed, self.made, self.done))
        names = await self.database.read(lambda db: list(db.execute("SELECT name FROM origin")))
        self.assertEqual([("name-1",)], names)

    async def test_what_takes_space_is_not(self) -> None:
        await self.assert_raises(Unavailable, self.database.write(self.work, self.committed))
        self.assertEqual((0, 0), (self.made, self.done))

    async def test_it_is_tried_twice_at_most_and_only_where_the_disk_is_full(self) -> None:
        def fail(db: sqlite3.Connection) -> None:
            raise ValueError("of this write")

        await self.assert_raises(ValueError, self.database.write(fail, frees=True))
        self.assertEqual(0, self.made)
        self.patch(self.database, "_make_room", lambda: None)
        refused = self.database.write(self.work, self.committed, frees=True)
        await self.assert_raises(Unavailable, refused)
        self.assertEqual(0, self.done)

    async def test_all_that_leads_to_the_removal_of_bytes_frees_space(self) -> None:
        catalog, tried = self.catalog, []
        garbage, remote = GarbageCatalog(catalog.database), RemoteCatalog(catalog.database)
        digest = (await self.blob(b"blob")).digest
        await self.put(manifest(b"{}"), "v1", "v2")
        usual = catalog.database.write

        def write(*args: Any, frees: bool = False, **options: Any) -> Any:
            tried.append(frees)
            return usual(*args, **options)

        self.patch(catalog.database, "write", write)
        await catalog.delete_tag(APP, V1, actor="bob")
        await catalog.delete_manifest(APP, Digest.of(b"{}"), allow_held=False, actor="bob")
        await catalog.delete_blob(APP, digest, allow_held=False)
        await garbage.collect_untagged("local", EVER, 9)
        await garbage.collect_deleted(EVER, 9)
        await garbage.collect_links(EVER, 9)
        await garbage.collect_bytes(EVER, 9)
        await catalog.forget_blob(digest, nothing)
        await catalog.end_upload("none")
        await remote.drop([])
        await remote.purge(ALPINE, None)
        self.assertEqual({True}, set(tried))
        self.assertGreaterEqual(len(tried), 9)


class WriterTests(TestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("CREATE TABLE number (n INTEGER PRIMARY KEY)")
            db.execute("CREATE TABLE orphan (n REFERENCES number DEFERRABLE INITIALLY DEFERRED)")
        self.statements: list[str] = []
        self.limit = 1 << 30

        def prepare(connection: sqlite3.Connection) -> None:
            prepare_writer(connection)
            connection.execute(f"PRAGMA max_page_count = {self.limit}")
            connection.set_trace_callback(self.statements.append)

        versions = Versions(Path(self.mktemp()), self.path)
        self.writer = Writer(Connections(self.path, REACTOR, 1, 0.01, prepare), versions)
        self.addCleanup(self.writer.close)

    def numbers(self) -> list[int]:
        """The numbers that another process reads."""
        with closing(sqlite3.connect(self.path)) as db:
            return [n for (n,) in db.execute("SELECT n FROM number ORDER BY n")]

    def commits(self) -> int:
        return self.statements.count("COMMIT")

    def hold(self) -> tuple[Deferred[bool], Event]:
        """A transaction that lasts until the event is set, so that what follows is queued."""
        event = Event()
        self.addCleanup(event.set)
        return self.writer.run(lambda _: event.wait(60)), event

    async def test_a_write_is_committed_when_its_result_is_there(self) -> None:
        self.assertEqual(1, await self.writer.run(insert(1)))
        self.assertEqual([1], self.numbers())

    async def test_writes_queued_during_a_transaction_share_the_next_one(self) -> None:
        results = await gatherResults([self.writer.run(insert(n)) for n in range(50)])
        self.assertEqual(list(range(50)), results)
        self.assertEqual(list(range(50)), self.numbers())
        self.assertEqual(2, self.commits())  # the first alone, then all the others

    async def test_a_transaction_takes_64_writes_at_most(self) -> None:
        await gatherResults([self.writer.run(insert(n)) for n in range(1 + 2 * 64 + 1)])
        self.assertEqual(4, self.commits())

    async def test_what_is_queued_behind_a_last_write_sees_it_committed(self) -> None:
        held, event = self.hold()
        queued = self.writer.run(insert(1)), self.writer.run(insert(2), last=True)
        behind = self.writer.run(lambda _: self.numbers())
        event.set()
        self.assertEqual([1, 2], await gatherResults(queued))
        self.assertEqual([1, 2], await behind)
        self.assertEqual(3, self.commits())
        await held

    async def test_no_result_is_there_before_the_whole_batch_is_committed(self) -> None:
        held, event = self.hold()
        first = self.writer.run(insert(1))
        seen = self.writer.run(lambda _: (first.called, self.numbers()))
        event.set()
        self.assertEqual((False, []), await seen)
        self.assertEqual((True, [1]), (first.called, self.numbers()))
        await held

    async def test_what_is_to_be_done_after_the_commit_finds_it_done(self) -> None:
        held, event = self.hold()
        seen: list[list[int]] = []
        writes = [self.writer.run(insert(n), lambda: seen.append(self.numbers())) for n in (1, 2)]
        event.set()
        await gatherResults(writes)
        self.assertEqual([[1, 2], [1, 2]], seen)
        await held

    async def test_nothing_is_done_after_a_commit_that_fails(self) -> None:
        held, event = self.hold()
        done: list[str] = []
        lost = self.writer.run(insert(3), lambda: done.append("committed"))
        broken = self.writer.run(break_the_commit)
        event.set()
        await self.assertFailure(lost, sqlite3.IntegrityError)
        await self.assertFailure(broken, sqlite3.IntegrityError)
        await held
        self.assertEqual([], done)

    async def test_a_write_that_fails_is_undone_and_fails_alone(self) -> None:
        def insert_and_fail(db: sqlite3.Connection) -> None:
            insert(2)(db)
            raise ValueError("of this write")

        held, event = self.hold()
        writes = self.writer.run(insert(1)), self.writer.run(insert(3))
        failing = self.writer.run(insert_and_fail)
        event.set()
        await self.assertFailure(failing, ValueError)
        await gatherResults(writes)
        await held
        self.assertEqual([1, 3], self.numbers())
        self.assertEqual(2, self.commits())

    async def test_a_commit_that_fails_fails_its_batch_and_nothing_after_it(self) -> None:
        held, event = self.hold()
        written, broken = self.writer.run(insert(1)), self.writer.run(break_the_commit)
        event.set()
        await self.assertFailure(written, sqlite3.IntegrityError)
        await self.assertFailure(broken, sqlite3.IntegrityError)
        self.assertEqual([], self.numbers())
        await self.writer.run(insert(2))
        self.assertEqual([2], self.numbers())
        await held

    def after_a_crash(self, number: int | None = None) -> tuple[list[int], bytes]:
        """The numbers that a start would find now, and the log; with ``number`` written then."""
        copy = Path(self.mktemp())
        shutil.copy(self.path, copy)
        shutil.copy(f"{self.path}-wal", f"{copy}-wal")
        with closing(sqlite3.connect(copy, isolation_level=None)) as db:
            if number is not None:
                insert(number)(db)
            found = [n for (n,) in db.execute("SELECT n FROM number ORDER BY n")]
            return found, Path(f"{copy}-wal").read_bytes()

    async def test_a_commit_that_the_disk_could_not_sync_does_not_come_back(self) -> None:
        """Else its rows would, when what the failure undid has removed their bytes."""
        case = self

        class Unsynced:
            """What SQLite leaves if the fsync of its log fails: all of the commit is in there."""

            def __init__(self, db: Any) -> None:
                self.execute, self._db = self.fail_to_sync, db

            def __getattr__(self, name: str) -> Any:
                return getattr(self._db, name)

            def fail_to_sync(self, sql: str) -> Any:
                if sql == "COMMIT":
                    Path(f"{case.path}-wal").write_bytes(case.after_a_crash(2)[1])
                elif "user_version =" not in sql:
                    return self._db.execute(sql)
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode, error.sqlite_errorname = 1034, "SQLITE_IOERR_FSYNC"
                raise error

        await self.writer.run(insert(1))
        usual = Connections.run
        patched = self.patch(
            Connections, "run", lambda pool, f: usual(pool, lambda db: f(Unsynced(db)))
        )
        await self.assertFailure(self.writer.run(lambda _: None), Unavailable)
        self.assertEqual([1], self.numbers())
        self.assertEqual([1, 2], self.after_a_crash()[0])
        ran: list[list[int]] = []
        remove = lambda _: ran.append(self.after_a_crash()[0])  # noqa: E731
        await self.assertFailure(self.writer.run(remove), Unavailable)
        patched.restore()
        await self.writer.run(remove)
        self.assertEqual([[1]], ran)

    async def test_a_transaction_that_sqlite_gives_up_fails_its_batch(self) -> None:
        def give_up(db: sqlite3.Connection) -> int:
            db.execute("ROLLBACK")
            raise ValueError("in the midst of it")

        held, event = self.hold()
        batch = [self.writer.run(work) for work in (insert(1), give_up, insert(2))]
        event.set()
        for write in batch:
            await self.assertFailure(write, ValueError)
        self.assertEqual([], self.numbers())
        await self.writer.run(insert(3))
        self.assertEqual([3], self.numbers())
        await held

    async def test_a_write_cancelled_in_the_queue_never_runs(self) -> None:
        held, event = self.hold()
        cancelled, kept = self.writer.run(insert(1)), self.writer.run(insert(2))
        cancelled.cancel()
        event.set()
        await self.assertFailure(cancelled, CancelledError)
        self.assertEqual(2, await kept)
        self.assertEqual([2], self.numbers())
        await held

    async def test_a_write_cancelled_in_its_transaction_is_committed(self) -> None:
        started, event = Event(), Event()

        def interaction(db: sqlite3.Connection) -> None:
            insert(1)(db)
            started.set()
            event.wait(60)

        cancelled = self.writer.run(interaction)
        self.assertTrue(started.wait(60))
        kept = self.writer.run(insert(2))
        cancelled.cancel()
        event.set()
        await self.assertFailure(cancelled, CancelledError)
        await kept
        self.assertEqual([1, 2], self.numbers())

    async def test_while_another_process_holds_the_lock_a_write_fails_cleanly(self) -> None:
        await self.writer.run(insert(1))
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            error = await self.assertFailure(self.writer.run(insert(2)), Unavailable)
        self.assertIn("SQLITE_BUSY", str(error))
        await self.writer.run(insert(3))
        self.assertEqual([1, 3], self.numbers())

    async def test_on_a_full_disk_a_write_fails_and_smaller_ones_go_on(self) -> None:
        self.limit = 8

        def fill(db: sqlite3.Connection) -> list[int]:
            return [insert(number)(db) for number in range(100_000)]

        error = await self.assertFailure(self.writer.run(fill), Unavailable)
        self.assertIn("SQLITE_FULL", str(error))
        self.assertIn("free some space", str(error))
        await self.writer.run(insert(1))
        self.assertEqual([1], self.numbers())

    async def test_a_damaged_file_is_called_so(self) -> None:
        self.path.write_bytes(b"no database" * 1000)
        error = await self.assertFailure(self.writer.run(insert(1)), Unavailable)
        self.assertIn("restore a backup", str(error))

    async def test_a_mistake_of_ours_is_not_called_unavailable(self) -> None:
        wrong = self.writer.run(lambda db: db.execute("SELECT nonsense"))
        await self.assertFailure(wrong, sqlite3.OperationalError)

    async def in_order(self, *writes: tuple[str, str | None]) -> list[str]:
        """The names of ``writes`` in the order in which they are run; queued together."""
        order: list[str] = []
        held, event = self.hold()

        def running(name: str) -> Callable[[sqlite3.Connection], None]:
            return lambda _: order.append(name)

        queued = [self.writer.run(running(name), long=owner) for name, owner in writes]
        event.set()
        await held
        for write in queued:
            await write
        return order

    async def test_short_ones_wait_for_one_long_one_at_most(self) -> None:
        long = [(f"long-{n}", "mallory") for n in range(3)]
        order = await self.in_order(*long, ("a", None), ("b", None))
        self.assertEqual(["long-0", "a", "b", "long-1", "long-2"], order)

    async def test_a_long_one_has_a_transaction_of_its_own(self) -> None:
        await self.in_order(("a", None), ("long", "ann"), ("b", None))
        self.assertEqual(3, self.commits())

    async def test_long_ones_wait_for_one_transaction_of_short_ones_at_most(self) -> None:
        held, event = self.hold()
        short = [self.writer.run(insert(n)) for n in range(3 * 64)]
        seen = self.writer.run(lambda _: len(self.numbers()), long="ann")
        event.set()
        self.assertLessEqual(await seen, 64)
        await gatherResults(short)
        await held

    async def test_owners_of_long_ones_take_turns(self) -> None:
        order = await self.in_order(
            ("m1", "mallory"), ("m2", "mallory"), ("m3", "mallory"), ("a", "ann"), ("b", "ben")
        )
        self.assertEqual(["m1", "a", "b", "m2", "m3"], order)

    async def test_a_long_one_that_is_cancelled_never_runs(self) -> None:
        held, event = self.hold()
        cancelled = self.writer.run(insert(1), long="ann")
        kept = self.writer.run(insert(2))
        cancelled.cancel()
        event.set()
        await self.assertFailure(cancelled, CancelledError)
        await held
        await kept
        self.assertEqual([2], self.numbers())

    async def test_closing_waits_for_long_ones_too(self) -> None:
        held, event = self.hold()
        queued = [self.writer.run(insert(n), long="ann") for n in range(5)]
        closed = Deferred.fromCoroutine(self.writer.close())
        event.set()
        await closed
        self.assertEqual(list(range(5)), [self.successResultOf(write) for write in queued])
        self.assertTrue(self.successResultOf(held))

    async def test_closing_waits_for_all_that_is_queued(self) -> None:
        held, event = self.hold()
        queued = [self.writer.run(insert(n)) for n in range(100)]
        closed = Deferred.fromCoroutine(self.writer.close())
        self.assertNoResult(closed)
        event.set()
        await closed
        self.assertEqual(list(range(100)), [self.successResultOf(write) for write in queued])
        self.assertEqual(list(range(100)), self.numbers())
        self.assertTrue(self.successResultOf(held))

    async def test_a_closed_writer_writes_no_more(self) -> None:
        await self.writer.close()
        await self.assertFailure(self.writer.run(insert(1)), Unavailable)
        self.assertEqual([], self.numbers())
