"""A blob under the name of an image of an upstream; and the upstream's errors as the spec's."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.oci.digest import Digest
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
from artifactd.upstream.interfaces import BlobBody, Upstream, UpstreamBlob


def translated(
    error: UpstreamError, unknown: type[RegistryError], **detail: object
) -> RegistryError:
    """
    What a client is told where ``error`` leaves nothing to answer with.

    :param unknown: for what is definitely not there.
    :param detail: what was asked for.
    """
    told = {**detail, "reason": error.reason}
    forwarded = f"artifactd; fwd=miss; fwd-status={error.status}"
    headers = {"Cache-Status": forwarded if error.status else "artifactd; fwd=miss"}
    if isinstance(error, Missing) and not error.asked:
        headers["Cache-Status"] = "artifactd; hit; detail=negative"
    answer: RegistryError
    if isinstance(error, Missing):
        answer = unknown("the upstream does not have it, or not for us", told)
    elif isinstance(error, Throttled):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
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
    Of what stands in for an answer that the upstream did not give.

    :param status: what it answered instead, if it did.
    """
    told = f"; fwd-status={status}" if status else ""
    return Provenance("cache", f"fwd=stale{told}; detail=stale", stale=reason)


@frozen
class BlobSource:
    """A blob as ``image`` of a remote repository has it upstream."""

    upstream: Upstream
    image: ImageName
    digest: Digest

    async def check(self) -> UpstreamBlob:
        """Whether we may have it under this name, and what is told of it."""
        return await self.upstream.blob(self.image.image, self.digest)

    async def open(
        self, first: int = 0, last: int | None = None, validator: str | None = None
    ) -> BlobBody:
        """As ``Upstream.open_blob``."""
        return await self.upstream.open_blob(self.image.image, self.digest, first, last, validator)


# What an upstream did not have, for the short time that this is believed.

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
