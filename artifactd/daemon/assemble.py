"""The rooms put together, except the web: for the daemon, and for commands on its data."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from secrets import token_bytes
from typing import Any, Self

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.events import Event, Outbox
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.migrations import configure_repositories, migrate
from artifactd.catalog.overview import Overview
from artifactd.catalog.proofs import ProofCatalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.catalog.repair import Holder, RepairCatalog
from artifactd.catalog.retention import RetentionCatalog
from artifactd.catalog.webhooks import WebhookCatalog
from artifactd.daemon.ca_files import check_ca_files
from artifactd.daemon.webhooks import wire_deliveries
from artifactd.kit.budget import BufferBudget, Shares
from artifactd.kit.deferreds import RunInThread, Threads
from artifactd.kit.machine import cores
from artifactd.kit.shared import Notebook, Notes, SharedMemory
from artifactd.kit.start import StartError
from artifactd.kit.tallies import Sums
from artifactd.oci.errors import NameUnknown
from artifactd.oci.names import Digest, ImageName, Reference
from artifactd.registry.activity import RemoteActivity
from artifactd.registry.content import Contents, Stored
from artifactd.registry.local import LocalRepository
from artifactd.registry.metrics import Counters, RepositoryCounters
from artifactd.registry.mirror.blobs import RemoteBlobs
from artifactd.registry.mirror.eviction import Eviction, LastUsed, forget
from artifactd.registry.mirror.fill import Fills
from artifactd.registry.mirror.foreign import ForeignLayers
from artifactd.registry.mirror.lists import RemoteLists, Seal
from artifactd.registry.mirror.manifests import RemoteManifests
from artifactd.registry.mirror.proofs import (
    AccessProofs,
    GuardedRepository,
    ProofIds,
    ProofMemory,
)
from artifactd.registry.mirror.range_cache import Parts
from artifactd.registry.mirror.refusals import Refusals
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.mirror.stale import StaleTags
from artifactd.registry.pulls import Pulls
from artifactd.registry.registry import Names, Registry
from artifactd.registry.seeing import Seeing
from artifactd.registry.unprefixed import Patience, Unprefixed
from artifactd.registry.upkeep.collector import Collector
from artifactd.registry.upkeep.damage import Damage
from artifactd.registry.upkeep.retention import Retention, asks_for_pulls
from artifactd.registry.upkeep.scrubber import Scrubber
from artifactd.registry.upkeep.state import Upkeep
from artifactd.registry.upkeep.sweep import Sweep
from artifactd.registry.upload_id import UploadIds
from artifactd.registry.uploads import Uploads
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import LocalSettings, Settings
from artifactd.settings.webhooks import EventKind
from artifactd.store.blobs import BlobStore
from artifactd.store.examine import ScrubLock
from artifactd.store.files import FileOperations
from artifactd.store.fills import FillStores
from artifactd.store.folder import (
    DataFolder,
    FolderCollectionLock,
    PrivateFile,
    ReadOnlyMode,
)
from artifactd.store.uploads import UploadStore
from artifactd.upstream.access import RegistryAccess
from artifactd.upstream.client import RegistryUpstream
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.downloads import Downloads
from artifactd.upstream.http.proxy import Proxies
from artifactd.upstream.http.reach import Reach
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import Transport
from artifactd.upstream.http.url import Target
from artifactd.upstream.patience import Retries
from artifactd.upstream.sources import CommandCredentials, CredentialSource, GivenCredentials
from artifactd.webhooks.delivery import Deliveries
from artifactd.webhooks.reports import Reports

# Limits on the large answers of one owner that wait for memory: how many, and their bytes, as a
# multiple of the owner's share.
_ANSWERS_WAITING = 256
_ANSWERS_BACKLOG = 8


@frozen
class Budgets:
    """
    The memory of ``transfer_buffers``, divided in three.

    :ivar transfers: for the bytes of blobs.
    :ivar manifests: bytes for manifests that are pushed: a quarter, or as much as the largest
        manifest takes, but no more than half.
    :ivar answers: for lists and other large answers that are no blobs: an eighth, of which one
        owner may hold half.
    """

    transfers: BufferBudget
    manifests: int
    answers: Shares

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Divide the ``transfer_buffers`` of ``settings``."""
        buffers = int(settings.transfer_buffers)
        manifests = min(max(buffers // 4, int(settings.max_manifest)), buffers // 2)
        answers = buffers // 8
        rest = BufferBudget(buffers - manifests - answers)
        share = answers // 2
        answering = Shares(answers, share, _ANSWERS_WAITING, share * _ANSWERS_BACKLOG)
        return cls(rest, manifests, answering)


def quotas(settings: Settings) -> dict[str, int]:
    """The quotas in bytes, by the names of the repositories that have one."""
    return {
        name: int(each.quota)
        for name, each in settings.repository.items()
        if isinstance(each, LocalSettings) and each.quota
    }


_log = Logger()

_KEY = 32  # bytes


@define(eq=False)
class RemoteWiring:
    """
    Makes the remote repositories, and keeps what of each has to be run and closed.

    :ivar evictions: one for each repository; to be run now and then.
    :ivar stale: the tags that this process has answered past their freshness.
    :ivar fills, upstreams: by the names of the repositories.
    """

    settings: Settings
    reactor: Any
    run: RunInThread
    catalog: Catalog
    remote: RemoteCatalog
    stored: Stored
    filling: FillStores
    last_used: LastUsed
    counters: Counters
    memory: SharedMemory
    folder: Path
    reports: Reports
    stale: StaleTags = field(factory=StaleTags, init=False)
    fills: dict[str, Fills] = field(factory=dict, init=False)
    upstreams: dict[str, RegistryUpstream] = field(factory=dict, init=False)
    evictions: list[Eviction] = field(factory=list, init=False)
    _repositories: dict[str, RemoteRepository] = field(factory=dict, init=False)
    _activities: list[Callable[[Sums], RemoteActivity]] = field(factory=list, init=False)
    _transports: list[Transport] = field(factory=list, init=False)
    _parts: list[Parts] = field(factory=list, init=False)
    _commands: list[CommandCredentials] = field(factory=list, init=False)

    def repository(self, name: str, settings: RemoteSettings) -> RemoteRepository:
        """
        Make the repository ``name``.

        :raises StartError: if the environment names a proxy that can't be used, or the secret key
            can't be read or made.
        """
        catalog, remote, reactor = self.catalog, self.remote, self.reactor
        counters = self.counters.of(name, reactor.seconds)
        counters.down = lambda reason: self.reports.tell(
            Event(kind=EventKind.UPSTREAM_DOWN, repository=name, reason=reason)
        )
        reach = _reach(settings)
        upstream = RegistryUpstream(
            name,
            settings,
            self._transport(settings, reach),
            reactor,
            counters,
            self.memory,
            credentials=self._credentials(name, settings),
            max_manifest=int(self.settings.max_manifest),
        )
        self.upstreams[name] = upstream
        self._activities.append(
            lambda sums: RemoteActivity.of(name, upstream.state(), counters, sums, self.fills[name])
        )
        refusals = Refusals(reactor, settings.negative_freshness)
        manifests = RemoteManifests(
            upstream,
            catalog,
            remote,
            self.stored.blobs,
            self.last_used,
            counters,
            settings,
            refusals,
            self.run,
            self.settings.limits.manifest_bounds,
            stale=self.stale,
        )
        seal = Seal(secret_key(self.folder, "pages"), f"{name} {settings.origin}")
        lists = RemoteLists(
            upstream,
            catalog,
            remote,
            manifests,
            self.stored.contents,
            counters,
            refusals,
            self.last_used,
            seal,
        )
        store = self.filling.of(name)
        fills = self.fills[name] = Fills(store, catalog, remote, reactor)
        parts = Parts(store, settings.resumes, reactor)
        self._parts.append(parts)
        blobs = RemoteBlobs(
            upstream,
            catalog,
            remote,
            self.stored,
            fills,
            parts,
            self.last_used,
            counters,
            settings,
            reactor,
            self._foreign_layers(name, settings, counters) if settings.foreign_layers else None,
        )
        self.evictions.append(
            Eviction(name, settings, catalog, remote, self.stored.blobs, store, counters)
        )
        local_only = self.settings.default.local_only
        repository = RemoteRepository(
            name, settings, local_only, self.stored, blobs, manifests, lists
        )
        if settings.proof_of_access:
            proofs = AccessProofs(
                ProofIds(secret_key(self.folder, "proofs"), name, settings.origin),
                RegistryAccess(
                    name,
                    settings,
                    self._transport(settings, reach),
                    reactor,
                    counters,
                    self.memory,
                    run=self.run,
                    max_manifest=int(self.settings.max_manifest),
                ),
                ProofMemory(ProofCatalog(catalog.database), settings, reactor),
                catalog,
            )
            repository = GuardedRepository(
                name, settings, local_only, self.stored, blobs, manifests, lists, proofs
            )
        self._repositories[name] = repository
        return repository

    def activity(self) -> list[RemoteActivity]:
        """What each remote repository does now; fills are those of this process."""
        sums = self.counters.metrics.tallies.sums()
        return [activity(sums) for activity in self._activities]

    async def refetch(self, holder: Holder, digest: Digest) -> None:
        """
        Fetch a lost digest again (:data:`artifactd.registry.upkeep.damage.Refetch`).

        :raises RegistryError: if the upstream does not give it.
        """
        repository = self._repositories.get(holder.image.repository)
        if repository is None:
            raise NameUnknown("the settings have no such repository", {"name": str(holder.image)})
        await repository.refetch(holder.image, digest, manifest=holder.is_manifest)

    async def close(self) -> None:
        """
        Stop the fills, which the next start can resume, and all other fetches under way, kill the
        commands that are to print a login, and close the connections.
        """
        await gatherResults([Deferred.fromCoroutine(each.close()) for each in self._commands])
        fetching: list[Fills | Parts] = [*self.fills.values(), *self._parts]
        # At once: those that come last must not go on until the first have ended.
        await gatherResults([Deferred.fromCoroutine(each.stop()) for each in fetching])
        for transport in self._transports:
            await transport.close()

    def _foreign_layers(
        self, name: str, settings: RemoteSettings, counters: RepositoryCounters
    ) -> ForeignLayers:
        private = frozenset(host.lower() for host in settings.private_hosts)
        downloads = Downloads(
            name,
            self._transport(settings, Reach(None, private)),
            self.reactor,
            counters,
            Retries(self.reactor, Random(), settings.retries),
            self.memory,
        )
        return ForeignLayers(
            self.remote,
            self.stored.contents,
            downloads,
            self.filling.of_image,
            self.run,
        )

    def _credentials(self, name: str, settings: RemoteSettings) -> CredentialSource:
        """Make the source of the daemon's login at the upstream of the repository ``name``."""
        if settings.credential_command:
            command = CommandCredentials(name, settings, self.reactor, os.environ)
            self._commands.append(command)
            return command

        def read() -> Credentials | None:
            if not settings.username:
                return None
            return Credentials(str(settings.username), str(settings.read_password(os.environ)))

        return GivenCredentials(read, settings.upstream.host)

    def _transport(self, settings: RemoteSettings, reach: Reach) -> Transport:
        transport = Transport(
            reactor=self.reactor,
            trust=Trust.load(settings.ca_file),
            proxies=Proxies.from_environ(os.environ),
            reach=reach,
            connect_timeout=settings.connect_timeout,
            first_byte_timeout=settings.first_byte_timeout,
            idle_timeout=settings.idle_timeout,
        )
        self._transports.append(transport)
        return transport


def _reach(settings: RemoteSettings) -> Reach:
    hosts = frozenset(host.lower() for host in (*settings.auth_hosts, *settings.private_hosts))
    return Reach(Target.parse(settings.upstream).host, hosts)


def secret_key(folder: Path, purpose: str) -> bytes:
    """
    Derive a key for ``purpose`` from the secret key of the data folder, which all processes and
    restarts share; make that if there is none.  Blocks.

    :returns: 32 bytes.
    :raises StartError: if that fails.
    """
    file = PrivateFile(folder, "secret.key")
    try:
        found, _ = file.update(lambda before: token_bytes(_KEY) if before is None else None)
    except OSError as error:
        raise StartError(f"the secret key, {file.path}, can't be used: {error}") from error
    if len(found) != _KEY:
        raise StartError(f"{file.path} is damaged: remove it, and everybody proves again")
    return hmac.digest(found, purpose.encode(), "sha256")


@frozen
class Assembly:
    """
    All objects between the data folder and the registry.

    :ivar memory: what all processes of the daemon share.
    """

    reactor: Any
    folder: DataFolder
    threads: Threads
    run: RunInThread
    budgets: Budgets
    catalog: Catalog
    remote: RemoteCatalog
    garbage: GarbageCatalog
    repairs: RepairCatalog
    blobs: BlobStore
    uploads: UploadStore
    fills: FillStores
    last_used: LastUsed
    pulls: Pulls
    counters: Counters
    sweep: Sweep
    collector: Collector
    damage: Damage
    upkeep: Upkeep
    scrubber: Scrubber
    remotes: RemoteWiring
    registry: Registry
    seeing: Seeing
    deliveries: Deliveries
    reports: Reports
    read_only: ReadOnlyMode
    memory: SharedMemory

    async def purge(self, image: ImageName, reference: Reference | None) -> tuple[int, int] | None:
        """
        Drop a tag, a digest, or (``None``) all of an upstream's image from the cache.

        :returns: how many blobs and manifests nothing else needed, and how many blobs had come in
            part; ``None``: nothing of the kind is here.
        """
        lacking = await self.remote.lacking(image, reference)
        gone = await self.remote.purge(image, reference)
        begun = 0
        for fills in (self.fills.of(image.repository), self.fills.of_image(image)):
            begun += sum([await fills.discard(digest) for digest in lacking])
        if gone is None and not begun:
            return None
        await forget(gone or [], self.catalog, self.blobs)
        return len(gone or []), begun

    async def close(self) -> None:
        """
        Stop what is being fetched and delivered, write the access times, and close the folder.
        """
        await self.deliveries.stop()
        await self.reports.written()
        await self.remotes.close()
        await self.damage.stop()
        try:
            await self.last_used.write()
            await self.pulls.write()
        finally:
            await self.catalog.database.close()
            self.threads.stop()
            self.blobs.close()
            self.folder.close()
            self.counters.metrics.tallies.close()


def assemble(
    settings: Settings,
    reactor: Any,
    opened: ExitStack,
    now: Callable[[], float] = time.time,
    files: FileOperations | None = None,
    memory: SharedMemory | None = None,
) -> Assembly:
    """
    Open the data folder and put the rooms together; the threads are not started yet.

    :param opened: takes the callbacks that close everything again if a later step fails.
    :param now: seconds since the epoch.
    :param files: makes all changes in the data folder, except those of SQLite.
    :param memory: is shared by all processes of the daemon; ``None``: there is only this one.
    :raises StartError: if the data folder or a file that the settings name can't be used.
    """
    check_ca_files(settings)
    names = _names(settings)
    folder = DataFolder.open(settings.data, files=files)
    opened.callback(folder.close)
    migrate(folder.catalog, folder.exclusive, files=files, occupied=folder.has_blobs)
    folder.settle()
    configure_repositories(folder.catalog, names.repositories, names.default)

    threads = Threads(
        *(reactor, settings.threads, "artifactd", cores()),
        computing=max(1, cores() // settings.processes),
    )
    run = threads.run
    budgets = Budgets.of(settings)
    try:
        blobs = BlobStore(folder, run, files)
    except OSError as error:
        raise StartError(f"the data folder {folder.path} can't be used: {error}") from error
    opened.callback(blobs.close)
    try:
        blobs.reserve.refill()
    except OSError as error:
        _log.warn("nothing is pushed until there is room: {error}", error=error)
    memory = memory or SharedMemory.create()
    counters = Counters(memory)
    opened.callback(counters.metrics.tallies.close)
    database = Database(
        folder.catalog,
        reactor,
        now=now,
        make_room=blobs.reserve.give_back,
        read_took=counters.catalog.reads.observe,
        write_took=counters.catalog.transactions.observe,
        outbox=Outbox.of(settings.webhook),
    )
    catalog = Catalog(database, lease=settings.lease)
    remote = RemoteCatalog(catalog.database)
    garbage = GarbageCatalog(catalog.database)
    repairs = RepairCatalog(catalog.database)
    uploads = UploadStore(
        folder,
        run,
        blobs,
        budgets.transfers,
        files,
        most=settings.limits.user_uploads,
        offer=threads.offer,
        notes=Notes(memory, Notebook.UPLOADS, reactor),
        compute=threads.compute,
    )
    contents = Contents(blobs)
    damage = Damage(repairs, catalog, blobs, contents, counters.damage)
    stored = Stored(blobs, contents, damage.inspect, damage.suspect)
    scrub = ScrubLock(folder.path, files)
    scrubber = Scrubber(
        blobs,
        repairs,
        damage,
        scrub,
        settings,
        run,
        reactor,
        counters.damage,
        now,
    )
    kept = RetentionCatalog(database)
    collector = Collector(
        catalog,
        garbage,
        repairs,
        Retention(kept, settings.repository, now),
        blobs,
        FolderCollectionLock(folder.path, files),
        scrub,
        settings,
        run,
        reactor,
        counters.collection,
        now,
    )
    last_used = LastUsed(remote, now)
    counted = [name for name, each in settings.repository.items() if asks_for_pulls(each)]
    pulls = Pulls(kept, counted, now)
    fills = FillStores(
        folder,
        run,
        blobs,
        budgets.transfers,
        files,
        clock=reactor,
        offer=threads.offer,
        compute=threads.compute,
    )
    reports = Reports(WebhookCatalog(database), reactor)
    remotes = RemoteWiring(
        settings,
        reactor,
        run,
        catalog,
        remote,
        stored,
        fills,
        last_used,
        counters,
        memory,
        folder.path,
        reports,
    )
    repositories: dict[str, LocalRepository | RemoteRepository] = {}
    for name, each in settings.repository.items():
        if isinstance(each, RemoteSettings):
            repositories[name] = remotes.repository(name, each)
        else:
            repositories[name] = LocalRepository(each, settings.limits, catalog, stored, run)
    damage.refetch = remotes.refetch
    registry = Registry(
        names=names,
        repositories=repositories,
        unprefixed=_unprefixed(settings, repositories, catalog, remote, reactor),
        uploads=Uploads(
            catalog,
            uploads,
            UploadIds(secret_key(folder.path, "uploads"), settings.upload_timeout),
            now,
            reactor,
            settings.limits,
            quotas(settings),
        ),
        stored=stored,
        catalog=catalog,
    )
    return Assembly(
        reactor=reactor,
        folder=folder,
        threads=threads,
        run=run,
        budgets=budgets,
        catalog=catalog,
        remote=remote,
        garbage=garbage,
        repairs=repairs,
        blobs=blobs,
        uploads=uploads,
        fills=fills,
        last_used=last_used,
        pulls=pulls,
        counters=counters,
        sweep=Sweep(catalog, blobs, uploads, fills, settings.upload_timeout),
        collector=collector,
        damage=damage,
        upkeep=Upkeep(counters, repairs, scrubber.lock, run),
        scrubber=scrubber,
        remotes=remotes,
        registry=registry,
        seeing=Seeing(registry, Overview(database), blobs, run, settings),
        reports=reports,
        deliveries=wire_deliveries(
            settings, reactor, folder.path, files, run, database, names.listed, counters
        ),
        read_only=ReadOnlyMode(folder.path, settings.read_only),
        memory=memory,
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
    reactor: Any,
) -> Unprefixed:
    local = repositories.get(settings.default.push)
    assert local is None or isinstance(local, LocalRepository)
    pulled = []
    for name in settings.default.pull:
        repository = repositories[name]
        if isinstance(repository, RemoteRepository):
            pulled.append(repository)
    return Unprefixed(local, pulled, catalog, remote, Patience(reactor))
