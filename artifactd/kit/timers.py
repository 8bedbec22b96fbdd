"""Deadlines by the thousand, on txaio's batched timer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from txaio import tx as txaio

BUCKET = 1.0
"""Seconds.  All deadlines of one bucket share one delayed call of the reactor."""

# txaio rounds down to the bucket.  A deadline is therefore asked for at the end of its bucket, and
# this many seconds later, so that no rounding of floats puts it into the bucket before.
_MARGIN = 1e-3

_config: Any = txaio.config  # which types its loop as None


class Timers:
    """
    Makes deadlines that share a batched timer: per second the reactor has one delayed call for all
    of them, however many there are.

    A deadline never expires early.  It expires up to one :data:`BUCKET` late, or up to two where
    more than a hundred expire in the same bucket: txaio spreads those over the next one.

    :param clock: the reactor, or a test's clock.
    :ivar seconds: returns the time of the clock.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = _Loop(clock)
        with _loop(self._clock):
            self._timer = txaio.make_batched_timer(BUCKET)
        self.seconds = clock.seconds

    def deadline(self, expired: Callable[[], object]) -> Deadline:
        """
        Make a deadline, which does not run yet.

        :param expired: is called when it expires.
        """
        return Deadline(self, expired)

    def call_at(self, when: float, function: Callable[[], None]) -> Any:
        """
        Call ``function`` at ``when`` or up to two buckets later.

        Returns an object whose ``cancel()`` searches the whole bucket.
        """
        end = math.ceil(when / BUCKET) * BUCKET
        with _loop(self._clock):
            return self._timer.call_later(end - self._clock.seconds() + _MARGIN, function)


class Deadline:
    """
    One deadline, to be started, moved and stopped as often as its owner likes.

    Starting, moving and stopping only note the time at which the deadline is due.  A timer that
    fires too early is set again, so 20,000 connections that each start a deadline for every request
    cost next to nothing.  The owner calls :meth:`cancel` when it ends, since the timer keeps a
    reference to the owner until then.

    :ivar due: the time of the clock at which the deadline expires; ``None`` while it does not run.
    """

    __slots__ = ("_call", "_expired", "_fires", "_seconds", "_timers", "due")

    def __init__(self, timers: Timers, expired: Callable[[], object]) -> None:
        self._timers = timers
        self._expired = expired
        self._seconds = timers.seconds
        self.due: float | None = None
        self._call: Any = None
        self._fires = 0.0

    def start(self, seconds: float) -> None:
        """Set the deadline to ``seconds`` from now, whether it runs already or not."""
        due = self.due = self._seconds() + seconds
        if self._call is not None and self._fires > due:
            self._forget()
        if self._call is None:
            self._arm(due)

    def stop(self) -> None:
        """Stop the deadline, which costs nothing; :meth:`start` lets it run again."""
        self.due = None

    def cancel(self) -> None:
        """Stop the deadline, and remove it from the timer."""
        self.due = None
        self._forget()

    def _forget(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            # txaio looks for the call in a bucket that was made anew, by a deadline in the past,
            # while the calls of the earlier one are still being spread.  That call does nothing.
            with suppress(ValueError):
                call.cancel()

    def _arm(self, due: float) -> None:
        self._fires = due
        self._call = self._timers.call_at(due, self._fired)

    def _fired(self) -> None:
        now = self._seconds()
        # txaio calls what was cancelled by an earlier call of the same bucket.
        if self._call is None or now < self._fires:
            return
        self._call = None
        due = self.due
        if due is None:
            return
        if now < due:
            self._arm(due)
            return
        self.due = None
        try:
            self._expired()
        except Exception:
            # txaio would go on, and raise an error without a traceback at the end of the bucket.
            _log.failure("a deadline failed")


_log = Logger()


class _Loop:
    """
    A clock whose calls find it as txaio's loop.

    txaio has one loop for the whole process and looks it up whenever a timer calls, even from
    within a bucket; artifactd has a clock for each test.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.seconds: Callable[[], float] = clock.seconds

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any) -> IDelayedCall:
        return self._clock.callLater(delay, self._call, function, *args)

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        with _loop(self):
            function(*args)


@contextmanager
def _loop(loop: object) -> Iterator[None]:
    """Make ``loop`` the one of txaio until the end of the context."""
    before = _config.loop
    _config.loop = loop
    try:
        yield
    finally:
        _config.loop = before
