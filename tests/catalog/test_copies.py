"""Copies: consistent, durable, and there whole or not at all; and what is read of them."""

from __future__ import annotations

import os
import sqlite3
import tracemalloc
from contextlib import closing, nullcontext
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.migrations import (
    copy,
    copy_catalog,
    listed_blobs,
    listed_bytes,
    migrate,
    replace_catalog,
)
from artifactd.kit.start import StartError
from artifactd.store.files import FileOperations


class CopyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.target = self.folder / "copy"
        self.source = sqlite3.connect(self.folder / "source", isolation_level=None)
        self.addCleanup(self.source.close)
        self.source.execute("PRAGMA journal_mode = WAL")
        self.source.execute("CREATE TABLE number (n)")

    def insert(self, numbers: int) -> None:
        """Insert on another connection."""
        with closing(sqlite3.connect(self.folder / "source")) as other:
            other.executemany("INSERT INTO number VALUES (?)", [(n,) for n in range(numbers)])
            other.commit()

    def copied(self) -> int:
        with closing(sqlite3.connect(self.target)) as db:
            count: int = db.execute("SELECT count(*) FROM number").fetchone()[0]
        return count

    def test_what_is_still_in_the_log_is_copied(self) -> None:
        self.insert(1000)
        copy(self.source, self.target, FileOperations())
        self.assertEqual(1000, self.copied())

    def test_in_a_transaction_its_snapshot_is_copied(self) -> None:
        self.insert(10)
        self.source.execute("BEGIN")
        self.source.execute("SELECT * FROM number").fetchall()
        self.insert(10)
        copy(self.source, self.target, FileOperations())
        self.assertEqual(10, self.copied())

    def test_the_copy_and_its_name_are_on_disk_when_it_is_done(self) -> None:
        synced: list[int] = []
        fsync = os.fsync

        def record(fd: int) -> None:
            synced.append(os.fstat(fd).st_ino)
            fsync(fd)

        self.patch(os, "fsync", record)
        copy(self.source, self.target, FileOperations())
        self.assertEqual([self.target.stat().st_ino, self.folder.stat().st_ino], synced[-2:])

    def test_what_is_there_is_not_replaced(self) -> None:
        self.target.write_bytes(b"precious")
        self.assertRaises(FileExistsError, copy, self.source, self.target, FileOperations())
        self.assertEqual(b"precious", self.target.read_bytes())

    def test_the_log_of_a_catalog_that_is_replaced_does_not_outlive_it(self) -> None:
        self.insert(3)
        copy(self.source, self.target, FileOperations())
        # What is left of a process that was killed: a catalog and what is only in its log.
        killed = self.folder / "killed"
        killed.mkdir()
        old = sqlite3.connect(self.folder / "old", isolation_level=None)
        self.addCleanup(old.close)
        old.execute("PRAGMA journal_mode = WAL")
        old.execute("CREATE TABLE other (text)")
        for suffix in ("", "-wal", "-shm"):
            content = (self.folder / f"old{suffix}").read_bytes()
            (killed / f"catalog{suffix}").write_bytes(content)
        self.assertGreater((killed / "catalog-wal").stat().st_size, 0)
        replace_catalog(self.target, killed / "catalog", FileOperations())
        self.assertEqual(os.listdir(killed), ["catalog"])
        with closing(sqlite3.connect(killed / "catalog")) as db:
            self.assertEqual(db.execute("SELECT count(*) FROM number").fetchone(), (3,))

    def test_the_log_of_an_older_copy_is_not_taken_for_the_new_one_s(self) -> None:
        self.insert(3)
        copy_catalog(self.folder / "source", self.target)
        changed = sqlite3.connect(self.target, isolation_level=None)
        self.addCleanup(changed.close)
        changed.execute("INSERT INTO number VALUES (4)")
        # What a process leaves that is killed while it corrects the copy.
        left = {s: Path(f"{self.target}{s}").read_bytes() for s in ("", "-wal", "-shm")}
        changed.close()
        for suffix, content in left.items():
            Path(f"{self.target}{suffix}").write_bytes(content)
        self.assertEqual(self.copied(), 4)
        for suffix, content in left.items():
            Path(f"{self.target}{suffix}").write_bytes(content)
        copy_catalog(self.folder / "source", self.target)
        self.assertEqual(self.copied(), 3)

    def test_what_a_crash_left_does_no_harm(self) -> None:
        (self.folder / ".copy.partial").write_bytes(b"half a copy")
        self.insert(10)
        copy(self.source, self.target, FileOperations())
        self.assertEqual(10, self.copied())

    def test_a_copy_that_fails_leaves_nothing(self) -> None:
        self.source.close()
        self.assertRaises(
            sqlite3.ProgrammingError, copy, self.source, self.target, FileOperations()
        )
        self.assertEqual(["source"], os.listdir(self.folder))


class ListedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.catalog = Path(self.mktemp())
        migrate(self.catalog, nullcontext)

    def fill(self, count: int) -> None:
        """List so many blobs of 3 bytes."""
        with closing(sqlite3.connect(self.catalog)) as db:
            db.executemany(
                "INSERT INTO blob (digest, size, created_at) VALUES (?, 3, 0)",
                [(f"sha256:{number:064x}",) for number in range(count)],
            )
            db.commit()

    def test_the_bytes_of_all_blobs_are_added_up(self) -> None:
        self.assertEqual(listed_bytes(self.catalog), 0)
        self.fill(5)
        self.assertEqual(listed_bytes(self.catalog), 15)

    def test_a_catalog_that_can_not_be_read_is_named(self) -> None:
        self.catalog.write_bytes(b"no catalog")
        told = f"{self.catalog}: file is not a database"
        self.assertRaisesRegex(StartError, told, listed_bytes, self.catalog)
        self.assertRaisesRegex(StartError, told, list, listed_blobs(self.catalog))

    def test_many_blobs_take_no_more_memory_than_few(self) -> None:
        self.fill(20_000)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(sum(1 for _ in listed_blobs(self.catalog)), 20_000)
        _, peak = tracemalloc.get_traced_memory()
        self.assertLess(peak, 20_000 * 50)
