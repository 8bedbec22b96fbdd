"""How often somebody may ask."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime

from artifactd.auth.guessing import network
from artifactd.auth.identity import Kind
from artifactd.oci.errors import TooManyRequests
from artifactd.web.forwarded import UNIX, is_loopback

if TYPE_CHECKING:
    from artifactd.web.request import RegistryRequest

_network = lru_cache(4096)(network)


class TokenBuckets:
    """
    A bucket of ``burst`` tokens for each key, into which ``rate`` come a second; a request takes
    one.

    What is kept of a bucket is only when it will be full again.

    :param rate: 0: there is no limit.
    :param size: how many buckets are kept; beyond that the one that was used longest ago is full.
    """

    def __init__(self, rate: int, burst: int, clock: IReactorTime, size: int = 10_000) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._room = (burst - 1) * self._interval
        self._clock = clock
        self._size = size
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._interval > 0

    def take(self, key: str) -> float:
        """Take a token: 0; or, where there is none, the seconds until there is one."""
        now = self._clock.seconds()
        full_at = self._full_at.pop(key, now)
        # Clocks are set back, too: nobody owes more than the whole bucket.
        full_at = min(max(full_at, now), now + self._room + self._interval)
        missing = full_at - now - self._room
        if missing <= 1e-9:
            full_at += self._interval
        if len(self._full_at) >= self._size:
            del self._full_at[next(iter(self._full_at))]
        self._full_at[key] = full_at
        return missing if missing > 1e-9 else 0.0


class Rates:
    """
    Of addresses and of users.

    Loopback and Unix sockets have no limit as addresses: what asks from there is this machine, or a
    proxy whose clients are not told apart.
    """

    def __init__(self, addresses: TokenBuckets, users: TokenBuckets) -> None:
        self._addresses = addresses
        self._users = users

    def charge_address(self, request: RegistryRequest) -> None:
        """:raises TooManyRequests: with ``Retry-After``, if its address asks too often."""
        if self._addresses.limited:
            address = address_of(request)
            if address is not None:
                self._charge(self._addresses, address)

    def charge_user(self, request: RegistryRequest) -> None:
        """:raises TooManyRequests: with ``Retry-After``, if the caller asks too often."""
        if self._users.limited and request.caller.identity.kind is not Kind.ANONYMOUS:
            self._charge(self._users, str(request.caller.identity))

    def _charge(self, buckets: TokenBuckets, who: str) -> None:
        wait = buckets.take(who)
        if wait:
            seconds = math.ceil(wait)
            raise TooManyRequests(
                f"too many requests of {who}: try again in {seconds} s",
                None,
                {"Retry-After": str(seconds)},
            )


def address_of(request: RegistryRequest) -> str | None:
    """
    The address that limits of an address count by: an IPv4 address or an IPv6 network of 64 bits;
    ``None`` for this machine, which they are not for.
    """
    address = request.address
    return None if address == UNIX or is_loopback(address) else _network(address)
