"""Request bodies, delivered while they arrive."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.kit.streams import Collected
from artifactd.oci.errors import ContentTooLarge


@implementer(IPushProducer)
class RequestBody:
    """
    The body of one request, delivered once, to one consumer.

    Until the handler asks for it, no more of it is read from the client.

    :param length: bytes as declared by the client, or ``None`` (chunked transfer coding).
    :param invite: tells the client that the body is wanted; called at most once.
    :param pause: stops reading from the client; bytes that were read before may still arrive.
    :param resume: reads from the client again.
    :param awaits_continue: whether the client sends the body only once it is invited.
    :ivar received: bytes received so far, without the framing of chunks.
    :ivar complete: whether the last byte has been received.
    """

    def __init__(
        self,
        length: int | None,
        invite: Callable[[], None],
        pause: Callable[[], None],
        resume: Callable[[], None],
        *,
        awaits_continue: bool = False,
    ) -> None:
        self.length = length
        self.awaits_continue = awaits_continue
        self.received = 0
        self.complete = False
        self._invite, self._pause, self._resume = invite, pause, resume
        self._consumer: IConsumer | None = None
        self._delivery: Deferred[int] | None = None
        # Bytes that arrived while no consumer could take them: at most one read of the socket.
        self._queue = bytearray()
        self._paused = False
        self._asked = False
        self._unwanted = False
        self._lost: Failure | None = None

    # Called by the handler

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        Write the body to ``consumer`` as it arrives, as a push producer.

        The Deferred fires with the number of bytes delivered when the body is complete, or when
        ``consumer`` has called :meth:`stopProducing`, which makes the rest unwanted.  It fails with
        the connection's reason when the client leaves before the end.  Cancelling it makes the rest
        unwanted.  The consumer has no producer any more when it fires or fails.

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
            self._invite()
        self._forward()
        if self._flowing():
            self._resume()
        return delivery

    async def read(self, limit: int) -> bytes:
        """
        Read the whole body, if it has at most ``limit`` bytes.

        :raises ContentTooLarge: as soon as the length declared, or what has been received,
            exceeds ``limit``; the rest is not read.
        """
        collected = Collected(limit)
        if self.length is None or self.length <= limit:
            await self.deliver_to(collected)
            if not collected.exceeded:
                return collected.content
        raise ContentTooLarge(
            f"request body too large: at most {limit} bytes are accepted here", {"limit": limit}
        )

    # Called by the request

    def data_received(self, data: bytes) -> None:
        """Take bytes of the body, and deliver them or keep them for later."""
        self.received += len(data)
        if self._unwanted:
            return
        if self._consumer is None or self._paused or self._queue:
            self._queue += data
            # Once more: the transport may have been resumed meanwhile for other reasons.
            self._pause()
        else:
            self._consumer.write(data)

    def ended(self) -> None:
        """Note that the last byte has been received."""
        self.complete = True
        self._forward()

    def failed(self, reason: Failure) -> None:
        """Note that the connection is lost."""
        self._lost = reason
        self._queue.clear()
        delivery = self._detach()
        if delivery is not None:
            delivery.errback(reason)

    def refuse(self) -> None:
        """Drop the bytes that arrive from now on: the request is answered."""
        delivered = self.received - len(self._queue)
        self._unwanted = True
        self._queue.clear()
        delivery = self._detach()
        if delivery is not None:
            delivery.callback(delivered)

    # IPushProducer: called by the consumer

    def pauseProducing(self) -> None:
        self._paused = True
        if self._delivery is not None and not self.complete:
            self._pause()

    def resumeProducing(self) -> None:
        self._paused = False
        self._forward()
        if self._flowing():
            self._resume()

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
            self._pause()

    def _detach(self) -> Deferred[int] | None:
        consumer, self._consumer = self._consumer, None
        delivery, self._delivery = self._delivery, None
        if consumer is not None:
            consumer.unregisterProducer()
        return delivery
