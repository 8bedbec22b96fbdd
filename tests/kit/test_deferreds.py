"""Work that outlives its waiter, threads one after the other, and single flight."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.deferreds import Serial, SingleFlight, uncancelled
from tests.store.fixture import SlowThreads


class UncancelledTests(SynchronousTestCase):
    def test_the_outcome_is_handed_on(self) -> None:
        running: Deferred[str] = Deferred()
        waiting = uncancelled(running)
        running.callback("done")
        self.assertEqual("done", self.successResultOf(waiting))

    def test_so_is_a_failure(self) -> None:
        running: Deferred[str] = Deferred()
        waiting = uncancelled(running)
        running.errback(OSError())
        self.failureResultOf(waiting, OSError)

    def test_a_result_that_nobody_waits_for_is_abandoned(self) -> None:
        abandoned: list[str] = []
        running: Deferred[str] = Deferred()
        waiting = uncancelled(running, abandoned.append)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual([], abandoned)
        running.callback("done")
        self.assertEqual(["done"], abandoned)

    def test_a_failure_that_nobody_waits_for_is_handed_over(self) -> None:
        failures: list[Failure] = []
        running: Deferred[str] = Deferred()
        waiting = uncancelled(running, failed=failures.append)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        running.errback(OSError())
        self.assertIsInstance(failures[0].value, OSError)

    def test_a_failure_that_nobody_waits_for_is_not_logged(self) -> None:
        running: Deferred[str] = Deferred()
        waiting = uncancelled(running)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        running.errback(OSError())
        self.assertEqual([], self.flushLoggedErrors())

    def test_a_result_that_was_waited_for_is_not_abandoned(self) -> None:
        abandoned: list[str] = []
        running: Deferred[str] = Deferred()
        waiting = uncancelled(running, abandoned.append)
        running.callback("done")
        waiting.cancel()
        self.assertEqual("done", self.successResultOf(waiting))
        self.assertEqual([], abandoned)


class SerialTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.threads = SlowThreads()
        self.serial = Serial(self.threads)

    def test_the_second_begins_when_the_first_has_ended(self) -> None:
        first, second = self.serial.run(lambda: "first"), self.serial.run(lambda: "second")
        self.assertEqual(1, len(self.threads.waiting))
        self.threads.run_one()
        self.assertEqual("first", self.successResultOf(first))
        self.assertNoResult(second)
        self.threads.run_one()
        self.assertEqual("second", self.successResultOf(second))

    def test_giving_up_the_first_does_not_let_the_second_begin(self) -> None:
        first, second = self.serial.run(lambda: "first"), self.serial.run(lambda: "second")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(1, len(self.threads.waiting))
        self.threads.run_all()
        self.assertEqual("second", self.successResultOf(second))

    def test_a_failure_does_not_stop_the_next(self) -> None:
        def failing() -> None:
            raise OSError

        first, second = self.serial.run(failing), self.serial.run(lambda: "second")
        self.threads.run_all()
        self.failureResultOf(first, OSError)
        self.assertEqual("second", self.successResultOf(second))

    def test_what_computes_has_another_queue_and_its_place_in_the_order(self) -> None:
        computing = SlowThreads()
        serial = Serial(self.threads, computing)
        serial.compute(lambda: None)
        after = serial.run(lambda: "after")
        self.assertEqual((len(computing.waiting), len(self.threads.waiting)), (1, 0))
        computing.run_one()
        self.threads.run_one()
        self.assertEqual("after", self.successResultOf(after))

    def test_it_is_idle_when_all_has_ended(self) -> None:
        self.serial.run(lambda: None)
        idle = self.serial.idle()
        self.assertNoResult(idle)
        self.threads.run_all()
        self.successResultOf(idle)


class SingleFlightTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.single_flight: SingleFlight[str, int] = SingleFlight()
        self.begun: list[Deferred[int]] = []
        self.cancelled = 0

    def join(self, key: str = "a") -> Deferred[int]:
        return self.single_flight.join(key, self.work)

    async def work(self) -> int:
        self.begun.append(Deferred(self.note_cancelled))
        return await self.begun[-1]

    def note_cancelled(self, _: object) -> None:
        self.cancelled += 1

    def test_all_callers_get_the_result_of_one_work(self) -> None:
        waiting = [self.join() for _ in range(3)]
        self.assertEqual(1, len(self.begun))
        self.assertTrue(self.single_flight.under_way("a"))
        self.begun[0].callback(7)
        self.assertEqual([7, 7, 7], [self.successResultOf(one) for one in waiting])

    def test_all_callers_get_its_failure(self) -> None:
        waiting = [self.join() for _ in range(3)]
        self.begun[0].errback(ValueError())
        for one in waiting:
            self.failureResultOf(one, ValueError)

    def test_a_caller_afterwards_begins_anew(self) -> None:
        self.join()
        self.begun[0].callback(7)
        self.assertFalse(self.single_flight.under_way("a"))
        again = self.join()
        self.begun[1].callback(8)
        self.assertEqual(8, self.successResultOf(again))

    def test_work_for_another_key_is_not_waited_for(self) -> None:
        first, second = self.join("a"), self.join("b")
        self.begun[1].callback(2)
        self.assertEqual(2, self.successResultOf(second))
        self.assertNoResult(first)

    def test_a_caller_that_leaves_does_not_disturb_the_others(self) -> None:
        first, second = self.join(), self.join()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.begun[0].callback(7)
        self.assertEqual((7, 0), (self.successResultOf(second), self.cancelled))

    def test_a_caller_that_cancels_another_when_told(self) -> None:
        first, second = self.join(), self.join()
        first.addCallback(lambda _: second.cancel())
        self.begun[0].callback(7)
        self.failureResultOf(second, CancelledError)

    def test_work_that_ends_at_once_leaves_nothing(self) -> None:
        async def at_once() -> int:
            return 7

        for _ in range(2):
            self.assertEqual(7, self.successResultOf(self.single_flight.join("a", at_once)))
            self.assertFalse(self.single_flight.under_way("a"))

    def test_work_goes_on_without_waiters(self) -> None:
        afterwards: list[int] = []
        self.failureResultOf(self.left(afterwards), CancelledError)
        again = self.join()
        self.begun[0].callback(7)
        self.assertEqual((7, 0), (self.successResultOf(again), self.cancelled))
        self.assertEqual(([7], 1), (afterwards, len(self.begun)))

    def test_unwanted_work_is_cancelled_with_its_last_waiter(self) -> None:
        self.single_flight = SingleFlight(cancel_unwanted=True)
        first, second = self.join(), self.join()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(0, self.cancelled)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(1, self.cancelled)

    def test_a_caller_after_cancelled_work_begins_anew(self) -> None:
        self.single_flight = SingleFlight(cancel_unwanted=True)
        self.failureResultOf(self.left([]), CancelledError)
        again = self.join()
        self.assertEqual(2, len(self.begun))
        self.begun[1].callback(7)
        self.assertEqual(7, self.successResultOf(again))

    def left(self, afterwards: list[int]) -> Deferred[int]:
        joined = self.single_flight.join("a", self.work, afterwards.append)
        joined.cancel()
        return joined
