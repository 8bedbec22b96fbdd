"""Failed logins, counted so that guessing is slow."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from enum import Enum
from ipaddress import IPv6Address, ip_address

from attrs import define, field, frozen
from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from artifactd.oci.errors import TooManyRequests

_PREFIX = 64  # bits: what one IPv6 customer has at least


def network(address: str) -> str:
    """
    What counts as one address: an IPv4 address, also one written in IPv6, or an IPv6 network of 64
    bits; what is neither (a unix socket) counts as it is.
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
    Counts that leak: ``limit`` failures are forgotten, evenly, within ``period`` seconds.

    :param size: how many counts are kept; beyond that the one that changed longest ago goes.
    """

    def __init__(self, limit: int, period: float, clock: IReactorTime, size: int = 10_000) -> None:
        self._limit = limit
        self._leak = limit / period  # failures a second
        self._clock = clock
        self._size = size
        self._counts: dict[Hashable, _Count] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def wait(self, key: Hashable) -> float:
        """Seconds until another attempt may be made; 0 if it may be made now."""
        count = self._counts.get(key)
        if count is None:
            return 0.0
        return max(0.0, (self._left(count) - (self._limit - 1)) / self._leak)

    def add(self, key: Hashable) -> None:
        """One more failure."""
        count = self._counts.pop(key, None)
        left = 0.0 if count is None else self._left(count)
        if count is None and len(self._counts) >= self._size:
            del self._counts[next(iter(self._counts))]
        self._counts[key] = _Count(left + 1, self._clock.seconds())

    def forget(self, key: Hashable) -> float:
        """No failures any more; how many there were."""
        count = self._counts.pop(key, None)
        return 0.0 if count is None else self._left(count)

    def subtract(self, key: Hashable, failures: float) -> None:
        """``failures`` fewer."""
        count = self._counts.get(key)
        if count is not None:
            left = self._left(count) - failures
            if left > 0:
                self._counts[key] = _Count(left, self._clock.seconds())
            else:
                del self._counts[key]

    def _left(self, count: _Count) -> float:
        elapsed = max(0.0, self._clock.seconds() - count.at)  # clocks are set back, too
        return max(0.0, count.failures - elapsed * self._leak)


# How guessing at logins is slowed down, whoever checks them.


@frozen
class Slowing:
    """
    ``[auth]`` in the settings tells what each means.

    :ivar failure_period: in seconds.
    """

    name_failures: int = 5
    address_failures: int = 20
    failure_period: float = 300.0


AS_SET_BY_DEFAULT = Slowing()


class Slowed(Enum):
    """Whose further logins have to wait."""

    NOBODYS = "nobody's"
    NAMES = "those of the name from that address"
    ADDRESSES = "all from that address"


class Guesses:
    """
    Failed logins by address and name, and by address.  One who may log in here can't wipe away the
    failures that come of guessing others' passwords.
    """

    def __init__(self, slowing: Slowing, clock: IReactorTime) -> None:
        self._by_name = Failures(slowing.name_failures, slowing.failure_period, clock)
        self._by_address = Failures(slowing.address_failures, slowing.failure_period, clock)

    def refuse_early(self, source: str, name: str) -> None:
        """:raises TooManyRequests: while nothing is checked for them, not even the password."""
        wait = max(self._by_name.wait((source, name)), self._by_address.wait(source))
        if wait > 0:
            seconds = math.ceil(wait)
            raise TooManyRequests(
                f"too many failed logins from {source}: try again in {seconds} s",
                None,
                {"Retry-After": str(seconds)},
            )

    def succeeded(self, source: str, name: str) -> None:
        """A login was right."""
        self._by_address.subtract(source, self._by_name.forget((source, name)))

    def failed(self, source: str, name: str) -> Slowed:
        """A login was wrong; who has to wait now."""
        self._by_name.add((source, name))
        self._by_address.add(source)
        if self._by_address.wait(source):
            return Slowed.ADDRESSES
        return Slowed.NAMES if self._by_name.wait((source, name)) else Slowed.NOBODYS


# Turns: of each address few logins are checked at a time, so that guesses are counted in time.

_AT_ONCE = 4  # logins of one address that are checked; its others wait for their turn
_WAITING = 64  # logins of one address
_ALL = 256  # logins of all addresses


def crowded() -> TooManyRequests:
    """What is told to whom :meth:`Turns.is_crowded` turns away."""
    return TooManyRequests("too many logins at once: try again", None, {"Retry-After": "1"})


@define
class _Queue:
    """Logins of one address."""

    turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(_AT_ONCE))
    pending: int = 0


@define(eq=False)
class Turns:
    """
    By address.

    :ivar pending: logins that have or await a turn.
    """

    pending: int = field(default=0, init=False)
    _queues: dict[str, _Queue] = field(factory=dict, init=False)

    def is_crowded(self, source: str, known: bool = False) -> bool:
        """
        Whether another login of ``source`` is to be turned away.

        :param known: whether it has been right before: then the flood of others does not count.
        """
        queue = self._queues.get(source)
        if queue is not None and queue.pending >= _WAITING:
            return True
        return self.pending >= _ALL and not known

    @asynccontextmanager
    async def turn(self, source: str) -> AsyncIterator[None]:
        """
        Wait for a turn, and have it.  What is counted, and what is looked at before a check, belong
        in it: whoever is next sees the count.
        """
        queue = self._queues.setdefault(source, _Queue())
        queue.pending += 1
        self.pending += 1
        try:
            await queue.turns.acquire()
            try:
                yield
            finally:
                queue.turns.release()
        finally:
            queue.pending -= 1
            self.pending -= 1
            if not queue.pending:
                del self._queues[source]
