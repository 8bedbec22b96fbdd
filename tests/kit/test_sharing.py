"""One piece of work for many."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.deferreds import Shared
from artifactd.upstream.http.errors import Unreachable


class SharedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.shared: Shared[str, int] = Shared()
        self.works: list[Deferred[int]] = []
        self.cancelled = 0

    def join(self, key: str = "a") -> Deferred[int]:
        return self.shared.run(key, self.work)

    async def work(self) -> int:
        self.works.append(Deferred(self.note_cancelled))
        return await self.works[-1]

    def note_cancelled(self, _: object) -> None:
        self.cancelled += 1

    def test_all_who_want_it_get_the_result_of_one(self) -> None:
        waiting = [self.join() for _ in range(3)]
        self.assertEqual(1, len(self.works))
        self.works[0].callback(7)
        self.assertEqual([7, 7, 7], [self.successResultOf(one) for one in waiting])

    def test_all_get_the_failure_too(self) -> None:
        waiting = [self.join() for _ in range(3)]
        self.works[0].errback(Unreachable("refused"))
        for one in waiting:
            self.failureResultOf(one, Unreachable)

    def test_work_for_something_else_is_other_work(self) -> None:
        first, second = self.join("a"), self.join("b")
        self.works[1].callback(2)
        self.assertEqual(2, self.successResultOf(second))
        self.assertNoResult(first)

    def test_what_has_ended_is_begun_anew(self) -> None:
        self.join()
        self.works[0].callback(7)
        again = self.join()
        self.works[1].callback(8)
        self.assertEqual(8, self.successResultOf(again))

    def test_one_who_leaves_does_not_disturb_the_others(self) -> None:
        first, second = self.join(), self.join()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(0, self.cancelled)
        self.works[0].callback(7)
        self.assertEqual(7, self.successResultOf(second))

    def test_the_last_who_leaves_ends_the_work(self) -> None:
        waiting = [self.join(), self.join()]
        for one in waiting:
            one.cancel()
            self.failureResultOf(one, CancelledError)
        self.assertEqual(1, self.cancelled)

    def test_who_comes_after_the_last_has_left_begins_anew(self) -> None:
        self.failureResultOf(self.cancelled_one(), CancelledError)
        again = self.join()
        self.assertEqual(2, len(self.works))
        self.works[1].callback(7)
        self.assertEqual(7, self.successResultOf(again))

    def cancelled_one(self) -> Deferred[int]:
        joined = self.join()
        joined.cancel()
        return joined

    def test_one_who_makes_another_leave_when_told(self) -> None:
        first, second = self.join(), self.join()
        first.addCallback(lambda _: second.cancel())
        self.works[0].callback(7)
        self.failureResultOf(second, CancelledError)

    def test_work_that_ends_at_once(self) -> None:
        async def at_once() -> int:
            return await succeed(7)

        self.assertEqual(7, self.successResultOf(self.shared.run("a", at_once)))
        self.assertEqual(7, self.successResultOf(self.shared.run("a", at_once)))
