"""Bodies of answers, on their way to whoever wants them."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IProducer,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import IResponse
from zope.interface import implementer

from artifactd.upstream.errors import TimedOut, Unreachable


@implementer(IPushProducer)
class Delivery(Protocol):
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
        clock: IReactorTime,
        idle_timeout: float,
        host: str,
        length: int | None,
    ) -> None:
        self._consumer: IConsumer | None = consumer
        self._clock = clock
        self._idle_timeout = idle_timeout
        self._host = host
        self._length = length
        self._received = 0
        self._paused = False
        self._deadline: IDelayedCall | None = None
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
        self._await_peer()
        self._consumer.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        if self._consumer is None:
            return
        self._received += len(data)
        if self._deadline is not None:
            self._deadline.reset(self._idle_timeout)
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
            self._stop_waiting()
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        if self._consumer is not None and self._paused:
            self._paused = False
            self._await_peer()
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        if self._consumer is not None:
            self._detach()
            self.transport.stopProducing()
            self._done.callback(self._received)

    def _await_peer(self) -> None:
        self._deadline = self._clock.callLater(self._idle_timeout, self._stalled)

    def _stop_waiting(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()

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
        self._stop_waiting()
        self._paused = False
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.unregisterProducer()

    def _progress(self) -> str:
        whole = "" if self._length is None else f" of {self._length}"
        return f"after {self._received}{whole} bytes"


class Refusal(Protocol):
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
