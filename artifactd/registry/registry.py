"""The whole registry: its repositories under their names."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from artifactd.catalog.interfaces import Catalog
from artifactd.oci.digest import Digest
from artifactd.oci.errors import NameUnknown
from artifactd.oci.name import ImageName, RepositoryName
from artifactd.registry.listing import listed_images
from artifactd.registry.local import LocalRepository
from artifactd.registry.names import Names
from artifactd.registry.uploads import Uploads


@frozen
class Target:
    """What the ``<name>`` of a request stands for."""

    name: RepositoryName
    image: ImageName
    repository: LocalRepository

    @property
    def path(self) -> str:
        """Where it lies, as the client named it: begins a relative ``Location``."""
        return f"/v2/{self.name}"


@frozen
class Registry:
    """All repositories, and the uploads that are on their way into them."""

    names: Names
    repositories: Mapping[str, LocalRepository]
    uploads: Uploads
    catalog: Catalog

    def target(self, name: str) -> Target:
        """:raises NameInvalid, NameUnknown: if ``name`` is none, or belongs to no repository."""
        parsed = RepositoryName.parse(name)
        image = self.names.resolve(parsed)
        return Target(parsed, image, self.repositories[image.repository])

    async def mount(self, image: ImageName, digest: Digest, source: str | None) -> bool:
        """
        end-11: let ``image`` hold a blob that the image named ``source`` holds; without a name,
        that any image holds.  Whether there was one to mount.

        :raises NameInvalid: if ``source`` is no name.  One of no repository here holds nothing.
        """
        try:
            holder = self.names.resolve(RepositoryName.parse(source)) if source else None
        except NameUnknown:
            return False
        return await self.catalog.mount_blob(image, digest, holder) is not None

    async def images(self, after: str, limit: int) -> list[str]:
        """At most ``limit`` images' listed names behind ``after``, in ASCII order, each once."""
        return await listed_images(self.catalog, self.names, after, limit)
