"""Consumers: some pass bytes on to another consumer, one collects them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from attrs import define, field
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer


@implementer(IConsumer)
@define(eq=False)
class PassThrough:
    """Passes everything on to a consumer: for subclasses that do more about it."""

    _consumer: IConsumer

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._consumer.registerProducer(IPushProducer(producer), streaming)

    def unregisterProducer(self) -> None:
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        self._consumer.write(data)


@define(eq=False)
class Tallied(PassThrough):
    """
    Passes everything on, and counts it.

    :param count: called with the number of bytes of each write.
    """

    _count: Callable[[int], None]

    def write(self, data: bytes) -> None:
        self._count(len(data))
        super().write(data)


@define(eq=False)
class Bounded(PassThrough):
    """
    Passes everything on, and stops the producer once there is too much.

    :param offset: how far the consumer has come, in bytes.
    :param end: the offset beyond which the producer is stopped; ``None``: never.  Bytes beyond it
        that come in the same write are passed on.
    :ivar stopped: whether the producer was stopped.
    """

    _offset: Callable[[], int]
    _end: int | None
    stopped: bool = field(default=False, init=False)
    _producer: IProducer | None = field(default=None, init=False)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._producer = None
        super().unregisterProducer()

    def write(self, data: bytes) -> None:
        super().write(data)
        too_far = self._end is not None and self._offset() > self._end
        if too_far and self._producer is not None:
            self.stopped = True
            self._producer.stopProducing()


@implementer(IConsumer)
class Collected:
    """
    Collects up to ``limit`` bytes in memory, and stops the producer if more come.

    :ivar exceeded: whether more came.
    """

    def __init__(self, limit: int) -> None:
        self.exceeded = False
        self._limit = limit
        self._content = BytesIO()  # whose bytes are not copied once more
        self._producer: IProducer | None = None

    @property
    def content(self) -> bytes:
        """The bytes that have come; none if they exceeded the limit."""
        return self._content.getvalue()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if not self.exceeded and self._content.tell() + len(data) <= self._limit:
            self._content.write(data)
            return
        self.exceeded = True
        self._content = BytesIO()
        if self._producer is not None:
            self._producer.stopProducing()
