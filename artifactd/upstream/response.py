"""Answers of upstreams, whose bodies are yet to come."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from artifactd.upstream.body import Delivery, Pieces, Refusal
from artifactd.upstream.errors import TimedOut, Unreachable

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
        self._delivery = Delivery(consumer, self._clock, self._idle_timeout, self.host, self.length)
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
