"""Blobs as the bodies of responses where their bytes pass through this process."""
# twisted.web is half annotated: most of Request is not.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from artifactd.web.request import RegistryRequest
from artifactd.web.transfer import BlobReader, Transfer

_PIECE = 64 * 1024  # bytes


class Budget(Protocol):
    """The transfer buffers that all connections share."""

    def acquire(self, size: int) -> Deferred[None]:
        """Wait for ``size`` bytes of it.  May be cancelled."""

    def release(self, size: int) -> None:
        """Give ``size`` bytes back."""


@implementer(IPushProducer)
class Relay(Transfer):
    """
    Pieces read in a thread, the next when the transport has got rid of the one before: for TLS,
    and for the chunks of a blob whose length nobody knows yet.

    No buffer is held while there is nothing to put into it.
    """

    def __init__(
        self,
        request: RegistryRequest,
        reader: BlobReader,
        first: int,
        length: int | None,
        budget: Budget,
    ) -> None:
        super().__init__(request, reader, first, length)
        self._budget = budget
        self._granted: Deferred[None] = succeed(None)
        self._resumed: Deferred[None] | None = None

    def register(self) -> None:
        self.request.registerProducer(self, True)
        Deferred.fromCoroutine(self._pump()).addErrback(self.failed)

    def unregister(self) -> None:
        self.request.unregisterProducer()

    def pauseProducing(self) -> None:
        if self._resumed is None:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """The connection is lost; the request is told next, and tells us."""

    def stopped(self) -> None:
        self._granted.cancel()
        self.resumeProducing()  # to its end

    async def _pump(self) -> None:
        if self.end is None:
            await self._begin_unmeasured()
        while self.offset != self.end:
            if self.offset >= self.here:
                await self.more()
                continue
            size = min(_PIECE, self.here - self.offset)
            self._granted = self._budget.acquire(size)
            await self._granted
            self.progress()
            try:
                if not await self._relay(size):
                    return
            finally:
                self._budget.release(size)
        self.complete()

    async def _begin_unmeasured(self) -> None:
        if self.request.clientproto == b"HTTP/1.1":
            self.request.write(b"")
            return
        # HTTP/1.0 has no chunks: the body would end where the connection does, cut off or not.
        while self.end is None:
            await self.more()
        length = self.end - self.offset
        self.request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % length])
        self.request.write(b"")

    async def _relay(self, size: int) -> bool:
        """Send a piece and wait until it is sent; whether there is reason to go on."""
        piece = await self.reader.read(self.offset, size)
        if not self.live():
            return False
        if len(piece) < size:
            raise EOFError("the file is shorter than it was")
        self.request.write(piece)
        self.advance(size)
        if self._resumed is not None:
            await self._resumed
            self.progress()
        return self.live()
