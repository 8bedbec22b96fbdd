"""A remote repository: the images of an upstream, cached."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import frozen
from twisted.logger import Logger

from artifactd.oci.errors import BlobUnknown, Denied, RegistryError
from artifactd.oci.names import Digest, ImageName, Reference, matches
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
from artifactd.settings.remote import RemoteSettings
from artifactd.store.blobs import OpenBlob
from artifactd.upstream.errors import Missing

_log = Logger()


@frozen
class RemoteRepository(Repository):
    """
    The images in one configured repository of kind ``remote``.

    Reading an image that the settings don't allow raises Denied.

    :ivar name: the repository's name in the settings.
    :ivar local_only: patterns of names that never go to an upstream, as clients ask for them.
    """

    name: str
    settings: RemoteSettings
    local_only: Sequence[str]
    stored: Stored
    blobs: RemoteBlobs
    manifests: RemoteManifests
    lists: RemoteLists

    async def require_proof(self, image: ImageName) -> None:
        """:raises NoProof: if a proof is wanted, and the client that asks has none."""

    def permits(self, image: ImageName) -> bool:
        """Whether the settings allow to ask the upstream for ``image``."""
        name = image.image
        if not matches(name, self.settings.allow) or matches(name, self.settings.deny):
            return False
        short = name.removeprefix(self.settings.library)
        asked = name if "/" in short else short  # clients need not give the prefix
        return not matches(name, self.local_only) and not matches(asked, self.local_only)

    def unprefixed(self, name: str) -> ImageName:
        """The image of this repository that the unprefixed ``name`` stands for."""
        prefix = "" if "/" in name else self.settings.library
        return ImageName(self.name, f"{prefix}{name}")

    def answered(self, image: ImageName) -> float:
        """
        When the upstream or its token service last answered about ``image``, in seconds of the
        reactor's clock; ``-inf``: not that it were known.
        """
        return self.manifests.counters.answered.get(
            self.settings.name_there(image.image), -math.inf
        )

    def lacks(self, error: RegistryError) -> bool:
        """
        Whether ``error`` says for certain that the upstream has no image of that name.

        401 and 403 may also mean that it has one that artifactd may not read.  Only Docker Hub,
        which has a library, is known to answer so for images that do not exist.
        """
        cause = error.__cause__
        if not isinstance(cause, Missing):
            return False
        return cause.status in (404, 410) or (
            bool(self.settings.library) and cause.status is not None
        )

    def asked_by(self, asker: Asker) -> RemoteRepository:
        return self

    def for_operator(self) -> RemoteRepository:
        return self

    async def manifest(
        self, image: ImageName, reference: Reference, *, head: bool = False
    ) -> ManifestFound:
        self.check(image)
        return await self.manifests.get(image, reference, head=head)

    async def body(self, found: ManifestFound) -> OpenBlob:
        image, record = found.image, found.record
        try:
            body = await self.stored.body(image, record.digest, record.size)
        except Lost as error:
            _log.warn("the manifest is fetched again: {error}", error=error)
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
        return self.permits(image)

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
        if not self.permits(image):
            raise Denied(
                f"the settings of repository {self.name} don't allow this image: see allow, deny"
                " and local_only",
                {"name": str(image)},
            )
