"""The body of a blob as an upstream answers it: which bytes of it come, and how many."""

from __future__ import annotations

import re

from attrs import define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer
from zope.interface import implementer

from artifactd.upstream.errors import Unreachable
from artifactd.upstream.http import HttpResponse
from artifactd.upstream.interfaces import UpstreamWatch

# RFC 9110, 14.4 and 8.8.3; a weak tag is none that If-Range may have (13.1.5).
_CONTENT_RANGE = re.compile(
    r"bytes[ \t]+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE
)
_STRONG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


@implementer(IConsumer)
@define(eq=False)
class _Watched:
    """Passes all on to a consumer, and counts."""

    _consumer: IConsumer
    _watch: UpstreamWatch

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._consumer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        self._watch.received(len(data))
        self._consumer.write(data)


@define(eq=False)
class ResponseBody:
    """A :class:`artifactd.upstream.interfaces.BlobBody`."""

    first: int
    length: int | None
    size: int | None
    validator: str | None
    host: str
    _response: HttpResponse
    _watch: UpstreamWatch

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """As in the protocol."""
        delivered = self._response.deliver_to(IConsumer(_Watched(consumer, self._watch)))
        # Where the answer has a length of its own, that has been held to it.
        return (
            delivered if self._response.length is not None else delivered.addCallback(self._ended)
        )

    def _ended(self, count: int) -> int:
        if self.length is not None and count != self.length:
            raise Unreachable(f"{self.host} sent {count} bytes where it said {self.length}")
        return count

    def abort(self) -> None:
        """As in the protocol."""
        self._response.abort()


@frozen
class _Part:
    first: int
    length: int | None
    size: int | None


def body_of(response: HttpResponse, watch: UpstreamWatch) -> ResponseBody:
    """
    The body of a 200 or 206.

    :raises Unreachable: if a 206 doesn't say clearly which bytes it has; it is aborted then.
    """
    try:
        part = _part(response) if response.status == 206 else _all(response)
    except ValueError as error:
        response.abort()
        raise Unreachable(
            f"{response.host} answers a part of a blob {error}", response.status
        ) from None
    tag = response.header("ETag") or ""
    return ResponseBody(
        part.first,
        part.length,
        part.size,
        tag if _STRONG.fullmatch(tag) else None,
        response.host,
        response,
        watch,
    )


def _all(response: HttpResponse) -> _Part:
    return _Part(0, response.length, response.length)


def _part(response: HttpResponse) -> _Part:
    match = _CONTENT_RANGE.fullmatch((response.header("Content-Range") or "").strip())
    if match is None:
        raise ValueError("without saying which")
    first, last = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    length = last - first + 1
    if length < 1 or (size is not None and last >= size):
        raise ValueError("that can't be")
    if response.length not in (None, length):
        raise ValueError("of another length than it says")
    return _Part(first, length, size)
