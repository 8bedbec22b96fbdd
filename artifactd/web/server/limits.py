"""How many connections there may be, and how slow their clients."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from attrs import frozen
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.auth.guessing import network
from artifactd.auth.identity import Kind
from artifactd.kit.timers import Timers
from artifactd.oci.errors import TooManyRequests
from artifactd.web.server.proxies import UNIX, is_loopback

if TYPE_CHECKING:
    from artifactd.web.server.protocol import RegistryRequest


_log = Logger()


@frozen
class ConnectionLimits:
    """
    What one connection may take; ``[limits]`` in the settings tells what each means.

    :ivar connections: of one port, or Unix socket; 0: any number, as for ``address_connections``.
    :ivar header_size: bytes of the request line and the header lines, without their ends.
    :ivar header_timeout: seconds.
    :ivar body_rate: bytes a second; 0: any.
    :ivar body_window: seconds.
    """

    connections: int = 4096
    address_connections: int = 512
    header_size: int = 16 << 10
    header_count: int = 100
    header_timeout: float = 20.0
    body_rate: int = 512
    body_window: float = 60.0


@frozen
class Counted:
    """As what a connection counts."""

    listener: str
    address: str | None


class Connections:
    """
    Those there are, counted by listener and by address.

    A limit that is reached is logged once, until a tenth of it is free again: at the limit itself
    connections come and go all the time.
    """

    def __init__(self, limits: ConnectionLimits, exempt: Callable[[object], bool]) -> None:
        """:param exempt: peers whose addresses are not counted: proxies, and this machine."""
        self._limits = limits
        self._exempt = exempt
        self._listeners: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self._told: set[str] = set()

    def __len__(self) -> int:
        return self._listeners.total()

    def add(self, host: object, peer: object) -> Counted | None:
        """
        One more, to ``host`` from ``peer``, which are addresses of Twisted's; ``None``: there is no
        room for it, and it does not count.
        """
        listener, address = _listener(host), self._counted(peer)
        if self._full(self._listeners, listener, self._limits.connections):
            return None
        if address is not None:
            if self._full(self._addresses, address, self._limits.address_connections):
                return None
            self._addresses[address] += 1
        self._listeners[listener] += 1
        return Counted(listener, address)

    def remove(self, counted: Counted) -> None:
        """One that was added is closed."""
        self._less(self._listeners, counted.listener, self._limits.connections)
        if counted.address is not None:
            self._less(self._addresses, counted.address, self._limits.address_connections)

    def _counted(self, peer: object) -> str | None:
        if not self._limits.address_connections or self._exempt(peer):
            return None
        return network(str(getattr(peer, "host", "")))

    def _full(self, counts: Counter[str], key: str, limit: int) -> bool:
        if not limit or counts[key] < limit:
            return False
        if key not in self._told:
            self._told.add(key)
            _log.warn(
                "too many connections of {of}: more than {limit} are refused", of=key, limit=limit
            )
        return True

    def _less(self, counts: Counter[str], key: str, limit: int) -> None:
        counts[key] -= 1
        if counts[key] <= limit * 9 // 10:
            self._told.discard(key)
        if not counts[key]:
            del counts[key]


def _listener(host: object) -> str:
    if isinstance(host, UNIXAddress):
        return f"the socket {host.name!r}"
    return f"port {getattr(host, 'port', '?')}"


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
        """The server waits for the client from now on."""
        if self._least and self._since is None:
            self._since = self._timers.seconds()
            self._deadline.start(self._left)

    def pause(self) -> None:
        """The server does not read for now: no time runs."""
        if self._since is not None:
            self._left -= self._timers.seconds() - self._since
            self._since = None
            self._deadline.stop()

    def stop(self) -> None:
        """The body has ended, or is unwanted."""
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


# How often somebody may ask.

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
