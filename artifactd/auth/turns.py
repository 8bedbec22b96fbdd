"""Turns: of each address few logins are checked at a time, so that guesses are counted in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field
from twisted.internet.defer import DeferredSemaphore

from artifactd.oci.errors import TooManyRequests

_AT_ONCE = 4  # logins of one address that are checked; its others wait for their turn
_WAITING = 64  # logins of one address
_ALL = 256  # logins of all addresses


def crowded() -> TooManyRequests:
    """What is told to whom :meth:`Turns.is_crowded` turns away."""
    return TooManyRequests("too many logins at once: try again", None, {"Retry-After": "1"})


@define
class _Queue:
    """Logins of one address."""

    turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(_AT_ONCE))
    pending: int = 0


@define(eq=False)
class Turns:
    """
    By address.

    :ivar pending: logins that have or await a turn.
    """

    pending: int = field(default=0, init=False)
    _queues: dict[str, _Queue] = field(factory=dict, init=False)

    def is_crowded(self, source: str, known: bool = False) -> bool:
        """
        Whether another login of ``source`` is to be turned away.

        :param known: whether it has been right before: then the flood of others does not count.
        """
        queue = self._queues.get(source)
        if queue is not None and queue.pending >= _WAITING:
            return True
        return self.pending >= _ALL and not known

    @asynccontextmanager
    async def turn(self, source: str) -> AsyncIterator[None]:
        """
        Wait for a turn, and have it.  What is counted, and what is looked at before a check, belong
        in it: whoever is next sees the count.
        """
        queue = self._queues.setdefault(source, _Queue())
        queue.pending += 1
        self.pending += 1
        try:
            await queue.turns.acquire()
            try:
                yield
            finally:
                queue.turns.release()
        finally:
            queue.pending -= 1
            self.pending -= 1
            if not queue.pending:
                del self._queues[source]
