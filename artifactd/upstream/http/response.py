"""Answers of upstreams, and the delivery of their bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from attrs import define, field
from twisted.internet import protocol
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import (
    IConsumer,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import client
from twisted.web.client import ResponseDone
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from artifactd.kit.streams import Collected
from artifactd.kit.timers import Timers
from artifactd.upstream.http.coding import Decoding, can_be_undone, not_undone
from artifactd.upstream.http.errors import EndedByClosing, TimedOut, Unreachable
from artifactd.upstream.http.url import Origin

# The client's documentation has it there, and its __all__ has not.
_PotentialDataLoss: type[Exception] = vars(client)["PotentialDataLoss"]


@implementer(IPushProducer)
class Delivery(protocol.Protocol):
    """
    Delivers one body to one consumer as it arrives.

    While the consumer pauses it nothing is read from the socket, but the rest of the last read may
    still be written.

    :param idle_timeout: seconds without a byte after which it fails; they don't run while the
        consumer pauses it.
    :param host: the host that sends the body, for messages.
    :param length: bytes of the body, or ``None``, for messages.
    :param least: bytes that have to come within the idle timeout.
    """

    transport: Any  # an IPushProducer

    def __init__(
        self,
        consumer: IConsumer,
        timers: Timers,
        idle_timeout: float,
        host: str,
        length: int | None,
        least: int = 1,
    ) -> None:
        self._consumer: IConsumer | None = consumer
        self._deadline = timers.deadline(self._stalled)
        self._idle_timeout = idle_timeout
        self._host = host
        self._length = length
        self._least = least
        self._received = 0
        self._noted = 0  # of which the deadline was last put off
        self._paused = False
        self._done: Deferred[int] = Deferred(self._cancelled)

    def start(self, response: IResponse) -> Deferred[int]:
        """
        Deliver the body of ``response``.

        Fires with the number of bytes when all are delivered, or when the consumer has called
        :meth:`stopProducing`.  Cancelling it closes the connection.  The consumer is unregistered
        before it fires or fails.

        :raises EndedByClosing: if only the connection's end marks the end of the body.
        :raises Unreachable: if the body breaks off.
        :raises TimedOut: if nothing comes for the idle timeout.
        """
        response.deliverBody(self)
        if self._paused:
            # deliverBody has just resumed the transport.
            self.transport.pauseProducing()
        return self._done

    # IProtocol, for the HTTP client

    def connectionMade(self) -> None:
        assert self._consumer is not None
        self._deadline.start(self._idle_timeout)
        self._consumer.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        if self._consumer is None:
            return
        self._received += len(data)
        if not self._paused and self._received - self._noted >= self._least:
            self._noted = self._received
            self._deadline.start(self._idle_timeout)
        try:
            self._consumer.write(data)
        except Exception:
            # The HTTP client would take it for an error of the peer's.
            self._fail(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._consumer is None:
            return
        self._detach()
        if reason.check(ResponseDone):
            self._done.callback(self._received)
        else:
            why = f"{self._host} broke off {self._progress()}"
            closed = reason.check(_PotentialDataLoss)
            self._done.errback(EndedByClosing(why, self._received) if closed else Unreachable(why))

    # IPushProducer, for the consumer

    def pauseProducing(self) -> None:
        if self._consumer is not None:
            self._paused = True
            self._deadline.stop()
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        if self._consumer is not None and self._paused:
            self._paused = False
            self._deadline.start(self._idle_timeout)
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        if self._consumer is not None:
            self._detach()
            self.transport.stopProducing()
            self._done.callback(self._received)

    def _stalled(self) -> None:
        sent = "nothing for" if self._received == self._noted else "too little in"
        why = f"{self._host} sent {sent} {self._idle_timeout:g} seconds {self._progress()}"
        self._fail(Failure(TimedOut(why)))

    def _fail(self, failure: Failure) -> None:
        self._detach()
        self.transport.stopProducing()
        self._done.errback(failure)

    def _cancelled(self, _: Deferred[int]) -> None:
        self._detach()
        self.transport.stopProducing()

    def _detach(self) -> None:
        self._deadline.cancel()
        self._paused = False
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.unregisterProducer()

    def _progress(self) -> str:
        whole = "" if self._length is None else f" of {self._length}"
        return f"after {self._received}{whole} bytes"


class Refusal(protocol.Protocol):
    """Closes the connection instead of reading a body."""

    transport: Any  # an IPushProducer

    def connectionMade(self) -> None:
        self.transport.stopProducing()


DECODED = 64 * 1024
"""Bytes up to which a document is decoded to see whether it is whole: in less than 1 ms."""

LEAST = 256 * 1024
"""Bytes of a document that have to come within the idle timeout: those who wait get nothing yet."""

DROPPED_BYTES = 64 * 1024
DROPPED_SECONDS = 5.0
"""A short unwanted body is read within these bounds, so that its connection can be used again."""


@define(eq=False)
class Response:
    """
    An answer whose headers have come.

    One of :meth:`read`, :meth:`deliver_to`, :meth:`drop` and :meth:`abort` has to be called, or its
    connection stays open and idle.

    :ivar host: ``host[:port]`` that answered, to which the last redirect led.
    :ivar url: the URL that was answered.
    :ivar redirected: whether a redirect has led there from another origin, or to storage.
    :ivar coding: how the body says that it is coded, as :func:`coding_of` returns it; ``""``: not.
    """

    _original: IResponse
    host: str
    url: str
    redirected: bool
    coding: str
    _clock: IReactorTime
    _timers: Timers
    _idle_timeout: float
    _delivery: Delivery | None = field(default=None, init=False)
    _refused: bool = field(default=False, init=False)

    @property
    def status(self) -> int:
        """The status code."""
        code: int = self._original.code
        return code

    @property
    def length(self) -> int | None:
        """
        Bytes of the body as it is sent (HEAD, 204, 304: 0); ``None`` if the upstream doesn't say.
        """
        length = self._original.length
        return None if length is UNKNOWN_LENGTH else length

    def header(self, name: str) -> str | None:
        """Return the first value of a header field, or ``None``; see :meth:`headers`."""
        return next(iter(self.headers(name)), None)

    def headers(self, name: str) -> list[str]:
        """
        Return all values of a header field, bytes beyond ASCII decoded from ISO 8859-1.

        Only the answer to a HEAD has ``Content-Length`` here; others have :attr:`length`.
        """
        values = self._original.headers.getRawHeaders(name.encode("ascii"), [])
        return [value.decode("iso-8859-1") for value in values]

    async def read(self, limit: int, seconds: float | None = None) -> bytes:
        """
        Read the whole body, a document of text: its coding is undone.  One that only the
        connection's end has ended is whole if it is no JSON, or whole JSON.

        :param seconds: the time for all of it; ``None``: only the idle timeout counts.
        :raises Unreachable: if it has more than ``limit`` bytes, as sent or undone, breaks off, or
            has a coding that can't be undone.
        :raises TimedOut: if it stands still, brings neither :data:`LEAST` bytes nor its end within
            the idle timeout, or takes longer than ``seconds``.
        """
        pieces = Collected(limit)
        if self.length is not None and self.length > limit:
            pieces.exceeded = True
            self.abort()
        else:
            delivered = self._deliver_undone(pieces)
            if seconds is not None:
                delivered.addTimeout(seconds, self._clock)
            try:
                await delivered
            except TimeoutError:
                raise TimedOut(f"{self.host} did not end within {seconds:g} seconds") from None
            except EndedByClosing:
                if _is_cut(pieces.content):
                    raise
        if pieces.exceeded:
            # With the status: what the server answered once, it answers again.
            raise Unreachable(
                f"{self.host} sends more than the {limit} bytes that there may be", self.status
            )
        content = pieces.content
        if self.coding and not can_be_undone(self.coding) and not _begins_as_json(content):
            raise Unreachable(f"{self.host} {not_undone(self.coding)}", self.status)
        return content

    def _deliver_undone(self, consumer: IConsumer) -> Deferred[int]:
        if not self.coding:
            return self._deliver(consumer, LEAST)
        decoding = Decoding(consumer, self.coding, self._clock, self.host)
        return decoding.start(lambda coded: self._deliver(coded, LEAST))

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        Deliver the body as it is sent to ``consumer``; see :meth:`Delivery.start`.

        :raises RuntimeError: if the body has been delivered or aborted before.
        """
        return self._deliver(consumer)

    def _deliver(self, consumer: IConsumer, least: int = 1) -> Deferred[int]:
        if self._refused or self._delivery is not None:
            raise RuntimeError("a body can be delivered only once")
        self._delivery = Delivery(
            consumer, self._timers, self._idle_timeout, self.host, self.length, least
        )
        return self._delivery.start(self._original)

    def abort(self) -> None:
        """Close the connection instead of reading the rest of the body, if there is a rest."""
        if self._delivery is not None:
            self._delivery.stopProducing()
        elif not self._refused:
            self._refused = True
            self._original.deliverBody(Refusal())

    def drop(self) -> None:
        """Discard the body: read a short one, to keep its connection, and abort a long one."""
        if self.length is None or self.length > DROPPED_BYTES:
            self.abort()
            return
        dropping = self.deliver_to(Collected(DROPPED_BYTES))
        dropping.addTimeout(DROPPED_SECONDS, self._clock)
        dropping.addErrback(lambda _: None)


# Bytes that are looked at for the first and the last that is no space.
_END = 64


def _begins_as_json(document: bytes) -> bool:
    """Whether ``document`` is empty, or begins as JSON does."""
    return document[:_END].strip()[:1] in b"{["


def _is_cut(document: bytes) -> bool:
    """
    Whether ``document`` is empty, or the beginning of JSON and not all of it.

    Of a long one the last byte tells; what that says wrongly, its reader finds when it decodes it.
    """
    if not _begins_as_json(document):
        return False
    if len(document) > DECODED:
        return document[-_END:].strip()[-1:] not in b"]}"
    try:
        msgspec.json.decode(document, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return True
    return False


class HttpResponse(Protocol):
    """
    An answer whose headers have come.

    Exactly one of :meth:`read`, :meth:`deliver_to` and :meth:`abort` has to be called.
    """

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def host(self) -> str:
        """``host[:port]`` that answered, to which the last redirect led."""

    @property
    def url(self) -> str:
        """The URL that is answered."""

    @property
    def redirected(self) -> bool:
        """Whether another origin answers than the one that was asked, or its storage."""

    @property
    def coding(self) -> str:
        """How the body says that it is coded, though it was asked not to be; ``""``: not."""

    @property
    def length(self) -> int | None:
        """Bytes of the body as it is sent; ``None`` if the upstream doesn't say."""

    def header(self, name: str) -> str | None:
        """Return the first value of a header field, or ``None``."""

    def headers(self, name: str) -> list[str]:
        """Return all values of a header field."""

    async def read(self, limit: int, seconds: float | None = None) -> bytes:
        """
        Read the whole body, a document of text, undone if it is coded.

        :param seconds: the time for all of it; ``None``: only the idle timeout counts.
        :raises Unreachable: if it has more than ``limit`` bytes, breaks off, or takes longer.
        """

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """Deliver the body as it is sent to ``consumer``, as ``BlobBody.deliver_to`` does."""

    def abort(self) -> None:
        """Close the connection."""


def media_type_of(response: HttpResponse) -> str:
    """
    Return the media type of the body in lower case, without parameters; ``""`` if none is named.
    """
    return (response.header("Content-Type") or "").partition(";")[0].strip().lower()


class Http(Protocol):
    """HTTP to one upstream; ``artifactd.upstream.http.transport`` implements it."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        others: Mapping[Origin, str] | None = None,
        body: bytes | None = None,
    ) -> HttpResponse:
        """
        Make a request and follow redirects; ``Authorization`` goes to the API at the origin of
        ``url`` alone.

        :param others: ``Authorization`` for other origins that a redirect may lead to.
        :param body: of a POST, which follows no redirect.
        :raises Unreachable: if no answer comes.
        """
