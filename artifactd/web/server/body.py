"""Request bodies, delivered while they arrive."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.oci.errors import ContentTooLarge


class BodySource(Protocol):
    """The peer, as the one who sends a body."""

    def invite(self) -> None:
        """Say that the body is wanted; called at most once."""

    def pause(self) -> None:
        """Stop reading from the peer; what is on its way in this process may still arrive."""

    def resume(self) -> None:
        """Read from the peer again."""


@implementer(IPushProducer)
class RequestBody:
    """
    The body of one request, delivered once, to one consumer.

    Until it is asked for, nothing is read but what had been received by then.

    :ivar length: bytes as declared by the client, or ``None`` (chunked transfer coding).
    :ivar received: bytes received so far, without the framing of chunks.
    :ivar complete: whether the last byte has been received.
    """

    def __init__(self, source: BodySource, length: int | None) -> None:
        self.length = length
        self.received = 0
        self.complete = False
        self._source = source
        self._consumer: IConsumer | None = None
        self._delivery: Deferred[int] | None = None
        # At most what one read of the socket gave: bytes that came while nobody could take them.
        self._queue = bytearray()
        self._paused = False
        self._asked = False
        self._unwanted = False
        self._lost: Failure | None = None

    # For the route

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        Write the body to ``consumer`` as it arrives, as a push producer.

        The Deferred fires with the bytes delivered when all are, or when ``consumer`` has called
        :meth:`stopProducing`: then it knows why, and the rest of the body is unwanted.  It fails
        with the connection's reason when the peer goes away before the end.  Cancelling it makes
        the rest unwanted.  The consumer has no producer any more when it fires or fails.

        :raises RuntimeError: if the body has been asked for before.
        """
        if self._asked:
            raise RuntimeError("a request body can be delivered only once")
        self._asked = True
        if self._lost is not None:
            return fail(self._lost)
        delivery = self._delivery = Deferred(self._cancelled)
        self._consumer = consumer
        consumer.registerProducer(self, True)
        if self._delivery is not None and not self.complete:
            self._source.invite()
        self._forward()
        if self._flowing():
            self._source.resume()
        return delivery

    async def read(self, limit: int) -> bytes:
        """
        The whole body, if it has at most ``limit`` bytes.

        :raises ContentTooLarge: as soon as the length declared, or what has been received,
            exceeds ``limit``; the rest is not read.
        """
        if self.length is not None and self.length > limit:
            raise _too_large(limit)
        pieces = _Pieces(limit)
        await self.deliver_to(pieces)
        return pieces.joined()

    # For the request

    def data_received(self, data: bytes) -> None:
        """Some more of the body."""
        self.received += len(data)
        if self._unwanted:
            return
        if self._consumer is None or self._paused or self._queue:
            self._queue += data
            # Again, whoever has resumed the transport meanwhile for reasons of its own.
            self._source.pause()
        else:
            self._consumer.write(data)

    def ended(self) -> None:
        """The last byte has been received."""
        self.complete = True
        self._forward()

    def failed(self, reason: Failure) -> None:
        """The connection is lost."""
        self._lost = reason
        self._queue.clear()
        delivery = self._detach()
        if delivery is not None:
            delivery.errback(reason)

    def refuse(self) -> None:
        """The request is answered: what comes from now on is dropped."""
        delivered = self.received - len(self._queue)
        self._unwanted = True
        self._queue.clear()
        delivery = self._detach()
        if delivery is not None:
            delivery.callback(delivered)

    # IPushProducer, for the consumer

    def pauseProducing(self) -> None:
        self._paused = True
        if self._delivery is not None and not self.complete:
            self._source.pause()

    def resumeProducing(self) -> None:
        self._paused = False
        self._forward()
        if self._flowing():
            self._source.resume()

    def stopProducing(self) -> None:
        if self._delivery is not None:
            self._hold()
            self.refuse()

    def _forward(self) -> None:
        if self._consumer is not None and self._queue and not self._paused:
            data = bytes(self._queue)
            self._queue.clear()
            self._consumer.write(data)
        if self.complete and not self._queue:
            delivery = self._detach()
            if delivery is not None:
                delivery.callback(self.received)

    def _flowing(self) -> bool:
        return self._delivery is not None and not self._paused and not self.complete

    def _cancelled(self, _: Deferred[int]) -> None:
        self._hold()
        self._unwanted = True
        self._queue.clear()
        self._detach()

    def _hold(self) -> None:
        # The rest is drained, within bounds, once the request is answered.
        if not self.complete and self._lost is None:
            self._source.pause()

    def _detach(self) -> Deferred[int] | None:
        consumer, self._consumer = self._consumer, None
        delivery, self._delivery = self._delivery, None
        if consumer is not None:
            consumer.unregisterProducer()
        return delivery


@implementer(IConsumer)
class _Pieces:
    """Up to ``limit`` bytes in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._producer: IProducer | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._pieces.append(data)
        elif self._producer is not None:
            self._pieces.clear()
            self._producer.stopProducing()

    def joined(self) -> bytes:
        """:raises ContentTooLarge: if more than ``limit`` bytes were written."""
        if self._size > self._limit:
            raise _too_large(self._limit)
        return b"".join(self._pieces)


def _too_large(limit: int) -> ContentTooLarge:
    return ContentTooLarge(
        f"request body too large: at most {limit} bytes are accepted here", {"limit": limit}
    )
