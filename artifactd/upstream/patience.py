"""Retries, circuit breaker, throttling after a 429, and rate limits of an upstream."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import TypeVar

import msgspec
from attrs import define, field, frozen
from cachetools import LRUCache
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.oci.foreign import decode_foreign
from artifactd.upstream.errors import Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import TimedOut, Unreachable, UpstreamError
from artifactd.upstream.http.response import Http, HttpResponse, media_type_of
from artifactd.upstream.http.url import Origin
from artifactd.upstream.interfaces import UpstreamWatch

BREAKER_FAILURES = 5
"""Failures in a row that open a circuit breaker."""

BREAKER_IMAGES = 3
"""Images of which requests must have failed, if the host can be reached, to open the host's."""

BREAKER_PAUSE = 5.0
"""Seconds for which it is open; doubled each time that the request after them fails too."""

_LONGEST_BREAKER_PAUSE = 60.0


class NoRegistry(Unreachable):
    """Something other than the registry answered 403, 404 or 410, with a page of HTML."""


class Interrupted(Unreachable):
    """The upstream was not asked, since the circuit breaker is open."""


@define(eq=False)
class CircuitBreaker:
    """
    Spares clients the timeouts of a host that is down.

    It counts the requests that failed in a row, each attempt of a retried one too.  After
    :data:`BREAKER_FAILURES` it opens: every request is refused for a while.  Then one is let
    through: if that fails, the next while is longer; any answer closes the breaker.

    :param name: the repository's name, for the log.
    :param subject: the host that is asked, for reasons and the log.
    :param images: the images of which requests must have failed; one image may be damaged at a
        host that is well.
    """

    name: str
    subject: str
    clock: IReactorTime
    images: int = 1
    _failures: int = field(default=0, init=False)
    _failed: set[str] = field(factory=set, init=False)
    _cause: str = field(default="", init=False)
    _pause: float = field(default=0.0, init=False)
    _until: float | None = field(default=None, init=False)
    _trying: bool = field(default=False, init=False)

    _log = Logger()

    @property
    def trouble(self) -> str:
        """The reason for which the breaker is open; empty while it is closed."""
        return "" if self._until is None else self._cause

    @property
    def left(self) -> float:
        """Seconds until a request is let through; 0: it is now."""
        return 0.0 if self._until is None else max(0.0, self._until - self.clock.seconds())

    def admit(self) -> bool:
        """
        Ask for permission to make a request.  Returns whether the request is the trial after a
        pause.

        Call one of :meth:`answered`, :meth:`failed` and :meth:`abandoned` afterwards.

        :raises Interrupted: if the breaker is open.
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
        """Note an answer: the breaker closes."""
        if self._until is not None:
            self._log.info("{name}: {subject} answers again", name=self.name, subject=self.subject)
        self._failures, self._pause, self._until, self._trying = 0, 0.0, None, False
        self._failed.clear()

    def failed(self, trial: bool, reason: str, image: str | None = None) -> None:
        """
        Note that no answer came, or a 5xx.

        :param trial: the result of :meth:`admit`.
        :param image: the image that was asked for; ``None`` if the failure is the host's, whatever
            is asked for.
        """
        self._failures += 1
        if image is not None and len(self._failed) < self.images:
            self._failed.add(image)
        if trial and self._until is not None:
            self._trying = False
        elif self._until is not None or self._failures < BREAKER_FAILURES:
            return  # begun before the pause: it tells nothing new
        elif image is not None and len(self._failed) < self.images:
            return
        self._cause = reason
        self._pause = min(self._pause * 2 or BREAKER_PAUSE, _LONGEST_BREAKER_PAUSE)
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
        """Note that the request was cancelled, or that its outcome tells nothing."""
        if trial:
            self._trying = False


_T = TypeVar("_T")

# 5xx after which asking again changes nothing (RFC 9110, 15.6.2 and 15.6.6).
DEFINITE = (501, 505)

# Seconds.
_FIRST = 0.25
_LONGEST = 5.0


def may_pass(error: Unreachable) -> bool:
    """
    Whether a repetition may succeed: after no answer, one that broke off, or a 5xx.

    Not after a timeout: the client has waited long enough.
    """
    if isinstance(error, TimedOut | Interrupted):
        return False
    return error.status is None or (error.status >= 500 and error.status not in DEFINITE)


@frozen
class Retries:
    """
    Exponential backoff with full jitter: before the n-th repetition a random time of up to
    0.25 · 2ⁿ⁻¹ seconds, at most 5.

    :ivar times: repetitions of one request at most.
    """

    clock: IReactorTime
    random: Random
    times: int = 2

    async def run(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Return the result of ``attempt``; call it again while its failure may pass by itself."""
        for repetition in range(self.times):
            try:
                return await attempt()
            except Unreachable as error:
                if not may_pass(error):
                    raise
            most = min(_FIRST * 2**repetition, _LONGEST)
            await deferLater(self.clock, self.random.uniform(0, most))
        return await attempt()


def parse_date(text: str | None) -> datetime | None:  # RFC 9110, 5.6.7
    """Parse a date of a header field, into UTC; ``None`` if it is absent or malformed."""
    try:
        date = parsedate_to_datetime(text or "")
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# Seconds after a 429.
_SHORTEST_PAUSE = 1.0
_LONGEST_GUESS = 60.0
_LONGEST_PAUSE = 3600.0


_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


def retry_after(response: HttpResponse) -> float | None:  # RFC 9110, 10.2.3
    """
    Return the seconds that ``Retry-After`` asks for, 1 to 3600; ``None`` if it is absent or
    malformed.

    A date is compared with the answer's own ``Date``, since the upstream's clock may be wrong.
    """
    value = (response.header("Retry-After") or "").strip()
    if _SECONDS.fullmatch(value):
        seconds = float(value)
    elif value.isascii() and value.isdigit():
        seconds = _LONGEST_PAUSE
    else:
        until, now = parse_date(value), parse_date(response.header("Date"))
        if until is None or now is None:
            return None
        seconds = (until - now).total_seconds()
    return min(max(seconds, _SHORTEST_PAUSE), _LONGEST_PAUSE)


@define(eq=False)
class Throttle:
    """
    Remembers a 429, so that nothing is asked until its ``Retry-After`` has passed.

    After one without ``Retry-After`` that image alone is not asked for, for a second; after the
    next in a row for two seconds, and so on, up to a minute.  If it is another image's, nothing is
    asked.
    """

    clock: IReactorTime
    _until: float = field(default=0.0, init=False)
    _reason: str = field(default="", init=False)
    # The image that is not asked for alone, and the end of its pause.
    _image: str = field(default="", init=False)
    _guessed_until: float = field(default=0.0, init=False)
    # The images that were answered 429 without Retry-After since the last other answer.
    _images: set[str] = field(factory=set, init=False)
    _guess: float = field(default=_SHORTEST_PAUSE, init=False)

    @property
    def left(self) -> float:
        """Seconds until the upstream is asked again for all images; 0: it is now."""
        return max(0.0, self._until - self.clock.seconds())

    def check(self, image: str = "") -> None:
        """:raises Throttled: if ``image`` is not asked for yet."""
        alone = self._guessed_until if image and image == self._image else 0.0
        left = max(self._until, alone) - self.clock.seconds()
        if left > 0:
            raise Throttled(self._reason, left)

    def tell(self, error: Throttled, image: str = "") -> None:
        """
        Remember a 429, and set its ``retry_after`` if the upstream has told none.

        :param image: what was asked for; ``""``: it counts for everything.
        """
        now = self.clock.seconds()
        if error.guessed:
            if now >= max(self._until, self._guessed_until):  # otherwise it was begun before
                self._guessed_until = now + self._guess
                self._guess = min(self._guess * 2, _LONGEST_GUESS)
            error.retry_after = max(self._until, self._guessed_until) - now
            self._image = image
            self._images.add(image)
        if not (error.guessed and image and self._images == {image}):
            self._until = max(self._until, now + error.retry_after)
        self._reason = error.reason

    def answered(self) -> None:
        """Note another answer than 429."""
        self._guess = _SHORTEST_PAUSE
        self._images.clear()


# "100;w=21600" (Docker Hub), "100", "100, 100;w=60" (earlier drafts of the IETF's).
_QUOTA = re.compile(r"[ \t]*([0-9]{1,12})(?:[ \t]*;[ \t]*w=([0-9]{1,9}))?[ \t]*(?:[,;].*)?")
_RESET = re.compile(r"[0-9]{1,9}")

# Requests are spared while less than this share of them remains, and by at most this factor.
_ENOUGH = 0.5
_MOST_FRUGAL = 60.0
# Seconds of the window where the upstream doesn't tell it.
_WINDOW = 3600.0


@define(eq=False)
class RateLimit:
    """
    The requests that remain of an upstream's rate limit in a window of time.

    Docker Hub sends it with each manifest: ``RateLimit-Limit: 100;w=21600`` (100 in 21,600 s) and
    ``RateLimit-Remaining: 76;w=21600``.  GitLab and others send plain numbers, and with
    ``RateLimit-Reset`` the seconds until all requests are allowed again.
    """

    clock: IReactorTime
    _share: float = field(default=1.0, init=False)
    _until: float = field(default=0.0, init=False)

    def read(self, response: HttpResponse) -> None:
        """Remember the rate limit in the headers of ``response``, if there is one."""
        limit = _QUOTA.fullmatch(response.header("RateLimit-Limit") or "")
        remaining = _QUOTA.fullmatch(response.header("RateLimit-Remaining") or "")
        if limit is None or remaining is None or not int(limit[1]):
            return
        reset = _RESET.fullmatch((response.header("RateLimit-Reset") or "").strip())
        window = reset[0] if reset else remaining[2] or limit[2]
        self._share = int(remaining[1]) / int(limit[1])
        self._until = self.clock.seconds() + (float(window) if window else _WINDOW)

    @property
    def remaining(self) -> float | None:
        """The share of the requests that remains, 0 to 1; ``None``: the upstream has told none."""
        return None if self.clock.seconds() >= self._until else self._share

    def frugality(self) -> float:
        """
        Return the factor by which tags stay fresh for longer, 1 to 60.

        It is 1 while at least half of the requests remain; below that half divided by the share
        that remains (a quarter: 2, a twentieth: 10); 60 when none remains.  After the window it is
        1 again.
        """
        if self.clock.seconds() >= self._until or self._share >= _ENOUGH:
            return 1.0
        return min(_ENOUGH / self._share, _MOST_FRUGAL) if self._share else _MOST_FRUGAL


# An error's body: bytes that are read, seconds that reading may take (a client waits meanwhile),
# and characters of the message that are passed on.
_BODY = 64 << 10
_BODY_SECONDS = 5.0
_MESSAGE = 200


class _Error(msgspec.Struct):
    message: str | None = None


class _Body(msgspec.Struct):  # distribution-spec, "Error Codes"
    # Docker Hub's gateways send a bare ``message``.
    errors: list[_Error] | None = None
    message: str | None = None


_decoder = msgspec.json.Decoder(_Body)


async def refusal(response: HttpResponse, *secrets: str) -> UpstreamError:
    """
    Turn ``response`` into an error by its status, with the message of its body if that comes soon.

    The message of a host that the upstream has redirected to is left out: it may be of a service
    that clients have no business with.

    A page of HTML says nothing of what the registry has: a proxy or a firewall has answered.

    :param secrets: credentials sent with the request: a message that repeats one is left out.
    """
    status = response.status
    content = await _body(response)
    reason = f"{response.host} answers {status}{_message(content, secrets)}"
    if status in (403, 404, 410) and (is_page(response) or _HTML.match(content)):
        return NoRegistry(f"{reason} with a page for people, which no registry sends", status)
    if status in (401, 403, 404, 410):
        return Missing(reason, status)
    if status == 416:
        return RangeRefused(reason, status)
    if status == 429:
        seconds = retry_after(response)
        return Throttled(reason, seconds or _SHORTEST_PAUSE, guessed=seconds is None)
    if status >= 500:
        return Unreachable(reason, status)
    return Unreachable(f"{reason} (unexpected status)", status)


def is_html(response: HttpResponse) -> bool:
    """Whether an answer, to HEAD too, says that it is a page of HTML, which is for people."""
    return media_type_of(response) in ("text/html", "application/xhtml+xml")


def is_page(response: HttpResponse) -> bool:
    """Whether the answer to a GET is a page of HTML, and not only an empty body called so."""
    return is_html(response) and response.length != 0


_HTML = re.compile(rb"\s*<(?:!doctype html|html)\b", re.IGNORECASE)


async def _body(response: HttpResponse) -> bytes:
    """Read the body of an error; ``b""`` if it does not come soon, or another host sends it."""
    if response.redirected:
        response.abort()
        return b""
    try:
        return await response.read(_BODY, _BODY_SECONDS)
    except UpstreamError:
        return b""


def _message(content: bytes, secrets: tuple[str, ...]) -> str:
    """Return ``: `` and the message in the body of an error, or nothing."""
    try:
        body = decode_foreign(_decoder, content)
    except ValueError:
        return ""
    message = (body.errors[0].message if body.errors else body.message) or ""
    if any(secret in message for secret in secrets):
        return ""
    printable = "".join(c for c in message if c.isprintable()).strip()[:_MESSAGE]
    return f": {printable}" if printable else ""


# URLs whose failures are remembered.
_URLS = 1024


@frozen
class Exchanges:
    """
    Single requests to a registry or its token service, behind circuit breakers, and counted.

    One URL's trouble is not the host's.  What fails opens the breaker of its URL.  That of the host
    opens if the host can't be reached, or if requests for several images fail in a row.  A 5xx to
    HEAD is its URL's alone, since the host may answer GET.

    :param name: the repository's name, for the log.
    :param subject: the host that is asked, for reasons and the log.
    :ivar host: the breaker of the host, as opposed to that of one URL.
    """

    http: Http
    name: str
    subject: str
    clock: IReactorTime
    watch: UpstreamWatch
    host: CircuitBreaker = field(init=False)
    _urls: LRUCache[tuple[str, str], CircuitBreaker] = field(
        factory=lambda: LRUCache(_URLS), init=False
    )

    @host.default
    def _closed(self) -> CircuitBreaker:
        return CircuitBreaker(self.name, self.subject, self.clock, BREAKER_IMAGES)

    async def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *secrets: str,
        image: str = "",
        others: Mapping[Origin, str] | None = None,
        body: bytes | None = None,
    ) -> HttpResponse:
        """
        Make one request and return the answer: any status, but no failure of the server's.

        :param secrets: the credentials in ``headers`` and ``body``, which no message may repeat.
        :param image: the image that is asked for.
        :param body: of a POST.
        :raises Interrupted: if a breaker is open; ``connected`` says that it is the URL's.
        :raises Unreachable: if no answer comes, or a 5xx other than 501 and 505.
        """
        single = self._urls.get((method, url))
        try:
            retried = single is not None and single.admit()
        except Interrupted as error:
            error.connected = True
            raise
        try:
            trial = self.host.admit()
        except Interrupted:
            if single is not None:
                single.abandoned(retried)
            raise
        try:
            response = await self.http.request(method, url, headers, others, body)
        except Unreachable as error:
            self.watch.requested(method, None, image)
            if error.status is not None and error.status < 500:
                self._answered(method, url)  # with nonsense
            else:
                self._failed(method, url, retried, error.reason)
                if error.led_elsewhere:
                    self.host.answered()
                else:
                    self.host.failed(trial, error.reason, image if error.connected else None)
            raise
        except BaseException:
            self.host.abandoned(trial)
            if single is not None:
                single.abandoned(retried)
            raise
        self.watch.requested(method, response.status, image)
        if response.status < 500 or response.status in DEFINITE:
            self._answered(method, url)
            return response
        reason = f"{response.host} answers {response.status}"
        self._failed(method, url, retried, reason)
        if response.redirected:
            self.host.answered()
        elif method == "HEAD":
            self.host.abandoned(trial)
        else:
            self.host.failed(trial, reason, image)
        raise await refusal(response, *secrets)

    def _answered(self, method: str, url: str) -> None:
        self.host.answered()
        single = self._urls.pop((method, url), None)
        if single is not None:
            single.answered()

    def _failed(self, method: str, url: str, trial: bool, reason: str) -> None:
        single = self._urls.get((method, url))
        if single is None:
            single = CircuitBreaker(self.name, f"{self.subject}, for this URL,", self.clock)
            self._urls[method, url] = single
        single.failed(trial, reason)
