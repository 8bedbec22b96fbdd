"""Consumers that stand between a producer and another consumer."""

from __future__ import annotations

from collections.abc import Callable

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
class Bounded(PassThrough):
    """
    Passes everything on, and stops the producer once there is too much.

    :param offset: how far the consumer has come, in bytes.
    :param end: the offset beyond which the producer is stopped; ``None``: never.  Bytes beyond it
        that come in the same write are passed on.
    """

    _offset: Callable[[], int]
    _end: int | None
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
            self._producer.stopProducing()
