"""A fill between an upstream and a slow disk."""

from __future__ import annotations

from twisted.internet.defer import ensureDeferred
from twisted.internet.interfaces import IConsumer
from zope.interface.verify import verifyObject

from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store.fills import FillInfo, FillSession
from tests.contracts.storage_fills import DIGEST
from tests.contracts.storage_uploads import MEBIBYTE, RecordedProducer
from tests.store.filling import CHUNK, SlowFillTestCase

HIGH_WATER = FillSession.high_water


class HopTests(SlowFillTestCase):
    def test_it_is_a_consumer(self) -> None:
        self.assertTrue(verifyObject(IConsumer, self.session))

    def test_the_first_byte_goes_at_once(self) -> None:
        self.session.write(b"h")
        self.assertEqual(1, len(self.slow_threads.waiting))
        self.slow_threads.run_one()
        self.assertEqual((1, 1), (self.size, self.session.written))

    def test_what_comes_while_a_thread_is_busy_goes_together(self) -> None:
        for piece in (b"h", b"e", b"l", b"lo"):
            self.session.write(piece)
        self.assertEqual((5, 0), (self.session.offset, self.session.written))
        sizes = []
        while self.slow_threads.waiting:
            self.slow_threads.run_one()
            sizes.append(self.size)
        self.assertEqual([1, 5], sizes)

    def test_the_next_thread_begins_before_growth_is_told(self) -> None:
        waiting: list[int] = []
        self.session.watch(lambda _: waiting.append(len(self.slow_threads.waiting)))
        self.session.write(b"h")
        self.session.write(b"ello")
        self.slow_threads.run_all()
        self.assertEqual([1, 0], waiting)

    def test_a_part_goes_at_once_too(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 6, FillInfo(11)))
        extent.write(b"w")
        self.slow_threads.run_one()
        self.assertEqual(7, extent.written)
        self.ended(extent.close())

    def test_what_gathered_meanwhile_is_recorded_too(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 6, FillInfo(11)))
        extent.write(b"w")
        extent.write(b"orld")
        self.ended(extent.record())
        self.ended(extent.close())
        found = self.ended(self.slow.fills.find_extent(DIGEST, ByteRange(6, 10)))
        assert found is not None
        found.close()


class FillFlowTests(SlowFillTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.producer = RecordedProducer()
        self.session.registerProducer(self.producer, True)

    def test_the_upstream_is_paused_while_the_disk_is_behind(self) -> None:
        self.write(HIGH_WATER - len(CHUNK))
        self.assertEqual([], self.producer.told)
        self.write(len(CHUNK))
        self.assertEqual(["pause"], self.producer.told)
        self.slow_threads.run_all()
        self.assertEqual(["pause", "resume"], self.producer.told)
        self.assertEqual(HIGH_WATER, self.session.written)

    def test_an_exhausted_budget_pauses_it(self) -> None:
        self.budget.acquire(self.budget.threshold)
        waiting = self.budget.acquire(1)
        self.assertEqual(["pause"], self.producer.told)
        self.budget.release(self.budget.threshold)
        self.successResultOf(waiting)
        self.assertEqual(["pause", "resume"], self.producer.told)

    def test_all_that_was_taken_is_given_back(self) -> None:
        self.write(HIGH_WATER)
        self.assertEqual(HIGH_WATER, self.budget.used)
        self.ended(self.session.close())
        self.assertEqual(0, self.budget.used)

    def test_what_comes_again_counts_in_the_budget_too(self) -> None:
        self.write(HIGH_WATER)
        self.slow_threads.run_all()
        self.session.restart()
        self.write(HIGH_WATER)
        self.assertEqual((HIGH_WATER, HIGH_WATER), (self.budget.used, self.session.offset))
        self.assertEqual(["pause", "resume", "pause"], self.producer.told)
        self.slow_threads.run_all()
        self.assertEqual((0, True), (self.budget.used, self.session.compared))

    def test_a_contradiction_gives_all_back_and_stops_the_upstream(self) -> None:
        self.write(HIGH_WATER)
        self.slow_threads.run_all()
        self.session.restart()
        self.session.write(b"y")
        self.write(HIGH_WATER)
        self.slow_threads.run_all()
        self.assertEqual((0, "stop"), (self.budget.used, self.producer.told[-1]))
        self.assertEqual((HIGH_WATER, HIGH_WATER), (self.size, self.session.offset))


class CatchingUpTests(SlowFillTestCase):
    def test_a_claim_is_answered_before_anything_is_read(self) -> None:
        self.elsewhere(b"x" * MEBIBYTE)
        self.assertEqual((MEBIBYTE, 0), (self.session.written, self.files.read_back))
        self.assertEqual([], self.slow_threads.waiting)

    def test_bytes_hashed_as_they_came_are_not_read_again(self) -> None:
        self.write(MEBIBYTE)
        self.assertEqual(Digest.of(b"x" * MEBIBYTE), self.ended(self.session.computed()))
        self.assertEqual(0, self.files.read_back)

    def test_what_was_here_is_hashed_while_the_upstream_is_waited_for(self) -> None:
        self.elsewhere(b"x" * 40 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        turns = 0
        while self.slow_threads.waiting:
            self.slow_threads.run_one()
            turns += 1
        self.assertEqual((3, 40 * MEBIBYTE), (turns, self.files.read_back))
        self.session.write(b"end")
        digest = self.ended(self.session.computed())
        self.assertEqual(Digest.of(b"x" * 40 * MEBIBYTE + b"end"), digest)
        self.assertEqual(40 * MEBIBYTE, self.files.read_back)

    def test_what_comes_meanwhile_waits_for_one_turn_at_most(self) -> None:
        self.elsewhere(b"x" * 40 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        self.session.write(b"end")
        self.slow_threads.run_one()
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)
        self.slow_threads.run_one()
        self.assertEqual(40 * MEBIBYTE + 3, self.session.written)
        digest = self.ended(self.session.computed())
        self.assertEqual(Digest.of(b"x" * 40 * MEBIBYTE + b"end"), digest)

    def test_it_rests_when_there_is_no_upstream(self) -> None:
        self.elsewhere(b"x" * 20 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        self.session.unregisterProducer()
        self.slow_threads.run_all()
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)

    def test_it_does_not_keep_the_session_from_being_closed(self) -> None:
        self.elsewhere(b"x" * 20 * MEBIBYTE)
        self.session.registerProducer(RecordedProducer(), True)
        closing = ensureDeferred(self.session.close())
        self.slow_threads.run_one()  # a turn
        self.slow_threads.run_one()  # the close
        self.successResultOf(closing)
        self.assertEqual([], self.slow_threads.waiting)
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)

    def test_there_is_one_turn_at_a_time(self) -> None:
        self.elsewhere(b"x" * 20 * MEBIBYTE)
        for _ in range(3):
            self.session.registerProducer(RecordedProducer(), True)
            self.session.unregisterProducer()
        self.slow_threads.run_all()
        self.assertEqual(16 * MEBIBYTE, self.files.read_back)

    def test_what_has_come_goes_before_what_was_here(self) -> None:
        self.elsewhere(b"x" * MEBIBYTE)
        self.session.write(b"h")
        self.session.registerProducer(RecordedProducer(), True)
        self.session.write(b"ello")
        for _ in range(2):
            self.slow_threads.run_one()
        self.assertEqual((MEBIBYTE + 5, 0), (self.session.written, self.files.read_back))

    def test_what_is_taken_from_extents_is_hashed_too(self) -> None:
        extent = self.ended(self.slow.fills.add_extent(DIGEST, 6, FillInfo(11)))
        extent.write(b"world")
        self.ended(extent.record())
        self.ended(extent.close())
        self.session.write(b"hello ")
        self.slow_threads.run_all()
        self.assertEqual(5, self.ended(self.session.take_extents(None)))
        before = self.files.read_back
        self.assertEqual(DIGEST, self.ended(self.session.computed()))
        self.assertEqual(before, self.files.read_back)
