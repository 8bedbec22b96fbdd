"""Request bodies: delivered while they arrive; those of manifests are read into memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.kit.budget import ShareExhausted, Shares
from artifactd.kit.streams import Collected
from artifactd.kit.timers import Deadline, Timers
from artifactd.oci.errors import ContentTooLarge, RegistryError, TooManyRequests

if TYPE_CHECKING:
    from artifactd.web.server.protocol import RegistryRequest


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


# Seconds for the body of a pushed manifest, from when it is first asked for to its last byte.
# Those in which it waits for memory don't count.
BODY_SECONDS = 60.0

SMALL = 64 << 10
"""Bytes; nearly all manifests have less.  More than that is acquired from another pool."""

_RETRY_SECONDS = 5

_log = Logger()


@frozen
class ManifestBodies:
    """
    Reads the manifests that are pushed into memory.

    A manifest acquires memory when its bytes come, not when they are announced: up to
    :data:`SMALL` from one pool; once it grows beyond that, all that it may need from another, so
    that no two of them wait for each other.  In each pool one owner holds a share at most.  So
    senders who are slow, or announce more than they send, hold up their own pushes alone.

    :ivar small: memory for the first bytes of each manifest.
    :ivar large: memory for those that are larger.
    :ivar max_size: bytes of a manifest at most.
    :ivar timers: makes the deadlines of the bodies.
    """

    small: Shares
    large: Shares
    max_size: int
    timers: Timers

    @classmethod
    def of(cls, memory: int, max_size: int, timers: Timers) -> ManifestBodies:
        """
        Divide ``memory`` (bytes) into a quarter for small manifests and the rest for large ones.
        An owner may hold a quarter of each, or at least one manifest.
        """
        small = memory // 4
        large = memory - small
        return cls(
            Shares(small, max(small // 4, min(SMALL, small))),
            Shares(large, max(large // 4, min(max_size, large))),
            max_size,
            timers,
        )

    @asynccontextmanager
    async def read(self, request: RegistryRequest, owner: str) -> AsyncIterator[bytes]:
        """
        Read the body of ``request`` into memory until the end of the context.

        A client that has not sent all of it within :data:`BODY_SECONDS` is cut off.

        :param owner: the user or address whose share the memory is taken from.
        :raises ContentTooLarge: if it has more than ``max_size`` bytes.
        :raises TooManyRequests: if too many manifests of ``owner`` wait for memory already.
        """
        if request.body is None:
            yield b""
            return
        declared = request.body.length
        if declared is not None and declared > self.max_size:
            raise self.too_large()
        due = self.timers.deadline(partial(_cut_off, request))
        body = _Body(self, owner, self.max_size if declared is None else declared, due)
        try:
            if not request.body.complete:
                body.resume_time()
            await request.body.deliver_to(body)
            due.cancel()
            yield await body.content()
        finally:
            due.cancel()
            body.release()

    def too_large(self) -> ContentTooLarge:
        """The error for a manifest of more than ``max_size`` bytes."""
        return ContentTooLarge(
            f"request body too large: at most {self.max_size} bytes are accepted here",
            {"limit": self.max_size},
        )


@implementer(IConsumer)
@define(eq=False)
class _Body:
    """
    Gathers one manifest.  While it waits for memory its producer is paused, and its time stands
    still; at most one read of the socket is here then that is not counted.
    """

    bodies: ManifestBodies
    owner: str
    most: int
    due: Deadline
    _content: BytesIO = field(factory=BytesIO, init=False)  # whose bytes are not copied once more
    _room: int = field(default=0, init=False)
    _acquired: list[tuple[Shares, int]] = field(factory=list, init=False)
    _granted: Deferred[None] = field(factory=lambda: succeed(None), init=False)
    _left: float = field(default=BODY_SECONDS, init=False)
    _failure: RegistryError | None = field(default=None, init=False)
    _producer: IPushProducer | None = field(default=None, init=False)

    async def content(self) -> bytes:
        """Return all bytes, once there is memory for them.  :raises RegistryError: as ``read``."""
        while not self._granted.called:
            await self._granted
        if self._failure is not None:
            raise self._failure
        return self._content.getvalue()

    def release(self) -> None:
        """Return the memory, and wait for no more."""
        self._granted.addErrback(lambda _: None).cancel()
        for shares, size in self._acquired:
            shares.release(self.owner, size)
        self._acquired.clear()

    def resume_time(self) -> None:
        """Let the time of the client run."""
        self.due.start(self._left)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = IPushProducer(producer)

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if self._failure is not None:
            return
        self._content.write(data)
        if self._content.tell() > self.most:
            self._fail(self.bodies.too_large())
        elif self._content.tell() > self._room and self._granted.called:
            self._acquire()

    def _acquire(self) -> None:
        """Acquire memory for the bytes that are here: the first ones, or all that may come."""
        if self._content.tell() <= SMALL and not self._room:
            shares, room = self.bodies.small, min(self.most, SMALL)
        else:
            shares, room = self.bodies.large, self.most
        size = min(room - self._room, shares.share)
        try:
            granted = shares.acquire(self.owner, size)
        except ShareExhausted:
            self._fail(_busy(self.owner))
            return
        if granted.called:
            self._take(shares, size, room)
            return
        self._pause()
        granted.addCallback(lambda _: self._resume(shares, size, room))
        self._granted = granted

    def _take(self, shares: Shares, size: int, room: int) -> None:
        self._acquired.append((shares, size))
        self._room = room

    def _pause(self) -> None:
        if self.due.due is not None:
            self._left = max(0.0, self.due.due - self.bodies.timers.seconds())
            self.due.stop()
        if self._producer is not None:
            self._producer.pauseProducing()

    def _resume(self, shares: Shares, size: int, room: int) -> None:
        self._take(shares, size, room)
        if self._content.tell() > room:
            # What the producer had read before it was paused has come meanwhile.
            self._acquire()
        if self._granted.called and self._failure is None and self._producer is not None:
            self.resume_time()
            self._producer.resumeProducing()

    def _fail(self, error: RegistryError) -> None:
        self._failure = error
        self._content = BytesIO()
        if self._producer is not None:
            self._producer.stopProducing()


def _busy(owner: str) -> TooManyRequests:
    return TooManyRequests(
        f"too many manifests of {owner} wait for memory: push fewer at a time, and try again in"
        f" {_RETRY_SECONDS} s",
        None,
        {"Retry-After": str(_RETRY_SECONDS)},
    )


def _cut_off(request: RegistryRequest) -> None:
    _log.info(
        "{method} {path} of {address} dropped: the manifest has not come within {seconds:g} s",
        method=request.method.decode("latin-1"),
        path=request.path.decode("latin-1"),
        address=request.address,
        seconds=BODY_SECONDS,
    )
    request.abort()
