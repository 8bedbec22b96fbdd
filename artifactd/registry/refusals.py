"""What an upstream did not have, for the short time that this is believed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.oci.names import ImageName
from artifactd.upstream.errors import Missing, UpstreamError

_REMEMBERED = 8192


@frozen
class _Told:
    until: float
    reason: str
    status: int | None


@define(eq=False)
class Refusals:
    """
    Negative answers, in memory.

    What they say is kept, not the errors themselves: an error holds on to everything that was at
    hand where it was raised, and to more each time that it is raised again.

    :param seconds: for how long one is believed.
    """

    clock: IReactorTime
    seconds: float
    _missing: OrderedDict[tuple[ImageName, Hashable], _Told] = field(
        factory=OrderedDict, init=False
    )

    def of(self, image: ImageName, asked: Hashable) -> Missing | None:
        """The answer that still counts, as an error of the caller's own, or ``None``."""
        told = self._missing.get((image, asked))
        if told is None or self.clock.seconds() >= told.until:
            return None
        return Missing(told.reason, told.status, asked=False)

    def remember(self, image: ImageName, asked: Hashable, error: UpstreamError) -> None:
        """Keep ``error`` if it says that what was asked for isn't there."""
        if isinstance(error, Missing) and self.seconds:
            until = self.clock.seconds() + self.seconds
            self._missing[image, asked] = _Told(until, error.reason, error.status)
            self._missing.move_to_end((image, asked))
            if len(self._missing) > _REMEMBERED:
                self._missing.popitem(last=False)
