"""The delivery of events: at least once, in the order of each image, with patience."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from random import Random

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.catalog.cache import Version
from artifactd.catalog.webhooks import Head, Message, WebhookCatalog, WebhookSeen
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.errors import Unavailable
from artifactd.registry.metrics import WebhookCounters
from artifactd.settings.webhooks import KEEP, MOST, WebhookSettings
from artifactd.store.files import DutyLock
from artifactd.upstream.http.errors import UpstreamError
from artifactd.upstream.http.transport import Transport
from artifactd.upstream.patience import retry_after
from artifactd.webhooks.requests import FORMATS, Source, signed

LOOK_EVERY = 0.5
"""Seconds between looks for events that other processes, too, have written."""
AT_ONCE = 4
"""Requests to one receiver at a time, each about another image."""

# Seconds: before the first repetition of an attempt, twice as many before each further one, and at
# most.
_FIRST, _LONGEST = 1.0, 300.0
_DROP_EVERY = 10.0
_CLAIM_EVERY = 5.0  # while another process delivers

# Statuses that say something about the receiver, whatever it is told (RFC 9110 and 6585): Gone, Too
# Many Requests, Bad Gateway, Service Unavailable, Gateway Timeout.
_GONE = 410
_NOT_NOW = frozenset({_GONE, 429, 502, 503, 504})

_log = Logger()


def pause(attempts: int, random: Random) -> float:
    """Seconds until the next attempt, after ``attempts`` that have failed."""
    longest = min(_FIRST * 2.0 ** min(attempts - 1, 30), _LONGEST)
    # Jitter: not all registries ask a receiver that is back at the same moment.
    return random.uniform(longest / 2, longest)


@define
class Problem:
    """
    Why an attempt has failed.

    :ivar text: one line for the operator; it holds nothing that the receiver has sent.
    :ivar is_receivers: whether the receiver takes nothing now, whatever it is told.
    :ivar wait: seconds for which it asked to be left alone; 0: it did not.
    """

    text: str
    is_receivers: bool
    wait: float = 0.0


@define(eq=False)
class Receiver:
    """
    Sends events to the receiver of one webhook.

    :ivar name: the webhook's name.
    :ivar now: seconds since the epoch.
    """

    name: str
    settings: WebhookSettings
    transport: Transport
    source: Source
    now: Callable[[], float]

    async def send(self, message: Message) -> Problem | None:
        """Make one attempt.  Returns why it failed; ``None``: the receiver has the event."""
        media_type, body = FORMATS[self.settings.format](message, self.source)
        try:
            keys = self.settings.read_keys()
        except ValueError as error:
            return Problem(str(error), is_receivers=True)
        headers = {
            "Content-Type": media_type,
            **signed(message.message, self.now(), body, keys),
        }
        try:
            response = await self.transport.request(
                "POST", str(self.settings.url), headers, body=body
            )
        except UpstreamError as error:
            return Problem(error.reason, is_receivers=error.status is None)
        status, wait = response.status, retry_after(response) or 0.0
        response.drop()
        if 200 <= status < 300:
            return None
        if status == _GONE:
            wait = _LONGEST
        return Problem(f"{response.host} answers {status}", status in _NOT_NOW, min(wait, _LONGEST))


@define(eq=False)
class _Line:
    """
    The deliveries to one receiver.

    A receiver that takes nothing is asked by one request after each pause, whichever image has
    waited the longest; one that refuses an event keeps only that event's image waiting.

    :ivar is_new: whether events may have come since its queue was read.
    :ivar next_at: when the next of its subjects is due, in seconds since the epoch.
    :ivar rests_until: before then the receiver is not asked, in seconds of the clock.
    :ivar failures: attempts in a row which showed that it takes nothing.
    :ivar subjects: those about which it is being told something.
    :ivar reads: for each read of the queue that is under way, the subjects about which something
        was being told meanwhile: the read may have come before or after it.
    """

    receiver: Receiver
    is_new: bool = True
    next_at: float = 0.0
    rests_until: float = 0.0
    failures: int = 0
    subjects: set[str] = field(factory=set)
    reads: list[set[str]] = field(factory=list)
    workers: set[Deferred[None]] = field(factory=set)

    @property
    def name(self) -> str:
        return self.receiver.name


@define(eq=False)
class Deliveries:
    """
    Delivers the events that wait.  One process on a data folder does it at a time.

    Events of one subject are sent one after the other, each until the receiver has answered 2xx;
    those of other subjects go on meanwhile.  An event is marked after the answer, so one whose
    answer is lost in a crash is sent again.

    :param lock: is held by the process that delivers.
    :param version: changes with every commit that writes or changes an event; ``None``: it is not
        known now.
    :param clock: measures pauses.
    :param now: seconds since the epoch.
    """

    catalog: WebhookCatalog
    lock: DutyLock
    run_in_thread: RunInThread
    version: Callable[[], Version | None]
    clock: IReactorTime
    now: Callable[[], float]
    counters: WebhookCounters
    receivers: Sequence[Receiver]
    random: Random = field(factory=Random)
    _lines: Sequence[_Line] = field(init=False)
    _claimed: bool = field(default=False, init=False)
    _claims_at: float = field(default=0.0, init=False)
    _seen: Version | None = field(default=None, init=False)
    _drops_at: float = field(default=0.0, init=False)
    _stopping: bool = field(default=False, init=False)

    @_lines.default
    def _(self) -> Sequence[_Line]:
        return [_Line(receiver) for receiver in self.receivers]

    async def look(self) -> None:
        """
        Begin to deliver what is due, and drop what is too old.  To be called every
        :data:`LOOK_EVERY` seconds, or now and then where there are no receivers; it does not wait
        for deliveries.
        """
        if self._stopping:
            return
        if not self._lines:
            await self._drop_lost()
            return
        if not self._claimed and self.clock.seconds() >= self._claims_at:
            self._claims_at = self.clock.seconds() + _CLAIM_EVERY
            self._claimed = await self._claim()
        if not self._claimed:
            return
        version = self.version()
        is_new = version is None or version != self._seen
        self._seen = version
        if self.clock.seconds() >= self._drops_at:
            self._drops_at = self.clock.seconds() + _DROP_EVERY
            await self._drop(await self.catalog.seen())
        for line in self._lines:
            line.is_new |= is_new
            if line.is_new or self.now() >= line.next_at:
                self._begin(line)

    async def idle(self) -> None:
        """Wait until no delivery is under way."""
        while workers := [each for line in self._lines for each in line.workers]:
            await DeferredList(workers)

    async def rest(self) -> None:
        """Begin no more deliveries, and leave them to another process when those under way end."""
        self._stopping = True
        await self.idle()
        self.lock.release()

    async def stop(self) -> None:
        """Give up the requests under way: their events wait for the next start."""
        self._stopping = True
        for line in self._lines:
            await line.receiver.transport.close()
        await self.rest()

    async def _claim(self) -> bool:
        """Take the lock if it is free, and still wanted then."""
        claimed = await self.run_in_thread(self.lock.claim)
        if self._stopping:
            self.lock.release()
        return claimed and not self._stopping

    def _begin(self, line: _Line) -> None:
        """Begin one more worker, if the receiver may be asked."""
        most = 1 if line.failures else AT_ONCE
        if self._stopping or len(line.workers) >= most or self.clock.seconds() < line.rests_until:
            return

        async def work() -> None:
            try:
                while await self._next(line):
                    pass
            except Exception as error:
                if isinstance(error, Unavailable):
                    _log.error("webhook {name} waits: {error}", name=line.name, error=error.message)
                else:
                    _log.failure("delivering to webhook {name} failed", name=line.name)
                self._rest(line)
                line.is_new = True

        working = Deferred.fromCoroutine(work())
        if not working.called:
            line.workers.add(working)
            working.addBoth(lambda _: line.workers.discard(working))

    async def _next(self, line: _Line) -> bool:
        """Deliver the event that is due first.  Returns whether to go on with another one."""
        line.is_new = False  # before the rows are read: what comes then is seen by the next look
        passed_over = set(line.subjects)
        line.reads.append(passed_over)
        try:
            heads = await self.catalog.heads(line.name, 2 * AT_ONCE)
        finally:
            line.reads = [each for each in line.reads if each is not passed_over]
        now, due = self.now(), None
        line.next_at = inf
        for head in heads:
            if head.message.subject in passed_over:
                line.is_new |= head.message.subject not in line.subjects
                continue
            # A clock that was set back must not keep it waiting.
            if head.due_at <= now or head.due_at > now + 2 * _LONGEST:
                due = head
                break
            line.next_at = min(line.next_at, head.due_at)
        if due is None:
            return False
        line.next_at = now  # there may be more
        if self._stopping or self.clock.seconds() < line.rests_until:
            return False
        subject = due.message.subject
        line.subjects.add(subject)
        for passed_over in line.reads:
            passed_over.add(subject)
        try:
            self._begin(line)
            await self._deliver(line, due)
        finally:
            line.subjects.discard(subject)
        return True

    async def _deliver(self, line: _Line, head: Head) -> None:
        message = head.message
        problem = await line.receiver.send(message)
        if self._stopping and problem is not None:
            return
        if problem is None:
            self.counters.delivered.labels(line.name).inc()
            await self.catalog.delivered(message)
            line.failures, line.rests_until = 0, 0.0
            return
        self.counters.failed.labels(line.name).inc()
        wait = max(pause(head.attempts + 1, self.random), problem.wait)
        if problem.is_receivers:
            self._rest(line, problem.wait)
        else:
            line.failures, line.rests_until = 0, 0.0
        _log.warn(
            "webhook {name}: {kind} of {subject} waits, after {attempts} attempts: {problem}",
            name=line.name,
            kind=message.event.kind,
            subject=message.subject,
            attempts=head.attempts + 1,
            problem=problem.text,
        )
        await self.catalog.failed(message, problem.text, self.now() + wait)

    def _rest(self, line: _Line, least: float = 0.0) -> None:
        """Ask a receiver nothing for a while, and then by one request at a time."""
        line.failures += 1
        rest = max(pause(line.failures, self.random), least)
        line.rests_until = self.clock.seconds() + rest

    async def _drop_lost(self) -> None:
        """
        Drop what is too old where the settings have lost all webhooks.  The lock is held no longer
        than that: another process may have webhooks to deliver to.
        """
        seen = await self.catalog.seen()
        if not seen:
            return
        if await self.run_in_thread(self.lock.claim):
            try:
                await self._drop(seen)
            finally:
                self.lock.release()

    async def _drop(self, seen: Sequence[WebhookSeen]) -> None:
        """Keep the events within their bounds, also those of webhooks that the settings lost."""
        settings = {line.name: line.receiver.settings for line in self._lines}
        for each in seen:
            self.counters.waiting.labels(each.name).set(each.waiting)
            keep = settings.get(each.name)
            seconds, most = (KEEP, MOST) if keep is None else (keep.keep, keep.most)
            dropped = await self.catalog.drop(each.name, self.now() - seconds, most)
            if dropped:
                self.counters.dropped.labels(each.name).inc(dropped)
                _log.error(
                    "webhook {name}: {count} events were dropped that it was not told of",
                    name=each.name,
                    count=dropped,
                )
