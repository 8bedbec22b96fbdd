"""Waiting that can be broken off from outside, and what is raised then."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from artifactd.storage.threads import outlive

_T = TypeVar("_T")


class Stopped(Exception):
    """It is left for later: nobody waits for it any more, or the daemon stops."""


class AlreadyHere(Stopped):
    """It need not be done: another process has done it, or somebody has pushed it."""


@define(eq=False)
class Interrupt:
    """What one piece of work waits for, one thing at a time."""

    stopped: bool = field(default=False, init=False)
    _waiting: Deferred[Any] | None = field(default=None, init=False)

    def stop(self) -> None:
        """Cancel what is waited for, now and later."""
        self.stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def wait(self, waiting: Deferred[_T]) -> _T:
        """:raises Stopped: if :meth:`stop` has been called.  Otherwise as ``waiting``."""
        self._waiting = waiting
        if self.stopped:
            waiting.cancel()

        def ended(result: _T | Failure) -> _T | Failure:
            self._waiting = None
            if self.stopped and isinstance(result, Failure):
                raise Stopped("left for later")
            return result

        outcome: Deferred[_T] = waiting.addBoth(ended)
        return await outcome

    async def outlived(
        self,
        work: Callable[[], Coroutine[Deferred[Any], Any, _T]],
        abandon: Callable[[_T], object] = lambda result: None,
    ) -> _T:
        """
        As :meth:`wait`, for ``work`` that goes on when it is not waited for any more; it is not
        begun after :meth:`stop`.

        :param abandon: is given what comes of it then.
        """
        if self.stopped:
            raise Stopped("left for later")
        return await self.wait(outlive(Deferred.fromCoroutine(work()), abandon))
