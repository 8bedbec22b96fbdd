"""Waiting for threads, and giving up waiting."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.deferreds import Serial, outlive
from tests.store.fixture import SlowThreads


class OutliveTests(SynchronousTestCase):
    def test_the_outcome_is_handed_on(self) -> None:
        running: Deferred[str] = Deferred()
        waiting = outlive(running)
        running.callback("done")
        self.assertEqual("done", self.successResultOf(waiting))

    def test_so_is_a_failure(self) -> None:
        running: Deferred[str] = Deferred()
        waiting = outlive(running)
        running.errback(OSError())
        self.failureResultOf(waiting, OSError)

    def test_a_result_that_nobody_waits_for_is_abandoned(self) -> None:
        abandoned: list[str] = []
        running: Deferred[str] = Deferred()
        waiting = outlive(running, abandoned.append)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual([], abandoned)
        running.callback("done")
        self.assertEqual(["done"], abandoned)

    def test_a_failure_that_nobody_waits_for_is_not_logged(self) -> None:
        running: Deferred[str] = Deferred()
        waiting = outlive(running)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        running.errback(OSError())
        self.assertEqual([], self.flushLoggedErrors())

    def test_a_result_that_was_waited_for_is_not_abandoned(self) -> None:
        abandoned: list[str] = []
        running: Deferred[str] = Deferred()
        waiting = outlive(running, abandoned.append)
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

    def test_it_is_idle_when_all_has_ended(self) -> None:
        self.serial.run(lambda: None)
        idle = self.serial.idle()
        self.assertNoResult(idle)
        self.threads.run_all()
        self.successResultOf(idle)
