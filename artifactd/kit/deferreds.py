"""Work that blocks, in threads: who waits for it, and what becomes of it when nobody does."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from attrs import define, field
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


# Work that goes on when the client that asked for it is gone.


def uncancelled(
    work: Coroutine[Deferred[Any], Any, _T], orphaned: Callable[[_T | Failure], object]
) -> Deferred[_T]:
    """
    Run ``work`` to its end whatever becomes of the Deferred returned here.

    Klein cancels a handler when its client goes away.  A publication that is under way must not
    stop between its steps for that, and a thread could not be stopped anyway.

    :param orphaned: called with the outcome if nobody waits for it any more.
    """
    waiting: Deferred[_T] = Deferred()

    def done(result: _T | Failure) -> None:
        if waiting.called:
            orphaned(result)
        elif isinstance(result, Failure):
            waiting.errback(result)
        else:
            waiting.callback(result)

    Deferred.fromCoroutine(work).addBoth(done)
    return waiting


# Waiting that can be broken off from outside, and what is raised then.


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


# Work that several ask for at the same time, done once.

_K = TypeVar("_K", bound=Hashable)


@define(eq=False)
class Flights(Generic[_K, _T]):
    """What is under way, by what was asked for; whoever asks meanwhile gets the same outcome."""

    _waiting: dict[_K, list[Deferred[_T]]] = field(factory=dict, init=False)

    def under_way(self, key: _K) -> bool:
        """Whether :meth:`join` would begin nothing."""
        return key in self._waiting

    def join(
        self,
        key: _K,
        work: Callable[[], Coroutine[Deferred[Any], Any, _T]],
        afterwards: Callable[[_T], object] = lambda result: None,
    ) -> Deferred[_T]:
        """
        The outcome of ``work``, begun now unless it is under way for ``key``.

        :param afterwards: is given what ``work`` returns once everybody has got it.
        """
        outcome: Deferred[_T] = Deferred()
        if key in self._waiting:
            self._waiting[key].append(outcome)
            return outcome
        self._waiting[key] = [outcome]

        def ended(result: _T | Failure) -> None:
            for waiting in self._waiting.pop(key):
                if not waiting.called:  # cancelled
                    waiting.callback(result)
            if not isinstance(result, Failure):
                afterwards(result)

        Deferred.fromCoroutine(work()).addBoth(ended)
        return outcome


# One piece of work for all who want its result.


@define(eq=False)
class _Work(Generic[_T]):
    waiting: list[Deferred[_T]] = field(factory=list)
    running: Deferred[None] | None = None


@define(eq=False)
class Shared(Generic[_K, _T]):
    """Work that is under way, by what it is for."""

    _under_way: dict[_K, _Work[_T]] = field(factory=dict, init=False)

    def run(self, key: _K, start: Callable[[], Coroutine[Any, Any, _T]]) -> Deferred[_T]:
        """
        The result of the work for ``key``: that under way, or else begun with ``start``.

        Cancelling it gives up waiting; the work is cancelled with the last who waits for it.
        """
        work = self._under_way.get(key)
        if work is not None:
            return self._join(key, work)
        work = self._under_way[key] = _Work()
        joined = self._join(key, work)

        def ended(outcome: _T | Failure) -> None:
            if self._under_way.get(key) is work:
                del self._under_way[key]
            waiting, work.waiting = work.waiting, []
            for deferred in waiting:
                # Whoever is told may cancel another who is about to be.
                if not deferred.called:
                    deferred.callback(outcome)

        work.running = Deferred.fromCoroutine(start()).addBoth(ended)
        return joined

    def _join(self, key: _K, work: _Work[_T]) -> Deferred[_T]:
        def leave(deferred: Deferred[_T]) -> None:
            if deferred not in work.waiting:
                return
            work.waiting.remove(deferred)
            if not work.waiting and work.running is not None:
                del self._under_way[key]
                work.running.cancel()

        joined: Deferred[_T] = Deferred(leave)
        work.waiting.append(joined)
        return joined
