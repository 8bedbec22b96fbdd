"""Retries, circuit breaker, 429, rate limits, and answers that are errors."""

from __future__ import annotations

from random import Random

from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.kit.shared import Notebook, Notes, SharedMemory
from artifactd.upstream.errors import LoginRefused, Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.patience import (
    BreakerState,
    CircuitBreaker,
    Interrupted,
    QuotaState,
    RateLimit,
    Retries,
    Throttle,
    ThrottleState,
    refusal,
    retry_after,
)
from tests.upstream.fake import Answer, json


@define
class Longest(Random):
    """Returns the upper bound always, and records it."""

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

    def test_no_sooner_than_the_upstream_wants_to_be_asked_again(self) -> None:
        error = Unreachable("answers 503", 503)
        error.retry_after = 3.0
        running = self.run_with(1, error)
        self.clock.advance(2.9)
        self.assertEqual(1, self.attempts)
        self.clock.advance(0.1)
        self.assertEqual("done", self.successResultOf(running))

    def test_not_at_all_if_that_is_long(self) -> None:
        error = Unreachable("answers 503", 503)
        error.retry_after = 5.5
        self.assertIs(error, self.failureResultOf(self.run_with(2, error)).value)
        self.assertEqual(1, self.attempts)

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


class CircuitBreakerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = SharedMemory.create()
        self.breaker = self.another()

    def another(self) -> CircuitBreaker:
        """That of another process of the daemon."""
        note = Notes(SharedMemory(self.memory.descriptor), Notebook.HOSTS, self.clock).note(
            "", BreakerState
        )
        return CircuitBreaker("docker.io", "registry-1.docker.io", self.clock, note)

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

    def test_that_it_opens_is_told_once_until_it_has_closed(self) -> None:
        opened = [self.breaker.failed(self.breaker.admit(), "refused") for _ in range(5)]
        self.assertEqual([False] * 4 + [True], opened)
        self.clock.advance(5)
        self.assertFalse(self.breaker.failed(self.breaker.admit(), "refused"))
        self.clock.advance(10)
        self.answer()
        self.fail_in_a_row(4)
        self.assertTrue(self.breaker.failed(self.breaker.admit(), "refused"))

    def test_it_is_one_for_all_processes_of_the_daemon(self) -> None:
        one, other = self.breaker, self.another()
        for self.breaker in (one, other, one, other):
            self.fail_in_a_row()
        self.assertFalse(one.admit())
        self.fail_in_a_row()
        for breaker in (one, other):
            self.assertRaises(Interrupted, breaker.admit)
            self.assertEqual(("connection refused", 5), (breaker.trouble, breaker.left))
        self.clock.advance(5)
        self.assertTrue(one.admit())
        error = self.assertRaises(Interrupted, other.admit)
        self.assertIn("is being tried again at this moment", error.reason)
        one.answered()
        self.assertFalse(other.admit())
        self.assertEqual("", other.trouble)

    def test_a_trial_of_a_process_that_was_killed_is_made_again_after_a_minute(self) -> None:
        self.fail_in_a_row(5)
        self.clock.advance(5)
        self.assertTrue(self.another().admit())
        self.assert_open_for(60)
        self.assertTrue(self.breaker.admit())

    def test_any_reason_can_be_remembered(self) -> None:
        for reason in ("\U0010ffff" * 1000, "\udcff"):
            for _ in range(5):
                self.breaker.failed(False, reason)
            self.assertRaises(Interrupted, self.another().admit)
            self.breaker.answered()

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

    def test_its_trouble_and_its_pause_can_be_looked_at(self) -> None:
        self.fail_in_a_row(4)
        self.assertEqual(("", 0), (self.breaker.trouble, self.breaker.left))
        self.fail_in_a_row()
        self.clock.advance(1)
        self.assertEqual(("connection refused", 4), (self.breaker.trouble, self.breaker.left))
        self.clock.advance(9)
        self.assertEqual(("connection refused", 0), (self.breaker.trouble, self.breaker.left))
        self.answer()
        self.assertEqual(("", 0), (self.breaker.trouble, self.breaker.left))

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


DATE = "Tue, 19 Apr 2016 15:36:40 GMT"


class RetryAfterTests(TestCase):
    """RFC 9110, 10.2.3."""

    def assert_seconds(
        self, expected: float | None, value: str | None, date: str | None = DATE
    ) -> None:
        fields: dict[str, str | list[str]] = {}
        if value is not None:
            fields["Retry-After"] = value
        if date is not None:
            fields["Date"] = date
        self.assertEqual(expected, retry_after(Answer(429, fields=fields)), value)

    def test_seconds(self) -> None:
        self.assert_seconds(17, "17")

    def test_a_date_is_compared_with_the_answers_own(self) -> None:
        self.assert_seconds(90, "Tue, 19 Apr 2016 15:38:10 GMT")

    def test_others_are_none(self) -> None:
        for value in (None, "", "soon", "-5", "985.86\xc2\xb5s", "²", "٣", "1.", "1e3",
                      "Fri, 31 Dec 9999 23:59:59 -2300"):  # fmt: skip
            self.assert_seconds(None, value)
        self.assert_seconds(None, "Tue, 19 Apr 2016 15:38:10 GMT", date=None)

    def test_a_fraction_of_a_second_is_taken_too(self) -> None:
        self.assert_seconds(2.5, "2.5")
        self.assert_seconds(1, "0.5")

    def test_it_is_at_least_a_second_and_at_most_an_hour(self) -> None:
        self.assert_seconds(1, "0")
        self.assert_seconds(1, "Tue, 19 Apr 2016 15:00:00 GMT")
        self.assert_seconds(3600, "86400")
        self.assert_seconds(3600, "9" * 5000)
        self.assert_seconds(3600, "Tue, 19 Apr 2036 15:38:10 GMT")

    @given(st.text(), st.text())
    def test_any_value_is_between_them(self, value: str, date: str) -> None:
        fields: dict[str, str | list[str]] = {"Retry-After": value, "Date": date}
        seconds = retry_after(Answer(429, fields=fields))
        self.assertTrue(seconds is None or 1 <= seconds <= 3600)


class ThrottleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = SharedMemory.create()
        self.throttle = self.another()

    def another(self) -> Throttle:
        """That of another process of the daemon."""
        note = Notes(SharedMemory(self.memory.descriptor), Notebook.HOSTS, self.clock).note(
            "", ThrottleState
        )
        return Throttle(self.clock, note)

    def test_nothing_is_held_back_at_first(self) -> None:
        self.assertIsNone(self.throttle.check())  # type: ignore[func-returns-value]

    def test_it_tells_how_long_is_left(self) -> None:
        self.throttle.tell(Throttled("too many", 30))
        self.clock.advance(12)
        error = self.assertRaises(Throttled, self.throttle.check)
        self.assertEqual(("too many", 18), (error.reason, error.retry_after))

    def test_it_holds_for_all_processes_of_the_daemon(self) -> None:
        self.throttle.tell(Throttled("too many", 30))
        other = self.another()
        error = self.assertRaises(Throttled, other.check)
        self.assertEqual(("too many", 30, 30), (error.reason, error.retry_after, other.left))

    def test_it_ends(self) -> None:
        self.throttle.tell(Throttled("too many", 30))
        self.clock.advance(30)
        self.assertIsNone(self.throttle.check())  # type: ignore[func-returns-value]

    def test_the_longest_counts(self) -> None:
        self.throttle.tell(Throttled("too many", 30))
        self.throttle.tell(Throttled("too many", 10))
        self.clock.advance(11)
        self.assertRaises(Throttled, self.throttle.check)

    def guess(self) -> float:
        """Tell of a 429 without Retry-After; return the seconds that follow from it."""
        error = Throttled("too many", 1, guessed=True)
        self.throttle.tell(error)
        return error.retry_after

    def test_where_no_time_is_told_it_is_a_second_and_doubles_up_to_a_minute(self) -> None:
        for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
            self.assertEqual(seconds, self.guess())
            self.assertEqual(seconds, self.guess())  # begun before the pause
            self.clock.advance(seconds - 0.25)
            self.assertRaises(Throttled, self.throttle.check)
            self.clock.advance(0.25)
            self.assertIsNone(self.throttle.check())  # type: ignore[func-returns-value]

    def test_one_image_closes_no_other_one_until_another_is_refused_too(self) -> None:
        def tell(image: str) -> float:
            error = Throttled("too many", 1, guessed=True)
            self.throttle.tell(error, image)
            return error.retry_after

        for seconds in (1, 2, 4):
            self.assertEqual(seconds, tell("hot"))
            self.assertRaises(Throttled, self.throttle.check, "hot")
            self.throttle.check("other")
            self.clock.advance(seconds)
            self.throttle.check("hot")
        self.assertEqual((8, 8), (tell("hot"), tell("other")))
        for image in ("hot", "other", "third"):
            self.assertRaises(Throttled, self.throttle.check, image)
        self.clock.advance(8)
        self.throttle.answered()
        self.assertEqual(1, tell("other"))
        self.throttle.answered()  # about another image
        self.assertRaises(Throttled, self.throttle.check, "other")
        self.throttle.check("hot")

    def test_a_time_that_is_told_is_for_all_images(self) -> None:
        self.throttle.tell(Throttled("too many", 5), "hot")
        self.assertRaises(Throttled, self.throttle.check, "other")

    def test_another_answer_makes_it_a_second_again(self) -> None:
        for _ in range(3):
            self.clock.advance(self.guess())
        self.throttle.answered()
        self.assertEqual(1, self.guess())


class RateLimitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = SharedMemory.create()
        self.rate_limit = self.another()

    def another(self) -> RateLimit:
        """That of another process of the daemon."""
        note = Notes(SharedMemory(self.memory.descriptor), Notebook.HOSTS, self.clock).note(
            "", QuotaState
        )
        return RateLimit(self.clock, note)

    def tell(self, limit: str | None, remaining: str | None, reset: str | None = None) -> float:
        told = {
            "RateLimit-Limit": limit,
            "RateLimit-Remaining": remaining,
            "RateLimit-Reset": reset,
        }
        self.rate_limit.read(
            Answer(fields={n: value for n, value in told.items() if value is not None})
        )
        return self.rate_limit.frugality()

    def test_all_processes_of_the_daemon_know_it(self) -> None:
        self.tell("100;w=21600", "10;w=21600")
        other = self.another()
        self.assertEqual((0.1, 5), (other.remaining, other.frugality()))

    def test_nobody_spares_what_was_never_limited(self) -> None:
        self.assertEqual(1, self.rate_limit.frugality())

    def test_nothing_is_spared_while_half_remains(self) -> None:
        for remaining in (100, 76, 50):
            self.assertEqual(1, self.tell("100;w=21600", f"{remaining};w=21600"))

    def test_the_less_remains_the_more_is_spared(self) -> None:
        for remaining, frugality in ((25, 2), (10, 5), (5, 10), (1, 50)):
            self.assertAlmostEqual(frugality, self.tell("100;w=21600", f"{remaining};w=21600"))

    def test_it_is_sixty_at_most(self) -> None:
        self.assertEqual(60, self.tell("10000;w=21600", "1;w=21600"))
        self.assertEqual(60, self.tell("100;w=21600", "0;w=21600"))

    def test_more_than_all_is_enough(self) -> None:
        self.assertEqual(1, self.tell("100;w=21600", "101;w=21600"))

    def test_it_is_forgotten_when_the_window_has_passed(self) -> None:
        self.tell("100;w=21600", "0;w=21600")
        self.clock.advance(21599)
        self.assertEqual(60, self.rate_limit.frugality())
        self.clock.advance(1)
        self.assertEqual(1, self.rate_limit.frugality())

    def test_the_last_answer_counts(self) -> None:
        self.tell("100;w=21600", "0;w=21600")
        self.assertEqual(1, self.tell("100;w=21600", "100;w=21600"))

    def test_an_answer_that_tells_nothing_changes_nothing(self) -> None:
        self.tell("100;w=21600", "25;w=21600")
        self.assertEqual(2, self.tell(None, None))
        self.assertEqual(2, self.tell(None, "100;w=21600"))

    def test_plain_numbers_hold_until_the_reset(self) -> None:
        self.assertEqual(2, self.tell("60", "15", "30"))
        self.clock.advance(30)
        self.assertEqual(1, self.rate_limit.frugality())

    def test_without_a_window_they_hold_for_an_hour(self) -> None:
        self.assertEqual(2, self.tell("60", "15"))
        self.clock.advance(3599)
        self.assertEqual(2, self.rate_limit.frugality())
        self.clock.advance(1)
        self.assertEqual(1, self.rate_limit.frugality())

    def test_further_quotas_are_left_alone(self) -> None:
        self.assertEqual(2, self.tell("100, 100;w=1;burst=1000", "25"))

    def test_nonsense_changes_nothing(self) -> None:
        for limit, remaining in (("0;w=60", "0;w=60"), ("many", "few"), ("-1", "-1"), ("", ""),
                                 ("9" * 5000, "1"), ("1e3", "1")):  # fmt: skip
            self.assertEqual(1, self.tell(limit, remaining), limit)

    @given(st.text(), st.text(), st.text())
    def test_any_fields_can_be_read(self, limit: str, remaining: str, reset: str) -> None:
        self.assertTrue(1 <= self.tell(limit, remaining, reset) <= 60)


class RefusalTests(SynchronousTestCase):
    def of(self, answer: Answer, *secrets: str) -> UpstreamError:
        error: UpstreamError = self.successResultOf(refusal(answer, *secrets))
        self.assertEqual(["read"], answer.ended)
        return error

    def test_every_status_is_the_error_that_it_means(self) -> None:
        for status, kind in (
            (404, Missing), (410, Missing), (401, Missing), (403, Missing), (416, RangeRefused),
            (429, Throttled), (500, Unreachable), (503, Unreachable), (400, Unreachable),
            (204, Unreachable), (304, Unreachable), (302, Unreachable), (600, Unreachable),
        ):  # fmt: skip
            error = self.of(Answer(status))
            self.assertIs(kind, type(error), status)
            self.assertEqual(status, error.status)

    def test_a_throttled_one_tells_for_how_long(self) -> None:
        error = self.of(Answer(429, fields={"Retry-After": "17"}))
        assert isinstance(error, Throttled)
        self.assertEqual(17, error.retry_after)

    def test_an_unexpected_one_is_called_so(self) -> None:
        self.assertEqual("somebody answers 418 (unexpected status)", self.of(Answer(418)).reason)

    def test_the_reason_has_the_host_and_the_message(self) -> None:
        error = self.of(json({"errors": [{"code": "X", "message": "no such thing"}]}, 404))
        self.assertEqual("somebody answers 404: no such thing", error.reason)

    def test_a_bare_message_is_found_too(self) -> None:
        error = self.of(json({"message": "toomanyrequests: slow down"}, 429))
        self.assertEqual("somebody answers 429: toomanyrequests: slow down", error.reason)

    def test_the_message_is_cut_to_200_printable_characters(self) -> None:
        error = self.of(json({"errors": [{"message": "\x1b[31m\r\n" + "é" * 1000}]}, 500))
        self.assertEqual("somebody answers 500: [31m" + "é" * 196, error.reason)

    def test_a_message_that_repeats_a_secret_is_left_out(self) -> None:
        said = json({"errors": [{"message": f"{'x' * 190} you sent hunter2"}]}, 500)
        self.assertEqual("somebody answers 500", self.of(said, "hunter2").reason)

    def test_where_a_redirect_led_says_nothing(self) -> None:
        said = json({"message": "db=10.0.0.5 user=root"}, 403)
        said.redirected = True
        error: UpstreamError = self.successResultOf(refusal(said))
        self.assertEqual(("somebody answers 403", ["aborted"]), (error.reason, said.ended))

    def test_a_body_that_is_no_error_of_the_spec_says_nothing(self) -> None:
        for body in (b"", b"<html>", b"[]", b'{"errors":7}', b'{"errors":[7]}', b'{"errors":null}',
                     b'{"errors":[]}', b'{"errors":[{"message":7}]}', b'{"message":null}', b"\xff",
                     b"[" * 60_000, b'{"a":' + b"[" * 60_000,
                     b'{"message":"' + b"x" * (64 << 10) + b'"}'):  # fmt: skip
            self.assertEqual("somebody answers 500", self.of(Answer(500, body)).reason)

    def test_a_body_that_breaks_off_says_nothing(self) -> None:
        error = self.of(Answer(404, broken=Unreachable("broke off")))
        self.assertEqual((Missing, 404), (type(error), error.status))

    @given(st.binary(), st.integers(100, 999))
    def test_any_answer_is_an_error(self, body: bytes, status: int) -> None:
        self.assertEqual(status, self.of(Answer(status, body)).status)
