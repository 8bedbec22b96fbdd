"""One piece of work for all who want its result."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


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
