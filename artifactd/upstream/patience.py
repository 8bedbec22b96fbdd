"""Asking again."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import TypeVar

import msgspec
from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.upstream.errors import Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.http.response import Http, HttpResponse
from artifactd.upstream.interfaces import UpstreamWatch

# A circuit breaker: a dead upstream costs nobody a timeout but those who found out.


class Interrupted(Unreachable):
    """It was not asked: it has failed just before."""


@frozen
class BreakerSettings:
    """
    :ivar failures: in a row, after which nobody asks for a while.
    :ivar pause: seconds of that while; doubled each time that asking again fails too.
    :ivar longest: seconds that it is at most.
    """

    failures: int = 5
    pause: float = 5.0
    longest: float = 60.0


@define(eq=False)
class CircuitBreaker:
    """
    Counts the requests that failed in a row, each attempt of a retried one too.

    Once there are too many, every request is refused for a while.  Then one is let through: if it
    fails, the next while is longer; any answer ends it.

    :param name: of the repository, for the log.
    :param subject: what is asked, for reasons: a host.
    """

    name: str
    subject: str
    clock: IReactorTime
    settings: BreakerSettings = field(factory=BreakerSettings)
    _failures: int = field(default=0, init=False)
    _cause: str = field(default="", init=False)
    _pause: float = field(default=0.0, init=False)
    _until: float | None = field(default=None, init=False)
    _trying: bool = field(default=False, init=False)

    _log = Logger()

    def admit(self) -> bool:
        """
        A request is about to be made: whether it is the one that tries after a pause.

        One of :meth:`answered`, :meth:`failed` and :meth:`abandoned` has to follow.

        :raises Interrupted: if it is not to be made.
        """
        if self._until is None:
            return False
        left = self._until - self.clock.seconds()
        if left > 0:
            raise Interrupted(
                f"{self.subject} has failed {self._failures} times in a row and is not asked again"
                f" for {left:.1f} s: {self._cause}"
            )
        if self._trying:
            raise Interrupted(
                f"{self.subject} has failed {self._failures} times in a row and is being tried"
                f" again at this moment: {self._cause}"
            )
        self._trying = True
        return True

    def answered(self) -> None:
        """It lives."""
        if self._until is not None:
            self._log.info("{name}: {subject} answers again", name=self.name, subject=self.subject)
        self._failures, self._pause, self._until, self._trying = 0, 0.0, None, False

    def failed(self, trial: bool, reason: str) -> None:
        """
        It has not answered, or with a failure of its own.

        :param trial: what :meth:`admit` said.
        """
        self._failures += 1
        if trial and self._until is not None:
            self._trying = False
        elif self._until is not None or self._failures < self.settings.failures:
            return  # begun before the pause: it tells nothing new
        self._cause = reason
        self._pause = min(self._pause * 2 or self.settings.pause, self.settings.longest)
        self._until = self.clock.seconds() + self._pause
        self._log.warn(
            "{name}: {subject} is not asked for {pause} s, after {failures} failures: {reason}",
            name=self.name,
            subject=self.subject,
            pause=self._pause,
            failures=self._failures,
            reason=reason,
        )

    def abandoned(self, trial: bool) -> None:
        """Nobody wanted the answer any more."""
        if trial:
            self._trying = False


_T = TypeVar("_T")

# 5xx that are as good as a 4xx: asking again changes nothing (RFC 9110, 15.6.2 and 15.6.6).
DEFINITE = (501, 505)

# Seconds.
_FIRST = 0.25
_LONGEST = 5.0


def may_pass(error: Unreachable) -> bool:
    """
    Whether ``error`` may be gone a moment later: no answer, one broken off, or a 5xx.

    Not a timeout: whoever waits has waited for long enough.
    """
    if isinstance(error, TimedOut | Interrupted):
        return False
    return error.status is None or (error.status >= 500 and error.status not in DEFINITE)


@frozen
class Retries:
    """
    Exponential backoff with full jitter: before the n-th repetition a random time of up to
    0.25 · 2ⁿ⁻¹ seconds, at most 5.

    :ivar times: how often a request is repeated at most.
    """

    clock: IReactorTime
    random: Random
    times: int = 2

    async def run(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """The result of ``attempt``, which is called again as long as its failure may pass."""
        for repetition in range(self.times):
            try:
                return await attempt()
            except Unreachable as error:
                if not may_pass(error):
                    raise
            most = min(_FIRST * 2**repetition, _LONGEST)
            await deferLater(self.clock, self.random.uniform(0, most))
        return await attempt()


# Dates in header fields (RFC 9110, 5.6.7).


def parse_date(text: str | None) -> datetime | None:
    """The date that ``text`` is, in UTC; ``None`` for anything else, or none."""
    try:
        date = parsedate_to_datetime(text or "")
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# 429: how long an upstream wants to be left alone, and the memory of it.

# Seconds.
_DEFAULT = 60.0
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 3600.0


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
    return min(max(seconds, _SHORTEST_PAUSE), _LONGEST_PAUSE)


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


# The budget of requests that an upstream tells of.

# "100;w=21600" (Docker Hub), "100", "100, 100;w=60" (earlier drafts of the IETF's).
_QUOTA = re.compile(r"[ \t]*([0-9]{1,12})(?:[ \t]*;[ \t]*w=([0-9]{1,9}))?[ \t]*(?:[,;].*)?")
_RESET = re.compile(r"[0-9]{1,9}")

# From which share of the budget on requests are spared, and how much at most.
_ENOUGH = 0.5
_LONGEST_WAIT = 60.0
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
        reset = _RESET.fullmatch((response.header("RateLimit-Reset") or "").strip())
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
        return min(_ENOUGH / self._told.share, _LONGEST_WAIT) if self._told.share else _LONGEST_WAIT


# Answers that are no success, as errors.

# Bytes of the body of an error that are read, seconds that it may take, since nobody shall wait for
# its words, and characters of its message that are passed on.
_BODY = 64 << 10
_BODY_SECONDS = 5.0
_MESSAGE = 200


class _Error(msgspec.Struct):
    message: str | None = None


class _Body(msgspec.Struct):
    """distribution-spec, "Error Codes"; Docker Hub's gateways send a bare ``message``."""

    errors: list[_Error] | None = None
    message: str | None = None


_decoder = msgspec.json.Decoder(_Body)


async def refusal(response: HttpResponse, *secrets: str) -> UpstreamError:
    """
    The error that ``response`` is, its body read to the end, if that comes soon.

    :param secrets: what was sent along: a message that repeats one of them is left out.
    """
    return error_of(response, f"answers {response.status}" + await _message(response, secrets))


def error_of(response: HttpResponse, what: str) -> UpstreamError:
    """
    The error that ``response`` is by its status; its body is somebody else's to end.

    :param what: what it does, for the reason, after the name of the host.
    """
    status, reason = response.status, f"{response.host} {what}"
    if status in (401, 403, 404, 410):
        return Missing(reason, status)
    if status == 416:
        return RangeRefused(reason, status)
    if status == 429:
        return Throttled(reason, retry_after(response))
    if status >= 500:
        return Unreachable(reason, status)
    return Unreachable(f"{reason} (unexpected status)", status)


async def _message(response: HttpResponse, secrets: tuple[str, ...]) -> str:
    """``: `` and what the body says went wrong; or nothing."""
    try:
        body = _decoder.decode(await response.read(_BODY, _BODY_SECONDS))
    except (UpstreamError, msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    message = (body.errors[0].message if body.errors else body.message) or ""
    if any(secret in message for secret in secrets):
        return ""
    printable = "".join(c for c in message if c.isprintable()).strip()[:_MESSAGE]
    return f": {printable}" if printable else ""


# Single requests: counted, and not made while whom they would go to is down.


@frozen
class Exchanges:
    """Requests to a registry, or to whoever gives tokens for it."""

    http: Http
    breaker: CircuitBreaker
    watch: UpstreamWatch

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], *secrets: str
    ) -> HttpResponse:
        """
        Its answer, whatever it is as long as it is not a failure of the server's.

        :param secrets: what of ``headers`` nobody else may read.
        :raises Unreachable: if there is none; also if it is a 5xx other than 501 and 505.
        """
        trial = self.breaker.admit()
        try:
            response = await self.http.request(method, url, headers)
        except Unreachable as error:
            self.breaker.failed(trial, error.reason)
            self.watch.requested(method, None)
            raise
        except BaseException:
            self.breaker.abandoned(trial)
            raise
        self.watch.requested(method, response.status)
        if response.status < 500 or response.status in DEFINITE:
            self.breaker.answered()
            return response
        self.breaker.failed(trial, f"{response.host} answers {response.status}")
        raise await refusal(response, *secrets)
