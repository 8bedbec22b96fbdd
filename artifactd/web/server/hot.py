"""
Hot answers: a small GET or HEAD that comes again is answered from the bytes of its last answer.

They are found before there is a request, by the bytes in which it came: so all that the usual way
looks at in a request is looked at, except for the peer.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof

from attrs import frozen
from cachetools import LRUCache
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import datetimeToString

from artifactd.web.server.accesslog import Access
from artifactd.web.server.traffic import Tally

SECONDS = 1.0
"""The longest that an answer is repeated.  Then it goes the usual way, which renews leases."""

# Bytes that a request or an answer takes besides its own.
_EACH = 1 << 10

# The largest request that is looked at, in bytes.
_LARGEST = 4096

_END = b"\r\n\r\n"


@frozen
class Repeated:
    """
    A request that has come before.

    :ivar head: its bytes.
    :ivar image: the image that its answer rests on; empty while that is not known.
    :ivar version: that of the image before it is looked at.
    """

    head: bytes
    image: str = ""
    version: object = None


@frozen
class Kept:
    """
    An answer that may be repeated.

    :ivar image: the image that it rests on.
    :ivar version: that of the image before it was made.
    :ivar until: the clock's seconds.
    :ivar fields: the status line and the header fields, without those that have a time.
    :ivar access: what the access log says of it.
    :ivar tally: counts the requests that it answers.
    :ivar size: bytes that it takes with its request, beyond some 1 KiB.
    """

    image: str
    version: object
    until: float
    fields: bytes
    body: bytes
    access: Access
    tally: Tally
    size: int


class HotAnswers:
    """
    Keeps the answers that may be repeated while nothing is committed that touches their images.

    :param versions: tells the version of the image of a name, which changes with each such commit;
        ``None`` where it is not known.
    :param limit: bytes of requests and answers, some 1 KiB for each one besides.  One that takes
        more than a 64th of it is not kept.
    :param clock: the reactor's.
    """

    def __init__(
        self, versions: Callable[[str], object | None], limit: int, clock: IReactorTime
    ) -> None:
        self._versions, self._clock = versions, clock
        self._largest = limit // 64
        # By the bytes of the request; a number is their size, where there is no answer yet.
        self._kept: LRUCache[bytes, Kept | int] = LRUCache(limit, _size)
        self._second, self._date = -1, b""

    def find(self, head: bytes) -> Kept | Repeated | None:
        """
        Return the answer to a request, or that it has come before and has no answer here, or
        ``None`` for anything else.

        :param head: the bytes that have come on a connection on which no request is under way.
        """
        if len(head) > _LARGEST or head[-4:] != _END or head[:4] not in (b"GET ", b"HEAD"):
            return None
        try:
            kept = self._kept[head]
        except KeyError:
            if head.index(_END) == len(head) - 4:
                self._store(head, len(head))
            return None
        if isinstance(kept, int):
            return Repeated(head)
        is_true = self._versions(kept.image) == kept.version  # which is never None
        return kept if is_true and self._clock.seconds() < kept.until else Repeated(head)

    def resting(self, asked: Repeated, image: str) -> Repeated:
        """
        Return ``asked`` with the image that its answer is about to be looked up in; none of it has
        been read yet.
        """
        return Repeated(asked.head, image, self._versions(image))

    def keep(
        self, asked: Repeated, fields: bytes, body: bytes, access: Access, tally: Tally
    ) -> None:
        """
        Keep the answer to ``asked``, unless it is large, or its image was being changed when it
        was looked up.
        """
        if asked.version is None:
            return
        # Texts of the access log may be larger than the bytes of the request that they come from.
        size = sum(map(getsizeof, (asked.head, fields, body, access.path, access.agent)))
        until = self._clock.seconds() + SECONDS
        kept = Kept(asked.image, asked.version, until, fields, body, access, tally, size)
        self._store(asked.head, kept)

    def _store(self, head: bytes, kept: Kept | int) -> None:
        if _size(kept) <= self._largest:
            self._kept[head] = kept

    @property
    def date(self) -> bytes:
        """The time in the form of ``Date``."""
        second = int(self._clock.seconds())
        if second != self._second:
            self._second, self._date = second, datetimeToString()
        return self._date


def _size(kept: Kept | int) -> int:
    return _EACH + (kept if isinstance(kept, int) else kept.size)
