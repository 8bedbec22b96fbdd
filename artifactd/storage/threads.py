"""Work that blocks, in threads: who waits for it, and what becomes of it when nobody does."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RunInThread(Protocol):
    """``partial(deferToThreadPool, reactor, pool)``, or in a test something that runs at once."""

    def __call__(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """Call ``function`` where it may block."""


def outlive(
    running: Deferred[_T], abandon: Callable[[_T], object] = lambda result: None
) -> Deferred[_T]:
    """
    A Deferred for the outcome of ``running`` that may be cancelled while ``running`` goes on.

    :param abandon: is given the result that comes when nobody waits for it any more.
    """
    cancelled = False

    def cancel(_: object) -> None:
        nonlocal cancelled
        cancelled = True

    def succeeded(result: _T) -> None:
        if cancelled:
            abandon(result)
        else:
            waiting.callback(result)

    def failed(failure: Failure) -> None:
        if not cancelled:
            waiting.errback(failure)

    waiting: Deferred[_T] = Deferred(cancel)
    running.addCallbacks(succeeded, failed)
    return waiting


class Serial:
    """
    Threads on one file, one after the other.

    Cancelling what :meth:`run` returns gives up waiting; the thread goes on, and the next one
    starts only after it.
    """

    def __init__(self, run: RunInThread) -> None:
        self._run = run
        self._lock = DeferredLock()

    def run(
        self,
        function: Callable[[], _T],
        abandon: Callable[[_T], object] = lambda result: None,
    ) -> Deferred[_T]:
        """Call ``function`` in a thread, after all that was asked for before."""

        def start() -> Deferred[_T]:
            return self._run(function)

        return outlive(self._lock.run(start), abandon)

    def idle(self) -> Deferred[None]:
        """Fires when all that was asked for before has ended."""
        return outlive(self._lock.run(lambda: None))
