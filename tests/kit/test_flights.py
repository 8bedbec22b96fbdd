"""Work that several ask for at the same time."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.deferreds import Flights


class FlightsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.flights: Flights[str, int] = Flights()
        self.begun: list[Deferred[int]] = []

    def join(self, key: str = "a") -> Deferred[int]:
        async def work() -> int:
            self.begun.append(Deferred())
            return await self.begun[-1]

        return self.flights.join(key, work)

    def test_who_asks_meanwhile_gets_the_same_outcome(self) -> None:
        one, other = self.join(), self.join()
        self.assertEqual(len(self.begun), 1)
        self.assertTrue(self.flights.under_way("a"))
        self.begun[0].callback(7)
        self.assertEqual((self.successResultOf(one), self.successResultOf(other)), (7, 7))

    def test_a_failure_is_everybodys(self) -> None:
        one, other = self.join(), self.join()
        self.begun[0].errback(ValueError())
        self.failureResultOf(one, ValueError)
        self.failureResultOf(other, ValueError)

    def test_who_asks_afterwards_begins_anew(self) -> None:
        self.join()
        self.begun[0].callback(7)
        self.assertFalse(self.flights.under_way("a"))
        again = self.join()
        self.begun[1].callback(8)
        self.assertEqual(self.successResultOf(again), 8)

    def test_other_work_is_not_waited_for(self) -> None:
        self.join("a")
        self.join("b")
        self.assertEqual(len(self.begun), 2)

    def test_who_gives_up_leaves_the_work_to_the_others(self) -> None:
        gone, waiting = self.join(), self.join()
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.begun[0].callback(7)
        self.assertEqual(self.successResultOf(waiting), 7)

    def test_work_that_ends_at_once_leaves_nothing(self) -> None:
        async def work() -> int:
            return 7

        self.assertEqual(self.successResultOf(self.flights.join("a", work)), 7)
        self.assertFalse(self.flights.under_way("a"))
