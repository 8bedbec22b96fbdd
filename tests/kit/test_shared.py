"""What all processes of a daemon see: moments and notes in memory that they share."""

from __future__ import annotations

import os
from functools import partial

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.shared import Moments, Notebook, Notes, SharedMemory, Table
from tests.kit.sharing import Helper


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.memory = SharedMemory.create()
        self.other = SharedMemory(self.memory.descriptor)

    def test_other_memory_is_refused(self) -> None:
        descriptor = os.memfd_create("other")
        self.addCleanup(os.close, descriptor)
        with self.assertRaises(ValueError):
            SharedMemory(descriptor)
        os.ftruncate(descriptor, len(self.memory.bytes))
        with self.assertRaises(ValueError):
            SharedMemory(descriptor)

    def test_each_memory_hashes_in_its_own_way(self) -> None:
        self.assertEqual(self.memory.hashed("a"), self.other.hashed("a"))
        self.assertNotEqual(self.memory.hashed("a"), self.memory.hashed("b"))
        self.assertNotEqual(self.memory.hashed("a"), SharedMemory.create().hashed("a"))

    def test_a_lock_excludes_others(self) -> None:
        self.assertTrue(self.memory.try_lock(5))
        self.assertTrue(self.other.is_locked(5))
        self.assertFalse(self.memory.is_locked(5))
        self.assertFalse(self.other.try_lock(5))
        self.assertTrue(self.other.try_lock(6))
        self.memory.unlock(5)
        self.assertTrue(self.other.try_lock(5))

    def test_a_process_that_stops_with_a_lock_stops_no_other(self) -> None:
        moments = Moments(self.memory, Table.USER_RATES)
        bucket = moments._located("a")[1]
        self.other.lock(bucket)
        moments.update("a", lambda before: before + 1)  # a count may be wrong, but it goes on
        self.assertEqual(moments.get("a"), 1)

    def test_a_lock_of_a_killed_process_is_free(self) -> None:
        with Helper(self.memory, "assert memory.try_lock(5)") as process:
            self.assertFalse(self.memory.try_lock(5))
            process.kill()
        self.assertTrue(self.memory.try_lock(5))

    def test_another_process_sees_what_is_written_and_writes_itself(self) -> None:
        moments = Moments(self.memory, Table.USER_RATES)
        moments.update("a", lambda _: 5.0)
        code = """
            from artifactd.kit.shared import Moments, Table
            moments = Moments(memory, Table.USER_RATES)
            moments.update("a", lambda before: before + 2)
            moments.update("b", lambda before: before + 1)
        """
        with Helper(self.memory, code):
            self.assertEqual((moments.get("a"), moments.get("b")), (7, 1))


class MomentsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.memory = SharedMemory.create()
        self.moments = Moments(self.memory, Table.NAME_FAILURES)
        self.other = Moments(SharedMemory(self.memory.descriptor), Table.NAME_FAILURES)

    def test_what_one_writes_the_other_reads(self) -> None:
        self.assertEqual(self.other.get("a"), 0)
        self.assertEqual(self.moments.update("a", lambda before: before + 3), 3)
        self.assertEqual(self.other.update("a", lambda before: before + 4), 7)
        self.assertEqual((self.moments.get("a"), self.other.get("a")), (7, 7))

    def test_keys_and_tables_have_nothing_to_do_with_each_other(self) -> None:
        self.moments.update("a", lambda _: 5.0)
        self.assertEqual(self.moments.get("b"), 0)
        self.assertEqual(Moments(self.memory, Table.ADDRESS_FAILURES).get("a"), 0)

    def test_any_text_is_a_key(self) -> None:
        for key in ("", "ü", "\udcff", "a\0b", "x" * 10_000):
            self.moments.update(key, lambda _: 5.0)
            self.assertEqual(self.other.get(key), 5)

    def test_a_change_that_fails_changes_nothing_and_unlocks(self) -> None:
        self.moments.update("a", lambda _: 5.0)
        with self.assertRaises(ZeroDivisionError):
            self.moments.update("a", lambda before: before / 0)
        self.assertEqual(self.other.update("a", lambda before: before + 1), 6)

    def test_a_moment_of_0_takes_no_room(self) -> None:
        before = self.memory.bytes[:]
        self.moments.update("a", lambda _: 0.0)
        self.assertEqual(self.memory.bytes[:], before)

    def test_the_latest_is_known(self) -> None:
        self.assertEqual(self.other.latest[0], 0)
        for moment in (100.0, 1000.0, 10.0):
            self.moments.update("a", partial(max, moment))
            self.assertGreaterEqual(self.other.latest[0], moment)
        self.assertLess(self.other.latest[0], 1064)

    def test_where_there_is_no_room_the_earliest_goes(self) -> None:
        self.moments.update("late", lambda _: 1000.0)
        for number in range(100_000):
            self.moments.update(str(number), partial(max, 1.0 + number / 1000))
        self.assertEqual(self.moments.get("late"), 1000)
        kept = [number for number in range(100_000) if self.moments.get(str(number))]
        self.assertLessEqual(len(kept), 32_767)
        self.assertGreater(len(kept), 32_000)
        self.assertGreater(sum(number > 50_000 for number in kept), 0.9 * len(kept))


class Told(msgspec.Struct, frozen=True):
    """A value of a note."""

    reason: str
    times: int = 0


class NotesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = SharedMemory.create()
        self.notes = Notes(self.memory, Notebook.HOSTS, self.clock)
        self.others = Notes(SharedMemory(self.memory.descriptor), Notebook.HOSTS, self.clock)
        self.note = self.notes.note("a", Told)
        self.other = self.others.note("a", Told)

    def test_what_one_writes_the_other_reads(self) -> None:
        self.assertIsNone(self.other.read())
        self.note.update(lambda _: Told("down"))
        for _ in range(2):
            self.assertEqual(self.other.read(), Told("down"))
        self.other.update(lambda told: told and Told(told.reason, 2))
        self.assertEqual(self.note.read(), Told("down", 2))
        self.note.update(lambda _: None)
        self.assertIsNone(self.other.read())
        self.assertIsNone(self.note.read())

    def test_notes_and_tables_have_nothing_to_do_with_each_other(self) -> None:
        self.note.update(lambda _: Told("down"))
        self.assertIsNone(self.others.note("b", Told).read())
        self.assertIsNone(Notes(self.memory, Notebook.URLS, self.clock).note("a", Told).read())

    def test_one_that_is_too_large_is_not_written(self) -> None:
        self.note.update(lambda _: Told("down"))
        with self.assertRaises(ValueError):
            self.note.update(lambda _: Told("x" * 1000))
        self.assertEqual(self.other.read(), Told("down"))

    def test_where_there_is_no_room_the_one_written_first_goes(self) -> None:
        self.note.update(lambda _: Told("down"))
        for number in range(5000):
            self.clock.advance(1)
            self.notes.note(str(number), Told).update(lambda _: Told("down"))
        self.assertIsNone(self.other.read())
        self.assertIsNone(self.note.read())
        kept = [n for n in range(5000) if self.others.note(str(n), Told).read() is not None]
        self.assertLessEqual(len(kept), 2048)
        self.assertGreater(len(kept), 1500)
        self.assertIn(4999, kept)

    def test_one_that_a_killed_process_has_half_written_is_none(self) -> None:
        self.note.update(lambda _: Told("down"))
        at, _ = self.note._known
        for number in range(at + 40, at + 50):
            self.memory.bytes[number] = 0xFF
        self.assertIsNone(self.others.note("a", Told).read())
        self.other.update(lambda _: Told("down again"))
        self.assertEqual(self.note.read(), Told("down again"))
