"""A remote repository: the images of an upstream, cached."""

from __future__ import annotations

from attrs import frozen
from twisted.logger import Logger

from artifactd.oci.digest import Digest
from artifactd.oci.errors import BlobUnknown, Denied
from artifactd.oci.names import ImageName, Reference, matches
from artifactd.registry.content import Lost, Stored
from artifactd.registry.mirror.blobs import RemoteBlobs
from artifactd.registry.mirror.lists import RemoteLists
from artifactd.registry.mirror.manifests import RemoteManifests
from artifactd.registry.model import (
    Asker,
    BlobFound,
    BlobWanted,
    ListWanted,
    ManifestFound,
    ReferrersFound,
    Repository,
    TagsFound,
)
from artifactd.store.blobs import OpenBlob

_log = Logger()


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
class RemoteRepository(Repository):
    """
    The images in one configured repository of kind ``remote``.

    Reading an image that the settings don't allow raises Denied.

    :ivar name: as configured.
    """

    name: str
    rules: NameRules
    stored: Stored
    blobs: RemoteBlobs
    manifests: RemoteManifests
    lists: RemoteLists

    @property
    def wants_proof(self) -> bool:
        """Whether clients have to prove that the upstream lets them have an image."""
        return False

    async def require_proof(self, image: ImageName) -> None:
        """:raises NoProof: if a proof is wanted, and the client who asks has none."""

    def asked_by(self, asker: Asker) -> RemoteRepository:
        return self

    def for_operator(self) -> RemoteRepository:
        return self

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestFound:
        self.check(image)
        return await self.manifests.get(image, reference)

    async def body(self, found: ManifestFound) -> OpenBlob:
        image, record = found.image, found.record
        try:
            body = await self.stored.body(image, record.digest, record.size)
        except Lost as error:
            _log.warn("fetched again: {error}", error=error)
            await self.manifests.restore(image, record.digest)
            body = await self.stored.body(image, record.digest, record.size)
        self.manifests.counters.client_bytes.inc(record.size)
        return body

    async def blob(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        self.check(image)
        return await self.blobs.get(image, digest, wanted)

    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        self.check(image)
        return await self.lists.tags(image, wanted)

    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        self.check(image)
        return await self.lists.referrers(image, subject, artifact_type, wanted)

    async def lends(self, image: ImageName) -> bool:
        return self.rules.permit(image.image)

    async def refetch(self, image: ImageName, digest: Digest, *, manifest: bool) -> None:
        """
        Fetch a lost manifest or blob of ``image`` again.

        :raises RegistryError: if the upstream does not give it, or the settings don't allow the
            image.
        """
        self.check(image)
        if manifest:
            await self.manifests.restore(image, digest)
        elif not await self.blobs.whole(image, digest):
            raise BlobUnknown("the upstream's bytes were not kept", {"digest": str(digest)})

    def check(self, image: ImageName) -> None:
        """:raises Denied: if the settings don't allow ``image``."""
        if not self.rules.permit(image.image):
            raise Denied(
                f"the settings of repository {self.name} don't allow this image: see allow, deny"
                " and local_only",
                {"name": str(image)},
            )
