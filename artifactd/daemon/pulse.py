"""Metrics that are read now and then: what is in flight, queues, processes, the disk, upstreams."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from artifactd import __version__
from artifactd.catalog.overview import RepositoryUsage
from artifactd.daemon.assemble import Assembly
from artifactd.kit.tallies import Merge, Metrics
from artifactd.oci.errors import Unavailable
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import LocalSettings, Settings
from artifactd.web.server.accesslog import Traffic

BEAT = 1.0
"""Seconds between looks at what is in flight and at the queues."""

_PROCESS_EVERY = 15  # beats between looks at the process
_STORAGE_SECONDS = 15.0  # for which sizes are not read again, however often they are asked for

_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@frozen
class _Process:
    """Figures of this process."""

    memory: int
    files: int

    @classmethod
    def read(cls) -> _Process:
        """Read them from /proc.  Blocks: a list of many thousand files takes milliseconds."""
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        return cls(pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")))


class ProcessMetrics:
    """What Prometheus' clients tell of a process, over all processes of the daemon."""

    def __init__(self, metrics: Metrics) -> None:
        counter, gauge = metrics.counter, metrics.gauge
        self._cpu = counter("process_cpu_seconds", "Processor time, in seconds").labels()
        self._memory = gauge("process_resident_memory_bytes", "Bytes of memory in use").labels()
        self._files = gauge(
            "process_open_fds", "Open files of the process with most", merge=Merge.MOST_NOW
        ).labels()
        most = gauge("process_max_fds", "Files that a process may open", merge=Merge.MOST_NOW)
        most.labels().set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        started = gauge(
            "process_start_time_seconds",
            "When the newest process started, in seconds since 1970",
            merge=Merge.MOST_NOW,
        )
        started.labels().set(time.time())
        gauge("processes", "Processes of the daemon").labels().set(1)
        self._counted = 0.0

    def count_time(self) -> None:
        """Count the processor time since the last call."""
        used = time.process_time()
        self._cpu.inc(used - self._counted)
        self._counted = used

    def take(self, process: _Process) -> None:
        """Set what was read."""
        self._memory.set(process.memory)
        self._files.set(process.files)


@define(eq=False)
class Storage:
    """The sizes of repositories and of the disk: read in threads, and at most every 15 s."""

    parts: Assembly
    settings: Settings
    _read_at: float = field(default=-math.inf, init=False)
    _usage: Mapping[str, RepositoryUsage] = field(factory=dict, init=False)
    _free: Mapping[str, float] = field(factory=dict, init=False)
    _size: Mapping[str, float] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        measure = self.parts.counters.metrics.measure
        measure(
            "repository_bytes",
            "Bytes of all that the images of a repository hold, each once",
            "repository",
            lambda: {name: each.size for name, each in self._usage.items()},
        )
        measure(
            "repository_images",
            "Images of a repository",
            "repository",
            lambda: {name: each.images for name, each in self._usage.items()},
        )
        measure(
            "repository_tags",
            "Tags of the images of a repository",
            "repository",
            lambda: {name: each.tags for name, each in self._usage.items()},
        )
        self._measure_limit("quota", "The quota of a local repository that has one", LocalSettings)
        self._measure_limit(
            "size_cap", "The size_cap of an upstream's repository that has one", RemoteSettings
        )
        measure(
            "disk_free_bytes", "Bytes free on the disk of a folder", "folder", lambda: self._free
        )
        measure("disk_size_bytes", "Size of the disk of a folder", "folder", lambda: self._size)

    async def refresh(self) -> None:
        """Read the sizes, unless that was done just now; those that can't be read stay."""
        now = self.parts.reactor.seconds()
        if now - self._read_at < _STORAGE_SECONDS:
            return
        self._read_at = now
        try:
            disk = await self.parts.run(os.statvfs, self.parts.folder.path)
            self._free = {"data": disk.f_bavail * disk.f_frsize}
            self._size = {"data": disk.f_blocks * disk.f_frsize}
            usage = await self.parts.seeing.overview.usage()
            found = {each.repository: each for each in usage}
            self._usage = {
                name: found.get(name, RepositoryUsage(name, 0, 0, 0))
                for name in self.settings.repository
            }
        except (OSError, Unavailable):
            # /readyz tells that, and the metrics are wanted all the more.
            return

    def _measure_limit(
        self, name: str, text: str, kind: type[LocalSettings] | type[RemoteSettings]
    ) -> None:
        limits = {
            repository: float(each.most_bytes)
            for repository, each in self.settings.repository.items()
            if isinstance(each, kind) and each.most_bytes
        }
        measure = self.parts.counters.metrics.measure
        measure(f"repository_{name}_bytes", text, "repository", lambda: limits)


class Pulse:
    """
    Keeps the metrics that nobody counts: looks at them every second, and when they are asked for.

    Blocks at no time for longer than a look at the requests in flight takes.
    """

    def __init__(self, settings: Settings, parts: Assembly, traffic: Traffic) -> None:
        metrics: Metrics = parts.counters.metrics
        self._parts, self._traffic, self._metrics = parts, traffic, metrics
        self._storage = Storage(parts, settings)
        self._process = ProcessMetrics(metrics)
        self._beats = 0
        self._due = math.inf
        self._lag = metrics.histogram(
            "reactor_lag_seconds",
            "How late the reactor calls what is due, looked at every second",
            bounds=_LAG,
        ).labels()
        queued = metrics.gauge("threads_queued", "Work that waits for a thread", "pool")
        busy = metrics.gauge("threads_busy", "Threads at work", "pool")
        self._threads = [
            (pool, queued.labels(name), busy.labels(name))
            for name, pool in (
                ("store", parts.threads),
                ("catalog", parts.catalog.database.reader_threads),
            )
        ]
        self._writes = metrics.gauge(
            "catalog_writes_queued", "Writes to the catalog that wait for a transaction"
        ).labels()
        self._fills = metrics.gauge(
            "fills_in_flight", "Blobs that are being fetched from an upstream", "repository"
        )
        metrics.measure("build_info", "1 for the release", "version", lambda: {__version__: 1.0})
        self._measure_upstreams()

    async def beat(self) -> None:
        """Look at everything; to be called every :data:`BEAT` seconds."""
        now: float = self._parts.reactor.seconds()
        late = max(0.0, now - self._due)  # 0 at the first beat, which is due at no time
        self._lag.observe(late)
        # A timer that repeats comes back at the next of its times, however late it was.
        missed = math.floor(late / BEAT)
        self._due = (self._due if self._beats else now) + (missed + 1) * BEAT
        self._look()
        if self._beats % _PROCESS_EVERY == 0:
            self._process.take(await self._parts.run(_Process.read))
        self._beats += 1

    async def scrape(self) -> bytes:
        """Return all metrics in Prometheus' text format, as they are now."""
        self._look()
        await self._storage.refresh()
        text: bytes = await self._parts.run(self._metrics.moment().exposition)
        return text

    def _look(self) -> None:
        self._traffic.look()
        for pool, queued, busy in self._threads:
            queued.set(pool.queued)
            busy.set(pool.busy)
        self._writes.set(self._parts.catalog.database.writes_queued)
        for name, fills in self._parts.remotes.fills.items():
            self._fills.labels(name).set(fills.count)
        self._process.count_time()

    def _measure_upstreams(self) -> None:
        upstreams: Mapping[str, Any] = self._parts.remotes.upstreams

        def remaining() -> Mapping[str, float]:
            left = {name: each.state().remaining for name, each in upstreams.items()}
            return {name: share for name, share in left.items() if share is not None}

        measure = self._metrics.measure
        measure(
            "upstream_budget_ratio",
            "The share of an upstream's rate limit that is left, 0 to 1, where it tells",
            "repository",
            remaining,
        )
        measure(
            "upstream_available",
            "1 while an upstream is asked; 0 while it is not, because it failed",
            "repository",
            lambda: {name: float(not each.state().trouble) for name, each in upstreams.items()},
        )
        measure(
            "upstream_throttled_seconds",
            "Seconds for which an upstream wants to be asked nothing of some kind (429)",
            "repository",
            lambda: {name: each.state().throttled for name, each in upstreams.items()},
        )
