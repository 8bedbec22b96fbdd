"""A migration is done whole or not at all, and never without a copy."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.migrations import SCHEMA, migrate
from artifactd.kit.start import StartError
from tests.catalog.fixture import schema_folder

FIRST = "PRAGMA application_id = 0x61727464;\nCREATE TABLE number (n); -- of version 1\n"
SECOND = """
ALTER TABLE number ADD COLUMN square;
CREATE TRIGGER square AFTER INSERT ON number BEGIN
    UPDATE number SET square = n * n WHERE n = new.n;
END;
"""
BROKEN = "INSERT INTO number VALUES (99, NULL);\nSELECT nonsense;\n"


class MigrationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "catalog.sqlite"
        self.path.parent.mkdir()
        self.taken = 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.taken += 1
        yield

    def migrate(self, *steps: str) -> None:
        migrate(self.path, self.exclusive, schema_folder(self, *steps))

    def execute(self, statement: str, path: Path | None = None) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(path or self.path, isolation_level=None)) as db:
            return db.execute(statement).fetchall()

    def version(self, path: Path | None = None) -> object:
        return self.execute("PRAGMA user_version", path)[0][0]

    def files(self) -> set[str]:
        return {file.name for file in self.path.parent.iterdir()}

    def test_a_fresh_catalog_is_created_with_the_lock_and_without_a_copy(self) -> None:
        self.migrate(FIRST, SECOND)
        self.assertEqual(2, self.version())
        self.assertEqual([("wal",)], self.execute("PRAGMA journal_mode"))
        self.assertEqual(1, self.taken)
        self.assertEqual([], [name for name in self.files() if "before" in name])

    def test_the_schema_of_this_release_is_numbered_from_1_and_applies(self) -> None:
        migrate(self.path, nullcontext)
        names = sorted(f.name for f in SCHEMA.iterdir())
        self.assertEqual([f"{n + 1:04}.sql" for n in range(len(names))], names)
        self.assertEqual(len(names), self.version())
        self.assertEqual([("ok",)], self.execute("PRAGMA integrity_check"))

    def test_no_umask_lets_others_read_a_catalog_or_what_lies_beside_it(self) -> None:
        for umask in (0, 0o022):
            self.path = Path(self.mktemp()) / "catalog.sqlite"
            self.path.parent.mkdir()
            before = os.umask(umask)
            try:
                self.migrate(FIRST)
                with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                    db.execute("INSERT INTO number VALUES (1)")
                    names = {"catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"}
                    self.assertEqual(self.modes(), dict.fromkeys(names, 0o600))
                self.migrate(FIRST, SECOND)
            finally:
                os.umask(before)
            self.assertIn("catalog.sqlite.before-2", self.files())
            self.assertEqual(set(self.modes().values()), {0o600})

    def test_one_that_others_may_read_is_closed(self) -> None:
        self.migrate(FIRST)
        self.migrate(FIRST, SECOND)
        for file in self.path.parent.iterdir():
            file.chmod(0o644)
        self.migrate(FIRST, SECOND)
        self.assertEqual(len(self.modes()), 2)
        self.assertEqual(set(self.modes().values()), {0o600})

    def modes(self) -> dict[str, int]:
        """The modes of all files beside the catalog, and its own."""
        files = self.path.parent.iterdir()
        return {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}

    def test_a_new_catalog_of_this_release_has_no_copy_beside_it(self) -> None:
        migrate(self.path, nullcontext)
        migrate(self.path, nullcontext)
        self.assertEqual([], [name for name in self.files() if "before" in name])

    def test_a_current_catalog_is_left_alone(self) -> None:
        self.migrate(FIRST)
        before = self.path.read_bytes()
        self.migrate(FIRST)
        self.assertEqual(1, self.taken)
        self.assertEqual(before, self.path.read_bytes())

    def test_an_older_catalog_is_migrated_after_a_copy_was_made(self) -> None:
        self.migrate(FIRST)
        self.execute("INSERT INTO number VALUES (3)")
        self.migrate(FIRST, SECOND)
        self.execute("INSERT INTO number (n) VALUES (4)")
        self.assertEqual([(3, None), (4, 16)], self.execute("SELECT * FROM number ORDER BY n"))
        copy = self.path.with_name("catalog.sqlite.before-2")
        self.assertEqual(1, self.version(copy))
        self.assertEqual([(3,)], self.execute("SELECT * FROM number", copy))

    def test_of_several_steps_at_once_the_catalog_before_them_is_kept(self) -> None:
        self.migrate(FIRST)
        self.migrate(FIRST, SECOND, "DROP TABLE number;")
        self.assertEqual(self.version(), 3)
        copies = [name for name in self.files() if "before" in name]
        self.assertEqual(copies, ["catalog.sqlite.before-2"])

    def test_a_step_that_fails_leaves_the_catalog_as_it_was(self) -> None:
        self.migrate(FIRST, SECOND)
        error = self.assertRaises(StartError, self.migrate, FIRST, SECOND, BROKEN)
        self.assertIn("schema 3", str(error))
        self.assertIn("nonsense", str(error))
        self.assertEqual(2, self.version())
        self.assertEqual([], self.execute("SELECT * FROM number"))

    def test_steps_before_the_one_that_fails_are_kept_and_it_can_be_tried_again(self) -> None:
        self.assertRaises(StartError, self.migrate, FIRST, SECOND, BROKEN)
        self.assertEqual(2, self.version())
        self.execute("INSERT INTO number (n) VALUES (5)")
        self.migrate(FIRST, SECOND, "DROP TABLE number;")
        self.assertEqual(3, self.version())
        copy = self.path.with_name("catalog.sqlite.before-3")
        self.assertEqual([(5, 25)], self.execute("SELECT * FROM number", copy))

    def test_while_others_use_the_catalog_nothing_is_done(self) -> None:
        def in_use() -> AbstractContextManager[None]:
            raise StartError("in use by process 7")

        self.migrate(FIRST)
        schema = schema_folder(self, FIRST, SECOND)
        error = self.assertRaises(StartError, migrate, self.path, in_use, schema)
        self.assertEqual("in use by process 7", str(error))
        self.assertEqual(1, self.version())
        self.assertNotIn("catalog.sqlite.before-2", self.files())

    def test_what_another_process_has_just_done_is_not_done_again(self) -> None:
        @contextmanager
        def after_another() -> Iterator[None]:
            self.migrate(FIRST, SECOND)
            yield

        self.migrate(FIRST)
        migrate(self.path, after_another, schema_folder(self, FIRST, SECOND))
        self.assertEqual(2, self.version())

    def test_a_catalog_of_a_newer_release_is_not_touched(self) -> None:
        self.migrate(FIRST, SECOND)
        before = self.path.read_bytes()
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn("newer release", str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual(before, self.path.read_bytes())

    def test_a_database_of_another_program_is_not_touched(self) -> None:
        self.execute("CREATE TABLE theirs (n)")
        before = self.path.read_bytes()
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn("another program", str(error))
        self.assertEqual(before, self.path.read_bytes())

    def test_a_file_that_is_no_database_is_not_touched(self) -> None:
        self.path.write_bytes(b"not a database" * 100)
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn(str(self.path), str(error))
        self.assertEqual(b"not a database" * 100, self.path.read_bytes())

    def test_a_folder_that_is_not_there_stops_the_start(self) -> None:
        self.path = self.path / "nowhere" / "catalog.sqlite"
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn(str(self.path), str(error))

    def test_an_old_sqlite_stops_the_start(self) -> None:
        self.patch(sqlite3, "sqlite_version_info", (3, 34, 1))
        error = self.assertRaises(StartError, self.migrate, FIRST)
        self.assertIn("3.37", str(error))
        self.assertFalse(self.path.exists())
