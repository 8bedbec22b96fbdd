"""
Hot answers: a small GET or HEAD that comes again is answered from the bytes of its last answer.

They are found before there is a request, by the bytes in which it came, by what its login permits,
and by the peer: that is all that the usual way looks at in a request.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof
from typing import NamedTuple

from attrs import evolve, frozen
from cachetools import FIFOCache, LRUCache
from twisted.internet.interfaces import IReactorTime

from artifactd.auth.identity import Caller
from artifactd.web.server.accesslog import Access, Tally
from artifactd.web.server.framing import CONTROLS

SECONDS = 1.0
"""The longest that an answer is repeated.  Then it goes the usual way, which renews leases."""

# Bytes that a request or an answer takes besides its own.
_EACH = 1 << 10

# The largest request that is looked at, in bytes.
_LARGEST = 4096

_END = b"\r\n\r\n"
_LOGIN = b"\r\nAuthorization: "


class Peer(NamedTuple):
    """
    What an answer may depend on at the other end of a connection.

    :ivar secure: whether it comes over TLS.
    :ivar proxy: the address of a proxy that is trusted to name the client; otherwise empty.
    """

    secure: bool
    proxy: str


class Asked(NamedTuple):
    """
    A request, as far as its answer depends on it, its login excepted.

    :ivar head: its bytes without the login.
    """

    head: bytes
    peer: Peer


@frozen
class Seen:
    """
    A request that has come before.

    :ivar address: the client's.
    :ivar size: bytes that it takes, beyond some 1 KiB.
    """

    address: str
    size: int


@frozen
class Repeated:
    """
    A request that has come before, and has no answer here.

    :ivar login: the value of ``Authorization``; ``None`` without.
    :ivar image: the image that its answer rests on; empty while that is not known.
    :ivar version: that of the image before it is looked at.
    :ivar rules: the state of the rules then.
    """

    asked: Asked
    login: bytes | None
    image: str = ""
    version: object = None
    rules: object = None


@frozen
class Kept:
    """
    An answer that may be repeated.

    :ivar image: the image that it rests on.
    :ivar version: that of the image before it was made.
    :ivar rules: the state of the rules then.
    :ivar until: the clock's seconds.
    :ivar fields: the status line and the header fields, without those that have a time.
    :ivar caller: the caller that it is for.
    :ivar access: what the access log says of it.
    :ivar tally: counts the requests that it answers.
    :ivar size: bytes that it takes with its request, beyond some 1 KiB.
    """

    image: str
    version: object
    rules: object
    until: float
    fields: bytes
    body: bytes
    caller: Caller
    access: Access
    tally: Tally
    size: int


READS = (b"GET ", b"HEAD")
"""What a request begins with whose answer may be hot: its first four bytes."""


class HotAnswers:
    """
    Keeps the answers that may be repeated while nothing is committed that touches their images, and
    while the login holds that they were given for.

    :param versions: tells the version of the image of a name, which changes with each such commit;
        ``None`` where it is not known.
    :param recall: returns the caller for a value of ``Authorization`` and the client's address, if
        that takes microseconds: ``Credentials.recall``.
    :param rules: returns another object whenever the rules of access have changed.
    :param limit: bytes of requests and answers, some 1 KiB for each one besides.  One that takes
        more than a 64th of it is not kept.
    :param clock: the reactor's.
    """

    def __init__(
        self,
        versions: Callable[[str], object | None],
        recall: Callable[[bytes, str], Caller | None],
        rules: Callable[[], object],
        limit: int,
        clock: IReactorTime,
    ) -> None:
        self._versions, self._recall, self._rules, self._clock = versions, recall, rules, clock
        self._largest = limit // 64
        self._seen: LRUCache[Asked, Seen] = LRUCache(limit // 4, _size)
        # An answer that is asked for is kept anew each second, so that the first is the least used.
        self._kept: FIFOCache[tuple[Asked, Caller], Kept] = FIFOCache(limit - limit // 4, _size)

    def find(
        self, head: bytes, peer: Peer, address: str | None, certified: Caller
    ) -> Kept | Repeated | None:
        """
        Return the answer to a request, or that it has come before and has no answer here, or
        ``None`` for anything else.

        :param head: the bytes that have come on a connection on which no request is under way,
            beginning with one of :data:`READS`.
        :param address: the client's; ``None`` if a proxy names it in the request.
        :param certified: the caller without a login.
        """
        if len(head) > _LARGEST or head[-4:] != _END:
            return None
        login = None
        at = head.find(_LOGIN)
        if at >= 0:
            end = head.index(b"\r\n", at + 2)
            login = head[at + len(_LOGIN) : end]
            if login != login.translate(None, CONTROLS):
                return None  # the usual way refuses it: the login is no part of the key
            head = head[:at] + head[end:]
        asked = Asked(head, peer)
        caller: Caller | None = certified
        if login is not None or address is None:
            seen = self._seen.get(asked)
            client = address or (seen.address if seen else "")
            if login is not None:
                caller = self._recall(login, client) if seen and client else None
        try:
            kept = None if caller is None else self._kept[asked, caller]
        except KeyError:
            kept = None
        if kept is None:
            if asked in self._seen:
                return Repeated(asked, login)
            self._see(asked, address or "")
            return None
        is_true = (
            self._versions(kept.image) == kept.version  # which is never None
            and kept.rules is self._rules()
            and self._clock.seconds() < kept.until
        )
        return kept if is_true else Repeated(asked, login)

    def _see(self, asked: Asked, address: str) -> None:
        size = len(asked.head)
        if asked.head.index(_END) == size - 4 and _EACH + size <= self._largest:
            self._seen[asked] = Seen(address, size)

    def resting(self, asked: Repeated, image: str) -> Repeated:
        """
        Return ``asked`` with the image that its answer is about to be looked up in: the caller has
        just been admitted to it, and none of it has been read yet.
        """
        return evolve(asked, image=image, version=self._versions(image), rules=self._rules())

    def keep(
        self,
        asked: Repeated,
        caller: Caller,
        fields: bytes,
        body: bytes,
        access: Access,
        tally: Tally,
    ) -> None:
        """
        Keep the answer to ``asked``, unless it is large, or its image was being changed when it
        was looked up, or the login can't be recalled.

        :param caller: the one that the answer is for; if ``asked`` has no login, the one that a
            connection of its peer has without.
        """
        if asked.version is None:
            return
        if asked.login is not None and self._recall(asked.login, access.client) != caller:
            return
        # Texts of the access log may be larger than the bytes of the request that they come from.
        size = sum(map(getsizeof, (asked.asked.head, fields, body, access.path, access.agent)))
        until = self._clock.seconds() + SECONDS
        self._see(asked.asked, access.client)
        if _EACH + size <= self._largest:
            rests = asked.image, asked.version, asked.rules
            kept = Kept(*rests, until, fields, body, caller, access, tally, size)
            self._kept[asked.asked, caller] = kept


def _size(kept: Seen | Kept) -> int:
    return _EACH + kept.size
