"""Background upkeep: reading a long list page by page, at a limited rate, until it is stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from artifactd.kit.deferreds import Interrupt, Stopped

_T = TypeVar("_T")
_K = TypeVar("_K")

PAGE = 64
"""Rows that one transaction changes: more of them would keep other writers waiting for longer."""


async def pages(
    fetch: Callable[[_K, int], Awaitable[Sequence[_T]]],
    start: _K,
    key: Callable[[_T], _K],
    size: int = PAGE,
) -> AsyncIterator[Sequence[_T]]:
    """
    All entries of a list that is read in pages.

    :param fetch: returns the first ``size`` entries after a key, in the order of the keys.
    :param start: a key before the first entry.
    :param key: the key of an entry.
    """
    after = start
    while page := await fetch(after, size):
        after = key(page[-1])
        yield page


def batches(entries: Sequence[_T], size: int = PAGE) -> Iterator[Sequence[_T]]:
    """``entries`` in pieces of ``size``; the last may be shorter."""
    return (entries[start : start + size] for start in range(0, len(entries), size))


@define(eq=False)
class Pace:
    """
    Keeps background work to a rate, and stops it.

    :param clock: measures the pauses.
    """

    clock: IReactorTime
    _pausing: Interrupt = field(factory=Interrupt, init=False)

    @property
    def is_stopped(self) -> bool:
        """Whether :meth:`stop` has been called."""
        return self._pausing.stopped

    def stop(self) -> None:
        """End the pause under way, and let each later :meth:`check` and :meth:`spend` raise."""
        self._pausing.stop()

    def check(self) -> None:
        """:raises Stopped: after :meth:`stop`."""
        if self._pausing.stopped:
            raise Stopped("left for later")

    async def spend(self, count: int, rate: int) -> None:
        """
        Pause for as long as ``count`` units take.

        :param rate: units per second; 0: no limit.
        :raises Stopped: after :meth:`stop`, also during the pause.
        """
        self.check()
        if count and rate:
            await self._pausing.wait(deferLater(self.clock, count / rate, lambda: None))
