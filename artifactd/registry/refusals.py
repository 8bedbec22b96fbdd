"""What an upstream did not have, for the short time that this is believed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from artifactd.oci.name import ImageName
from artifactd.upstream.errors import Missing, UpstreamError

_REMEMBERED = 8192


@define(eq=False)
class Refusals:
    """
    Negative answers, in memory.

    :param seconds: for how long one is believed.
    """

    clock: IReactorTime
    seconds: float
    _missing: OrderedDict[tuple[ImageName, Hashable], tuple[float, Missing]] = field(
        factory=OrderedDict, init=False
    )

    def of(self, image: ImageName, asked: Hashable) -> Missing | None:
        """The answer that still counts, or ``None``."""
        until, error = self._missing.get((image, asked), (0.0, None))
        if error is None or self.clock.seconds() >= until:
            return None
        return Missing(error.reason, error.status, asked=False)

    def remember(self, image: ImageName, asked: Hashable, error: UpstreamError) -> None:
        """Keep ``error`` if it says that what was asked for isn't there."""
        if isinstance(error, Missing) and self.seconds:
            self._missing[image, asked] = (self.clock.seconds() + self.seconds, error)
            self._missing.move_to_end((image, asked))
            if len(self._missing) > _REMEMBERED:
                self._missing.popitem(last=False)
