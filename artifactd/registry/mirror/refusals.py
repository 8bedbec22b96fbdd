"""An upstream's errors as the spec's, and its "not found" answers, remembered for a short time."""

from __future__ import annotations

import math
from collections.abc import Hashable

from attrs import define, field
from cachetools import TTLCache
from twisted.internet.interfaces import IReactorTime

from artifactd.oci.errors import (
    BadGateway,
    GatewayTimeout,
    RangeNotSatisfiable,
    RegistryError,
    TooManyRequests,
)
from artifactd.oci.names import ImageName
from artifactd.registry.model import Provenance
from artifactd.upstream.errors import Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import TimedOut, UpstreamError


def translated(
    error: UpstreamError, unknown: type[RegistryError], **detail: object
) -> RegistryError:
    """
    The error for a client where the upstream's ``error`` leaves nothing to answer with.

    :param unknown: the class of error if the upstream says for certain that there is no such thing.
    :param detail: names what was asked for.
    """
    told = {**detail, "reason": error.reason}
    forwarded = f"artifactd; fwd=miss; fwd-status={error.status}"
    headers = {"Cache-Status": forwarded if error.status else "artifactd; fwd=miss"}
    if isinstance(error, Missing) and not error.asked:
        headers["Cache-Status"] = "artifactd; hit; detail=negative"
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    answer: RegistryError
    if isinstance(error, Missing):
        answer = unknown("the upstream does not have it, or not for us", told)
    elif isinstance(error, Throttled):
        answer = TooManyRequests("the upstream wants fewer requests: try again later", told)
    elif isinstance(error, RangeRefused):
        answer = RangeNotSatisfiable("the upstream has no byte of that range", told)
    elif isinstance(error, TimedOut):
        answer = GatewayTimeout("the upstream took too long: try again later", told)
    else:
        answer = BadGateway("the upstream can't be asked: try again later", told)
    answer.headers.update(headers)
    return answer


def stale(reason: str, status: int | None = None) -> Provenance:
    """
    The provenance of a cached answer that is served because the upstream gave none.

    :param status: the status that the upstream answered with, if it answered.
    """
    told = f"; fwd-status={status}" if status else ""
    return Provenance("cache", f"fwd=stale{told}; detail=stale", stale=reason)


_REMEMBERED = 8192


@define(eq=False)
class Refusals:
    """
    Remembers an upstream's "not found" answers for a short time, in memory.

    Only the reasons are kept, not the errors: an error keeps everything alive that its traceback
    refers to, and more each time it is raised again.

    :param seconds: how long an answer is believed; 0: not at all.
    """

    clock: IReactorTime
    seconds: float
    _missing: TTLCache[tuple[ImageName, Hashable], tuple[str, int | None]] = field(init=False)

    @_missing.default
    def _none_missing(self) -> TTLCache[tuple[ImageName, Hashable], tuple[str, int | None]]:
        return TTLCache(_REMEMBERED, self.seconds, self.clock.seconds)

    def of(self, image: ImageName, asked: Hashable) -> Missing | None:
        """Return the remembered answer as a new error, or ``None`` if there is none."""
        told = self._missing.get((image, asked))
        return None if told is None else Missing(*told, asked=False)

    def remember(self, image: ImageName, asked: Hashable, error: UpstreamError) -> None:
        """Remember ``error`` if it says that ``asked`` does not exist."""
        if isinstance(error, Missing):
            self._missing[image, asked] = error.reason, error.status
