"""What a push under a name that was an upstream's takes over from there."""

from __future__ import annotations

from attrs import evolve, frozen

from artifactd.catalog.records import Catalog, ManifestPut
from artifactd.catalog.remote import RemoteCatalog
from artifactd.oci.digest import Digest
from artifactd.oci.errors import RegistryError
from artifactd.oci.manifest import Descriptor, Manifest
from artifactd.oci.names import ImageName
from artifactd.registry.local import LocalRepository
from artifactd.registry.promises import Promises
from artifactd.registry.remote import RemoteRepository


@frozen
class Adoption:
    """
    Takes manifests and blobs over into the local image that is pushed to.

    :ivar source: the image as the upstream of ``repository`` has it.
    """

    source: ImageName
    repository: RemoteRepository
    local: LocalRepository
    catalog: Catalog
    remote: RemoteCatalog
    promises: Promises

    async def prepare(self, put: ManifestPut) -> None:
        """:raises RegistryError: as ``Unprefixed.adopt``."""
        children: dict[Digest, Manifest] = {}
        manifest = await self._promised(put)
        if not await self._gather(put.image, manifest, children):
            children = {}  # refused for what is missing, with the spec's error
        for each in (*children.values(), manifest):
            await self._adopt_blobs(put.image, each)
        puts = [ManifestPut(put.image, child, actor=put.actor) for child in children.values()]
        for wanted in (*puts, put) if puts else ():
            await self.catalog.check_manifest(evolve(wanted, sparse=True))
        for wanted in puts:
            await self.local.put_manifest(wanted)

    async def _promised(self, put: ManifestPut) -> Manifest:
        """
        The manifest with those entries that may be adopted: all as long as the name is an
        upstream's, and what was promised then once it is a local one.
        """
        if not await self.remote.is_known(put.image):
            return put.manifest
        return evolve(
            put.manifest,
            blobs=tuple(b for b in put.manifest.blobs if self._holds(put, b)),
            children=tuple(c for c in put.manifest.children if self._holds(put, c)),
        )

    def _holds(self, put: ManifestPut, listed: Descriptor) -> bool:
        return self.promises.holds(put.image, listed.digest)

    async def _gather(
        self, image: ImageName, manifest: Manifest, found: dict[Digest, Manifest]
    ) -> bool:
        """
        Collect the manifests that an index lists and ``image`` lacks, each behind those that it
        lists itself; whether all of them could be had.
        """
        for listed in manifest.children:
            digest = listed.digest
            if digest in found or await self.catalog.manifest(image, digest) is not None:
                continue
            child = await self._child(listed)
            if child is None or not await self._gather(image, child, found):
                return False
            found[digest] = child
        return True

    async def _child(self, listed: Descriptor) -> Manifest | None:
        """A manifest as the upstream has it; ``None`` if it can't be had as it is described."""
        try:
            record = (await self.repository.manifest(self.source, listed.digest)).record
            content = await self.local.stored.contents.of(listed.digest)
            child = await self.local.parse(content, record.media_type, listed.digest)
        except (RegistryError, RuntimeError, OSError):
            return None
        fits = (child.media_type, len(child.content)) == (listed.media_type, listed.size)
        return child if fits else None

    async def _adopt_blobs(self, image: ImageName, manifest: Manifest) -> None:
        """Link to ``image`` those blobs of ``manifest`` that it lacks and the upstream has."""
        for descriptor in manifest.blobs:
            digest = descriptor.digest
            if descriptor.optional or await self.catalog.blob_size(image, digest) is not None:
                continue
            try:
                found = await self.repository.blobs.whole(self.source, digest)
            except RegistryError:
                continue  # the manifest is refused for what is missing, with the spec's error
            if found:
                await self.catalog.mount_blob(image, digest, self.source, self.local.rules.quota)
