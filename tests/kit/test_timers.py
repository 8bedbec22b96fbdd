"""Deadlines on a batched timer: never early, one call of the reactor for many of them."""

from __future__ import annotations

from random import Random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.timers import BUCKET, Deadline, Timers


class DeadlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)
        self.expired: list[float] = []

    def deadline(self) -> Deadline:
        return self.timers.deadline(lambda: self.expired.append(self.clock.seconds()))

    def test_it_expires_once_and_at_a_whole_second_in_time(self) -> None:
        self.deadline().start(20)
        self.clock.pump([1] * 19)
        self.assertEqual(self.expired, [])
        self.clock.pump([1] * 100)
        self.assertEqual(self.expired, [20])

    def test_it_is_never_early_and_at_most_a_bucket_late(self) -> None:
        random = Random(7)
        for _ in range(500):
            self.expired.clear()
            self.clock.advance(random.random() * 3)
            seconds = random.choice([random.random() * 5, 0.1, 1, 2.5, 3])
            due = self.clock.seconds() + seconds
            deadline = self.deadline()
            deadline.start(seconds)
            while not self.expired:
                self.clock.advance(0.01)
            self.assertGreaterEqual(self.expired[0], due)
            self.assertLess(self.expired[0], due + BUCKET + 0.02)

    def test_it_is_never_early_with_the_time_of_day(self) -> None:
        self.clock.rightNow = 1_795_900_000.123456
        for n in range(200):
            self.clock.advance(0.007)
            due = self.clock.seconds() + 1 + n / 1000
            deadline = self.deadline()
            deadline.start(1 + n / 1000)
            self.clock.advance(due - self.clock.seconds() - 1e-5)
            self.assertEqual(self.expired, [])
            self.clock.advance(BUCKET)
            self.assertEqual(len(self.expired), 1)
            self.expired.clear()

    def test_starting_it_again_moves_it(self) -> None:
        deadline = self.deadline()
        deadline.start(10)
        for _ in range(30):
            self.clock.advance(5)
            deadline.start(10)
        self.assertEqual(self.expired, [])
        deadline.start(3)
        self.clock.pump([1] * 20)
        self.assertEqual(self.expired, [153])

    def test_one_that_is_stopped_does_not_expire_and_can_be_started_again(self) -> None:
        deadline = self.deadline()
        deadline.start(10)
        deadline.stop()
        self.assertIsNone(deadline.due)
        self.clock.advance(50)
        deadline.start(10)
        self.assertEqual(deadline.due, 60)
        self.clock.pump([1] * 50)
        self.assertEqual(self.expired, [60])
        self.assertIsNone(deadline.due)

    def test_one_that_is_cancelled_leaves_nothing_behind(self) -> None:
        deadline = self.deadline()
        deadline.start(10)
        deadline.cancel()
        deadline.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_may_cancel_another_that_expires_with_it(self) -> None:
        deadlines: list[Deadline] = []

        def expired() -> None:
            self.expired.append(self.clock.seconds())
            for deadline in deadlines:
                deadline.cancel()

        deadlines += [self.timers.deadline(expired) for _ in range(2)]
        for deadline in deadlines:
            deadline.start(5)
        self.clock.pump([1] * 20)
        self.assertEqual(self.expired, [5])

    def test_one_may_cancel_and_start_another_that_expires_with_it(self) -> None:
        other = self.deadline()

        def expired() -> None:
            other.cancel()
            other.start(5)

        self.timers.deadline(expired).start(5)
        other.start(5)
        self.clock.pump([1] * 20)
        self.assertEqual(self.expired, [10])

    def test_one_may_start_itself_again(self) -> None:
        def expired() -> None:
            self.expired.append(self.clock.seconds())
            deadline.start(2)

        deadline = self.timers.deadline(expired)
        deadline.start(2)
        self.clock.pump([1] * 6)
        self.assertEqual(self.expired, [2, 4, 6])

    def test_many_share_the_calls_of_the_clock_and_are_spread_over_a_bucket(self) -> None:
        deadlines = [self.deadline() for _ in range(1000)]
        for deadline in deadlines:
            deadline.start(30)
            self.clock.advance(0.0001)
        self.assertLessEqual(len(self.clock.getDelayedCalls()), 2)
        for _ in range(10):
            self.clock.advance(1)
            for deadline in deadlines:
                deadline.start(30)
        self.assertLessEqual(len(self.clock.getDelayedCalls()), 2)
        self.clock.advance(29.5)
        self.assertEqual(self.expired, [])
        self.clock.pump([0.001] * 2600)
        at_once = max(self.expired.count(at) for at in self.expired)
        self.assertEqual(len(self.expired), 1000)
        self.assertLessEqual(at_once, 200)

    def test_one_may_be_cancelled_while_its_bucket_is_spread_and_made_anew(self) -> None:
        deadlines = [self.deadline() for _ in range(150)]
        for deadline in deadlines:
            deadline.start(5)
        self.clock.advance(5.1)
        self.assertEqual(len(self.expired), 100)
        past = self.deadline()
        past.start(-0.5)
        deadlines[-1].cancel()
        deadlines[-2].start(-0.2)
        self.clock.pump([0.5] * 10)
        self.assertEqual(len(self.expired), 150)

    def test_one_that_fails_does_not_keep_the_others_from_expiring(self) -> None:
        self.timers.deadline(lambda: 1 / 0).start(5)
        self.deadline().start(5)
        self.clock.advance(5)
        self.assertEqual(self.expired, [5])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_each_clock_has_its_own(self) -> None:
        other = Clock()
        others: list[float] = []
        Timers(other).deadline(lambda: others.append(other.seconds())).start(5)
        self.deadline().start(5)
        self.clock.advance(10)
        self.assertEqual((len(self.expired), others), (1, []))
        other.advance(5)
        self.assertEqual(others, [5])
