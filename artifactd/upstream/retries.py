"""Asking again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from artifactd.upstream.breaker import Interrupted
from artifactd.upstream.errors import TimedOut, Unreachable

_T = TypeVar("_T")

# 5xx that are as good as a 4xx: asking again changes nothing (RFC 9110, 15.6.2 and 15.6.6).
DEFINITE = (501, 505)

# Seconds.
_FIRST = 0.25
_LONGEST = 5.0


def may_pass(error: Unreachable) -> bool:
    """
    Whether ``error`` may be gone a moment later: no answer, one broken off, or a 5xx.

    Not a timeout: whoever waits has waited for long enough.
    """
    if isinstance(error, TimedOut | Interrupted):
        return False
    return error.status is None or (error.status >= 500 and error.status not in DEFINITE)


@frozen
class Retries:
    """
    Exponential backoff with full jitter: before the n-th repetition a random time of up to
    0.25 · 2ⁿ⁻¹ seconds, at most 5.

    :ivar times: how often a request is repeated at most.
    """

    clock: IReactorTime
    random: Random
    times: int = 2

    async def run(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """The result of ``attempt``, which is called again as long as its failure may pass."""
        for repetition in range(self.times):
            try:
                return await attempt()
            except Unreachable as error:
                if not may_pass(error):
                    raise
            most = min(_FIRST * 2**repetition, _LONGEST)
            await deferLater(self.clock, self.random.uniform(0, most))
        return await attempt()
