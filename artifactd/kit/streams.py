"""Consumers that stand between a producer and another consumer."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer


@implementer(IConsumer)
@define(eq=False)
class Bounded:
    """
    Passes everything on to ``consumer``, and stops the producer once there is too much.

    :param offset: how far ``consumer`` has come, in bytes.
    :param end: the offset beyond which the producer is stopped; ``None``: never.  What one write
        brings beyond it is passed on.
    """

    _consumer: IConsumer
    _offset: Callable[[], int]
    _end: int | None
    _producer: IProducer | None = field(default=None, init=False)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        self._consumer.registerProducer(IPushProducer(producer), streaming)

    def unregisterProducer(self) -> None:
        self._producer = None
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        self._consumer.write(data)
        too_far = self._end is not None and self._offset() > self._end
        if too_far and self._producer is not None:
            self._producer.stopProducing()
