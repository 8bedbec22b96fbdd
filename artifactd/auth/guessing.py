"""
Slows down the guessing of passwords: counts failed logins, and limits how many logins of one client
address are checked at a time.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from enum import Enum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from attrs import define, field
from cachetools import FIFOCache
from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from artifactd.oci.errors import TooManyRequests
from artifactd.settings.accounts import AuthSettings

_PREFIX = 64  # bits: the smallest network that one IPv6 customer gets
_AT_ONCE = 4  # logins of one address that are checked at a time; its others wait
_PENDING = 64  # logins of one address that are checked or wait
_ALL_PENDING = 256  # logins of all addresses that are checked or wait


@lru_cache(maxsize=4096)
def network(address: str) -> str:
    """
    The key under which a client address is counted: an IPv4 address, also when it is written as
    IPv6, or the /64 network of an IPv6 address.  Any other text, as of a unix socket, is returned
    as it is.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> (128 - _PREFIX) << (128 - _PREFIX))) + f"/{_PREFIX}"
    return str(parsed)


@define
class _Count:
    failures: float
    at: float  # seconds


class Failures:
    """
    Counts failures by key in leaky buckets: ``limit`` failures leak, evenly, in ``period`` seconds.

    :param size: the number of counts kept.  Beyond it the count whose last failure is the oldest
        goes; reading a count does not keep it longer.
    :ivar counts: the counts by key; a key without a count has no failures.
    """

    def __init__(self, limit: int, period: float, clock: IReactorTime, size: int = 10_000) -> None:
        self._limit = limit
        self._leak = limit / period  # failures a second
        self._clock = clock
        self.counts: FIFOCache[Hashable, _Count] = FIFOCache(size)

    def wait(self, key: Hashable) -> float:
        """Seconds until another attempt is allowed; 0 if one is allowed now."""
        count = self.counts.get(key)
        if count is None:
            return 0.0
        return max(0.0, (self._left(count) - (self._limit - 1)) / self._leak)

    def add(self, key: Hashable) -> None:
        """Count a failure."""
        count = self.counts.get(key)
        left = 0.0 if count is None else self._left(count)
        self.counts[key] = _Count(left + 1, self._clock.seconds())

    def forget(self, key: Hashable) -> float:
        """Set a count to 0, and return its value before."""
        count = self.counts.pop(key, None)
        return 0.0 if count is None else self._left(count)

    def subtract(self, key: Hashable, failures: float) -> None:
        """Lower a count by ``failures``, at most to 0."""
        count = self.counts.get(key)
        if count is None:
            return
        count.failures, count.at = self._left(count) - failures, self._clock.seconds()
        if count.failures <= 0:
            del self.counts[key]

    def _left(self, count: _Count) -> float:
        elapsed = max(0.0, self._clock.seconds() - count.at)  # a clock may be set back
        return max(0.0, count.failures - elapsed * self._leak)


class Blocked(Enum):
    """The further logins that are refused after a failed one."""

    NOTHING = "none"
    NAME = "those with the same name, from the same address"
    ADDRESS = "all from the same address"


@define
class _Queue:
    """The logins of one address."""

    turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(_AT_ONCE))
    pending: int = 0


class Guard:
    """
    Counts failed logins, by address with name and by address alone, and limits how many logins are
    checked or wait, per address and in all.

    A success clears only the failures of its own name, so that an account here does not help its
    owner to guess the passwords of others.

    :param settings: how many failures are allowed in which time.
    :ivar pending: the number of logins that are checked or wait.
    """

    def __init__(self, settings: AuthSettings, clock: IReactorTime) -> None:
        period = settings.failure_period
        self._by_name = Failures(settings.name_failures, period, clock)
        self._by_address = Failures(settings.address_failures, period, clock)
        self._queues: dict[str, _Queue] = {}
        self.pending = 0

    def refuse_early(self, source: str, name: str) -> None:
        """
        Refuse a login before its password is looked at, if it has to wait.

        :param source: the client address, as :func:`network` returns it.
        :raises TooManyRequests: with ``Retry-After``.
        """
        if source not in self._by_address.counts and (source, name) not in self._by_name.counts:
            return
        wait = max(self._by_name.wait((source, name)), self._by_address.wait(source))
        if wait > 0:
            seconds = math.ceil(wait)
            raise TooManyRequests(
                f"too many failed logins from {source}: try again in {seconds} s",
                None,
                {"Retry-After": str(seconds)},
            )

    def is_crowded(self, source: str, known: bool) -> bool:
        """
        Whether another login of ``source`` is refused because too many run or wait.

        :param known: whether the same login was right before.  Then only its own address counts:
            a flood from everywhere locks no such client out.
        """
        queue = self._queues.get(source)
        if queue is not None and queue.pending >= _PENDING:
            return True
        return self.pending >= _ALL_PENDING and not known

    @asynccontextmanager
    async def turn(self, source: str, name: str, known: bool = False) -> AsyncIterator[None]:
        """
        Wait until a login may be checked, and keep the turn for the context.

        Call :meth:`succeeded` or :meth:`failed` inside: then the next login in line sees the
        outcome of this one, and guesses made at once count as if made one by one.

        :param known: see :meth:`is_crowded`.
        :raises TooManyRequests: if too many logins run or wait, or if too many have failed when the
            turn comes.
        """
        if self.is_crowded(source, known):
            raise TooManyRequests("too many logins at once: try again", None, {"Retry-After": "1"})
        queue = self._queues.setdefault(source, _Queue())
        queue.pending += 1
        self.pending += 1
        try:
            await queue.turns.acquire()
            try:
                self.refuse_early(source, name)
                yield
            finally:
                queue.turns.release()
        finally:
            queue.pending -= 1
            self.pending -= 1
            if not queue.pending:
                del self._queues[source]

    def succeeded(self, source: str, name: str) -> None:
        """Clear the failures of ``name`` from ``source``."""
        if (source, name) in self._by_name.counts:
            self._by_address.subtract(source, self._by_name.forget((source, name)))

    def failed(self, source: str, name: str) -> Blocked:
        """Count a failed login.  Returns which further logins are refused now."""
        self._by_name.add((source, name))
        self._by_address.add(source)
        if self._by_address.wait(source):
            return Blocked.ADDRESS
        return Blocked.NAME if self._by_name.wait((source, name)) else Blocked.NOTHING
