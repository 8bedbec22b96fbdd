"""What the daemon and the commands that work on its data have in common: all parts but the web."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from attrs import frozen
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from artifactd.catalog.catalog import SQLiteCatalog
from artifactd.catalog.garbage import SQLiteGarbageCatalog
from artifactd.catalog.migrations import configure_repositories, migrate
from artifactd.catalog.remote import SQLiteRemoteCatalog
from artifactd.catalog.repair import SQLiteRepairCatalog
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.start import StartError
from artifactd.registry.content import Contents, Stored
from artifactd.registry.local import LocalRepository, LocalRules
from artifactd.registry.metrics import Counters
from artifactd.registry.mirror.eviction import Accesses
from artifactd.registry.mirror.fill import Fills
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.names import Names
from artifactd.registry.registry import Registry
from artifactd.registry.unprefixed import PulledFrom, Unprefixed
from artifactd.registry.upkeep.collector import CollectionRules, Collector
from artifactd.registry.upkeep.damage import Damage
from artifactd.registry.upkeep.scrubber import Scrubber, ScrubRules
from artifactd.registry.uploads import Uploads
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import LimitsSettings, LocalSettings, Settings
from artifactd.store.examine import FolderScrubLock
from artifactd.store.files import FileOperations
from artifactd.store.fills import FilesystemFillStore
from artifactd.store.folder import DataFolder, FolderCollectionLock, ReadOnlyMode
from artifactd.store.store import FilesystemBlobStore, FilesystemUploadStore
from artifactd.wiring_limits import Budgets, manifest_bounds, upload_limits
from artifactd.wiring_remote import RemoteWiring, check_ca_files


@frozen
class Assembly:
    """Everything between the data folder and the registry."""

    reactor: Any
    folder: DataFolder
    pool: ThreadPool
    run: RunInThread
    budgets: Budgets
    catalog: SQLiteCatalog
    remote: SQLiteRemoteCatalog
    garbage: SQLiteGarbageCatalog
    repairs: SQLiteRepairCatalog
    blobs: FilesystemBlobStore
    uploads: FilesystemUploadStore
    fills: Fills
    accesses: Accesses
    counters: Counters
    collector: Collector
    damage: Damage
    scrubber: Scrubber
    remotes: RemoteWiring
    registry: Registry
    read_only: ReadOnlyMode

    async def close(self) -> None:
        """Leave all fills for later, write down what is not written yet, and close."""
        await self.fills.stop()
        await self.remotes.close()
        await self.damage.stop()
        try:
            await self.accesses.write()
        finally:
            await self.catalog.close()
            self.pool.stop()
            self.blobs.close()
            self.folder.close()


def assemble(
    settings: Settings,
    reactor: Any,
    opened: ExitStack,
    now: Callable[[], float] = time.time,
    files: FileOperations | None = None,
) -> Assembly:
    """
    Open the data folder and put the parts together; the thread pool is not started yet.

    :param opened: is given what has to be closed if the rest fails.
    :param now: seconds since the epoch.
    :param files: what all that changes the data folder goes through, but for SQLite's work.
    :raises StartError: if it can't be done as things are.
    """
    check_ca_files(settings)
    names = _names(settings)
    folder = DataFolder.open(settings.data, files=files)
    opened.callback(folder.close)
    migrate(folder.catalog, folder.exclusive, files=files, occupied=folder.has_blobs)
    folder.settle()
    configure_repositories(folder.catalog, names.repositories, names.default)

    pool = ThreadPool(minthreads=1, maxthreads=settings.threads, name="artifactd")
    run = partial(deferToThreadPool, reactor, pool)
    budgets = Budgets.of(settings)
    catalog = SQLiteCatalog(folder.catalog, reactor, lease=settings.lease, now=now)
    remote = SQLiteRemoteCatalog(catalog.database)
    garbage = SQLiteGarbageCatalog(catalog.database)
    repairs = SQLiteRepairCatalog(catalog.database)
    try:
        blobs = FilesystemBlobStore(folder, run, files)
    except OSError as error:
        raise StartError(f"the data folder {folder.path} can't be used: {error}") from error
    opened.callback(blobs.close)
    uploads = FilesystemUploadStore(folder, run, blobs, budgets.transfers, files)
    counters = Counters()
    contents = Contents(blobs)
    damage = Damage(repairs, catalog, blobs, contents, counters.damage)
    stored = Stored(blobs, contents, damage)
    scrubber = Scrubber(
        blobs,
        repairs,
        damage,
        FolderScrubLock(folder.path, files),
        ScrubRules(int(settings.scrub_rate), settings.scrub_pause, settings.quarantine_keep),
        run,
        reactor,
        counters.damage,
        now,
    )
    collector = Collector(
        catalog,
        garbage,
        blobs,
        FolderCollectionLock(folder.path, files),
        collection_rules(settings),
        run,
        reactor,
        counters.collection,
        now,
    )
    accesses = Accesses(remote, now)
    filling = FilesystemFillStore(folder, run, blobs, budgets.transfers, files, clock=reactor)
    fills = Fills(filling, catalog, remote, reactor)
    remotes = RemoteWiring(
        settings,
        reactor,
        run,
        catalog,
        remote,
        stored,
        fills,
        accesses,
        counters,
        folder.path,
    )
    repositories: dict[str, LocalRepository | RemoteRepository] = {}
    for name, each in settings.repository.items():
        if isinstance(each, RemoteSettings):
            repositories[name] = remotes.repository(name, each)
        else:
            repositories[name] = LocalRepository(
                _local_rules(settings.limits, each), catalog, stored, run
            )
    damage.refetch = remotes.refetch
    registry = Registry(
        names=names,
        repositories=repositories,
        unprefixed=_unprefixed(settings, repositories, catalog, remote),
        uploads=Uploads(catalog, uploads, now, upload_limits(settings)),
        stored=stored,
        catalog=catalog,
    )
    return Assembly(
        reactor=reactor,
        folder=folder,
        pool=pool,
        run=run,
        budgets=budgets,
        catalog=catalog,
        remote=remote,
        garbage=garbage,
        repairs=repairs,
        blobs=blobs,
        uploads=uploads,
        fills=fills,
        accesses=accesses,
        counters=counters,
        collector=collector,
        damage=damage,
        scrubber=scrubber,
        remotes=remotes,
        registry=registry,
        read_only=ReadOnlyMode(folder.path, settings.read_only),
    )


def _names(settings: Settings) -> Names:
    remotes = {n: r for n, r in settings.repository.items() if isinstance(r, RemoteSettings)}
    return Names(
        settings.repository,
        settings.default.push or None,
        {name: str(remote.library) for name, remote in remotes.items()},
        {str(host).lower(): name for name, remote in remotes.items() for host in remote.hosts},
    )


def _unprefixed(
    settings: Settings,
    repositories: Mapping[str, LocalRepository | RemoteRepository],
    catalog: SQLiteCatalog,
    remote: SQLiteRemoteCatalog,
) -> Unprefixed:
    local = repositories.get(settings.default.push)
    assert local is None or isinstance(local, LocalRepository)
    pulled = []
    for name in settings.default.pull:
        repository, each = repositories[name], settings.repository[name]
        if isinstance(repository, RemoteRepository) and isinstance(each, RemoteSettings):
            pulled.append(PulledFrom(repository, str(each.library)))
    return Unprefixed(local, pulled, catalog, remote)


def _local_rules(limits: LimitsSettings, settings: LocalSettings) -> LocalRules:
    return LocalRules(
        other_media_types=settings.other_media_types,
        sparse_indexes=settings.sparse_indexes,
        delete_held=settings.delete_held,
        bounds=manifest_bounds(limits),
        index_depth=limits.index_depth,
        quota=int(settings.quota),
        untagged=settings.untagged.seconds,
    )


def collection_rules(settings: Settings) -> CollectionRules:
    """What ``settings`` say of garbage collection."""
    untagged = {
        name: each.untagged.seconds
        for name, each in settings.repository.items()
        if isinstance(each, LocalSettings) and each.untagged.seconds is not None
    }
    return CollectionRules(settings.grace, settings.lease, untagged, settings.gc_rate)
