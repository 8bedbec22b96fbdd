"""One budget of buffers: bounds, fairness, and nobody left waiting."""

from __future__ import annotations

from random import Random

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.budget import (
    RECEIVE_SIZE,
    BufferBudget,
    ShareExhausted,
    Shares,
    delivered_late,
    receive_size,
)

R = 10
"""What one ``recv`` brings in these tests."""


def late(transports: int) -> int:
    """What so many of them bring after they were paused."""
    return transports * R


@define(eq=False)
class Sink:
    """
    A transfer that takes in what it is given, and writes out when told to.

    Its transport delivers one more ``recv`` after it was paused, as real ones may.
    """

    budget: BufferBudget
    buffered: int = 0
    held: bool = False
    log: list[Sink] = field(factory=list)
    straggler: bool = False

    def hold(self) -> None:
        self.held = True
        self.straggler = True

    def go_on(self) -> None:
        self.held = False
        self.straggler = False
        self.log.append(self)

    def receive(self, size: int = R) -> None:
        """Deliver, if it isn't held, or was not an instant ago."""
        if not self.held or self.straggler:
            self.straggler = False
            self.buffered += size
            self.budget.take(self, size)

    def write_out(self) -> None:
        """Let go of all it has."""
        size, self.buffered = self.buffered, 0
        self.budget.release(size)


@define(eq=False)
class EagerSink(Sink):
    """Writes out as soon as it is held."""

    def hold(self) -> None:
        super().hold()
        self.write_out()


class ConsumerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.budget = BufferBudget(100, late)

    def sinks(self, count: int) -> list[Sink]:
        log: list[Sink] = []
        sinks = [Sink(self.budget, log=log) for _ in range(count)]
        for sink in sinks:
            self.budget.join(sink)
        return sinks

    def test_nobody_is_held_while_there_is_room(self) -> None:
        (sink,) = self.sinks(1)
        sink.receive(79)
        self.assertFalse(sink.held)
        self.assertFalse(self.budget.pressed)

    def test_room_is_kept_for_one_recv_of_each(self) -> None:
        for count, threshold in ((1, 80), (5, 40), (6, 30), (7, 25), (1000, 25)):
            budget = BufferBudget(100, late)
            for _ in range(count):
                budget.join(Sink(budget))
            self.assertEqual(threshold, budget.threshold)

    def test_few_transports_bring_more_at_a_time_than_many(self) -> None:
        sizes = [receive_size(count) for count in (1, 4, 5, 16, 64, 1000)]
        few = [1 << 20, 1 << 20, (4 << 20) // 5, 256 << 10]
        self.assertEqual(sizes, [*few, 256 << 10, 256 << 10])

    def test_what_is_late_is_what_each_may_bring_that_came_as_the_next_one(self) -> None:
        for count in (0, 1, 5, 16, 17, 100):
            each = [max(RECEIVE_SIZE, receive_size(n)) for n in range(1, count + 1)]
            self.assertEqual(delivered_late(count), sum(each))

    def test_all_are_held_when_one_uses_it_up(self) -> None:
        first, second = self.sinks(2)
        first.receive(80)
        self.assertTrue(first.held and second.held and self.budget.pressed)

    def test_who_comes_when_it_is_used_up_is_held_at_once(self) -> None:
        (first,) = self.sinks(1)
        first.receive(80)
        (second,) = self.sinks(1)
        self.assertTrue(second.held)

    def test_one_that_writes_out_at_once_lets_all_go_on(self) -> None:
        eager = EagerSink(self.budget)
        self.budget.join(eager)
        (other,) = self.sinks(1)
        eager.receive(30)
        other.receive(60)
        self.assertEqual(60, self.budget.used)
        self.assertFalse(eager.held or other.held or self.budget.pressed)

    def test_they_go_on_when_bytes_have_gone_out(self) -> None:
        first, second = self.sinks(2)
        first.receive(80)
        self.budget.release(11)
        self.assertFalse(first.held or second.held or self.budget.pressed)

    def test_who_had_least_of_late_goes_on_first(self) -> None:
        first, second, third = sinks = self.sinks(3)
        second.receive()
        third.receive()
        first.receive(60)
        first.write_out()
        self.assertEqual([second, third, first], sinks[0].log)

    def test_who_leaves_makes_room(self) -> None:
        first, second = self.sinks(2)
        second.receive(75)
        self.assertTrue(second.held)
        self.budget.leave(first)
        self.assertFalse(second.held)

    def test_the_limit_holds_however_they_come_and_go(self) -> None:
        for seed in range(50):
            random = Random(seed)
            self.budget = BufferBudget(100, late)
            sinks = self.sinks(random.randint(1, 6))
            for _ in range(500):
                sink = random.choice(sinks)
                if random.random() < 0.7:
                    sink.receive(random.randint(1, R))
                else:
                    sink.write_out()
                self.assertLessEqual(self.budget.used, 100, f"seed {seed}")
                self.assertEqual(self.budget.used, sum(s.buffered for s in sinks))
            for sink in sinks:
                sink.write_out()
            self.assertFalse(any(s.held for s in sinks), f"seed {seed}: somebody waits for ever")


class BufferTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.budget = BufferBudget(100, late)

    def test_a_buffer_is_there_at_once_while_there_is_room(self) -> None:
        self.successResultOf(self.budget.acquire(60))
        self.successResultOf(self.budget.acquire(40))
        self.assertEqual(100, self.budget.used)

    def test_it_is_waited_for_when_there_is_none(self) -> None:
        self.budget.acquire(100)
        waiting = self.budget.acquire(1)
        self.assertNoResult(waiting)
        self.budget.release(100)
        self.successResultOf(waiting)
        self.assertEqual(1, self.budget.used)

    def test_first_come_first_served(self) -> None:
        self.budget.acquire(90)
        large, small = self.budget.acquire(80), self.budget.acquire(15)
        self.assertNoResult(small)
        self.budget.release(10)
        self.assertNoResult(large)
        self.budget.release(70)
        self.successResultOf(large)
        self.assertNoResult(small)
        self.budget.release(5)
        self.successResultOf(small)

    def test_who_gives_up_is_in_nobodys_way(self) -> None:
        self.budget.acquire(90)
        large, small = self.budget.acquire(80), self.budget.acquire(5)
        large.cancel()
        self.failureResultOf(large, CancelledError)
        self.successResultOf(small)
        self.assertEqual((95, False), (self.budget.used, self.budget.pressed))

    def test_a_large_buffer_is_served_when_nothing_else_is_held(self) -> None:
        for _ in range(7):
            self.budget.join(Sink(self.budget))
        self.successResultOf(self.budget.acquire(100))

    def test_a_buffer_beyond_the_limit_is_a_mistake(self) -> None:
        with self.assertRaises(ValueError):
            self.budget.acquire(101)

    def test_a_waiting_reader_makes_the_writers_write_out(self) -> None:
        writer = Sink(self.budget)
        self.budget.join(writer)
        writer.receive(50)
        reader = self.budget.acquire(60)
        self.assertTrue(writer.held)
        writer.write_out()
        self.successResultOf(reader)
        self.assertFalse(writer.held)


class SharesTests(SynchronousTestCase):
    """Ten bytes, of which one owner may hold six; two of an owner's requests may wait."""

    def setUp(self) -> None:
        self.shares = Shares(10, 6, queue=2)
        self.granted: list[str] = []

    def acquire(self, owner: str, size: int) -> Deferred[None]:
        return self.shares.acquire(owner, size).addCallback(lambda _: self.granted.append(owner))

    def test_an_owner_waits_for_the_own_share_and_holds_up_no_other(self) -> None:
        self.acquire("mallory", 5)
        self.acquire("mallory", 2)
        self.acquire("ann", 5)
        self.assertEqual(self.granted, ["mallory", "ann"])
        self.shares.release("mallory", 5)
        self.assertEqual(self.granted, ["mallory", "ann", "mallory"])
        self.assertEqual(self.shares.used, 7)

    def test_what_one_owner_waits_for_is_bounded_in_bytes_too(self) -> None:
        self.shares = Shares(10, 6, queue=9, backlog=8)
        for size in (6, 3, 4):
            self.acquire("mallory", size)
        self.assertRaises(ShareExhausted, self.acquire, "mallory", 2)
        self.acquire("mallory", 1)
        self.acquire("ann", 4)
        self.assertEqual(self.granted, ["mallory", "ann"])

    def test_owners_take_turns(self) -> None:
        self.acquire("holder", 6)
        self.acquire("holding", 4)
        for owner in ("mallory", "mallory", "ann"):
            self.acquire(owner, 4)
        del self.granted[:]
        for owner in ("holding", "mallory", "ann"):
            self.shares.release(owner, 4)
        self.assertEqual(self.granted, ["mallory", "ann", "mallory"])

    def test_small_ones_do_not_overtake_a_large_one_for_ever(self) -> None:
        self.acquire("ann", 6)
        self.acquire("ben", 6)
        self.acquire("cid", 1)
        self.assertEqual(self.granted, ["ann"])
        self.shares.release("ann", 6)
        self.assertEqual(self.granted, ["ann", "ben", "cid"])

    def test_one_that_gives_up_makes_room_for_those_behind_it(self) -> None:
        self.acquire("ann", 6)
        large = self.acquire("ben", 6)
        self.acquire("cid", 1)
        large.cancel()
        self.failureResultOf(large, CancelledError)
        self.assertEqual(self.granted, ["ann", "cid"])

    def test_few_of_an_owner_wait(self) -> None:
        for _ in range(3):
            self.acquire("ann", 6)
        self.assertRaises(ShareExhausted, self.shares.acquire, "ann", 1)
        self.acquire("ben", 4)
        self.assertEqual(self.granted, ["ann", "ben"])

    def test_more_than_a_share_is_refused(self) -> None:
        self.assertRaises(ValueError, self.shares.acquire, "ann", 7)

    def test_bounds_hold_and_all_are_served_however_they_come_and_go(self) -> None:
        random = Random(9)
        shares = Shares(100, 40, queue=1000)
        held: list[tuple[str, int]] = []
        outstanding = 0

        def took(_: None, owner: str, size: int) -> None:
            held.append((owner, size))
            self.assertLessEqual(sum(each for _, each in held), 100)
            self.assertLessEqual(sum(each for of, each in held if of == owner), 40)

        for _ in range(3000):
            if random.random() < 0.5:
                owner, size = random.choice("abcdef"), random.randint(1, 40)
                outstanding += 1
                granted = shares.acquire(owner, size)
                granted.addCallback(took, owner, size)
            elif held:
                shares.release(*held.pop(random.randrange(len(held))))
                outstanding -= 1
        while held:
            shares.release(*held.pop())
            outstanding -= 1
        self.assertEqual((outstanding, shares.used), (0, 0))
