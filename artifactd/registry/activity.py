"""What goes on at this moment, for an operator who looks."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen
from prometheus_client import Counter

from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.fill import FillProgress, Fills
from artifactd.upstream.interfaces import UpstreamState


@frozen
class RemoteActivity:
    """
    What a remote repository does.  Counts begin at 0 with the process.

    :ivar hits: requests that were answered from what is here, the upstream not asked.
    :ivar misses: requests for what was not here.
    :ivar stale: requests that were answered with something older than its freshness.
    :ivar upstream_bytes: bytes received from the upstream.
    :ivar client_bytes: bytes answered to clients.
    :ivar fills: those under way.
    """

    repository: str
    upstream: UpstreamState
    hits: int
    misses: int
    stale: int
    upstream_bytes: int
    client_bytes: int
    fills: Sequence[FillProgress]

    @classmethod
    def of(
        cls, repository: str, upstream: UpstreamState, counters: RepositoryCounters, fills: Fills
    ) -> RemoteActivity:
        """What the repository of that name does now."""

        def value(counter: Counter) -> int:
            return int(next(iter(counter.collect())).samples[0].value)

        return cls(
            repository,
            upstream,
            hits=value(counters.hits),
            misses=value(counters.misses),
            stale=value(counters.stale),
            upstream_bytes=value(counters.upstream_bytes),
            client_bytes=value(counters.client_bytes),
            fills=fills.states(),
        )
