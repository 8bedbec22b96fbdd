"""The budget of requests that an upstream tells of."""

from __future__ import annotations

import re

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.upstream.http import HttpResponse

# "100;w=21600" (Docker Hub), "100", "100, 100;w=60" (earlier drafts of the IETF's).
_QUOTA = re.compile(r"[ \t]*([0-9]{1,12})(?:[ \t]*;[ \t]*w=([0-9]{1,9}))?[ \t]*(?:[,;].*)?")
_SECONDS = re.compile(r"[0-9]{1,9}")

# From which share of the budget on requests are spared, and how much at most.
_ENOUGH = 0.5
_MOST = 60.0
# Seconds that what is told holds where no window is told.
_WINDOW = 3600.0


@frozen
class _Told:
    share: float
    until: float


@define(eq=False)
class RateBudget:
    """
    What is left of the requests that an upstream allows in some window of time.

    Docker Hub tells it with each manifest: ``RateLimit-Limit: 100;w=21600`` (100 in 21,600 s) and
    ``RateLimit-Remaining: 76;w=21600``.  GitLab and others send plain numbers, and with
    ``RateLimit-Reset`` the seconds until the budget is full again.
    """

    clock: IReactorTime
    _told: _Told | None = field(default=None, init=False)

    def read(self, response: HttpResponse) -> None:
        """Remember what ``response`` tells, if it does."""
        limit = _QUOTA.fullmatch(response.header("RateLimit-Limit") or "")
        remaining = _QUOTA.fullmatch(response.header("RateLimit-Remaining") or "")
        if limit is None or remaining is None or not int(limit[1]):
            return
        reset = _SECONDS.fullmatch((response.header("RateLimit-Reset") or "").strip())
        window = reset[0] if reset else remaining[2] or limit[2]
        self._told = _Told(
            int(remaining[1]) / int(limit[1]),
            self.clock.seconds() + (float(window) if window else _WINDOW),
        )

    def frugality(self) -> float:
        """
        By how much the freshness of tags is to be stretched, 1 to 60.

        1 as long as at least half of the budget remains; below that half divided by the share that
        remains (a quarter: 2, a twentieth: 10); 60 when nothing remains.  What was told is
        forgotten when its window has passed.
        """
        if self._told is None or self.clock.seconds() >= self._told.until:
            return 1.0
        if self._told.share >= _ENOUGH:
            return 1.0
        return min(_ENOUGH / self._told.share, _MOST) if self._told.share else _MOST
