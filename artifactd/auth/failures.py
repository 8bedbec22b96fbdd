"""Failed logins, counted so that guessing is slow."""

from __future__ import annotations

from collections.abc import Hashable
from ipaddress import IPv6Address, ip_address

from attrs import define
from twisted.internet.interfaces import IReactorTime

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
