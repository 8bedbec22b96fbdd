"""Getting all bytes of a blob, however often the upstream breaks off."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.kit.deferreds import Interrupt
from artifactd.kit.streams import deliver
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.progress import Progress
from artifactd.registry.source import BlobSource
from artifactd.store.fills import FillInfo, FillSession
from artifactd.upstream.errors import (
    LoginRefused,
    RangeRefused,
    Throttled,
    Unreachable,
    UpstreamError,
)
from artifactd.upstream.interfaces import BlobBody

# Seconds before the first resumption, and how much longer each that follows without a byte in
# between waits: five of them outlast the pause of the circuit breaker.
_BACKOFF = 0.1
_SLOWER = 4.0
_LONGEST_WAIT = 30.0
# What may pass by itself; a token service may be down for a moment, too.
_PASSING = (Unreachable, Throttled, LoginRefused)

_log = Logger()


class Corrupt(Exception):
    """The upstream's bytes do not have the digest they were asked for by, or contradict it."""


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(_BACKOFF * _SLOWER ** (failures - 1), _LONGEST_WAIT)


@define(eq=False)
class Fetching:
    """
    Fetches into a claimed fill, until it has as many bytes as the upstream says there are.

    :param resumes: how often it goes on after a failure, in a row without having got further.
    :ivar host: who has sent bytes last.
    """

    source: BlobSource
    session: FillSession
    progress: Progress
    counters: RepositoryCounters
    interrupt: Interrupt
    clock: IReactorTime
    resumes: int
    host: str = field(init=False)
    _failures: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.host = self.source.upstream.name

    async def run(self) -> None:
        """
        :raises UpstreamError: if the upstream doesn't let us have it, or fails too often.
        :raises Corrupt: if the upstream contradicts itself.
        :raises Contradicted, OSError: as ``FillSession.flush``.
        :raises Stopped: if it was interrupted.
        """
        while True:
            before = self.session.written
            try:
                if await self._go_on():
                    return
                if self.session.written == before:
                    raise Unreachable(f"{self.host} ends before the blob does")
                self._failures = 0
            except UpstreamError as error:
                await self._resume(error, progressed=self.session.written > before)

    @property
    def _size(self) -> int | None:
        return None if self.session.info is None else self.session.info.size

    async def _resume(self, error: UpstreamError, *, progressed: bool) -> None:
        """Wait a moment, or give up."""
        # Who waits for the answer to begin shall be told now what is the matter.
        if not (self.progress.answered and isinstance(error, _PASSING)):
            raise error
        self._failures = 1 if progressed else self._failures + 1
        wait = pause(self._failures)
        if isinstance(error, Throttled):
            wait = error.retry_after
        if self._failures > self.resumes or wait > _LONGEST_WAIT:
            raise error
        _log.warn(
            "{image}@{digest} goes on at byte {at}: {reason}",
            image=self.source.image,
            digest=self.source.digest,
            at=self.session.written,
            reason=error.reason,
        )
        self.counters.resumed.inc()
        await self.interrupt.wait(deferLater(self.clock, wait))

    async def _go_on(self) -> bool:
        """Get some bytes; whether those are all."""
        session = self.session
        while await session.take_extents(self._size):
            pass  # each a turn of a thread
        if self._size is not None and session.written >= self._size:
            await self._admitted()
            return True
        until = await session.next_extent()
        try:
            body = await self._open(until)
        except RangeRefused:
            if self._size is not None or not session.written:
                raise
            # Nobody has told how long it is, and it is no longer than this.
            await session.describe(FillInfo(session.written))
            self.progress.answer(session.written)
            return True
        try:
            await self._begin(body)
        except BaseException:
            body.abort()
            raise
        await self._deliver(body)
        if self._size is None and (body.first == 0 or until is None):
            await session.describe(FillInfo(session.written))
        return session.written == self._size

    async def _open(self, until: int | None) -> BlobBody:
        info = self.session.info
        return await self.interrupt.outlived(
            lambda: self.source.open(
                self.session.written,
                None if until is None else until - 1,
                None if info is None else info.validator,
            ),
            lambda body: body.abort(),
        )

    async def _admitted(self) -> None:
        """All bytes are here, but the upstream has not let us have them under this name yet."""
        if not self.progress.answered:
            told = await self.interrupt.outlived(self.source.check)
            self._check_size(told.size)
            self.progress.answer(self._size)

    async def _begin(self, body: BlobBody) -> None:
        """The upstream has answered."""
        session = self.session
        self.host = body.host
        if body.first not in (0, session.written):
            raise Unreachable(f"{body.host} answers another range than it was asked for")
        self._check_size(body.size)
        info = FillInfo(self._size if body.size is None else body.size, body.validator)
        if info != session.info:
            await session.describe(info)
        if body.first < session.written:
            # No ranges, or another validator: all of it again, compared with what was passed on.
            session.restart()
        self.progress.answer(info.size)

    def _check_size(self, told: int | None) -> None:
        if told is None:
            return
        if self._size is not None and told != self._size:
            raise Corrupt(f"it has {told} bytes now, and had {self._size} before")
        if self.session.written > told:
            raise Corrupt(f"it has {told} bytes, and {self.session.written} have come before")

    async def _deliver(self, body: BlobBody) -> None:
        try:
            await self.interrupt.wait(deliver(body, self.session, self._size))
        finally:
            # What went wrong with the disk comes before what that did to the connection.
            await self.session.flush()
        if self._size is not None and self.session.written > self._size:
            raise Corrupt(f"more than {self._size} bytes have come")
        if not self.session.compared:
            raise Unreachable(f"{body.host} ends before the blob does")
