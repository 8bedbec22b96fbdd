"""Asking again."""

from __future__ import annotations

from random import Random

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.upstream.errors import LoginRefused, Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.patience import Interrupted, Retries


@define
class Longest(Random):
    """Always as long as can be; remembers what that was."""

    asked: list[float] = field(factory=list)

    def uniform(self, a: float, b: float) -> float:
        self.asked.append(b)
        return b


class RetriesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.random = Longest()
        self.attempts = 0

    def run_with(self, times: int, *failures: UpstreamError) -> Deferred[str]:
        """Run an attempt that fails with ``failures`` first."""
        left = list(failures)

        async def attempt() -> str:
            self.attempts += 1
            if left:
                raise left.pop(0)
            return "done"

        return Deferred.fromCoroutine(Retries(self.clock, self.random, times).run(attempt))

    def test_what_may_pass_is_tried_again(self) -> None:
        for error in (Unreachable("refused"), Unreachable("answers 503", 503)):
            running = self.run_with(1, error)
            self.assertNoResult(running)
            self.clock.advance(0.25)
            self.assertEqual("done", self.successResultOf(running))

    def test_what_is_definite_is_not(self) -> None:
        for error in (Missing("404", 404), Throttled("429", 1), LoginRefused("no"),
                      RangeRefused("416"), Unreachable("400", 400), Unreachable("501", 501),
                      Unreachable("505", 505), TimedOut("slow"), Interrupted("open")):  # fmt: skip
            self.attempts = 0
            failure = self.failureResultOf(self.run_with(2, error))
            self.assertIs(error, failure.value)
            self.assertEqual(1, self.attempts, error)

    def test_the_last_failure_is_raised(self) -> None:
        errors = [Unreachable(str(n)) for n in range(3)]
        running = self.run_with(2, *errors)
        self.clock.pump([0.25, 0.5])
        self.assertIs(errors[2], self.failureResultOf(running).value)
        self.assertEqual(3, self.attempts)

    def test_none_means_none(self) -> None:
        self.failureResultOf(self.run_with(0, Unreachable("refused")), Unreachable)
        self.assertEqual(1, self.attempts)

    def test_the_wait_doubles_up_to_five_seconds(self) -> None:
        running = self.run_with(7, *(Unreachable("refused") for _ in range(7)))
        self.clock.pump([5] * 7)
        self.assertEqual("done", self.successResultOf(running))
        self.assertEqual([0.25, 0.5, 1, 2, 4, 5, 5], self.random.asked)

    def test_who_gives_up_waiting_leaves_nothing_behind(self) -> None:
        running = self.run_with(1, Unreachable("refused"))
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertEqual([], self.clock.getDelayedCalls())
