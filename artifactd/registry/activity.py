"""What goes on at this moment, for an operator who looks."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from artifactd.kit.tallies import Sums
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.fill import FillProgress, Fills
from artifactd.upstream.interfaces import UpstreamState


@frozen
class RemoteActivity:
    """
    What a remote repository does.  Counts begin at 0 with the daemon, and are of all its processes.

    :ivar hits: requests that were answered from what is here, the upstream not asked.
    :ivar misses: requests for what was not here.
    :ivar stale: requests that were answered with something older than its freshness.
    :ivar upstream_bytes: bytes received from the upstream.
    :ivar client_bytes: bytes answered to clients.
    :ivar fills: those under way.
    :ivar stale_tags: tags that clients get so at present: the upstream has not answered for them
        since.
    """

    repository: str
    upstream: UpstreamState
    hits: int
    misses: int
    stale: int
    upstream_bytes: int
    client_bytes: int
    fills: Sequence[FillProgress]
    stale_tags: int = 0

    @classmethod
    def of(
        cls,
        repository: str,
        upstream: UpstreamState,
        counters: RepositoryCounters,
        sums: Sums,
        fills: Fills,
    ) -> RemoteActivity:
        """What the repository of that name does now."""
        return cls(
            repository,
            upstream,
            hits=int(counters.hits.of(sums)),
            misses=int(counters.misses.of(sums)),
            stale=int(counters.stale.of(sums)),
            upstream_bytes=int(counters.upstream_bytes.of(sums)),
            client_bytes=int(counters.client_bytes.of(sums)),
            fills=fills.states(),
        )
