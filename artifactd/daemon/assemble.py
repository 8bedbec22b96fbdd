"""What the daemon and the commands that work on its data have in common: all parts but the web."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from secrets import token_bytes
from typing import Any, Self

from attrs import define, field, frozen
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.migrations import configure_repositories, migrate
from artifactd.catalog.proofs import ProofCatalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.catalog.repair import Holder, RepairCatalog
from artifactd.daemon.ca_files import check_ca_files
from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.start import StartError
from artifactd.oci.digest import Digest
from artifactd.oci.errors import NameUnknown
from artifactd.oci.manifest import ManifestBounds
from artifactd.registry.content import Contents, Stored
from artifactd.registry.local import LocalRepository, LocalRules
from artifactd.registry.metrics import Counters, RepositoryCounters
from artifactd.registry.mirror.blobs import RemoteBlobs
from artifactd.registry.mirror.eviction import Accesses, Eviction
from artifactd.registry.mirror.fill import FillRules, Fills
from artifactd.registry.mirror.lists import RemoteLists
from artifactd.registry.mirror.manifests import RemoteManifests, TagRules
from artifactd.registry.mirror.proofs import (
    AccessProofs,
    GuardedRepository,
    Marks,
    ProofMemory,
    ProofRules,
)
from artifactd.registry.mirror.range_cache import Parts
from artifactd.registry.mirror.repository import NameRules, RemoteRepository
from artifactd.registry.mirror.upstream import Refusals
from artifactd.registry.names import Names
from artifactd.registry.registry import Registry
from artifactd.registry.unprefixed import PulledFrom, Unprefixed
from artifactd.registry.upkeep.collector import Collector
from artifactd.registry.upkeep.damage import Damage
from artifactd.registry.upkeep.scrubber import Scrubber
from artifactd.registry.uploads import UploadLimits, Uploads
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import LimitsSettings, LocalSettings, Settings
from artifactd.store.blobs import BlobStore
from artifactd.store.examine import ScrubLock
from artifactd.store.files import FileOperations
from artifactd.store.fills import FillStore
from artifactd.store.folder import DataFolder, FolderCollectionLock, PrivateFile, ReadOnlyMode
from artifactd.store.uploads import UploadStore
from artifactd.upstream.access import RegistryAccess
from artifactd.upstream.client import RegistryUpstream
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.http.proxy import Proxies
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import Transport

# What one client may take, put together as the settings say.


@frozen
class Budgets:
    """
    The buffers of ``transfer_buffers``, dealt out.

    :ivar transfers: of all that passes through.
    :ivar manifests: of those that are pushed: a quarter, or as much as one of ``max_manifest``
        takes, but no more than half.
    """

    transfers: BufferBudget
    manifests: BufferBudget

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those that ``settings`` say."""
        buffers = int(settings.transfer_buffers)
        manifests = min(max(buffers // 4, int(settings.max_manifest)), buffers // 2)
        return cls(BufferBudget(buffers - manifests), BufferBudget(manifests))


def upload_limits(settings: Settings) -> UploadLimits:
    """What may be pushed."""
    return UploadLimits(
        blob_size=int(settings.limits.blob_size),
        sessions=settings.limits.user_uploads,
        quotas={
            name: int(each.quota)
            for name, each in settings.repository.items()
            if isinstance(each, LocalSettings) and each.quota
        },
    )


def manifest_bounds(settings: LimitsSettings) -> ManifestBounds:
    """Those of ``[limits]`` that are of a manifest."""
    return ManifestBounds(
        nesting=settings.json_depth,
        entries=settings.manifest_entries,
        annotations=settings.manifest_annotations,
    )


# Remote repositories, put together as the settings say.

_KEY = 32  # bytes


@define(eq=False)
class RemoteWiring:
    """
    Makes the remote repositories, and keeps what of them has to be run and closed.

    :ivar evictions: one for each; to be run now and then.
    """

    settings: Settings
    reactor: Any
    run: RunInThread
    catalog: Catalog
    remote: RemoteCatalog
    stored: Stored
    fills: Fills
    accesses: Accesses
    counters: Counters
    folder: Path
    evictions: list[Eviction] = field(factory=list, init=False)
    _repositories: dict[str, RemoteRepository] = field(factory=dict, init=False)
    _transports: list[Transport] = field(factory=list, init=False)
    _parts: list[Parts] = field(factory=list, init=False)
    _proof_key: bytes = field(default=b"", init=False, repr=False)

    def repository(self, name: str, settings: RemoteSettings) -> RemoteRepository:
        """
        The repository ``name``.

        :raises StartError: if the environment names a proxy that can't be used, or the key of
            proofs can't be.
        """
        counters = self.counters.of(name)
        upstream = self._upstream(name, settings, counters)
        refusals = Refusals(self.reactor, settings.negative_freshness)
        manifests = RemoteManifests(
            upstream,
            self.catalog,
            self.remote,
            self.stored.blobs,
            self.accesses,
            counters,
            _tag_rules(settings),
            refusals,
            self.run,
            bounds=manifest_bounds(self.settings.limits),
        )
        lists = RemoteLists(
            upstream,
            self.catalog,
            self.remote,
            manifests,
            self.stored.contents,
            counters,
            refusals,
        )
        self.evictions.append(self._eviction(name, settings, counters))
        names = self._names(name, settings)
        blobs = self._blobs(upstream, settings, counters)
        repository = RemoteRepository(name, names, self.stored, blobs, manifests, lists)
        if settings.proof_of_access:
            proofs = self._proofs(name, settings, counters)
            repository = GuardedRepository(
                name, names, self.stored, blobs, manifests, lists, proofs
            )
        self._repositories[name] = repository
        return repository

    async def refetch(self, holder: Holder, digest: Digest) -> None:
        """
        Get what was lost again (:data:`artifactd.registry.upkeep.damage.Refetch`).

        :raises RegistryError: if it can't be had.
        """
        repository = self._repositories.get(holder.image.repository)
        if repository is None:
            raise NameUnknown("the settings have no such repository", {"name": str(holder.image)})
        await repository.refetch(holder.image, digest, manifest=holder.is_manifest)

    async def close(self) -> None:
        """Break off what is fetched, and close the connections."""
        for parts in self._parts:
            await parts.stop()
        for transport in self._transports:
            await transport.close()

    def _transport(self, settings: RemoteSettings) -> Transport:
        transport = Transport(
            reactor=self.reactor,
            trust=Trust.load(settings.ca_file),
            proxies=Proxies.from_environ(os.environ),
            connect_timeout=settings.connect_timeout,
            first_byte_timeout=settings.first_byte_timeout,
            idle_timeout=settings.idle_timeout,
        )
        self._transports.append(transport)
        return transport

    def _proofs(
        self, name: str, settings: RemoteSettings, counters: RepositoryCounters
    ) -> AccessProofs:
        if not self._proof_key:
            self._proof_key = proof_key(self.folder)
        access = RegistryAccess(name, settings, self._transport(settings), self.reactor, counters)
        rules = ProofRules(settings.proof_lifetime, settings.negative_freshness, settings.offline)
        return AccessProofs(
            Marks(self._proof_key, name, str(settings.upstream)),
            access,
            ProofMemory(ProofCatalog(self.catalog.database), rules, self.reactor),
            self.catalog,
        )

    def _upstream(
        self, name: str, settings: RemoteSettings, counters: RepositoryCounters
    ) -> RegistryUpstream:
        return RegistryUpstream(
            name,
            settings,
            self._transport(settings),
            self.reactor,
            counters,
            credentials=lambda: _credentials(settings, os.environ),
            max_manifest=int(self.settings.max_manifest),
        )

    def _blobs(
        self, upstream: RegistryUpstream, settings: RemoteSettings, counters: RepositoryCounters
    ) -> RemoteBlobs:
        parts = Parts(self.fills.store, settings.resumes, self.reactor)
        self._parts.append(parts)
        return RemoteBlobs(
            upstream,
            self.catalog,
            self.remote,
            self.stored,
            self.fills,
            parts,
            self.accesses,
            counters,
            FillRules(settings.resumes, settings.finish_fills),
            self.reactor,
            settings.freshness,
            settings.offline,
        )

    def _eviction(
        self, name: str, settings: RemoteSettings, counters: RepositoryCounters
    ) -> Eviction:
        return Eviction(name, settings, self.catalog, self.remote, self.stored.blobs, counters)

    def _names(self, name: str, settings: RemoteSettings) -> NameRules:
        local_only = self.settings.default.local_only
        return NameRules(settings.allow, settings.deny, local_only, str(settings.library))


def proof_key(folder: Path) -> bytes:
    """
    The key of the data folder's proofs of access, made where there is none.  Blocks.

    :raises StartError: if it can't be read or made.
    """
    file = PrivateFile(folder, "proofs.key")
    try:
        found, _ = file.update(lambda before: token_bytes(_KEY) if before is None else None)
    except OSError as error:
        raise StartError(f"the key of proofs of access, {file.path}, can't be used: {error}") from (
            error
        )
    if len(found) != _KEY:
        raise StartError(f"{file.path} is damaged: remove it, and everybody proves again")
    return found


def _tag_rules(settings: RemoteSettings) -> TagRules:
    return TagRules(
        freshness=settings.freshness,
        max_stale=settings.max_stale,
        cooldown=settings.cooldown,
        cooldown_except=settings.cooldown_except,
        offline=settings.offline,
    )


def _credentials(settings: RemoteSettings, environ: Mapping[str, str]) -> Credentials | None:
    if not settings.username:
        return None
    return Credentials(str(settings.username), str(settings.read_password(environ)))


@frozen
class Assembly:
    """Everything between the data folder and the registry."""

    reactor: Any
    folder: DataFolder
    pool: ThreadPool
    run: RunInThread
    budgets: Budgets
    catalog: Catalog
    remote: RemoteCatalog
    garbage: GarbageCatalog
    repairs: RepairCatalog
    blobs: BlobStore
    uploads: UploadStore
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
            await self.catalog.database.close()
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
    catalog = Catalog(Database(folder.catalog, reactor, now=now), lease=settings.lease)
    remote = RemoteCatalog(catalog.database)
    garbage = GarbageCatalog(catalog.database)
    repairs = RepairCatalog(catalog.database)
    try:
        blobs = BlobStore(folder, run, files)
    except OSError as error:
        raise StartError(f"the data folder {folder.path} can't be used: {error}") from error
    opened.callback(blobs.close)
    uploads = UploadStore(folder, run, blobs, budgets.transfers, files)
    counters = Counters()
    contents = Contents(blobs)
    damage = Damage(repairs, catalog, blobs, contents, counters.damage)
    stored = Stored(blobs, contents, damage)
    scrubber = Scrubber(
        blobs,
        repairs,
        damage,
        ScrubLock(folder.path, files),
        settings,
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
        settings,
        run,
        reactor,
        counters.collection,
        now,
    )
    accesses = Accesses(remote, now)
    filling = FillStore(folder, run, blobs, budgets.transfers, files, clock=reactor)
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
        uploads=Uploads(catalog, uploads, now, reactor, upload_limits(settings)),
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
    catalog: Catalog,
    remote: RemoteCatalog,
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
