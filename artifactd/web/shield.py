"""Work that goes on when the client that asked for it is gone."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_T = TypeVar("_T")


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
