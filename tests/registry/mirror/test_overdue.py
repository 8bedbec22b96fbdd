"""How long a client waits for an upstream where something cached can be answered."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.registry.mirror.stale import Overdue
from artifactd.upstream.http.errors import TimedOut, Unreachable


class OverdueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.overdue = Overdue(self.clock, 5.0)

    def wait(self) -> tuple[Deferred[str], Deferred[str]]:
        """What is asked, and what a client waits for."""
        asked: Deferred[str] = Deferred()
        return asked, Deferred.fromCoroutine(self.overdue.wait(asked))

    def test_what_comes_in_time_is_returned(self) -> None:
        asked, waiting = self.wait()
        self.clock.advance(4.9)
        asked.callback("here")
        self.assertEqual(self.successResultOf(waiting), "here")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_waits_after_it_was_late_until_it_has_answered(self) -> None:
        _, waiting = self.wait()
        self.clock.advance(5)
        reason = "the upstream has not answered for 5 seconds"
        self.assertEqual(self.failureResultOf(waiting, TimedOut).value.reason, reason)
        _, waiting = self.wait()
        self.clock.advance(0)
        self.failureResultOf(waiting, TimedOut)
        refused = Deferred.fromCoroutine(self.overdue.answered(fail(Unreachable("refused"))))
        self.failureResultOf(refused, Unreachable)
        self.assertTrue(self.overdue.silent)
        busy = Deferred.fromCoroutine(self.overdue.answered(fail(Unreachable("busy", 503))))
        self.failureResultOf(busy, Unreachable)
        _, waiting = self.wait()
        self.clock.advance(4.9)
        self.assertNoResult(waiting)

    def test_a_client_may_leave(self) -> None:
        _, waiting = self.wait()
        waiting.addErrback(lambda failure: None)
        waiting.cancel()
        self.assertFalse(self.overdue.silent)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_zero_is_without_end(self) -> None:
        self.overdue = Overdue(self.clock, 0.0)
        asked, waiting = self.wait()
        self.clock.advance(10_000)
        self.assertNoResult(waiting)
        asked.callback("here")
        self.assertEqual(self.successResultOf(waiting), "here")
