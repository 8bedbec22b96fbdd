"""The pool of threads."""

from __future__ import annotations

from threading import Event, Thread, current_thread, get_ident
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.kit.deferreds import Aside, Threads
from tests.programs import PATIENCE, reactor


class ThreadsTests(TestCase):
    def pool(self, most: int = 4) -> Threads:
        threads = Threads(reactor, most, "test")
        self.addCleanup(threads.stop)
        threads.start()
        return threads

    async def test_a_function_runs_in_a_thread_and_its_result_comes_in_the_reactors(self) -> None:
        here = get_ident()
        came: list[int] = []
        running = self.pool().run(lambda a, b: (a, b, get_ident()), 1, b=2)

        def arrived(result: tuple[int, int, int]) -> tuple[int, int, int]:
            came.append(get_ident())
            return result

        running.addCallback(arrived)
        a, b, thread = await running
        self.assertEqual((a, b, came), (1, 2, [here]))
        self.assertNotEqual(thread, here)

    async def test_what_it_raises_comes_as_a_failure(self) -> None:
        def fail() -> None:
            raise ValueError("no")

        threads = self.pool(1)
        await self.assertFailure(threads.run(fail), ValueError)
        self.assertEqual(await threads.run(lambda: 1), 1)

    async def test_as_many_run_at_a_time_as_there_may_be_threads(self) -> None:
        threads = self.pool(3)
        events = [Event() for _ in range(3)]

        def meet(mine: int) -> bool:
            events[mine].set()
            return all(event.wait(PATIENCE) for event in events)

        met = await gatherResults([threads.run(meet, number) for number in range(3)])
        self.assertEqual(met, [True] * 3)

    async def test_where_the_system_gives_no_more_threads_those_that_are_go_on(self) -> None:
        threads = self.pool(2)
        held, starts = Event(), list[Thread]()
        first = threads.run(held.wait, PATIENCE)

        def start(thread: Thread) -> None:
            starts.append(thread)
            raise RuntimeError("can't start new thread")

        failing = self.patch(Thread, "start", start)
        second = threads.run(lambda: 2)
        failing.restore()
        self.assertEqual(len(starts), 1)
        held.set()
        self.assertEqual(await gatherResults([first, second]), [True, 2])
        self.assertEqual(await threads.run(lambda: 3), 3)

    async def test_no_more_threads_are_made_than_are_needed(self) -> None:
        threads = self.pool(3)
        names = {await threads.run(lambda: current_thread().name) for _ in range(10)}
        self.assertEqual(names, {"test-0"})

    async def test_they_begin_in_the_order_in_which_they_came(self) -> None:
        threads, begun = self.pool(1), list[int]()
        await gatherResults([threads.run(begun.append, number) for number in range(100)])
        self.assertEqual(begun, list(range(100)))

    async def test_nothing_runs_before_the_start(self) -> None:
        threads = Threads(reactor, 2, "test")
        self.addCleanup(threads.stop)
        waiting = [threads.run(lambda: 1) for _ in range(3)]
        for each in waiting:
            self.assertNoResult(each)
        threads.start()
        self.assertEqual(await gatherResults(waiting), [1, 1, 1])

    async def test_stopping_waits_for_all_and_later_ones_never_run(self) -> None:
        threads, ran = Threads(reactor, 1, "test"), list[int]()
        threads.start()
        for number in range(20):
            threads.run(ran.append, number)
        threads.stop()
        threads.run(ran.append, 20)
        self.assertEqual(ran, list(range(20)))

    async def test_a_result_that_is_given_up_harms_no_other(self) -> None:
        threads, event = self.pool(1), Event()
        given_up = threads.run(event.wait, PATIENCE)
        given_up.cancel()
        event.set()
        self.assertEqual(await threads.run(lambda: 1), 1)
        self.assertIsInstance(self.failureResultOf(given_up), Failure)


class ComputeTests(TestCase):
    """Functions that keep a core busy."""

    def pool(self, cores: int) -> Threads:
        threads = Threads(reactor, 4, "test", cores)
        self.addCleanup(threads.stop)
        threads.start()
        return threads

    async def test_as_many_run_at_a_time_as_there_are_cores_and_keep_no_other_waiting(self) -> None:
        threads, go_on, begun = self.pool(2), Event(), list[int]()
        started = [Event() for _ in range(5)]

        def compute(number: int) -> None:
            begun.append(number)
            started[number].set()
            go_on.wait(PATIENCE)

        computing = [threads.compute(compute, number) for number in range(5)]
        for number in range(2):
            self.assertTrue(await threads.run(started[number].wait, PATIENCE))
        self.assertEqual(sorted(begun), [0, 1])
        self.assertEqual((threads.busy, threads.queued), (2, 3))
        go_on.set()
        await gatherResults(computing)
        self.assertEqual(sorted(begun), [0, 1, 2, 3, 4])
        self.assertEqual(threads.queued, 0)

    async def test_one_that_fails_makes_room_for_the_next(self) -> None:
        def fail() -> None:
            raise ValueError("no")

        threads = self.pool(1)
        failing = [threads.compute(fail) for _ in range(3)]
        last = threads.compute(lambda: 1)
        for each in failing:
            await self.assertFailure(each, ValueError)
        self.assertEqual(await last, 1)

    async def test_stopping_waits_for_them_too_and_later_ones_never_run(self) -> None:
        threads, ran = Threads(reactor, 1, "test"), list[int]()
        threads.start()
        for number in range(20):
            threads.compute(ran.append, number)
        threads.stop()
        threads.compute(ran.append, 20)
        self.assertEqual(ran, list(range(20)))


class AsideTests(SynchronousTestCase):
    """Work that another thread may take over."""

    def test_it_runs_where_its_result_is_needed_if_no_other_thread_has_come(self) -> None:
        ran: list[int] = []
        work = Aside(lambda: ran.append(get_ident()))
        work.result()
        work.begin()
        self.assertEqual(ran, [get_ident()])

    def test_a_thread_that_has_begun_is_waited_for(self) -> None:
        begun, go_on = Event(), Event()

        def work() -> int:
            begun.set()
            go_on.wait(PATIENCE)
            return get_ident()

        aside = Aside(work)
        other = Thread(target=aside.begin)
        other.start()
        self.assertTrue(begun.wait(PATIENCE))
        go_on.set()
        self.assertEqual(aside.result(), other.ident)
        other.join()

    def test_what_it_raises_is_raised_where_its_result_is_needed(self) -> None:
        def fail() -> None:
            raise ValueError("no")

        work = Aside(fail)
        work.begin()
        self.assertRaises(ValueError, work.result)


class OfferTests(TestCase):
    """What a thread of the pool offers the others."""

    async def offered(self, cores: int, busy: int = 0) -> list[bool]:
        """Whether another thread took it over, and whether that thread has come back since."""
        threads, go_on = Threads(reactor, 4, "test", cores), Event()
        self.addCleanup(threads.stop)
        threads.start()
        held = [threads.run(go_on.wait, PATIENCE) for _ in range(busy)]
        taken: list[int] = []
        both = Event()

        def work() -> None:
            taken.append(get_ident())
            both.set()

        def offer() -> bool:
            threads.offer(work)
            return threads.busy + threads.queued > busy + 1 and both.wait(PATIENCE)

        took = await threads.run(offer)
        go_on.set()
        await gatherResults(held)
        return [took, await threads.run(lambda: len(taken) == took)]

    async def test_another_thread_takes_it_over_where_a_core_is_free(self) -> None:
        self.assertEqual(await self.offered(2), [True, True])
        self.assertEqual(await self.offered(4, busy=2), [True, True])

    async def test_none_does_where_the_cores_have_enough_to_do(self) -> None:
        self.assertEqual(await self.offered(1), [False, True])
        self.assertEqual(await self.offered(2, busy=1), [False, True])

    async def test_none_does_after_the_end(self) -> None:
        threads, ran = Threads(reactor, 2, "test", 2), list[int]()
        threads.start()
        threads.stop()
        threads.offer(lambda: ran.append(1))
        self.assertEqual((ran, threads.queued), ([], 0))


class FakeReactor:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def callFromThread(self, function: Any, *args: Any) -> None:
        self.calls.append((function, args))

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for function, args in calls:
            function(*args)


class DeliveryTests(SynchronousTestCase):
    def test_results_that_come_in_one_turn_wake_the_reactor_once(self) -> None:
        fake: Any = FakeReactor()
        threads, got = Threads(fake, 1, "test"), list[int]()
        for number in range(3):
            threads.callFromThread(got.append, number)
        self.assertEqual((len(fake.calls), got), (1, []))
        fake.turn()
        self.assertEqual(got, [0, 1, 2])
        threads.callFromThread(got.append, 3)
        fake.turn()
        self.assertEqual(got, [0, 1, 2, 3])

    def test_one_that_can_not_be_delivered_is_logged_and_stops_no_other(self) -> None:
        fake: Any = FakeReactor()
        threads, got = Threads(fake, 1, "test"), list[int]()
        done: Deferred[int] = Deferred()
        done.callback(1)
        threads.callFromThread(done.callback, 2)  # AlreadyCalledError
        threads.callFromThread(got.append, 3)
        fake.turn()
        self.assertEqual(got, [3])
        self.assertEqual(len(self.flushLoggedErrors()), 1)
