"""Limits of what one client may take: connections, the pace of a body, requests a second."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from attrs import frozen
from twisted.internet.address import UNIXAddress
from twisted.logger import Logger

from artifactd.auth.guessing import network
from artifactd.auth.identity import Identity, Kind
from artifactd.kit.shared import Moments, SharedMemory, Table
from artifactd.kit.timers import Timers
from artifactd.oci.errors import TooManyRequests
from artifactd.settings.settings import LimitsSettings
from artifactd.web.server.proxies import TrustedProxies, counted_address, from_here

_log = Logger()


@frozen
class Counted:
    """
    The keys under which a connection is counted.

    :ivar address: the key of the client's address; ``None`` if the address is exempt.
    """

    listener: str
    address: str | None


class Connections:
    """
    Counts the open connections, by listener and by client address.

    A limit that is reached is logged once, until a tenth of it is free again: at the limit itself
    connections come and go all the time.

    :ivar limits: the limits in force.
    :ivar proxies: the trusted ones: neither they nor this machine are counted by address.
    """

    def __init__(self, limits: LimitsSettings, proxies: TrustedProxies) -> None:
        self.limits = limits
        self.proxies = proxies
        self._listeners: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._logged: set[str] = set()

    def __len__(self) -> int:
        return self._listeners.total()

    def add(self, host: object, peer: object) -> Counted | None:
        """
        Count a connection to ``host`` from ``peer``, which are addresses of Twisted's.

        Returns ``None``, and does not count it, if there is no room for it.
        """
        if isinstance(host, UNIXAddress):
            listener = f"the socket {host.name!r}"
        else:
            listener = f"port {getattr(host, 'port', '?')}"
        address = None
        if self.limits.address_connections and not self._exempts(peer):
            address = network(str(getattr(peer, "host", "")))
        if self._full(self._listeners, listener, self.limits.connections):
            return None
        if address is not None:
            if self._full(self._addresses, address, self.limits.address_connections):
                return None
            self._addresses[address] += 1
        self._listeners[listener] += 1
        return Counted(listener, address)

    def remove(self, counted: Counted) -> None:
        """Stop counting a connection that :meth:`add` has counted."""
        self._less(self._listeners, counted.listener, self.limits.connections)
        if counted.address is not None:
            self._less(self._addresses, counted.address, self.limits.address_connections)

    def _exempts(self, peer: object) -> bool:
        return from_here(peer) or self.proxies.trusts(peer)

    def _full(self, counts: Counter[str], key: str, limit: int) -> bool:
        if not limit or counts[key] < limit:
            return False
        if key not in self._logged:
            self._logged.add(key)
            _log.warn(
                "too many connections of {of}: more than {limit} are refused", of=key, limit=limit
            )
        return True

    def _less(self, counts: Counter[str], key: str, limit: int) -> None:
        counts[key] -= 1
        if counts[key] <= limit * 9 // 10:
            self._logged.discard(key)
        if not counts[key]:
            del counts[key]


class BodyPace:
    """
    Drops a body that comes too slowly: fewer than ``rate`` bytes a second on the average over
    ``window`` seconds.  Only the seconds count in which the server waits for the client.

    :param rate: bytes a second; 0: any.
    :param received: returns how many bytes have come so far.
    :param too_slow: is called once, when the body is too slow.
    """

    def __init__(
        self,
        timers: Timers,
        rate: int,
        window: float,
        received: Callable[[], int],
        too_slow: Callable[[], None],
    ) -> None:
        self._timers = timers
        self._window = self._left = window
        self._least = rate * window
        self._received = received
        self._too_slow = too_slow
        self._before = 0
        self._since: float | None = None
        self._deadline = timers.deadline(self._window_over)

    def wait(self) -> None:
        """Count the time from now on: the server waits for the client."""
        if self._least and self._since is None:
            self._since = self._timers.seconds()
            self._deadline.start(self._left)

    def pause(self) -> None:
        """Stop counting the time: the server does not read for now."""
        if self._since is not None:
            self._left -= self._timers.seconds() - self._since
            self._since = None
            self._deadline.stop()

    def stop(self) -> None:
        """End the check: the body is complete, or unwanted."""
        self._least, self._since = 0, None
        self._deadline.cancel()

    def _window_over(self) -> None:
        self._since = None
        received = self._received()
        if received - self._before < self._least:
            self._too_slow()
        else:
            self._before, self._left = received, self._window
            self.wait()


class ReaderPace:
    """
    Measures how fast a client takes an answer, over the seconds in which the server waits for it.

    It needs no deadline: it is asked whenever the client has taken something, and the stall timeout
    ends a client that takes nothing at all.

    :param rate: bytes a second that have to be taken, on the average over ``window`` seconds of
        waiting; 0: any number.
    """

    def __init__(self, clock: Callable[[], float], rate: float, window: float) -> None:
        self._clock = clock
        self._window = window
        self._least = rate * window
        self._before = 0
        self._waited = 0.0
        self._since: float | None = None

    def wait(self) -> None:
        """Count the time from now on: the server waits for the client."""
        if self._since is None:
            self._since = self._clock()

    def is_too_slow(self, taken: int) -> bool:
        """
        Count the time no more, since the client has taken something; return whether it is slower
        than the rate.

        :param taken: bytes that it has taken in all.
        """
        if self._since is None:
            return False
        self._waited += self._clock() - self._since
        self._since = None
        if self._waited < self._window:
            return False
        moved, self._before, self._waited = taken - self._before, taken, 0.0
        return moved < self._least


# Seconds within which sums of times are off.
_ROUNDING = 1e-6


class TokenBuckets:
    """
    A rate limiter: a token bucket for each key, which holds ``burst`` tokens and gets ``rate`` more
    a second.  A request takes one.

    Of each bucket only the time is kept when it will be full again.

    :param rate: tokens a second, at least 1.
    :param moments: the times of all processes of the daemon, which take from the same buckets.
    :param seconds: the time, in seconds; never set back, and the same in all processes.
    """

    def __init__(
        self, rate: int, burst: int, moments: Moments, seconds: Callable[[], float]
    ) -> None:
        self._interval = 1 / rate
        self._room = (burst - 1) * self._interval
        self._moments, self._seconds = moments, seconds

    def take(self, key: str) -> float:
        """Take a token and return 0; if there is none, return the seconds until there is one."""
        now = self._seconds()
        missing = 0.0

        def less(full_at: float) -> float:
            nonlocal missing
            missing = full_at - now - self._room
            return full_at if missing > _ROUNDING else max(full_at, now) + self._interval

        self._moments.update(key, less)
        return missing if missing > _ROUNDING else 0.0


class Rates:
    """
    Limits the rate of requests of one address and of one user.

    Loopback and Unix sockets have no limit as addresses: requests from there come from this
    machine, or from a proxy whose clients can't be told apart.

    :param memory: where requests are counted, by all processes of the daemon.
    :param seconds: see :class:`TokenBuckets`.
    """

    def __init__(
        self,
        limits: LimitsSettings,
        memory: SharedMemory,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = self._users = None
        if limits.address_requests:
            moments = Moments(memory, Table.ADDRESS_RATES)
            rate, burst = limits.address_requests, limits.address_burst
            self._addresses = TokenBuckets(rate, burst, moments, seconds)
        if limits.user_requests:
            moments = Moments(memory, Table.USER_RATES)
            self._users = TokenBuckets(limits.user_requests, limits.user_burst, moments, seconds)

    @classmethod
    def of(cls, limits: LimitsSettings, memory: SharedMemory) -> Rates | None:
        """Return the rates that ``limits`` sets; ``None`` if it sets none."""
        limited = limits.address_requests or limits.user_requests
        return cls(limits, memory) if limited else None

    def charge_address(self, address: str) -> None:
        """:raises TooManyRequests: with ``Retry-After``, if ``address`` asks too often."""
        if self._addresses is not None:
            counted = counted_address(address)
            if counted is not None:
                _charge(self._addresses, counted)

    def charge_user(self, identity: Identity) -> None:
        """:raises TooManyRequests: with ``Retry-After``, if the user asks too often."""
        if self._users is not None and identity.kind is not Kind.ANONYMOUS:
            _charge(self._users, str(identity))


def _charge(buckets: TokenBuckets, key: str) -> None:
    wait = buckets.take(key)
    if wait:
        seconds = math.ceil(wait)
        raise TooManyRequests(
            f"too many requests of {key}: try again in {seconds} s",
            None,
            {"Retry-After": str(seconds)},
        )
