"""Remote repositories, put together as the settings say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from secrets import token_bytes
from typing import Any

from attrs import define, field

from artifactd.catalog.catalog import SQLiteCatalog
from artifactd.catalog.proofs import SQLiteProofs
from artifactd.catalog.remote import SQLiteRemoteCatalog
from artifactd.catalog.repair import Holder
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.start import StartError
from artifactd.oci.digest import Digest
from artifactd.oci.errors import NameUnknown
from artifactd.registry.content import Stored
from artifactd.registry.metrics import Counters, RepositoryCounters
from artifactd.registry.mirror.blobs import RemoteBlobs
from artifactd.registry.mirror.eviction import Accesses, Eviction, EvictionRules
from artifactd.registry.mirror.fill import FillRules, Fills
from artifactd.registry.mirror.lists import RemoteLists
from artifactd.registry.mirror.manifests import RemoteManifests, TagRules
from artifactd.registry.mirror.proofs import AccessProofs, Marks, ProofMemory, ProofRules
from artifactd.registry.mirror.range_cache import Parts
from artifactd.registry.mirror.repository import NameRules, RemoteRepository
from artifactd.registry.mirror.upstream import Refusals
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import Settings
from artifactd.settings.toml import key
from artifactd.store.folder import PrivateFile
from artifactd.upstream.access import RegistryAccess
from artifactd.upstream.client import RegistryUpstream
from artifactd.upstream.credentials import Credentials
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import Transport, TransportSettings
from artifactd.wiring_limits import manifest_bounds

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
    catalog: SQLiteCatalog
    remote: SQLiteRemoteCatalog
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
        proofs = self._proofs(name, settings, counters) if settings.proof_of_access else None
        self._repositories[name] = RemoteRepository(name, names, blobs, manifests, lists, proofs)
        return self._repositories[name]

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
        transport = Transport.make(
            self.reactor,
            TransportSettings(
                connect_timeout=settings.connect_timeout,
                first_byte_timeout=settings.first_byte_timeout,
                idle_timeout=settings.idle_timeout,
                ca_file=Path(settings.ca_file) if settings.ca_file else None,
            ),
            os.environ,
        )
        self._transports.append(transport)
        return transport

    def _proofs(
        self, name: str, settings: RemoteSettings, counters: RepositoryCounters
    ) -> AccessProofs:
        if not self._proof_key:
            self._proof_key = proof_key(self.folder)
        access = RegistryAccess(
            name,
            str(settings.upstream),
            self._transport(settings),
            self.reactor,
            counters,
            auth_hosts=map(str, settings.auth_hosts),
            retries=settings.retries,
        )
        rules = ProofRules(settings.proof_lifetime, settings.negative_freshness, settings.offline)
        return AccessProofs(
            Marks(self._proof_key, name, str(settings.upstream)),
            access,
            ProofMemory(SQLiteProofs(self.catalog.database), rules, self.reactor),
            self.catalog,
        )

    def _upstream(
        self, name: str, settings: RemoteSettings, counters: RepositoryCounters
    ) -> RegistryUpstream:
        return RegistryUpstream(
            name=name,
            url=str(settings.upstream),
            transport=self._transport(settings),
            clock=self.reactor,
            watch=counters,
            credentials=lambda: _credentials(settings, os.environ),
            auth_hosts=map(str, settings.auth_hosts),
            max_manifest=int(self.settings.max_manifest),
            retries=settings.retries,
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
        rules = EvictionRules(int(settings.size_cap), settings.max_age, settings.pinned)
        return Eviction(name, rules, self.catalog, self.remote, self.stored.blobs, counters)

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


def check_ca_files(settings: Settings) -> None:
    """:raises StartError: naming the first ``ca_file`` that can't be used."""
    for name, each in settings.repository.items():
        if isinstance(each, RemoteSettings) and each.ca_file:
            try:
                Trust.load(Path(each.ca_file))
            except StartError as error:
                raise StartError(f"repository.{key(name)}.ca_file: {error}") from None


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
