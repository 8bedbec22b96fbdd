"""Turns of large transfers: how many there are in one turn of the reactor, in which order."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.turns import MOST, Turns


@define(eq=False)
class Transfer:
    """A transfer that notes when its turn has come, and then does what the test says."""

    name: int
    log: list[int]
    also: Callable[[], object] = field(default=lambda: None)

    def step(self) -> None:
        self.log.append(self.name)
        self.also()


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        # Unlike that of Clock, a turn leaves the calls that are made in it to the next one.
        self.calls: list[Callable[[], object]] = []
        clock = Clock()
        self.patch(clock, "callLater", self.call_later)
        self.turns = Turns(clock)
        self.log: list[int] = []

    def call_later(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        self.assertEqual(seconds, 0)
        self.calls.append(function)
        return function

    def transfers(self, count: int) -> list[Transfer]:
        transfers = [Transfer(number, self.log) for number in range(count)]
        for _ in transfers:
            self.turns.join()
        return transfers

    def turn(self) -> list[int]:
        """Let the reactor turn once, and return whose turns came."""
        self.log.clear()
        calls, self.calls[:] = self.calls[:], []
        for call in calls:
            call()
        return self.log[:]

    def test_while_they_are_few_none_waits(self) -> None:
        for transfer in self.transfers(MOST):
            self.turns.ask(transfer.step)
            self.assertFalse(self.turns.crowded)
        self.assertEqual(self.log, list(range(MOST)))
        self.assertEqual(self.calls, [])

    def test_of_many_some_have_their_turn_in_each_turn_of_the_reactor(self) -> None:
        transfers = self.transfers(2 * MOST + 3)
        for transfer in transfers:
            self.turns.ask(transfer.step)
        self.assertEqual(self.log, [])
        self.assertEqual(self.turn(), list(range(MOST)))
        self.assertEqual(self.turn(), list(range(MOST, 2 * MOST)))
        self.assertEqual(self.turn(), [2 * MOST, 2 * MOST + 1, 2 * MOST + 2])
        self.assertEqual(self.calls, [])

    def test_one_that_has_moved_goes_behind_all_that_wait(self) -> None:
        transfers = self.transfers(MOST + 1)
        for transfer in transfers:
            transfer.also = lambda step=transfer.step: self.turns.ask(step)  # type: ignore[misc]
            self.turns.ask(transfer.step)
        self.assertEqual(self.turn(), list(range(MOST)))
        self.assertEqual(self.turn(), [MOST, *range(MOST - 1)])

    def test_one_that_asks_again_keeps_its_place(self) -> None:
        first, second, *_ = self.transfers(MOST + 1)
        for transfer in (first, second, first):
            self.turns.ask(transfer.step)
        self.assertEqual((self.turn(), self.turn()), ([0, 1], []))

    def test_one_that_leaves_has_no_turn(self) -> None:
        first, second, *_ = self.transfers(MOST + 2)
        self.turns.ask(first.step)
        self.turns.ask(second.step)
        self.turns.leave(first.step)
        self.assertEqual(self.turn(), [1])

    def test_none_overtakes_those_that_wait_when_they_have_become_few(self) -> None:
        *waiting, last = self.transfers(MOST + 1)
        for transfer in waiting:
            self.turns.ask(transfer.step)
        self.turns.leave(waiting.pop().step)
        self.turns.ask(last.step)
        self.assertEqual(self.turn(), [*range(MOST - 1), MOST])
        self.log.clear()
        self.turns.ask(last.step)
        self.assertEqual(self.log, [MOST])

    def test_a_step_that_fails_holds_up_no_other(self) -> None:
        def fail() -> None:
            raise ValueError("no")

        first, second, *_ = self.transfers(MOST + 1)
        first.also = fail
        self.turns.ask(first.step)
        self.turns.ask(second.step)
        self.assertRaises(ValueError, self.turn)
        self.assertEqual(self.turn(), [1])
