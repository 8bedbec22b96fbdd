"""What was answered stale, and why, for an operator who looks."""

from __future__ import annotations

from attrs import define, field, frozen
from cachetools import LRUCache

_REMEMBERED = 1000


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
