"""Answers of upstreams, whose bodies are yet to come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from attrs import define, field
from twisted.internet import protocol
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import (
    IConsumer,
    IProducer,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from artifactd.kit.timers import Timers
from artifactd.upstream.http.errors import TimedOut, Unreachable

# Bodies of answers, on their way to whoever wants them.


@implementer(IPushProducer)
class Delivery(protocol.Protocol):
    """
    One body, delivered to one consumer as it arrives.

    While the consumer has paused it nothing is read, but what one read of the socket had brought
    before may still be written.

    :param idle_timeout: seconds for which we wait for the peer; the time for which the consumer
        has paused it does not count.
    :param host: who sends it, for messages.
    :param length: its bytes, or ``None``, for messages.
    """

    transport: Any  # an IPushProducer

    def __init__(
        self,
        consumer: IConsumer,
        timers: Timers,
        idle_timeout: float,
        host: str,
        length: int | None,
    ) -> None:
        self._consumer: IConsumer | None = consumer
        self._deadline = timers.deadline(self._stalled)
        self._idle_timeout = idle_timeout
        self._host = host
        self._length = length
        self._received = 0
        self._paused = False
        self._done: Deferred[int] = Deferred(self._cancelled)

    def start(self, response: IResponse) -> Deferred[int]:
        """
        Deliver the body of ``response``.

        Fires with the number of bytes when all are delivered, or when the consumer has called
        :meth:`stopProducing`: then it knows why.  Cancelling it closes the connection.  The
        consumer has no producer any more when it fires or fails.

        :raises Unreachable: if it breaks off before its end, or has an end that does not show.
        :raises TimedOut: if nothing comes for the idle timeout.
        """
        response.deliverBody(self)
        if self._paused:
            # It has just resumed the transport without asking.
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
        if not self._paused:
            self._deadline.start(self._idle_timeout)
        try:
            self._consumer.write(data)
        except Exception:
            # Raised any further, it would be taken for a mistake of the peer's.
            self._fail(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._consumer is None:
            return
        self._detach()
        if reason.check(ResponseDone):
            self._done.callback(self._received)
        else:
            # Also where the end of the connection is all that ends it (RFC 9112, 6.3): whether
            # that was all can't be told.
            self._done.errback(Unreachable(f"{self._host} broke off {self._progress()}"))

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
        seconds = f"{self._idle_timeout:g} seconds"
        self._fail(Failure(TimedOut(f"{self._host} sent nothing for {seconds} {self._progress()}")))

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


@implementer(IConsumer)
class Pieces:
    """
    Up to ``limit`` bytes in memory; more stops the producer.

    :ivar exceeded: whether there were more.
    """

    def __init__(self, limit: int) -> None:
        self.exceeded = False
        self._limit = limit
        self._content = bytearray()
        self._producer: IProducer | None = None

    @property
    def content(self) -> bytes:
        """What has come."""
        return bytes(self._content)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if len(self._content) + len(data) <= self._limit:
            self._content += data
            return
        self.exceeded = True
        self._content.clear()
        if self._producer is not None:
            self._producer.stopProducing()


DROPPED_BYTES = 64 * 1024
DROPPED_SECONDS = 5.0
"""What of an unwanted body is read, for the sake of its connection, before that is closed."""


@define(eq=False)
class Response:
    """
    An answer whose headers have come.

    One of :meth:`read`, :meth:`deliver_to`, :meth:`drop` and :meth:`abort` has to be called, or its
    connection stays open and idle.

    :ivar host: ``host[:port]`` of who answered, which is where the last redirect led.
    :ivar url: that was answered.
    """

    _original: IResponse
    host: str
    url: str
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
        """Bytes of the body that comes (HEAD, 204, 304: 0); ``None`` where that isn't said."""
        length = self._original.length
        return None if length is UNKNOWN_LENGTH else length

    def header(self, name: str) -> str | None:
        """The first value of a header field, or ``None``; see :meth:`headers`."""
        return next(iter(self.headers(name)), None)

    def headers(self, name: str) -> list[str]:
        """
        All values of a header field, bytes beyond ASCII as in ISO 8859-1.

        There is no ``Content-Length`` here but in the answer to a HEAD; of others it is
        :attr:`length`.
        """
        values = self._original.headers.getRawHeaders(name.encode("ascii"), [])
        return [value.decode("iso-8859-1") for value in values]

    async def read(self, limit: int, seconds: float | None = None) -> bytes:
        """
        The whole body.

        :param seconds: in which all of it has to come; ``None``: as long as some of it comes.
        :raises Unreachable: if it has more than ``limit`` bytes, or breaks off.
        :raises TimedOut: if it stands still, or does not come in time.
        """
        pieces = Pieces(limit)
        if self.length is not None and self.length > limit:
            pieces.exceeded = True
            self.abort()
        else:
            delivered = self.deliver_to(pieces)
            if seconds is not None:
                delivered.addTimeout(seconds, self._clock)
            try:
                await delivered
            except TimeoutError:
                raise TimedOut(f"{self.host} did not end within {seconds:g} seconds") from None
        if pieces.exceeded:
            raise Unreachable(f"{self.host} sends more than the {limit} bytes that there may be")
        return pieces.content

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        As :meth:`artifactd.upstream.interfaces.BlobBody.deliver_to`.

        When the consumer has called ``stopProducing``, it fires with the bytes delivered by then.

        :raises RuntimeError: if the body has been asked for or refused before.
        """
        if self._refused or self._delivery is not None:
            raise RuntimeError("a body can be delivered only once")
        self._delivery = Delivery(
            consumer, self._timers, self._idle_timeout, self.host, self.length
        )
        return self._delivery.start(self._original)

    def abort(self) -> None:
        """Nobody wants it, or no more of it: close the connection, unless all has come."""
        if self._delivery is not None:
            self._delivery.stopProducing()
        elif not self._refused:
            self._refused = True
            self._original.deliverBody(Refusal())

    def drop(self) -> None:
        """Nobody wants it; if it is short, its connection may yet be of use."""
        if self.length is None or self.length > DROPPED_BYTES:
            self.abort()
            return
        dropping = self.deliver_to(Pieces(DROPPED_BYTES))
        dropping.addTimeout(DROPPED_SECONDS, self._clock)
        dropping.addErrback(lambda _: None)


# What the client asks of HTTP; ``artifactd.upstream.http.transport`` does it.


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
        """``host[:port]`` of who answered: of the last redirect."""

    @property
    def length(self) -> int | None:
        """Bytes of the body that comes; ``None`` where that isn't said."""

    def header(self, name: str) -> str | None:
        """The value of a header field, or ``None``."""

    def headers(self, name: str) -> list[str]:
        """All values of a header field."""

    async def read(self, limit: int, seconds: float | None = None) -> bytes:
        """
        The whole body.

        :param seconds: in which all of it has to come; ``None``: as long as some of it comes.
        :raises Unreachable: if it has more than ``limit`` bytes, or breaks off, or takes longer.
        """

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """As ``BlobBody.deliver_to``."""

    def abort(self) -> None:
        """Close the connection."""


class Http(Protocol):
    """HTTP as it goes to one upstream."""

    async def request(self, method: str, url: str, headers: Mapping[str, str]) -> HttpResponse:
        """
        Ask, and follow redirects; ``Authorization`` goes to the origin of ``url`` alone.

        :raises Unreachable: if no answer can be had.
        """
