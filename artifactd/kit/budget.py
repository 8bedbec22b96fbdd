"""The memory that all transfers of the process share (architecture.md, rule 6)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred, succeed

RECEIVE_SIZE = 256 * 1024
"""The most bytes that one ``recv`` brings, unless :func:`receive_size` lets it bring more."""

_LARGEST = 1024 * 1024
_TOGETHER = 4 * 1024 * 1024


def portion(transports: int, together: int, least: int, most: int) -> int:
    """
    The bytes for each of so many transports, all of which may have their turn before anything else
    has: an equal part of ``together``, but from ``least`` to ``most``.
    """
    return max(least, min(most, together // max(1, transports)))


def receive_size(transports: int) -> int:
    """
    The most bytes that one ``recv`` of a large body should bring while there are so many
    transports.

    Together they bring 4 MiB, if there are no more than 16; each brings 256 KiB to 1 MiB.
    """
    return portion(transports, _TOGETHER, RECEIVE_SIZE, _LARGEST)


@lru_cache(1024)  # it is asked for at each piece that arrives
def delivered_late(transports: int) -> int:
    """The most bytes that so many transports may deliver after they were paused."""
    few = range(1, min(transports, _TOGETHER // RECEIVE_SIZE) + 1)
    return sum(map(receive_size, few)) + (transports - len(few)) * RECEIVE_SIZE


class Buffering(Protocol):
    """A consumer that gathers bytes in memory before it writes them."""

    def hold(self) -> None:
        """Pause the producer, and write out the bytes gathered, however few."""

    def go_on(self) -> None:
        """Resume the producer."""


@define(eq=False)
class _Request:
    size: int
    granted: Deferred[None]


@define(eq=False)
class BufferBudget:
    """
    The bytes that all transfers together may hold in memory.

    Consumers that cannot refuse data call :meth:`join` and are paused while the budget is
    exhausted; readers that allocate first call :meth:`acquire`.  Both wait in one queue, first
    come, first served; while it is not empty (:attr:`pressed`), consumers write at once and gather
    nothing.

    A paused transport may still deliver the bytes of its last read.  So consumers are paused at
    :attr:`threshold`, which leaves room for one read of each, and one more, below ``limit``, but is
    at least a quarter of it.

    Only the reactor's thread may use it.

    :param limit: bytes, more than 0.
    :param late: the most bytes that arrive from so many transports after they were paused.
    """

    limit: int
    late: Callable[[int], int] = delivered_late
    used: int = field(default=0, init=False)
    _running: dict[Buffering, None] = field(factory=dict, init=False)
    _waiting: dict[Buffering | _Request, None] = field(factory=dict, init=False)
    _joined: set[Buffering] = field(factory=set, init=False)

    @property
    def threshold(self) -> int:
        """The bytes in use at which all consumers are paused."""
        reserve = self.late(len(self._joined) + 1) if self._joined else 0
        return max(self.limit // 4, self.limit - reserve)

    @property
    def pressed(self) -> bool:
        """Whether a consumer or a reader waits."""
        return bool(self._waiting)

    def join(self, consumer: Buffering) -> None:
        """Add ``consumer``, which is going to receive bytes.  It may be paused at once."""
        self._joined.add(consumer)
        self._running[consumer] = None
        if self.pressed or self.used >= self.threshold:
            self._hold()

    def leave(self, consumer: Buffering) -> None:
        """Remove ``consumer``, which has released its bytes and receives no more."""
        self._joined.discard(consumer)
        self._running.pop(consumer, None)
        self._waiting.pop(consumer, None)
        self._admit()

    def take(self, consumer: Buffering, size: int) -> None:
        """Count ``size`` bytes that ``consumer`` has received."""
        self.used += size
        if consumer in self._running:
            # The consumer served longest ago stays in front, and is the first to be resumed.
            del self._running[consumer]
            self._running[consumer] = None
        if self.used >= self.threshold:
            self._hold()

    def acquire(self, size: int) -> Deferred[None]:
        """
        Wait until ``size`` bytes may be allocated.  May be cancelled.

        :raises ValueError: if ``size`` is more than the limit.
        """
        if size > self.limit:
            raise ValueError(f"a buffer of {size} bytes is beyond the limit of {self.limit}")
        if not self.pressed and self._fits(size):
            self.used += size
            return succeed(None)
        request = _Request(size, Deferred(lambda _: self._give_up(request)))
        self._waiting[request] = None
        self._hold()
        return request.granted

    def acquire_at_once(self, size: int) -> bool:
        """Acquire ``size`` bytes if they are free and no caller waits; return whether it could."""
        if self.pressed or self.used + size > self.threshold:
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """Return ``size`` bytes that were written or dropped."""
        self.used -= size
        self._admit()

    def _fits(self, size: int) -> bool:
        return self.used == 0 or self.used + size <= self.threshold

    def _hold(self) -> None:
        held = list(self._running)
        self._running.clear()
        self._waiting.update(dict.fromkeys(held))
        for consumer in held:
            # A paused consumer may write its bytes at once, which may resume others.
            if consumer in self._waiting:
                consumer.hold()

    def _admit(self) -> None:
        while self._waiting:
            first = next(iter(self._waiting))
            if isinstance(first, _Request):
                if not self._fits(first.size):
                    return
                del self._waiting[first]
                self.used += first.size
                first.granted.callback(None)
            else:
                if not self._fits(1):
                    return
                del self._waiting[first]
                self._running[first] = None
                first.go_on()

    def _give_up(self, request: _Request) -> None:
        self._waiting.pop(request, None)
        self._admit()


class ShareExhausted(Exception):
    """Too many requests of one owner wait for memory already."""


@define(eq=False)
class Shares:
    """
    Memory of which no owner holds more than a share, whatever they ask for.

    Requests that do not fit wait: those of one owner in the order in which they came, owners in
    turns.  A request that waits for its owner's share holds up no other owner.

    Only the reactor's thread may use it.

    :param limit: bytes that all owners together may hold.
    :param share: bytes that one owner may hold; at most ``limit``.
    :param queue: the most requests of one owner that wait.
    :param backlog: the most bytes that those of one owner wait for; ``None``: any number.
    :ivar used: bytes held now.
    """

    limit: int
    share: int
    queue: int = 64
    backlog: int | None = None
    used: int = field(default=0, init=False)
    _held: Counter[str] = field(factory=Counter, init=False)
    # No queue in it is empty.
    _waiting: dict[str, deque[_Request]] = field(factory=dict, init=False)

    def acquire(self, owner: str, size: int) -> Deferred[None]:
        """
        Wait until ``owner`` may allocate ``size`` bytes.  May be cancelled.

        :raises ShareExhausted: if as many requests of ``owner`` wait already as may.
        :raises ValueError: if ``size`` is more than the share.
        """
        if size > self.share:
            raise ValueError(f"{size} bytes are more than the share of {self.share}")
        if self.has_room(owner, size):
            self._take(owner, size)
            return succeed(None)
        waiting = self._waiting.get(owner, ())
        if len(waiting) >= self.queue:
            raise ShareExhausted(owner)
        if self.backlog is not None and sum(each.size for each in waiting) + size > self.backlog:
            raise ShareExhausted(owner)
        request = _Request(size, Deferred(lambda _: self._give_up(owner, request)))
        self._waiting.setdefault(owner, deque()).append(request)
        self._admit()
        return request.granted

    def has_room(self, owner: str, size: int) -> bool:
        """Whether ``owner`` may allocate ``size`` bytes at once."""
        return not self._waiting and self._fits(owner, size) and self.used + size <= self.limit

    def release(self, owner: str, size: int) -> None:
        """Return ``size`` bytes that ``owner`` has acquired."""
        self.used -= size
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]
        self._admit()

    def _fits(self, owner: str, size: int) -> bool:
        return self._held[owner] + size <= self.share

    def _take(self, owner: str, size: int) -> None:
        self.used += size
        self._held[owner] += size

    def _admit(self) -> None:
        while (owner := self._next()) is not None:
            requests = self._waiting.pop(owner)
            request = requests.popleft()
            if requests:
                self._waiting[owner] = requests  # behind the other owners
            self._take(owner, request.size)
            request.granted.callback(None)

    def _next(self) -> str | None:
        """The owner whose request is granted next; ``None`` if none can be granted now."""
        for owner, requests in self._waiting.items():
            size = requests[0].size
            if self._fits(owner, size):
                # None overtakes it, or else a large request would wait for as long as small ones
                # come.
                return owner if self.used + size <= self.limit else None
        return None

    def _give_up(self, owner: str, request: _Request) -> None:
        requests = self._waiting[owner]
        requests.remove(request)
        if not requests:
            del self._waiting[owner]
        self._admit()
