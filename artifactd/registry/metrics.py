"""Counters for Prometheus, and the health check."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from attrs import frozen
from cachetools import LRUCache
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from artifactd.catalog.catalog import Catalog
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
    "upstream_bytes": "Bytes of blobs and manifests received from the upstream",
    "client_bytes": "Bytes of blobs and manifests answered to clients",
}
_COLLECTED = "Things that garbage collection took away, by why they went"
_COLLECTED_BYTES = "Bytes that garbage collection took out of the store"
_COLLECTIONS = "Runs of garbage collection that came to their end"
_COLLECTION_SECONDS = "Seconds that garbage collection ran, its pauses included"
_SCRUBBED = "Bytes of the store that scrubbing read again"
_SCRUBS = "Rounds of scrubbing that came to their end"
_DAMAGED = "Blobs and manifests that were found gone or with other bytes than theirs"
_HEALED = "Damaged blobs and manifests that were had again without a push, by where from"
_REQUESTS = "Requests to the upstream by what it answered"

# The most images of an upstream for which the time of its last answer is kept.
_IMAGES = 1000

Measured = Mapping[str, float]


@frozen
class _Measure(Collector):
    """A gauge whose values are read when Prometheus asks."""

    name: str
    text: str
    label: str
    read: Callable[[], Measured]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self.name, self.text, labels=[self.label])
        for label, value in self.read().items():
            family.add_metric([label], value)
        yield family


class Counters:
    """
    All counters; ``counters.of("docker.io").hits.inc()`` counts.

    They begin at 0 with the process.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"artifactd_{name}", text, ["repository"], registry=self._registry)
            for name, text in _NAMES.items()
        }
        self._requests = Counter(
            "artifactd_upstream_requests",
            _REQUESTS,
            ["repository", "method", "status"],
            registry=self._registry,
        )

        self.damage = DamageCounters(
            Counter("artifactd_scrubbed_bytes", _SCRUBBED, registry=self._registry),
            Counter("artifactd_scrub_rounds", _SCRUBS, registry=self._registry),
            Counter("artifactd_damaged", _DAMAGED, registry=self._registry),
            Counter("artifactd_healed", _HEALED, ["source"], registry=self._registry),
        )
        self.collection = CollectionCounters(
            Counter("artifactd_gc_collected", _COLLECTED, ["why"], registry=self._registry),
            Counter("artifactd_gc_bytes", _COLLECTED_BYTES, registry=self._registry),
            Counter("artifactd_gc_runs", _COLLECTIONS, registry=self._registry),
            Counter("artifactd_gc_seconds", _COLLECTION_SECONDS, registry=self._registry),
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

    def measure(self, gauge: str, text: str, label: str, read: Callable[[], Measured]) -> None:
        """
        Expose a gauge whose values ``read`` returns whenever Prometheus asks.

        :param gauge: its name, with the unit.
        :param label: the name of the label whose values are the keys that ``read`` returns.
        """
        self._registry.register(_Measure(f"artifactd_{gauge}", text, label, read))

    def exposition(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self._registry)


@frozen
class CollectionCounters:
    """Counters of garbage collection."""

    collected: Counter
    bytes: Counter
    runs: Counter
    seconds: Counter


@frozen
class DamageCounters:
    """Counters of damage that scrubbing and reading have found, and of its repair."""

    scrubbed: Counter
    rounds: Counter
    damaged: Counter
    healed: Counter


class RepositoryCounters:
    """
    The counters of one remote repository; an ``UpstreamWatch`` too.

    :ivar seconds: the time, in seconds since any moment.
    :ivar answered: when the upstream or its token service last answered about an image, by the
        name there: anything but a failure of its own.
    """

    def __init__(
        self,
        repository: str,
        counters: dict[str, Counter],
        requests: Counter,
        seconds: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._requests = requests
        self.seconds = seconds
        self.answered: LRUCache[str, float] = LRUCache(_IMAGES)
        self.hits = counters["hits"]
        self.misses = counters["misses"]
        self.coalesced = counters["coalesced"]
        self.stale = counters["stale"]
        self.revalidated = counters["revalidated"]
        self.resumed = counters["resumed"]
        self.corrupt = counters["corrupt"]
        self.evicted = counters["evicted"]
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
