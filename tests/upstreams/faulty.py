"""
What can go wrong with an upstream, request by request::

    hub.faults.add(Truncate(after=1000), on=CDN)
    hub.faults.add(Status(503), on=MANIFESTS, times=2)
    hub.faults.add(NoRanges(), on=CDN, times=None)
"""

from __future__ import annotations

import secrets
from fnmatch import fnmatchcase
from typing import Protocol

from attrs import define, frozen

from tests.upstreams.backing import Bytes
from tests.upstreams.reply import Gate, Reply

# Paths, as patterns.  The body of a blob comes from the CDN, to which BLOBS only redirects.
MANIFESTS = "/v2/*/manifests/*"
BLOBS = "/v2/*/blobs/*"
TAGS = "/v2/*/tags/list"
REFERRERS = "/v2/*/referrers/*"
TOKEN = "/token"
CDN = "/data/*"


class Fault(Protocol):
    """Something wrong with an answer."""

    def change(self, reply: Reply) -> None:
        """Let ``reply``, so far without fault, have it."""


class Faults:
    """
    The faults to come.

    A request gets of each class of faults the first that is for it, so two ``Truncate`` are for two
    requests, while ``NoRanges`` and ``Truncate`` go together.
    """

    def __init__(self) -> None:
        self._queue: list[_Queued] = []

    def add(
        self, fault: Fault, on: str = "*", *, method: str = "GET", times: int | None = 1
    ) -> None:
        """
        Let the next requests have ``fault``.

        :param on: a pattern of their path, without query.
        :param method: theirs; ``*``: any.
        :param times: how many; ``None``: all, from now on.
        """
        self._queue.append(_Queued(fault, on, method, times))

    def clear(self) -> None:
        """It is over."""
        self._queue.clear()

    def take(self, method: str, path: str) -> list[Fault]:
        """The faults of this request, which are then used up."""
        taken: dict[type[Fault], Fault] = {}
        for queued in list(self._queue):
            if type(queued.fault) not in taken and queued.matches(method, path):
                taken[type(queued.fault)] = queued.fault
                queued.use()
        self._queue = [queued for queued in self._queue if queued.left != 0]
        return list(taken.values())


@define
class _Queued:
    fault: Fault
    on: str
    method: str
    left: int | None

    def matches(self, method: str, path: str) -> bool:
        return self.method in ("*", method) and fnmatchcase(path, self.on)

    def use(self) -> None:
        if self.left is not None:
            self.left -= 1


# -- The connection


@frozen
class Truncate:
    """Close the connection ``after`` so many bytes of the body, or (``-1``) before the headers."""

    after: int

    def change(self, reply: Reply) -> None:
        reply.after, reply.ending = self.after, "close"


@frozen
class Reset:
    """Reset the connection ``after`` so many bytes of the body, or (``-1``) before the headers."""

    after: int

    def change(self, reply: Reply) -> None:
        reply.after, reply.ending = self.after, "reset"


class Silence(Gate):
    """Answer nothing, for ever or until it is released."""

    def __init__(self) -> None:
        super().__init__(0)

    def change(self, reply: Reply) -> None:
        reply.silence = self


class Stall(Gate):
    """Send nothing ``after`` so many bytes of the body, for ever or until it is released."""

    def __init__(self, after: int) -> None:
        super().__init__(after)

    def change(self, reply: Reply) -> None:
        reply.relative.append(self)


class Withhold(Gate):
    """Send nothing from the byte ``at`` of the blob on, whatever range is asked for."""

    def __init__(self, at: int) -> None:
        super().__init__(at)

    def change(self, reply: Reply) -> None:
        reply.gates.append(self)


# -- The bytes, and what is said of them


@frozen
class Corrupt:
    """Send the byte ``at`` this offset of the blob wrong."""

    at: int

    def change(self, reply: Reply) -> None:
        reply.corrupt = self.at


@frozen
class WrongLength:
    """Promise ``by`` so many bytes more (or less) than come; then close the connection."""

    by: int

    def change(self, reply: Reply) -> None:
        reply.excess, reply.ending = self.by, "close"


@frozen
class NoLength:
    """Don't say how long the body is: it is chunked."""

    def change(self, reply: Reply) -> None:
        reply.chunked = True


@frozen
class Closing:
    """Let nothing but the end of the connection mark the end of the body, as HTTP/1.0 does."""

    def change(self, reply: Reply) -> None:
        reply.closing, reply.ending = True, "close"


@frozen
class NoRanges:
    """Serve no ranges: 200 and all of it, whatever is asked for."""

    def change(self, reply: Reply) -> None:
        reply.ranges = False


@frozen
class OtherETag:
    """Call the bytes by an entity tag that they never had."""

    def change(self, reply: Reply) -> None:
        reply.etag = f'"{secrets.token_hex(16)}"'


@frozen
class Coded:
    """
    Label the body with a ``Content-Encoding``, which nobody has asked for.

    :ivar applied: whether the body is coded so, too.
    """

    label: str = "gzip"
    applied: bool = True

    def change(self, reply: Reply) -> None:
        reply.coding, reply.coded = self.label, self.applied


# -- Another answer

_CODES = {
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "MANIFEST_UNKNOWN",
    429: "TOOMANYREQUESTS",
}


@frozen
class Status:
    """
    Answer an error.

    :ivar retry_after: the header ``Retry-After``.
    """

    status: int
    retry_after: str | None = None
    message: str = "this is a fault"

    def change(self, reply: Reply) -> None:
        reply.headers.clear()
        reply.fail(self.status, _CODES.get(self.status, "UNKNOWN"), self.message)
        if self.retry_after is not None:
            reply.headers["Retry-After"] = self.retry_after


@frozen
class Expired:
    """Forget all tokens, so that this one is not good any more."""

    def change(self, reply: Reply) -> None:
        reply.expired = True


@frozen
class Garbage:
    """Answer 200 and a page that says nothing."""

    content: bytes = b"<html>Welcome to the hotel's network</html>"
    media_type: str = "text/html"

    def change(self, reply: Reply) -> None:
        reply.status, reply.ranges, reply.etag = 200, False, None
        reply.headers.clear()
        reply.headers["Content-Type"] = self.media_type
        reply.content = Bytes(self.content)


@frozen
class Page:
    """Answer a page for people, as a proxy or a firewall does."""

    status: int
    media_type: str = "text/html"

    def change(self, reply: Reply) -> None:
        reply.status, reply.ranges, reply.etag = self.status, False, None
        reply.headers.clear()
        reply.headers["Content-Type"] = self.media_type
        reply.content = Bytes(b"<!DOCTYPE html><html>Blocked</html>")


@frozen
class RedirectTo:
    """Redirect to ``location``; if empty to the same again."""

    location: str = ""
    status: int = 307

    def change(self, reply: Reply) -> None:
        reply.status, reply.ranges, reply.etag = self.status, False, None
        reply.headers.clear()
        reply.headers["Location"] = self.location or reply.uri
        reply.content = Bytes(b"")
