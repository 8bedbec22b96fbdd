"""``twistd artifactd``: the one place that knows every part and wires them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from artifactd.catalog.migrations import migrate
from artifactd.catalog.repositories import configure_repositories
from artifactd.catalog.sqlite import SQLiteCatalog
from artifactd.config import RepositorySettings, Settings
from artifactd.registry.contents import Contents
from artifactd.registry.health import Health
from artifactd.registry.local import LocalRepository, LocalRules
from artifactd.registry.names import Names
from artifactd.registry.registry import Registry
from artifactd.registry.sweep import Sweep
from artifactd.registry.uploads import Uploads
from artifactd.startup import StartError
from artifactd.storage.budget import BufferBudget
from artifactd.storage.filesystem import FilesystemBlobStore, FilesystemUploadStore
from artifactd.storage.folder import DataFolder
from artifactd.web.accesslog import AccessLog
from artifactd.web.api import Api
from artifactd.web.routing import ApiResource
from artifactd.web.sendfile import FileSender
from artifactd.web.site import RegistrySite

_log = Logger()


class Options(usage.Options):
    """``twistd artifactd [--config FILE]``."""

    longdesc = "An OCI/Docker registry.  etc/artifactd.toml explains every setting."
    optParameters = (("config", "c", None, "TOML file of settings (default: embedded ones)", Path),)


def makeService(options: Options, reactor: Any = None) -> RegistryService:
    """The daemon as ``options`` and the environment say; a wrong setting ends the process."""
    if reactor is None:
        from twisted.internet import reactor
    try:
        return RegistryService(Settings.load(options["config"], os.environ), reactor)
    except StartError as error:
        raise SystemExit(f"artifactd: {error}") from None


class RegistryService(MultiService):
    """
    The daemon: everything between the settings and the sockets.

    Nothing is opened before :meth:`startService`, so that twistd may fork before.
    """

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        self._settings = settings
        self._reactor = reactor
        self._running: _Running | None = None

    @property
    def ports(self) -> list[IListeningPort]:
        """What it listens on; empty unless it runs."""
        return [] if self._running is None else self._running.ports

    def startService(self) -> None:
        """Start; what does not let it, as one line, ends the process."""
        try:
            self.start()
        except StartError as error:
            raise SystemExit(f"artifactd: {error}") from None
        super().startService()

    def start(self) -> None:
        """:raises StartError: if it can't run as things are; then nothing is left open."""
        with ExitStack() as opened:
            self._running = running = _start(self._settings, self._reactor, opened)
            opened.pop_all()
        sweeping = TimerService(self._settings.sweep_interval, _sweep, running.sweep)
        sweeping.clock = self._reactor
        sweeping.setServiceParent(self)
        for port in self.ports:
            _log.info("listening on {address}", address=_shown(port.getHost()))

    def stopService(self) -> Deferred[None]:
        """Stop accepting, let running transfers end for ``shutdown_timeout``, then close."""
        running, self._running = self._running, None
        assert running is not None, "not started"
        return Deferred.fromCoroutine(self._stop(running))

    async def _stop(self, running: _Running) -> None:
        await running.drain(self._settings.shutdown_timeout)
        await super().stopService()  # waits for the sweep that is under way
        for service in list(self):
            service.disownServiceParent()
        await running.close()


@frozen
class _Running:
    """What has to be stopped, in the order of its use."""

    ports: list[IListeningPort]
    site: RegistrySite
    access_log: AccessLog
    sweep: Sweep
    catalog: SQLiteCatalog
    blobs: FilesystemBlobStore
    pool: ThreadPool
    folder: DataFolder

    async def drain(self, seconds: float) -> None:
        closing = [maybeDeferred(port.stopListening) for port in self.ports]
        await DeferredList(closing, consumeErrors=True)  # whatever one of them says, go on
        await self.site.drain(seconds)
        self.access_log.close()

    async def close(self) -> None:
        await self.catalog.close()
        self.pool.stop()
        self.blobs.close()
        self.folder.close()


def _start(settings: Settings, reactor: Any, opened: ExitStack) -> _Running:
    names = Names(settings.repository, settings.default.push or None)
    folder = DataFolder.open(settings.data)
    opened.callback(folder.close)
    migrate(folder.catalog, folder.exclusive)
    folder.settle()
    configure_repositories(folder.catalog, names.repositories, names.default)

    pool = ThreadPool(minthreads=1, maxthreads=settings.threads, name="artifactd")
    run = partial(deferToThreadPool, reactor, pool)
    budget = BufferBudget(settings.transfer_buffers)
    catalog = SQLiteCatalog(folder.catalog, reactor)
    blobs = FilesystemBlobStore(folder, run)
    opened.callback(blobs.close)
    uploads = FilesystemUploadStore(folder, run, blobs, budget)
    contents = Contents(blobs)
    api = Api(
        registry=Registry(
            names=names,
            repositories={
                name: LocalRepository(_rules(repository), catalog, blobs, contents, run)
                for name, repository in settings.repository.items()
            },
            uploads=Uploads(catalog, uploads),
            catalog=catalog,
        ),
        sender=FileSender(reactor, run, budget, settings.stall_timeout, folder.in_memory),
        health=Health(catalog, blobs),
        # As plain numbers: a Size writes itself as in the settings, and not in JSON at all.
        max_manifest=int(settings.max_manifest),
        min_chunk=int(settings.min_chunk),
    )
    access_log = AccessLog(settings.access_log, settings.access_log_file)
    site = RegistrySite(ApiResource(api.app), reactor, access_log, settings.idle_timeout)
    ports = []
    for description in settings.listen:
        ports.append(_listen(description, site, reactor))
        opened.callback(ports[-1].stopListening)
    pool.start()
    sweep = Sweep(catalog, blobs, uploads, settings.upload_timeout)
    return _Running(ports, site, access_log, sweep, catalog, blobs, pool, folder)


def _rules(repository: RepositorySettings) -> LocalRules:
    return LocalRules(
        other_media_types=repository.other_media_types,
        sparse_indexes=repository.sparse_indexes,
        delete_held=repository.delete_held,
    )


def _listen(description: str, site: RegistrySite, reactor: Any) -> IListeningPort:
    outcome: list[IListeningPort | Failure] = []
    try:
        serverFromString(reactor, description).listen(site).addBoth(outcome.append)
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
    except Exception as error:
        # Whatever a plugin for endpoints finds wrong with its own string.
        raise StartError(f"listen: {description}: {error}") from error
    assert not isinstance(outcome[0], Failure)
    return outcome[0]


def _shown(address: Any) -> str:
    if hasattr(address, "port"):
        return f"{address.type.lower()} {address.host}:{address.port}"
    return f"unix {os.fsdecode(address.name)}"


def _sweep(sweep: Sweep) -> Deferred[None]:
    async def run() -> None:
        try:
            await sweep.run()
        except Exception:
            # Tried again after the interval; the service would stop for good.
            _log.failure("sweeping abandoned uploads failed")

    return Deferred.fromCoroutine(run())
