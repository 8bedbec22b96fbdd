"""A remote repository: the images of an upstream, cached."""

from __future__ import annotations

from attrs import evolve, frozen

from artifactd.oci.digest import Digest
from artifactd.oci.errors import BlobUnknown, Denied
from artifactd.oci.names import ImageName, Reference, matches
from artifactd.registry.mirror.blobs import RemoteBlobs
from artifactd.registry.mirror.lists import RemoteLists
from artifactd.registry.mirror.manifests import RemoteManifests
from artifactd.registry.mirror.proofs import NOBODY, AccessProofs, Asker
from artifactd.registry.model import (
    BlobFound,
    BlobWanted,
    ListWanted,
    ManifestFound,
    ReferrersFound,
    TagsFound,
)


@frozen
class NameRules:
    """
    Which images of an upstream may be asked for; patterns of names there.

    :ivar local_only: of names that never go to any upstream, as clients ask for them.
    :ivar library: what names of one component have before them there.
    """

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    local_only: tuple[str, ...] = ()
    library: str = ""

    def permit(self, name: str) -> bool:
        """Whether the image ``name`` may be asked for."""
        return (
            matches(name, self.allow)
            and not matches(name, self.deny)
            and not matches(name, self.local_only)
            and not matches(self._asked(name), self.local_only)
        )

    def _asked(self, name: str) -> str:
        """How clients ask for ``name``: without the prefix that they need not give."""
        short = name.removeprefix(self.library)
        return name if "/" in short else short


@frozen
class RemoteRepository:
    """
    The images in one configured repository of kind ``remote``
    (:class:`artifactd.registry.model.Readable`).

    :ivar name: as configured.
    :ivar proofs: where nobody is served whom the upstream itself would not serve.
    :ivar asker: who is served.
    """

    name: str
    rules: NameRules
    blobs: RemoteBlobs
    manifests: RemoteManifests
    lists: RemoteLists
    proofs: AccessProofs | None = None
    asker: Asker = NOBODY

    def asked_by(self, asker: Asker) -> RemoteRepository:
        """It for ``asker``."""
        return self if self.proofs is None else evolve(self, asker=asker)

    async def lends(self, image: ImageName, asker: Asker) -> bool:
        """Whether ``asker`` may mount blobs of ``image`` elsewhere."""
        if not self.rules.permit(image.image):
            return False
        return self.proofs is None or await self.proofs.allows(image, asker)

    async def require_proof(self, image: ImageName) -> None:
        """:raises NoProof: as :meth:`AccessProofs.require`, where proofs are wanted."""
        if self.proofs is not None:
            await self.proofs.require(image, self.asker)

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestFound:
        """
        end-3.

        :raises Denied: if the settings don't allow that image.
        :raises NoProof: if the upstream does not let the asker have it.
        """
        self._check(image)
        if self.proofs is not None:
            await self.proofs.require(image, self.asker, reference)
        return await self.manifests.get(image, reference)

    async def blob(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        """end-2.  :raises Denied, NoProof: as :meth:`manifest`."""
        self._check(image)
        await self.require_proof(image)
        return await self.blobs.get(image, digest, wanted)

    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        """end-8.  :raises Denied, NoProof: as :meth:`manifest`."""
        self._check(image)
        await self.require_proof(image)
        return await self.lists.tags(image, wanted)

    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        """end-12.  :raises Denied, NoProof: as :meth:`manifest`."""
        self._check(image)
        await self.require_proof(image)
        return await self.lists.referrers(image, subject, artifact_type, wanted)

    async def refetch(self, image: ImageName, digest: Digest, *, manifest: bool) -> None:
        """
        Get what was lost of an image again.

        :raises RegistryError: if it can't be had, or the settings don't allow that image.
        """
        self._check(image)
        if manifest:
            await self.manifests.restore(image, digest)
        elif not await self.blobs.whole(image, digest):
            raise BlobUnknown("the upstream's bytes were not kept", {"digest": str(digest)})

    def _check(self, image: ImageName) -> None:
        if not self.rules.permit(image.image):
            raise Denied(
                f"the settings of repository {self.name} don't allow this image: see allow, deny"
                " and local_only",
                {"name": str(image)},
            )
