"""What is answered stale: when an upstream takes too long, and which tags were, and why."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from attrs import define, field, frozen
from cachetools import LRUCache
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from artifactd.upstream.http.errors import TimedOut, UpstreamError

_REMEMBERED = 1000

_T = TypeVar("_T")


@define(eq=False)
class Overdue:
    """
    Bounds how long a client waits for the upstream where something cached can be answered.

    :param seconds: for which a client waits; 0: to the end.
    :ivar silent: whether the upstream has let a client wait for so long, and has answered nothing
        since: then nobody waits.
    """

    clock: IReactorTime
    seconds: float
    silent: bool = field(default=False, init=False)

    async def answered(self, question: Awaitable[_T]) -> _T:
        """Return what ``question`` returns, and note that the upstream has answered, if it has."""
        try:
            answer = await question
        except UpstreamError as error:
            self.silent = self.silent and error.status is None
            raise
        self.silent = False
        return answer

    async def wait(self, asked: Deferred[_T]) -> _T:
        """
        Return what ``asked`` fires with.  Giving up cancels it, so it has to be a waiter of work
        that goes on without it.

        :raises TimedOut: if it takes too long.
        """
        if not self.seconds:
            return await asked
        try:
            return await asked.addTimeout(0 if self.silent else self.seconds, self.clock)
        except TimeoutError:
            self.silent = True
            raise TimedOut(f"the upstream has not answered for {self.seconds:g} seconds") from None


@frozen
class StaleTag:
    """
    A tag that was answered though it is past its freshness.  Times are in seconds since the epoch.

    :ivar image: the canonical name.
    :ivar checked: when the upstream last answered for the tag.
    :ivar since: when its freshness ended.
    :ivar answered: when a client last got it so.
    :ivar why: the reason why the upstream was not asked, or gave no answer.
    """

    image: str
    tag: str
    checked: float
    since: float
    answered: float
    why: str

    @property
    def repository(self) -> str:
        """The name of the upstream's repository."""
        return self.image.partition("/")[0]


@define(eq=False)
class StaleTags:
    """
    Remembers, in the memory of one process, the 1000 tags of upstreams that were answered last
    though they were past their freshness.  It does not learn that one is fresh again.
    """

    _tags: LRUCache[tuple[str, str], StaleTag] = field(
        factory=lambda: LRUCache(_REMEMBERED), init=False
    )

    def note(self, stale: StaleTag) -> None:
        """Remember that a tag was answered."""
        self._tags[stale.image, stale.tag] = stale

    def noted(self) -> list[StaleTag]:
        """Those that are remembered, in any order."""
        return list(self._tags.values())
