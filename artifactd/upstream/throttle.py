"""429: how long an upstream wants to be left alone, and the memory of it."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from artifactd.upstream.dates import parse_date
from artifactd.upstream.errors import Throttled
from artifactd.upstream.http import HttpResponse

# Seconds.
_DEFAULT = 60.0
_LEAST = 1.0
_MOST = 3600.0


def retry_after(response: HttpResponse) -> float:
    """
    The seconds that ``Retry-After`` asks for (RFC 9110, 10.2.3), 1 to 3600; 60 where it is absent
    or makes no sense.

    A date is compared with the answer's own ``Date``: clocks differ.
    """
    value = (response.header("Retry-After") or "").strip()
    if value.isascii() and value.isdigit():
        seconds = float(value[:9])
    else:
        until, now = parse_date(value), parse_date(response.header("Date"))
        if until is None or now is None:
            return _DEFAULT
        seconds = (until - now).total_seconds()
    return min(max(seconds, _LEAST), _MOST)


@define(eq=False)
class Throttle:
    """Whether somebody wants to be left alone."""

    clock: IReactorTime
    _until: float = field(default=0.0, init=False)
    _reason: str = field(default="", init=False)

    def check(self) -> None:
        """:raises Throttled: as long as it does."""
        left = self._until - self.clock.seconds()
        if left > 0:
            raise Throttled(self._reason, left)

    def tell(self, error: Throttled) -> None:
        """It has answered so."""
        self._until = max(self._until, self.clock.seconds() + error.retry_after)
        self._reason = error.reason
