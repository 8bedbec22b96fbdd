"""``Retry-After``, and the memory of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.upstream.errors import Throttled
from artifactd.upstream.patience import Throttle, retry_after
from tests.upstream.fake import Answer

DATE = "Tue, 19 Apr 2016 15:36:40 GMT"


class RetryAfterTests(TestCase):
    """RFC 9110, 10.2.3."""

    def assert_seconds(self, expected: float, value: str | None, date: str | None = DATE) -> None:
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

    def test_the_default_is_a_minute(self) -> None:
        for value in (None, "", "soon", "-5", "1.5", "²", "٣", "Fri, 31 Dec 9999 23:59:59 -2300"):
            self.assert_seconds(60, value)
        self.assert_seconds(60, "Tue, 19 Apr 2016 15:38:10 GMT", date=None)

    def test_it_is_at_least_a_second_and_at_most_an_hour(self) -> None:
        self.assert_seconds(1, "0")
        self.assert_seconds(1, "Tue, 19 Apr 2016 15:00:00 GMT")
        self.assert_seconds(3600, "86400")
        self.assert_seconds(3600, "9" * 5000)
        self.assert_seconds(3600, "Tue, 19 Apr 2036 15:38:10 GMT")

    @given(st.text(), st.text())
    def test_any_value_is_between_them(self, value: str, date: str) -> None:
        fields: dict[str, str | list[str]] = {"Retry-After": value, "Date": date}
        self.assertTrue(1 <= retry_after(Answer(429, fields=fields)) <= 3600)


class ThrottleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.throttle = Throttle(self.clock)

    def test_nothing_is_held_back_at_first(self) -> None:
        self.assertIsNone(self.throttle.check())  # type: ignore[func-returns-value]

    def test_it_tells_how_long_is_left(self) -> None:
        self.throttle.tell(Throttled("too many", 30))
        self.clock.advance(12)
        error = self.assertRaises(Throttled, self.throttle.check)
        self.assertEqual(("too many", 18), (error.reason, error.retry_after))

    def test_it_ends(self) -> None:
        self.throttle.tell(Throttled("too many", 30))
        self.clock.advance(30)
        self.assertIsNone(self.throttle.check())  # type: ignore[func-returns-value]

    def test_the_longest_counts(self) -> None:
        self.throttle.tell(Throttled("too many", 30))
        self.throttle.tell(Throttled("too many", 10))
        self.clock.advance(11)
        self.assertRaises(Throttled, self.throttle.check)
