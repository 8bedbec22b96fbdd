"""The circuit breaker."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.upstream.patience import CircuitBreaker, Interrupted


class CircuitBreakerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.breaker = CircuitBreaker("docker.io", "registry-1.docker.io", self.clock)

    def fail_in_a_row(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.failed(self.breaker.admit(), "connection refused")

    def answer(self) -> None:
        self.breaker.admit()
        self.breaker.answered()

    def assert_open_for(self, seconds: float) -> None:
        """Every request is refused for so long; the next one after that isn't."""
        self.clock.advance(seconds - 0.5)
        self.assertRaises(Interrupted, self.breaker.admit)
        self.clock.advance(0.5)

    def test_four_failures_change_nothing(self) -> None:
        self.fail_in_a_row(4)
        self.assertFalse(self.breaker.admit())

    def test_after_five_in_a_row_nobody_asks_for_five_seconds(self) -> None:
        self.fail_in_a_row(5)
        self.assert_open_for(5)
        self.assertTrue(self.breaker.admit())

    def test_the_reason_names_host_cause_and_time(self) -> None:
        self.fail_in_a_row(5)
        self.clock.advance(1)
        error = self.assertRaises(Interrupted, self.breaker.admit)
        self.assertEqual(
            "registry-1.docker.io has failed 5 times in a row and is not asked again for 4.0 s:"
            " connection refused",
            error.reason,
        )

    def test_an_answer_in_between_begins_the_count_again(self) -> None:
        self.fail_in_a_row(4)
        self.answer()
        self.fail_in_a_row(4)
        self.assertFalse(self.breaker.admit())

    def test_one_request_at_a_time_tries_again(self) -> None:
        self.fail_in_a_row(5)
        self.clock.advance(5)
        self.assertTrue(self.breaker.admit())
        self.assertRaises(Interrupted, self.breaker.admit)

    def test_each_failed_trial_doubles_the_pause_up_to_a_minute(self) -> None:
        self.fail_in_a_row(5)
        for seconds in (5, 10, 20, 40, 60, 60):
            self.assert_open_for(seconds)
            self.fail_in_a_row()

    def test_an_answer_to_the_trial_ends_it_all(self) -> None:
        self.fail_in_a_row(5)
        self.clock.advance(5)
        self.fail_in_a_row()
        self.clock.advance(10)
        self.answer()
        self.fail_in_a_row(4)
        self.assertFalse(self.breaker.admit())
        self.fail_in_a_row()
        self.assert_open_for(5)
        self.assertTrue(self.breaker.admit())

    def test_a_trial_that_nobody_wants_any_more_leaves_it_to_the_next(self) -> None:
        self.fail_in_a_row(5)
        self.clock.advance(5)
        self.breaker.abandoned(self.breaker.admit())
        self.assertTrue(self.breaker.admit())

    def test_failures_of_requests_begun_before_do_not_lengthen_the_pause(self) -> None:
        begun = [self.breaker.admit() for _ in range(50)]
        for trial in begun:
            self.breaker.failed(trial, "timed out")
        self.assert_open_for(5)
        self.assertTrue(self.breaker.admit())

    def test_a_late_failure_is_not_taken_for_the_trials(self) -> None:
        late = self.breaker.admit()
        self.fail_in_a_row(5)
        self.clock.advance(5)
        self.assertTrue(self.breaker.admit())
        self.breaker.failed(late, "timed out")
        self.breaker.answered()
        self.assertFalse(self.breaker.admit())

    def test_a_late_answer_ends_the_pause(self) -> None:
        self.breaker.admit()
        self.fail_in_a_row(5)
        self.breaker.answered()
        self.assertFalse(self.breaker.admit())

    def test_a_trial_that_fails_after_a_late_answer_is_one_failure_of_five(self) -> None:
        self.breaker.admit()
        self.fail_in_a_row(5)
        self.clock.advance(5)
        trial = self.breaker.admit()
        self.breaker.answered()
        self.breaker.failed(trial, "timed out")
        self.fail_in_a_row(3)
        self.assertFalse(self.breaker.admit())
        self.fail_in_a_row()
        self.assertRaises(Interrupted, self.breaker.admit)
