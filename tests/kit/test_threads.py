"""The pool of threads."""

from __future__ import annotations

from threading import Event, Thread, current_thread, get_ident
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactd.kit.deferreds import Threads
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
