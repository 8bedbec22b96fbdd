"""What the daemon does now, over all its processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from heapq import nlargest

import msgspec
from attrs import define, evolve, frozen
from twisted.internet.defer import Deferred

from artifactd import __version__
from artifactd.catalog.overview import Overview
from artifactd.kit.janitor import batches
from artifactd.kit.peers import Peers
from artifactd.oci.errors import Unavailable
from artifactd.oci.names import ImageName
from artifactd.registry.activity import RemoteActivity
from artifactd.registry.metrics import Health
from artifactd.registry.mirror.fill import FillProgress
from artifactd.registry.mirror.stale import StaleTag, StaleTags
from artifactd.web.server.protocol import RegistryRequest, RegistrySite

_TOLD = 200  # requests of which the status tells more than their number


@frozen
class Transfer:
    """
    A request that is being handled.

    :ivar request: its id, as in the access log.
    :ivar status: of the answer; 0: it has not begun.
    :ivar received: bytes of its body.
    :ivar sent: bytes of the answer's body.
    """

    request: str
    client: str
    user: str
    method: str
    path: str
    status: int
    received: int
    sent: int
    seconds: float

    @classmethod
    def of(cls, request: RegistryRequest) -> Transfer:
        """What is told of ``request``."""
        return cls(
            request=request.request_id,
            client=request.address,
            user=request.actor,
            method=request.method.decode("utf-8", "backslashreplace"),
            path=request.path.decode("utf-8", "backslashreplace"),
            status=request.code if request.startedWriting else 0,
            received=request.received,
            sent=request.sentLength,
            seconds=round(request.elapsed, 3),
        )


@frozen
class Status:
    """
    What the daemon does now.

    :ivar pid: the process that was asked.
    :ivar processes: how many have told, that one included.
    :ivar requests: how many are being handled.
    :ivar transfers: at most 200 of them, the longest first.
    """

    version: str
    pid: int
    processes: int
    connections: int
    requests: int
    transfers: Sequence[Transfer]
    remotes: Sequence[RemoteActivity]

    @classmethod
    def of(
        cls,
        site: RegistrySite,
        remotes: Sequence[RemoteActivity],
        asking: RegistryRequest | None = None,
    ) -> Status:
        """
        What this process does now.

        :param asking: the request for this, which is left out.
        """
        requests = [each for each in site.traffic.running if each is not asking]
        longest = nlargest(_TOLD, requests, lambda each: each.elapsed)
        return cls(
            version=__version__,
            pid=os.getpid(),
            processes=1,
            connections=len(site.channels),
            requests=len(requests),
            transfers=[Transfer.of(each) for each in longest],
            remotes=remotes,
        )

    def beside(self, others: Sequence[Status]) -> Status:
        """Return this together with what other processes do; counts of remotes are of all."""
        every = [self, *others]
        transfers = [transfer for each in every for transfer in each.transfers]
        return evolve(
            self,
            processes=len(every),
            connections=sum(each.connections for each in every),
            requests=sum(each.requests for each in every),
            transfers=nlargest(_TOLD, transfers, lambda each: each.seconds),
            remotes=[
                evolve(remote, fills=_joined(remote.repository, every)) for remote in self.remotes
            ],
        )


def _joined(repository: str, statuses: Iterable[Status]) -> Sequence[FillProgress]:
    """Return the fills of a repository; one that several processes follow is told once."""
    told = [
        fill
        for status in statuses
        for remote in status.remotes
        for fill in (remote.fills if remote.repository == repository else ())
    ]
    fills: dict[tuple[str, str], FillProgress] = {}
    for fill in told:
        known = fills.setdefault((fill.image, fill.digest), fill)
        if known is not fill:
            fills[fill.image, fill.digest] = evolve(
                fill,
                size=known.size if fill.size is None else fill.size,
                written=max(known.written, fill.written),
                clients=known.clients + fill.clients,
            )
    return list(fills.values())


# What the processes of one daemon ask each other.
_READY = "ready"
_STATUS = "status"
_STALE = "stale"


@define(eq=False)
class WholeDaemon:
    """
    All processes of the daemon, seen from this one.

    :param health: the checks of this one.
    :param remotes: returns what each remote repository does in this one.
    :param stale: the tags that this one has answered past their freshness.
    :param overview: tells whether their upstreams have answered for them since.
    """

    peers: Peers
    health: Health
    remotes: Callable[[], Sequence[RemoteActivity]]
    stale: StaleTags
    overview: Overview

    async def check(self) -> None:
        """:raises Unavailable: if a process can't serve, saying which and why."""
        await self.health.check()
        for reply in await self.peers.ask(_READY):
            if reply.body is None:
                raise Unavailable(f"worker process {reply.pid} does not answer")
            if reply.body:
                raise Unavailable(f"worker process {reply.pid}: {reply.body.decode()}")

    async def status(self, asking: RegistryRequest) -> Status:
        """
        What the daemon does now.

        :param asking: the request for this, which is left out.
        """
        own = Status.of(asking.site, self.remotes(), asking)
        # Both are asked at the same time: a process that hangs is waited for once.
        replies = Deferred.fromCoroutine(self.peers.ask(_STATUS))
        stale: Counter[str] = Counter()
        with suppress(Unavailable):  # the catalog can't be read: /readyz tells
            stale.update(each.repository for each in await self.stale_tags())
        others = []
        for reply in await replies:
            # Another version of the program may tell something else.
            with suppress(msgspec.MsgspecError):
                others.append(msgspec.json.decode(reply.body or b"", type=Status))
        every = own.beside(others)
        remotes = [evolve(each, stale_tags=stale[each.repository]) for each in every.remotes]
        return evolve(every, remotes=remotes)

    async def stale_tags(self) -> list[StaleTag]:
        """
        The tags that any process has answered past their freshness, and that their upstream has not
        answered for since; in any order.
        """
        noted = self.stale.noted()
        for reply in await self.peers.ask(_STALE):
            # Another version of the program may tell something else.
            with suppress(msgspec.MsgspecError):
                noted += msgspec.json.decode(reply.body or b"", type=list[StaleTag])
        noted.sort(key=lambda each: each.answered)
        latest = {(each.image, each.tag): each for each in noted}
        stale: list[StaleTag] = []
        for batch in batches(list(latest.values())):
            wanted = [(ImageName.of(each.image), each.tag) for each in batch]
            checked = await self.overview.checked(wanted)
            stale += [e for e, at in zip(batch, checked, strict=True) if at == e.checked]
        return stale

    def answer_peers(self, site: RegistrySite) -> None:
        """Answer what the other processes ask."""

        async def ready() -> bytes:
            try:
                await self.health.check()
            except Unavailable as error:
                return error.message.encode()
            return b""

        async def status() -> bytes:
            return msgspec.json.encode(Status.of(site, self.remotes()))

        async def stale() -> bytes:
            return msgspec.json.encode(self.stale.noted())

        self.peers.answer(_READY, ready)
        self.peers.answer(_STATUS, status)
        self.peers.answer(_STALE, stale)
