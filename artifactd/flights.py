"""Work that several ask for at the same time, done once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


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
