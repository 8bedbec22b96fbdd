"""The budget of requests that an upstream tells of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.upstream.patience import RateLimit
from tests.upstream.fake import Answer


class RateLimitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.rate_limit = RateLimit(self.clock)

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
