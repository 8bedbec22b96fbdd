"""A body into a file, and not much further than it may go: no upstream fills the disk."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer

from artifactd.store.fills import Appender
from artifactd.upstream.interfaces import BlobBody


def deliver(body: BlobBody, appender: Appender, end: int | None) -> Deferred[int]:
    """
    As ``BlobBody.deliver_to``; what goes beyond the offset ``end`` is broken off there, or a little
    further.
    """
    return body.deliver_to(IConsumer(_Bounded(appender, end)))


@implementer(IConsumer)
@define(eq=False)
class _Bounded:
    _appender: Appender
    _end: int | None
    _producer: IProducer | None = field(default=None, init=False)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        self._appender.registerProducer(IPushProducer(producer), streaming)

    def unregisterProducer(self) -> None:
        self._producer = None
        self._appender.unregisterProducer()

    def write(self, data: bytes) -> None:
        self._appender.write(data)
        too_far = self._end is not None and self._appender.offset > self._end
        if too_far and self._producer is not None:
            self._producer.stopProducing()
