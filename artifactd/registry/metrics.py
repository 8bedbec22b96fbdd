"""Counters for Prometheus, and the health check."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from attrs import frozen
from cachetools import LRUCache
from prometheus_client import CONTENT_TYPE_LATEST

from artifactd.catalog.catalog import Catalog
from artifactd.kit.shared import SharedMemory
from artifactd.kit.tallies import Counter, Distribution, Gauge, Merge, Metrics, Number, Tallies
from artifactd.oci.errors import Unavailable
from artifactd.store.blobs import BlobStore

CONTENT_TYPE = CONTENT_TYPE_LATEST

_NAMES = {
    "hits": "Requests answered from what is here, the upstream not asked",
    "misses": "Requests for what was not here",
    "coalesced": "Requests that joined what another one had begun",
    "stale": "Requests answered with something older than its freshness",
    "revalidated": "Tags that the upstream confirmed or moved",
    "resumed": "Fills that went on after the upstream had broken off",
    "corrupt": "Blobs and manifests that did not have their digest; nothing of them was kept",
    "evicted": "Blobs and manifests removed to keep to size_cap and max_age",
    "fills": "Fetches of blobs from the upstream that were begun",
    "upstream_bytes": "Bytes of blobs and manifests received from the upstream",
    "client_bytes": "Bytes of blobs and manifests answered to clients",
}
_COLLECTED = "Things that garbage collection took away, by why they went"
_COLLECTED_BYTES = "Bytes that garbage collection took out of the store"
_COLLECTIONS = "Runs of garbage collection that came to their end"
_COLLECTION_SECONDS = "Seconds that garbage collection ran, its pauses included"
_JUDGED = "Tags that the rules of retention have judged, in each run anew"
_KEPT = "Tags that a rule of retention has kept, or that no rule was for, in each run anew"
_DROPPED = "Tags that retention has dropped"
_RETAINED = "When retention last came to its end, in seconds since 1970"
_SCRUBBED = "Bytes of the store that scrubbing read again"
_SCRUBS = "Rounds of scrubbing that came to their end"
_DAMAGED = "Blobs and manifests that were found gone or with other bytes than theirs"
_HEALED = "Damaged blobs and manifests that were had again without a push, by where from"
_CATALOG = "Seconds that a read or a transaction of the catalog took, with its wait for a thread"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_LOGINS = "Logins with a name and a password that were refused: wrong, or too many"
_REQUESTS = "Requests to the upstream by what it answered"
_TOLD = "Events that receivers have taken, replays among them"
_NOT_TOLD = "Attempts to deliver an event that failed"
_UNTOLD = "Events that were dropped before they could be delivered"
_TO_TELL = "Events that wait for their delivery, as last counted by the process that delivers"

# The most images of an upstream for which the time of its last answer is kept.
_IMAGES = 1000


class Counters:
    """
    All counters; ``counters.of("docker.io").hits.inc()`` counts.

    They begin at 0 with the daemon, and count over all its processes.

    :param memory: what the processes share; ``None``: there is only this one.
    :ivar metrics: to which others are added.
    """

    def __init__(self, memory: SharedMemory | None = None) -> None:
        self.metrics = metrics = Metrics(Tallies(memory or SharedMemory.create()))
        self._counters = {
            name: metrics.counter(name, text, "repository") for name, text in _NAMES.items()
        }
        self._requests = metrics.counter(
            "upstream_requests", _REQUESTS, "repository", "method", "status"
        )
        self.damage = DamageCounters(
            metrics.counter("scrubbed_bytes", _SCRUBBED).labels(),
            metrics.counter("scrub_rounds", _SCRUBS).labels(),
            metrics.counter("damaged", _DAMAGED).labels(),
            metrics.counter("healed", _HEALED, "source"),
        )
        seconds = metrics.histogram(
            "catalog_seconds", _CATALOG, "kind", bounds=(0.0005, 0.001, 0.005, *_SECONDS)
        )
        self.catalog = CatalogTimes(seconds.labels("read"), seconds.labels("transaction"))
        self.logins_refused = metrics.counter("logins_refused", _LOGINS, "reason")
        self.collection = CollectionCounters(
            metrics.counter("gc_collected", _COLLECTED, "why"),
            metrics.counter("gc_bytes", _COLLECTED_BYTES).labels(),
            metrics.counter("gc_runs", _COLLECTIONS).labels(),
            metrics.counter("gc_seconds", _COLLECTION_SECONDS).labels(),
            RetentionCounters(
                metrics.counter("retention_judged", _JUDGED, "repository"),
                metrics.counter("retention_kept", _KEPT, "repository"),
                metrics.counter("retention_dropped", _DROPPED, "repository"),
                metrics.gauge(
                    "retention_last_run_timestamp_seconds",
                    _RETAINED,
                    "repository",
                    merge=Merge.MOST,
                ),
            ),
        )
        self.webhooks = WebhookCounters(
            metrics.counter("webhook_delivered", _TOLD, "webhook"),
            metrics.counter("webhook_failed", _NOT_TOLD, "webhook"),
            metrics.counter("webhook_dropped", _UNTOLD, "webhook"),
            metrics.gauge("webhook_waiting", _TO_TELL, "webhook"),
        )

    def of(
        self, repository: str, seconds: Callable[[], float] = time.monotonic
    ) -> RepositoryCounters:
        """
        The counters of one remote repository.

        :param seconds: the time, in seconds since any moment.
        """
        each = {name: counter.labels(repository) for name, counter in self._counters.items()}
        return RepositoryCounters(repository, each, self._requests, seconds)


@frozen
class CatalogTimes:
    """How long the catalog takes, in seconds."""

    reads: Distribution
    transactions: Distribution


@frozen
class RetentionCounters:
    """Counters of retention, by repository; ``last_run`` is in seconds since the epoch."""

    judged: Counter
    kept: Counter
    dropped: Counter
    last_run: Gauge


@frozen
class CollectionCounters:
    """Counters of garbage collection."""

    collected: Counter
    bytes: Number
    runs: Number
    seconds: Number
    retention: RetentionCounters


@frozen
class WebhookCounters:
    """Counters of deliveries, by webhook."""

    delivered: Counter
    failed: Counter
    dropped: Counter
    waiting: Gauge


@frozen
class DamageCounters:
    """Counters of damage that scrubbing and reading have found, and of its repair."""

    scrubbed: Number
    rounds: Number
    damaged: Number
    healed: Counter


class RepositoryCounters:
    """
    The counters of one remote repository; an ``UpstreamWatch`` too.

    :ivar seconds: the time, in seconds since any moment.
    :ivar answered: when the upstream or its token service last answered about an image, by the
        name there: anything but a failure of its own.
    :ivar down: called with the reason when a host does not answer, and is not asked for a while.
    """

    def __init__(
        self,
        repository: str,
        counters: Mapping[str, Number],
        requests: Counter,
        seconds: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._requests = requests
        self.seconds = seconds
        self.answered: LRUCache[str, float] = LRUCache(_IMAGES)
        self.down: Callable[[str], None] = lambda _: None
        self.hits = counters["hits"]
        self.misses = counters["misses"]
        self.coalesced = counters["coalesced"]
        self.stale = counters["stale"]
        self.revalidated = counters["revalidated"]
        self.resumed = counters["resumed"]
        self.corrupt = counters["corrupt"]
        self.evicted = counters["evicted"]
        self.fills = counters["fills"]
        self.upstream_bytes = counters["upstream_bytes"]
        self.client_bytes = counters["client_bytes"]

    def received(self, count: int) -> None:
        """Count ``count`` bytes of bodies from the upstream."""
        self.upstream_bytes.inc(count)

    def requested(self, method: str, status: int | None, image: str) -> None:
        """Count a request about ``image``; ``status`` is ``None`` if it was not answered."""
        if status is not None and status < 500:
            self.answered[image] = self.seconds()
        self._requests.labels(self._repository, method, str(status or "none")).inc()


@frozen
class Health:
    """The checks of ``/readyz``."""

    catalog: Catalog
    blobs: BlobStore

    async def check(self) -> None:
        """:raises Unavailable: if the catalog or the store can't be used, saying which and why."""
        await self.catalog.database.check()
        try:
            await self.blobs.check_writable()
        except OSError as error:
            raise Unavailable(f"the store can't be written: {error.strerror}") from error
