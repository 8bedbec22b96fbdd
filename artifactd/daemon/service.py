"""The service, from start to stop: the whole of it in one process, alone or as one of several."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from random import randrange
from typing import Any

from attrs import frozen
from msgspec.structs import replace
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IReactorCore
from twisted.logger import ILogObserver, Logger

from artifactd.auth.rules import Uncounted
from artifactd.catalog.events import event_of
from artifactd.daemon.assemble import Assembly, assemble
from artifactd.daemon.gate import GateWiring, wire_gate
from artifactd.daemon.greeting import greet
from artifactd.daemon.handed import Handed
from artifactd.daemon.listen import listen, stop_listening
from artifactd.daemon.log import StreamLog
from artifactd.daemon.pulse import BEAT, Pulse
from artifactd.kit.lines import OwnLog, own_log
from artifactd.kit.malloc import give_back_freed_memory
from artifactd.kit.peers import Peers
from artifactd.kit.printable import printable
from artifactd.kit.shared import SharedMemory
from artifactd.kit.start import StartError
from artifactd.kit.timers import Timers
from artifactd.oci.errors import QuotaExceeded, Unavailable
from artifactd.oci.names import ImageName
from artifactd.registry.metrics import Health
from artifactd.registry.upkeep.collector import NotNow
from artifactd.settings.settings import Settings
from artifactd.settings.webhooks import EventKind
from artifactd.store.blobs import SHELVES
from artifactd.store.files import FileOperations
from artifactd.store.folder import Duties
from artifactd.web.answer import stopping
from artifactd.web.api import Api, actor_of
from artifactd.web.audit import AUDIT, AuditLog
from artifactd.web.json_api import JsonApi
from artifactd.web.page.page import Page
from artifactd.web.page.rendering import Rendering
from artifactd.web.routing import ApiResource
from artifactd.web.server.accesslog import ACCESS, AccessLog, Traffic
from artifactd.web.server.body import ManifestBodies
from artifactd.web.server.cors import Cors
from artifactd.web.server.hot import HotAnswers
from artifactd.web.server.limits import Rates
from artifactd.web.server.protocol import RegistryRequest, RegistrySite
from artifactd.web.server.proxies import TrustedProxies
from artifactd.web.server.sendfile import FileSender, Patience
from artifactd.web.status import WholeDaemon
from artifactd.webhooks.delivery import LOOK_EVERY

# Seconds after which a thread that computes lets the reactor's have the interpreter.  A request
# takes several such turns, and Python's own 5 ms for each, behind each thread, would add up.
_TURN = 0.001
# Seconds between writing access times and evicting.
_EVICT_EVERY = 60.0
# Seconds between checks whether scrubbing is due and no other process scrubs.
_SCRUB_EVERY = 60.0
# Shelves of the store that one garbage collection compares with the catalog.
_SHELVES_EACH = 16

# Seconds of lease below which there are no hot answers.
_LEAST_LEASE = 60

_log = Logger()


def prepare(reactor: Any) -> None:
    """Set up the interpreter for serving."""
    give_back_freed_memory()
    sys.setswitchinterval(_TURN)
    IReactorCore(reactor).callWhenRunning(_freeze)


def _freeze() -> None:
    """
    Leave what the start has made out of all collections of Python's garbage: each would look at it,
    and hold the interpreter for about a tenth of a second.
    """
    gc.collect()
    gc.freeze()


class RegistryService(MultiService):
    """
    The daemon.

    It opens nothing before :meth:`startService`, so that twistd can fork first.

    :param files: makes all changes in the data folder.
    :param source: the file of ``settings``, for the log; ``None`` for the embedded ones.
    :param log: writes the daemon's own log; ``None``: twistd does.
    :param memory: is shared by all processes of the daemon; ``None``: there is only this one.
    :param handed: listens in this process's place, which is a worker; ``None``: it is the only one.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        files: FileOperations | None = None,
        source: Path | None = None,
        log: StreamLog | None = None,
        memory: SharedMemory | None = None,
        handed: Handed | None = None,
    ) -> None:
        super().__init__()
        self._memory = memory
        self._handed = handed
        self._source = source
        self._log = log
        self._settings = settings
        self._reactor = reactor
        self._files = files
        self._running: _Running | None = None
        self._stopping: _Running | None = None

    def setServiceParent(self, parent: Any) -> None:
        # twistd asks its application for the observer of the log, after this and before the start.
        if self._log is not None:
            parent.setComponent(ILogObserver, self._log)
        super().setServiceParent(parent)

    @property
    def ports(self) -> list[IListeningPort]:
        """The ports that the daemon listens on; empty unless it runs."""
        return [] if self._running is None else self._running.ports

    def startService(self) -> None:
        """Start, or end the process with the reason in one line."""
        try:
            self.start()
        except StartError as error:
            raise SystemExit(printable(f"artifactd: {error}")) from None

    def start(self) -> None:
        """
        Open and start everything.

        :raises StartError: if the daemon can't run; then nothing is left open.
        """
        with ExitStack() as opened:
            self._running = running = _start(
                self._settings,
                self._reactor,
                opened,
                self._files,
                self._log,
                self._memory,
                self._handed,
            )
            opened.pop_all()
        self._repeat(BEAT, running.pulse.beat)
        self._repeat(self._settings.sweep_interval, running.swept)
        self._repeat(_EVICT_EVERY, running.evict)
        self._repeat(self._settings.gc_interval, running.collect)
        look_every = LOOK_EVERY if self._settings.webhook else self._settings.sweep_interval
        self._repeat(look_every, running.parts.deliveries.look)
        if self._settings.scrub_rate:
            self._repeat(_SCRUB_EVERY, running.scrub)
        if self._handed is None:
            greet(
                self._settings,
                self._source,
                [port.getHost() for port in self.ports],
                read_only=running.parts.read_only.on(),
            )
        super().startService()

    def _repeat(
        self, seconds: float, work: Callable[[], Coroutine[Deferred[Any], Any, object]]
    ) -> None:
        repeating = TimerService(seconds, _persist, work)
        repeating.clock = self._reactor
        repeating.setServiceParent(self)

    def stopService(self) -> Deferred[None]:
        """
        Accept no more connections, wait up to ``shutdown_timeout`` for running transfers, then
        close.
        """
        running, self._running = self._running, None
        assert running is not None, "not started"
        self._stopping = running
        return Deferred.fromCoroutine(self._stop(running))

    def hurry(self) -> None:
        """Cut the transfers that :meth:`stopService` waits for, if it does."""
        if self._stopping is not None:
            self._stopping.site.cut()

    def retire(self) -> Deferred[None]:
        """
        Serve the open connections to their end, however long that takes, and do nothing else;
        :meth:`stopService` is still to be called.  The listeners have to be closed by then.
        """
        assert self._running is not None, "not started"
        self._running.rest()
        return Deferred.fromCoroutine(self._running.retire())

    async def _stop(self, running: _Running) -> None:
        running.rest()
        await running.drain(self._settings.shutdown_timeout)
        await super().stopService()  # waits for what is under way
        for service in list(self):
            service.disownServiceParent()
        await running.gate.close()
        await running.daemon.peers.close()
        await running.parts.close()
        running.audit.close()  # last: requests that go on without their client are logged too


@frozen
class _Running:
    """The parts of a running daemon."""

    ports: list[IListeningPort]
    site: RegistrySite
    access_log: AccessLog
    audit: AuditLog
    gate: GateWiring
    daemon: WholeDaemon
    parts: Assembly
    pulse: Pulse
    duties: Duties
    shelves: Iterator[int]
    started: float

    def rest(self) -> None:
        """Leave to another process what one of them does for all."""
        self.duties.release()
        self.parts.collector.stop()
        self.parts.scrubber.stop()

    async def retire(self) -> None:
        retired = Deferred.fromCoroutine(self.site.retire())
        await self.parts.deliveries.rest()  # their receivers may be others now
        await retired

    async def drain(self, seconds: float) -> None:
        await self.site.drain(seconds, lambda: stop_listening(self.ports))
        self.access_log.close()

    async def collect(self) -> None:
        """Collect garbage; compare another part of the store with the catalog each time."""
        if self.parts.read_only.on() or not self.duties.held():
            return
        first = next(self.shelves)
        await self.parts.pulls.write()  # what the retention counts on
        try:
            await self.parts.collector.run((first + n) % SHELVES for n in range(_SHELVES_EACH))
        except NotNow as error:
            _log.info("garbage is collected later: {reason}", reason=str(error))

    async def scrub(self) -> None:
        """Scrub, but not at once after the start, when clients come back."""
        rested = self.parts.reactor.seconds() - self.started >= _SCRUB_EVERY / 2
        if rested and self.duties.held():
            await self.parts.scrubber.run()

    async def swept(self) -> None:
        """Sweep, unless the daemon is read-only."""
        if not self.parts.read_only.on() and self.duties.held():
            await self.parts.sweep.run()

    async def evict(self) -> None:
        """Write the access times, and evict."""
        await self.parts.last_used.write()
        await self.parts.pulls.write()
        if not self.duties.held():
            return
        for eviction in self.parts.remotes.evictions:
            await eviction.run()


def _start(
    settings: Settings,
    reactor: Any,
    opened: ExitStack,
    files: FileOperations | None,
    log: StreamLog | None,
    memory: SharedMemory | None,
    handed: Handed | None,
) -> _Running:
    parts = assemble(settings, reactor, opened, files=files, memory=memory)
    refused = parts.counters.logins_refused
    audit = _audit_log(settings, opened, log, lambda reason: refused.labels(reason).inc())
    proxies = TrustedProxies.parse(settings.trusted_proxies)
    external_url = str(settings.external_url)
    origin = (lambda _: external_url) if external_url else proxies.origin
    gate = wire_gate(settings, reactor, parts, origin, os.environ)
    timers = Timers(reactor)
    traffic = Traffic(parts.counters.metrics)
    pulse = Pulse(settings, parts, traffic)
    sender = FileSender(
        timers,
        parts.run,
        parts.budgets.transfers,
        Patience(
            settings.stall_timeout,
            int(settings.limits.body_rate),
            settings.limits.body_window,
        ),
        parts.folder.in_memory,
        parts.budgets.answers,
    )
    daemon = WholeDaemon(
        Peers(reactor, parts.memory.id, parts.counters.metrics.tallies),
        Health(parts.catalog, parts.blobs),
        parts.remotes.activity,
        parts.remotes.stale,
        parts.seeing.overview,
    )
    over_quota = partial(_tell_over_quota, parts)
    api = Api(
        registry=parts.registry,
        over_quota=over_quota,
        gate=gate.gate,
        audit=audit,
        sender=sender,
        daemon=daemon,
        scrape=pulse.scrape,
        # Plain numbers: a Size prints with its unit, and JSON does not know it.
        manifests=ManifestBodies.of(parts.budgets.manifests, int(settings.max_manifest), timers),
        pulls=parts.pulls,
        uncounted=Uncounted(settings.uncounted_pulls),
        min_chunk=int(settings.min_chunk),
        service=gate.service,
    )
    json_api = JsonApi(
        over_quota=over_quota,
        registry=parts.registry.exact(),
        gate=gate.gate,
        audit=audit,
        sender=sender,
        seeing=parts.seeing,
        garbage=parts.garbage,
        settings=settings,
        run=parts.run,
        purge=parts.purge,
        daemon=daemon,
    )
    style = settings.access_log
    if style == "text" and settings.log_format == "json" and not settings.access_log_file:
        style = "json"
    access_log = AccessLog(
        style,
        settings.access_log_file,
        own=_own_log(ACCESS, log),
        omitted=settings.access_log_omit,
    )
    # Before the listeners: opened by one, its error would name that one's address.
    _open(access_log, "access_log_file", settings.access_log_file, opened)
    site = RegistrySite(
        _home(settings, api, json_api, gate, parts),
        reactor,
        access_log,
        settings.idle_timeout,
        proxies,
        settings.limits,
        guarded=settings.authentication,
        stopping=stopping(),
        cors=Cors(settings.cors_origins) if settings.cors_origins else None,
        origin=origin if settings.absolute_locations else None,
        hot=_hot_answers(settings, parts, gate, reactor),
        rates=Rates.of(settings.limits, parts.memory),
        traffic=traffic,
    )
    listening = listen if handed is None else handed.listen
    ports = listening(settings.listen, site, reactor, parts.counters, opened)
    daemon.answer_peers(site)
    if memory is not None:
        daemon.peers.listen()
    parts.threads.start()
    # A daemon that is restarted often begins with other shelves each time.
    shelves = count(randrange(SHELVES), _SHELVES_EACH)
    duties = Duties(parts.folder.path, files)
    started = reactor.seconds()
    return _Running(
        ports, site, access_log, audit, gate, daemon, parts, pulse, duties, shelves, started
    )


def _home(
    settings: Settings, api: Api, json_api: JsonApi, gate: GateWiring, parts: Assembly
) -> ApiResource:
    if not settings.page:
        return ApiResource(api, json_api)
    page = Page(
        registry=json_api.registry,
        gate=gate.page_gate,
        audit=api.audit,
        sender=api.sender,
        browser=gate.browser,
        logins=gate.logins,
        rendering=Rendering(),
        seeing=parts.seeing,
        garbage=parts.garbage,
        purge=parts.purge,
        daemon=api.daemon,
        upkeep=parts.upkeep,
        run=parts.run,
    )
    return ApiResource(api, json_api, page)


def _tell_over_quota(
    parts: Assembly, request: RegistryRequest, image: ImageName, error: QuotaExceeded
) -> None:
    event = event_of(EventKind.QUOTA, image, actor_of(request))
    parts.reports.tell(replace(event, reason=error.full_message))


def _hot_answers(
    settings: Settings, parts: Assembly, gate: GateWiring, reactor: Any
) -> HotAnswers | None:
    # A hot answer renews no lease: its second must not count beside that of the lease.
    if not settings.hot_answers or settings.lease < _LEAST_LEASE:
        return None
    versions, limit = parts.catalog.database.versions, int(settings.hot_answers)
    return HotAnswers(versions, gate.recall, gate.rules_state, limit, reactor)


def _own_log(namespace: str, log: StreamLog | None) -> OwnLog:
    if log is None:
        return own_log(namespace)
    return log.lines_of(namespace, always=namespace == AUDIT)


def _audit_log(
    settings: Settings,
    opened: ExitStack,
    log: StreamLog | None,
    login_refused: Callable[[str], object],
) -> AuditLog:
    audit = AuditLog(
        settings.audit_log,
        blobs=settings.audit_blobs,
        own=_own_log(AUDIT, log),
        login_refused=login_refused,
    )
    _open(audit, "audit_log", settings.audit_log, opened)
    return audit


def _open(log: AccessLog | AuditLog, setting: str, path: str, opened: ExitStack) -> None:
    """
    Open a log; ``opened`` closes it again if a later step fails.

    :raises StartError: naming the setting, if it can't be opened.
    """
    try:
        log.open()
    except OSError as error:
        raise StartError(f"{setting}: {path}: {error.strerror}") from error
    opened.callback(log.close)


def _persist(work: Callable[[], Coroutine[Deferred[Any], Any, object]]) -> Deferred[None]:
    """Run ``work`` once; log its failure, so that it runs again after the interval."""

    async def run() -> None:
        try:
            await work()
        except (OSError, Unavailable) as error:
            _log.error("background work failed and will be tried again: {error}", error=error)
        except Exception:
            # A failure would stop the TimerService for good.
            _log.failure("background work failed and will be tried again")

    return Deferred.fromCoroutine(run())
