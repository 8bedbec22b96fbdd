"""Manifests that are pushed: whole in memory, so few at a time, and each only for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.kit.budget import BufferBudget
from artifactd.web.request import RegistryRequest

# What one may take from when it is first asked for to its last byte: a client has it all by then.
BODY_SECONDS = 60.0

_log = Logger()


@frozen
class ManifestBodies:
    """
    Reads them.

    What they may take in memory is theirs alone: it is taken before the first byte is there, so
    whoever sends slowly would hold up what others transfer.

    :ivar budget: of no other transfers.
    :ivar max_size: bytes of a manifest at most.
    :ivar clock: of the time that a body may take.
    """

    budget: BufferBudget
    max_size: int
    clock: IReactorTime

    @asynccontextmanager
    async def read(self, request: RegistryRequest) -> AsyncIterator[bytes]:
        """
        The body of ``request``, in memory until the end of the context; waits for room first.

        A client that has not sent all of it after :data:`BODY_SECONDS` is cut off.

        :raises ContentTooLarge: if it has more than ``max_size`` bytes.
        """
        declared = request.body.length if request.body else 0
        wanted = self.max_size if declared is None else min(declared, self.max_size)
        size = min(wanted, self.budget.limit)
        await self.budget.acquire(size)
        try:
            yield await self._in_time(request)
        finally:
            self.budget.release(size)

    async def _in_time(self, request: RegistryRequest) -> bytes:
        if request.body is None:
            return b""
        due = self.clock.callLater(BODY_SECONDS, _cut_off, request)
        try:
            return await request.body.read(self.max_size)
        finally:
            if due.active():
                due.cancel()


def _cut_off(request: RegistryRequest) -> None:
    _log.info(
        "{method} {path} of {address} dropped: the manifest has not come within {seconds:g} s",
        method=request.method.decode("latin-1"),
        path=request.path.decode("latin-1"),
        address=request.address,
        seconds=BODY_SECONDS,
    )
    request.abort()
