"""Retries, circuit breaker, throttling after a 429, and rate limits of an upstream."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import TypeVar
from zlib import crc32

import msgspec
from attrs import define, field, frozen
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.kit.shared import Note, Notebook, Notes, SharedMemory
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


# Characters of a reason that are remembered, and seconds after which a trial counts as lost: the
# process that made it may have been killed.
_REASON = 200
_TRIAL = 60.0


def _short(reason: str) -> str:
    return reason[:_REASON].encode(errors="replace").decode()


def _named(image: str) -> int:
    return crc32(image.encode(errors="replace"))


class BreakerState(msgspec.Struct, frozen=True):
    """
    What is remembered of a circuit breaker.  It is closed while ``until`` is 0.

    :ivar images: those of which requests failed, as numbers.
    :ivar trial_until: the end of a trial that is under way.
    """

    failures: int = 0
    images: tuple[int, ...] = ()
    cause: str = ""
    pause: float = 0.0
    until: float = 0.0
    trial_until: float = 0.0


@define(eq=False)
class CircuitBreaker:
    """
    Spares clients the timeouts of a host that is down.

    It counts the requests that failed in a row, each attempt of a retried one too.  After
    :data:`BREAKER_FAILURES` it opens: every request is refused for a while.  Then one is let
    through: if that fails, the next while is longer; any answer closes the breaker.

    :param name: the repository's name, for the log.
    :param subject: the host that is asked, for reasons and the log.
    :param note: its state, which all processes of the daemon share.
    :param images: the images of which requests must have failed; one image may be damaged at a
        host that is well.
    """

    name: str
    subject: str
    clock: IReactorTime
    note: Note[BreakerState]
    images: int = 1

    _log = Logger()

    @property
    def trouble(self) -> str:
        """The reason for which the breaker is open; empty while it is closed."""
        state = self.note.read()
        return "" if state is None or not state.until else state.cause

    @property
    def left(self) -> float:
        """Seconds until a request is let through; 0: it is now."""
        state = self.note.read()
        return 0.0 if state is None else max(0.0, state.until - self.clock.seconds())

    def admit(self) -> bool:
        """
        Ask for permission to make a request.  Returns whether the request is the trial after a
        pause.

        Call one of :meth:`answered`, :meth:`failed` and :meth:`abandoned` afterwards.

        :raises Interrupted: if the breaker is open.
        """
        known = self.note.read()
        if known is None or not known.until:
            return False
        now, trial = self.clock.seconds(), False

        def admit(state: BreakerState | None) -> BreakerState | None:
            nonlocal trial
            if state is None or not state.until:
                return state
            told = f"{self.subject} has failed {state.failures} times in a row"
            left = state.until - now
            if left > 0:
                raise Interrupted(f"{told} and is not asked again for {left:.1f} s: {state.cause}")
            if state.trial_until > now:
                raise Interrupted(f"{told} and is being tried again at this moment: {state.cause}")
            trial = True
            return replace(state, trial_until=now + _TRIAL)

        self.note.update(admit)
        return trial

    def answered(self) -> None:
        """Note an answer: the breaker closes."""
        state = self.note.read()
        if state is None:
            return
        if state.until:
            self._log.info("{name}: {subject} answers again", name=self.name, subject=self.subject)
        self.note.update(lambda _: None)

    def failed(self, trial: bool, reason: str, image: str | None = None) -> bool:
        """
        Note that no answer came, or a 5xx.

        :param trial: the result of :meth:`admit`.
        :param image: the image that was asked for; ``None`` if the failure is the host's, whatever
            is asked for.
        :return: whether the breaker has opened that was closed.
        """
        opened: BreakerState | None = None

        def fail(before: BreakerState | None) -> BreakerState:
            nonlocal opened
            state = before or BreakerState()
            failed = set(state.images)
            if image is not None and len(failed) < self.images:
                failed.add(_named(image))
            failures = state.failures + 1
            state = replace(state, failures=failures, images=tuple(sorted(failed)))
            if not (trial and state.until):
                if state.until or failures < BREAKER_FAILURES:
                    return state  # begun before the pause: it tells nothing new
                if image is not None and len(failed) < self.images:
                    return state
            pause = min(state.pause * 2 or BREAKER_PAUSE, _LONGEST_BREAKER_PAUSE)
            until = self.clock.seconds() + pause
            opened = replace(state, cause=_short(reason), pause=pause, until=until, trial_until=0.0)
            return opened

        self.note.update(fail)
        if opened is not None:
            self._log.warn(
                "{name}: {subject} is not asked for {pause} s, after {failures} failures: {reason}",
                name=self.name,
                subject=self.subject,
                pause=opened.pause,
                failures=opened.failures,
                reason=opened.cause,
            )
        return opened is not None and not trial

    def abandoned(self, trial: bool) -> None:
        """Note that the request was cancelled, or that its outcome tells nothing."""
        if trial:
            self.note.update(lambda state: state and replace(state, trial_until=0.0))


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
    0.25 · 2ⁿ⁻¹ seconds, at most 5, but no less than ``Retry-After`` of a 5xx asks for.  If that
    asks for more than 5, there is no repetition.

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
                least = error.retry_after or 0.0
                if not may_pass(error) or least > _LONGEST:
                    raise
            most = min(_FIRST * 2**repetition, _LONGEST)
            await deferLater(self.clock, max(least, self.random.uniform(0, most)))
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


class ThrottleState(msgspec.Struct, frozen=True):
    """
    What is remembered of 429s; images are numbers.

    :ivar until: until when nothing is asked.
    :ivar image: the one that is not asked for alone, until ``guessed_until``.
    :ivar images: up to two that were answered 429 without Retry-After since the last other answer.
    :ivar guess: the seconds of the next pause that the upstream doesn't tell.
    """

    until: float = 0.0
    reason: str = ""
    image: int = 0
    guessed_until: float = 0.0
    images: tuple[int, ...] = ()
    guess: float = _SHORTEST_PAUSE


@define(eq=False)
class Throttle:
    """
    Remembers a 429, so that nothing is asked until its ``Retry-After`` has passed.

    After one without ``Retry-After`` that image alone is not asked for, for a second; after the
    next in a row for two seconds, and so on, up to a minute.  If it is another image's, nothing is
    asked.

    :param note: its state, which all processes of the daemon share.
    """

    clock: IReactorTime
    note: Note[ThrottleState]

    @property
    def left(self) -> float:
        """Seconds until the upstream is asked again for all images; 0: it is now."""
        state = self.note.read()
        return 0.0 if state is None else max(0.0, state.until - self.clock.seconds())

    def check(self, image: str = "") -> None:
        """:raises Throttled: if ``image`` is not asked for yet."""
        state = self.note.read()
        if state is None:
            return
        alone = state.guessed_until if image and _named(image) == state.image else 0.0
        left = max(state.until, alone) - self.clock.seconds()
        if left > 0:
            raise Throttled(state.reason, left)

    def tell(self, error: Throttled, image: str = "") -> None:
        """
        Remember a 429, and set its ``retry_after`` if the upstream has told none.

        :param image: what was asked for; ``""``: it counts for everything.
        """
        now, this = self.clock.seconds(), _named(image)

        def told(before: ThrottleState | None) -> ThrottleState:
            state = before or ThrottleState()
            if error.guessed:
                if now >= max(state.until, state.guessed_until):  # otherwise it was begun before
                    guess = min(state.guess * 2, _LONGEST_GUESS)
                    state = replace(state, guessed_until=now + state.guess, guess=guess)
                error.retry_after = max(state.until, state.guessed_until) - now
                images = tuple(sorted({*state.images, this})[:2])
                state = replace(state, image=this, images=images)
            if not (error.guessed and image and state.images == (this,)):
                state = replace(state, until=max(state.until, now + error.retry_after))
            return replace(state, reason=_short(error.reason))

        self.note.update(told)

    def answered(self) -> None:
        """Note another answer than 429."""
        state = self.note.read()
        if state is not None and (state.images or state.guess > _SHORTEST_PAUSE):
            calm = {"guess": _SHORTEST_PAUSE, "images": ()}
            self.note.update(lambda found: found and replace(found, **calm))


# "100;w=21600" (Docker Hub), "100", "100, 100;w=60" (earlier drafts of the IETF's).
_QUOTA = re.compile(r"[ \t]*([0-9]{1,12})(?:[ \t]*;[ \t]*w=([0-9]{1,9}))?[ \t]*(?:[,;].*)?")
_RESET = re.compile(r"[0-9]{1,9}")

# Requests are spared while less than this share of them remains, and by at most this factor.
_ENOUGH = 0.5
_MOST_FRUGAL = 60.0
# Seconds of the window where the upstream doesn't tell it.
_WINDOW = 3600.0


class QuotaState(msgspec.Struct, frozen=True):
    """The share of the requests that remains, 0 to 1, and until when that holds."""

    share: float
    until: float


@define(eq=False)
class RateLimit:
    """
    The requests that remain of an upstream's rate limit in a window of time.

    Docker Hub sends it with each manifest: ``RateLimit-Limit: 100;w=21600`` (100 in 21,600 s) and
    ``RateLimit-Remaining: 76;w=21600``.  GitLab and others send plain numbers, and with
    ``RateLimit-Reset`` the seconds until all requests are allowed again.

    :param note: its state, which all processes of the daemon share.
    """

    clock: IReactorTime
    note: Note[QuotaState]

    def read(self, response: HttpResponse) -> None:
        """Remember the rate limit in the headers of ``response``, if there is one."""
        limit = _QUOTA.fullmatch(response.header("RateLimit-Limit") or "")
        remaining = _QUOTA.fullmatch(response.header("RateLimit-Remaining") or "")
        if limit is None or remaining is None or not int(limit[1]):
            return
        reset = _RESET.fullmatch((response.header("RateLimit-Reset") or "").strip())
        window = reset[0] if reset else remaining[2] or limit[2]
        until = self.clock.seconds() + (float(window) if window else _WINDOW)
        state = QuotaState(int(remaining[1]) / int(limit[1]), until)
        self.note.update(lambda _: state)

    @property
    def remaining(self) -> float | None:
        """The share of the requests that remains, 0 to 1; ``None``: the upstream has told none."""
        state = self.note.read()
        return None if state is None or self.clock.seconds() >= state.until else state.share

    def frugality(self) -> float:
        """
        Return the factor by which tags stay fresh for longer, 1 to 60.

        It is 1 while at least half of the requests remain; below that half divided by the share
        that remains (a quarter: 2, a twentieth: 10); 60 when none remains.  After the window it is
        1 again.
        """
        share = self.remaining
        if share is None or share >= _ENOUGH:
            return 1.0
        return min(_ENOUGH / share, _MOST_FRUGAL) if share else _MOST_FRUGAL


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
        unreachable = Unreachable(reason, status)
        unreachable.retry_after = retry_after(response)
        return unreachable
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


_S = TypeVar("_S", bound=msgspec.Struct)


def _notebook_of(whose: str) -> Notebook:
    """Return another notebook for clients' requests, so that they take no room of the daemon's."""
    return Notebook.URLS if whose else Notebook.HOSTS


@frozen
class Exchanges:
    """
    Single requests to a registry or its token service, behind circuit breakers, and counted.

    One URL's trouble is not the host's.  What fails opens the breaker of its URL.  That of the host
    opens if the host can't be reached, or if requests for several images fail in a row.  A 5xx to
    HEAD is its URL's alone, since the host may answer GET.

    :param name: the repository's name, for the log.
    :param subject: the host that is asked, for reasons and the log.
    :param memory: where all processes of the daemon remember what fails.
    :param notebook: the part of it that has the host's breaker.
    :ivar host: the breaker of the host, as opposed to that of one URL.
    """

    http: Http
    name: str
    subject: str
    clock: IReactorTime
    watch: UpstreamWatch
    memory: SharedMemory
    notebook: Notebook = Notebook.HOSTS
    host: CircuitBreaker = field(init=False)

    @host.default
    def _of_host(self) -> CircuitBreaker:
        note = self.note("", BreakerState, self.notebook)
        return CircuitBreaker(self.name, self.subject, self.clock, note, BREAKER_IMAGES)

    def note(self, what: str, kind: type[_S], notebook: Notebook = Notebook.HOSTS) -> Note[_S]:
        """Return what all processes of the daemon remember of the host, as to ``what``."""
        key = f"{self.name}\0{self.subject}\0{what}"
        return Notes(self.memory, notebook, self.clock).note(key, kind)

    def throttle(self, whose: str, what: str = "") -> Throttle:
        """
        Return what all processes of the daemon remember of 429s.

        :param whose: whose requests are answered so: the daemon's, ``""``, or one client's.
        :param what: which requests are.
        """
        note = self.note(f"429 {whose} {what}", ThrottleState, _notebook_of(whose))
        return Throttle(self.clock, note)

    def rate_limit(self, whose: str) -> RateLimit:
        """
        Return what all processes of the daemon remember of the rate limit.

        :param whose: whose requests it is for: the daemon's, ``""``, or one client's.
        """
        note = self.note(f"quota {whose}", QuotaState, _notebook_of(whose))
        return RateLimit(self.clock, note)

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
        single = self._of_url(method, url)
        try:
            retried = single.admit()
        except Interrupted as error:
            error.connected = True
            raise
        try:
            trial = self.host.admit()
        except Interrupted:
            single.abandoned(retried)
            raise
        try:
            response = await self.http.request(method, url, headers, others, body)
        except Unreachable as error:
            self.watch.requested(method, None, image)
            if error.status is not None and error.status < 500:
                self._answered(single)  # with nonsense
            else:
                single.failed(retried, error.reason)
                if error.led_elsewhere:
                    self.host.answered()
                else:
                    about = image if error.connected else None
                    if self.host.failed(trial, error.reason, about):
                        self.watch.down(error.reason)
            raise
        except BaseException:
            self.host.abandoned(trial)
            single.abandoned(retried)
            raise
        self.watch.requested(method, response.status, image)
        if response.status < 500 or response.status in DEFINITE:
            self._answered(single)
            return response
        reason = f"{response.host} answers {response.status}"
        single.failed(retried, reason)
        if response.redirected:
            self.host.answered()
        elif method == "HEAD":
            self.host.abandoned(trial)
        elif self.host.failed(trial, reason, image):
            self.watch.down(reason)
        raise await refusal(response, *secrets)

    def _answered(self, single: CircuitBreaker) -> None:
        self.host.answered()
        single.answered()

    def _of_url(self, method: str, url: str) -> CircuitBreaker:
        note = self.note(f"{method} {url}", BreakerState, Notebook.URLS)
        return CircuitBreaker(self.name, f"{self.subject}, for this URL,", self.clock, note)
