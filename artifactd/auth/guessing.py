"""
Slows down the guessing of passwords: counts failed logins, and limits how many logins of one client
address are checked at a time.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from attrs import define, field
from twisted.internet.defer import DeferredSemaphore

from artifactd.kit.shared import Moments, SharedMemory, Table
from artifactd.oci.errors import TooManyRequests
from artifactd.settings.accounts import AuthSettings

_PREFIX = 64  # bits: the smallest network that one IPv6 customer gets
_AT_ONCE = 4  # logins of one address that are checked at a time; its others wait
_PENDING = 64  # logins of one address that are checked or wait
_ALL_PENDING = 256  # logins of all addresses that are checked or wait

# Seconds within which sums of times are off.
_ROUNDING = 1e-3


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


class Failures:
    """
    Counts failures by key in leaky buckets: ``limit`` failures leak, evenly, in ``period`` seconds.

    Of each bucket only the time is kept when it will be empty.  All processes of the daemon count
    together.

    :param seconds: the time, in seconds; never set back, and the same in all processes.
    """

    def __init__(
        self, limit: int, period: float, moments: Moments, seconds: Callable[[], float]
    ) -> None:
        self._free = (limit - 1) * period / limit
        self._each = period / limit  # seconds in which one failure leaks
        self._moments, self._seconds = moments, seconds

    def wait(self, key: str) -> float:
        """Seconds until another attempt is allowed; 0 if one is allowed now."""
        empty_at = self._moments.get(key)
        return max(0.0, empty_at - self._seconds() - self._free) if empty_at else 0.0

    def add(self, key: str) -> None:
        """Count a failure."""
        now = self._seconds()
        self._moments.update(key, lambda empty_at: max(empty_at, now) + self._each)

    def forget(self, key: str) -> float:
        """Set a count to 0, and return its value before."""
        if not self._moments.get(key):
            return 0.0
        now, failures = self._seconds(), 0.0

        def clear(empty_at: float) -> float:
            nonlocal failures
            failures = max(0.0, empty_at - now) / self._each
            return 0.0

        self._moments.update(key, clear)
        return failures

    def subtract(self, key: str, failures: float) -> None:
        """Lower a count by ``failures``, at most to 0."""
        if failures:
            less = failures * self._each
            self._moments.update(key, lambda empty_at: max(0.0, empty_at - less))


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

    Failures count over all processes of the daemon; the logins that are checked or wait are those
    of this one.

    :param settings: how many failures are allowed in which time.
    :param realm: which logins these are; those of others are counted apart.
    :param memory: what all processes share.
    :param seconds: the time, in seconds; never set back, and the same in all processes.
    :ivar pending: the number of logins that are checked or wait.
    """

    def __init__(
        self,
        settings: AuthSettings,
        realm: str,
        memory: SharedMemory,
        seconds: Callable[[], float],
    ) -> None:
        period, self._realm = settings.failure_period, realm
        names = Moments(memory, Table.NAME_FAILURES)
        addresses = Moments(memory, Table.ADDRESS_FAILURES)
        self._by_name = Failures(settings.name_failures, period, names, seconds)
        self._by_address = Failures(settings.address_failures, period, addresses, seconds)
        # Mostly there are no failures at all: then each login is spared the looks.
        self._last_of_names, self._last_of_addresses = names.latest, addresses.latest
        self._seconds = seconds
        self._queues: dict[str, _Queue] = {}
        self.pending = 0

    def refuse_early(self, source: str, name: str) -> None:
        """
        Refuse a login before its password is looked at, if it has to wait.

        :param source: the client address, as :func:`network` returns it.
        :raises TooManyRequests: with ``Retry-After``.
        """
        now = self._seconds()
        if self._last_of_names[0] <= now and self._last_of_addresses[0] <= now:
            return
        address, login = self._keys(source, name)
        wait = max(self._by_name.wait(login), self._by_address.wait(address))
        if wait > 0:
            seconds = math.ceil(wait - _ROUNDING)
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
        if self._last_of_names[0] <= self._seconds():
            return
        address, login = self._keys(source, name)
        self._by_address.subtract(address, self._by_name.forget(login))

    def failed(self, source: str, name: str) -> Blocked:
        """Count a failed login.  Returns which further logins are refused now."""
        address, login = self._keys(source, name)
        self._by_name.add(login)
        self._by_address.add(address)
        if self._by_address.wait(address):
            return Blocked.ADDRESS
        return Blocked.NAME if self._by_name.wait(login) else Blocked.NOTHING

    def _keys(self, source: str, name: str) -> tuple[str, str]:
        """Return the keys of an address and of a name from there; no address has a NUL."""
        address = f"{self._realm}\0{source}"
        return address, f"{address}\0{name}"
