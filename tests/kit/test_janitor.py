"""Paging, pausing and stopping of background upkeep."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.deferreds import Stopped
from artifactd.kit.janitor import Pace, batches, pages


class PagesTests(SynchronousTestCase):
    def test_all_entries_come_a_page_at_a_time(self) -> None:
        async def fetch(after: int, count: int) -> Sequence[int]:
            return [number for number in range(5) if number > after][:count]

        async def collect() -> list[Sequence[int]]:
            return [page async for page in pages(fetch, -1, int, 2)]

        found = self.successResultOf(Deferred.fromCoroutine(collect()))
        self.assertEqual(found, [[0, 1], [2, 3], [4]])

    def test_a_sequence_is_cut_into_batches(self) -> None:
        self.assertEqual(list(batches([1, 2, 3], 2)), [[1, 2], [3]])
        self.assertEqual(list(batches([], 2)), [])


class PaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pace = Pace(self.clock)

    def spend(self, count: int, rate: int) -> Deferred[None]:
        return Deferred.fromCoroutine(self.pace.spend(count, rate))

    def test_it_pauses_for_as_long_as_the_rate_says(self) -> None:
        pause = self.spend(6, 2)
        self.clock.advance(2.9)
        self.assertNoResult(pause)
        self.clock.advance(0.2)
        self.successResultOf(pause)

    def test_nothing_and_an_unlimited_rate_take_no_time(self) -> None:
        self.successResultOf(self.spend(0, 2))
        self.successResultOf(self.spend(6, 0))

    def test_stopping_ends_the_pause_and_everything_after_it(self) -> None:
        pause = self.spend(6, 2)
        self.pace.stop()
        self.failureResultOf(pause, Stopped)
        self.failureResultOf(self.spend(0, 0), Stopped)
        self.assertRaises(Stopped, self.pace.check)
        self.assertEqual(self.clock.getDelayedCalls(), [])
