"""Bodies that come with a ``Content-Encoding``, though none was asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IProducer,
    IPushProducer,
    IReactorTime,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.upstream.http.errors import EndedByClosing, Unreachable

PIECE = 64 * 1024
"""Bytes that are undone in one turn of the reactor, since a few may stand for very many."""

# Servers write these there, and change no byte: "aws-chunked" is about uploads to S3, and stays on
# the object as a label.
_NO_CODINGS = frozenset({"", "identity", "aws-chunked", "none", "binary", "utf-8", "utf8"})

_FIELD = 256

MOST_TIMES = 200
"""How many times as large as what is sent a body may be from :data:`FREE` bytes on."""

FREE = 64 * 1024 * 1024

_GZIP = b"\x1f\x8b"
_GZIP_FORMAT, _ZLIB_FORMAT, _RAW_FORMAT = 31, 15, -15  # what zlib calls wbits


def coding_of(fields: Iterable[str]) -> str:
    """
    Return the coding that ``Content-Encoding`` names: in lower case, ``""`` if none.

    Several are joined by commas, in the order in which they were applied; 256 characters are read.
    """  # RFC 9110, 8.4
    names = (name.strip().lower() for name in ",".join(fields)[:_FIELD].split(","))
    # "x-gzip" is another name of gzip (8.4.1.3).
    return ",".join(
        "gzip" if name == "x-gzip" else name for name in names if name not in _NO_CODINGS
    )


def can_be_undone(coding: str) -> bool:
    """Whether :class:`Decoding` knows ``coding``; it passes on anything else as it is."""
    return coding in ("gzip", "deflate")


def not_undone(coding: str) -> str:
    """Words about a host that has sent ``coding``, which can't be undone."""
    name = "".join(c for c in coding[:40] if c.isprintable())
    return f"sends a Content-Encoding ({name}) that nobody asked for, and that can't be undone"


def format_of(coding: str, head: bytes) -> int | None:
    """
    Return the format of a body that ``coding`` was applied to, by the two bytes that it begins
    with; ``None``: the coding was not applied, or can't be undone.
    """
    if coding == "gzip":
        return _GZIP_FORMAT if head.startswith(_GZIP) else None
    if coding != "deflate" or len(head) < 2 or head[:1] in b"{[":
        return None
    # It should be the format of RFC 1950, and is often that of RFC 1951 alone (RFC 9110, 8.4.1.2).
    is_zlib = head[0] & 0x0F == zlib.DEFLATED and not int.from_bytes(head[:2], "big") % 31
    return _ZLIB_FORMAT if is_zlib else _RAW_FORMAT


@define(eq=False)
class _Inflating:
    """
    A coded stream; gzip may have several members, one behind the other (RFC 1952, 2.2).

    :ivar rest: what has come and is still coded.
    :ivar more: whether :meth:`take` has left something that it can undo.
    :ivar ended: whether the stream, or its last member, has come to its end.
    """

    _format: int
    _state: Any = field(init=False)
    rest: bytes = field(default=b"", init=False)
    more: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._state = zlib.decompressobj(self._format)

    def take(self) -> bytes:
        """Undo at most :data:`PIECE` bytes.  :raises zlib.error: if they are damaged."""
        if self.ended and not self._next_member():
            self.more = False
            return b""
        piece: bytes = self._state.decompress(self.rest, PIECE)
        self.ended = self._state.eof
        self.rest = self._state.unused_data if self.ended else self._state.unconsumed_tail
        self.more = len(piece) == PIECE or bool(self.rest)
        return piece

    def _next_member(self) -> bool:
        if self._format == _GZIP_FORMAT and self.rest.startswith(_GZIP):
            self._state, self.ended = zlib.decompressobj(self._format), False
        elif self.rest != _GZIP[:1]:
            self.rest = b""  # such as zeros that fill a block
        return not self.ended


@implementer(IConsumer, IPushProducer)
@define(eq=False)
class Decoding:
    """
    Undoes the coding of one body, and passes on what it was before, piece by piece.

    A body that its coding was evidently not applied to is passed on as it is.

    :param coding: as :func:`coding_of` returns it.
    :param clock: the reactor: it gets a turn after each piece.
    :param host: the host that sends the body, for messages.
    :ivar too_large: whether it was given up, since it becomes too large for what is sent.
    """

    _consumer: IConsumer
    _coding: str
    _clock: IReactorTime
    _host: str
    too_large: bool = field(default=False, init=False)
    _delivering: Deferred[int] = field(init=False)
    _source: IPushProducer | None = field(default=None, init=False)
    _head: bytes | None = field(default=b"", init=False)  # None: it has been looked at
    _inflating: _Inflating | None = field(default=None, init=False)
    _turn: IDelayedCall | None = field(default=None, init=False)
    _paused: bool = field(default=False, init=False)
    _complete: bool = field(default=False, init=False)
    _closed: Failure | None = field(default=None, init=False)
    _sent: int = field(default=0, init=False)
    _passed: int = field(default=0, init=False)
    _done: Deferred[int] | None = field(default=None, init=False)

    def start(self, deliver: Callable[[IConsumer], Deferred[int]]) -> Deferred[int]:
        """
        Pass the body on; fires with the number of bytes, as ``Delivery.start`` does.

        :param deliver: begins to deliver the coded body to the consumer that it is given.
        :raises Unreachable: also if the body is damaged, or ends before its coding does.
        """
        done: Deferred[int] = Deferred(self._cancelled)
        self._done = done
        self._consumer.registerProducer(self, True)
        self._delivering = deliver(IConsumer(self))
        self._delivering.addCallbacks(self._delivered, self._not_delivered)
        return done

    # IConsumer, for the coded body

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._source = IPushProducer(producer)
        if self._paused:
            self._source.pauseProducing()

    def unregisterProducer(self) -> None:
        self._source = None

    def write(self, data: bytes) -> None:
        if self._done is None:
            return
        self._sent += len(data)
        if self._head is not None:
            self._head += data
            if len(self._head) < 2:
                return
            data = self._begin(self._head)
        self._feed(data)

    def _begin(self, head: bytes) -> bytes:
        self._head = None
        found = format_of(self._coding, head)
        self._inflating = None if found is None else _Inflating(found)
        return head

    def _feed(self, data: bytes) -> None:
        if self._inflating is None:
            self._pass_on(data)
        else:
            self._inflating.rest += data
            if self._turn is None and not self._paused:
                self._work()

    def _work(self) -> None:
        """Undo a piece; the next one has another turn."""
        self._turn = None
        inflating = self._inflating
        assert inflating is not None
        try:
            self._pass_on(inflating.take())
            if self._passed > max(FREE, MOST_TIMES * self._sent):
                self.too_large = True
                raise Unreachable(f"{self._host} sends {self._coding} of too large a body", 200)
        except zlib.error:
            self._fail(Failure(Unreachable(f"{self._host} sends damaged {self._coding}", 200)))
            return
        except Exception:
            self._fail(Failure())
            return
        if self._done is None or self._paused:
            return
        if inflating.more:
            self._turn = self._clock.callLater(0, self._work)
            if self._source is not None:
                self._source.pauseProducing()
        elif self._complete:
            self._finish()
        elif self._source is not None:
            self._source.resumeProducing()

    def _pass_on(self, data: bytes) -> None:
        if data:
            self._passed += len(data)
            self._consumer.write(data)

    # IPushProducer, for the consumer

    def pauseProducing(self) -> None:
        self._paused = True
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self._source is not None:
            self._source.pauseProducing()

    def resumeProducing(self) -> None:
        if not self._paused or self._done is None:
            return
        self._paused = False
        if self._inflating is not None:
            if self._turn is None:
                self._turn = self._clock.callLater(0, self._work)
        elif self._complete:
            self._finish()
        elif self._source is not None:
            self._source.resumeProducing()

    def stopProducing(self) -> None:
        done = self._detach()
        if done is not None:
            self._stop()
            done.callback(self._passed)

    # The end

    def _delivered(self, _: int) -> None:
        self._complete = True
        if self._done is None:
            return
        if self._head:
            self._feed(self._begin(self._head))
        if self._turn is None and not self._paused:
            self._finish()

    def _not_delivered(self, failure: Failure) -> None:
        if failure.check(EndedByClosing):
            self._closed = failure
            self._delivered(0)  # the end of the coding tells whether that is all
        else:
            self._fail(failure)

    def _finish(self) -> None:
        inflating = self._inflating
        done = self._detach()
        if done is None:
            return
        if inflating.ended if inflating is not None else self._closed is None:
            done.callback(self._passed)
        elif self._closed is not None:
            done.errback(self._closed)
        else:
            done.errback(Unreachable(f"{self._host} broke off in the middle of {self._coding}"))

    def _fail(self, failure: Failure) -> None:
        done = self._detach()
        if done is not None:
            self._stop()
            done.errback(failure)

    def _cancelled(self, _: Deferred[int]) -> None:
        self._detach()
        self._delivering.cancel()

    def _stop(self) -> None:
        if self._source is not None:
            self._source.stopProducing()

    def _detach(self) -> Deferred[int] | None:
        done, self._done = self._done, None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if done is not None:
            self._consumer.unregisterProducer()
        return done
