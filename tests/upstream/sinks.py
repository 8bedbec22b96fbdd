"""Consumers of bodies."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer


@implementer(IConsumer)
class Sink:
    """
    Keeps what it is given.

    :ivar content: that.
    :ivar producer: the body, as long as there is more to come.
    :ivar on_register: called with the producer when it comes.
    :ivar on_write: called at each write, after it.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self.producer: IPushProducer | None = None
        self.on_register: Callable[[IPushProducer], None] = lambda producer: None
        self.on_write: Callable[[], None] = lambda: None
        self._awaited: tuple[int, Deferred[None]] | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        assert IPushProducer.providedBy(producer)
        self.producer = producer
        self.on_register(producer)

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        self.content += data
        self.on_write()
        if self._awaited is not None and len(self.content) >= self._awaited[0]:
            (_, waiting), self._awaited = self._awaited, None
            waiting.callback(None)

    def has(self, size: int) -> Deferred[None]:
        """Fires when there are ``size`` bytes."""
        waiting: Deferred[None] = Deferred()
        if len(self.content) >= size:
            waiting.callback(None)
        else:
            self._awaited = (size, waiting)
        return waiting

    def pause(self) -> None:
        """Take no more for now."""
        assert self.producer is not None
        self.producer.pauseProducing()

    def resume(self) -> None:
        """Take more."""
        assert self.producer is not None
        self.producer.resumeProducing()

    def stop(self) -> None:
        """Take no more."""
        assert self.producer is not None
        self.producer.stopProducing()
