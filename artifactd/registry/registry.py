"""The registry: all repositories under their names, and the operations across them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from attrs import evolve, frozen

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import Precondition
from artifactd.oci.digest import Digest
from artifactd.oci.errors import NameUnknown, RegistryError
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName, Reference, RepositoryName, Tag
from artifactd.registry.content import Stored
from artifactd.registry.local import LocalRepository
from artifactd.registry.model import NOBODY, Asker, Repository
from artifactd.registry.names import Names, listed_images, listed_where
from artifactd.registry.unprefixed import Unprefixed
from artifactd.registry.uploads import Uploads


@frozen
class Target:
    """
    The image and the repository that the ``<name>`` of a request stands for.

    :ivar image: the canonical name; that of the local image if the name has no prefix.
    :ivar readable: the repository that answers pulls.
    :ivar namespace: the registry that a mirror's request named by ``ns``, if it named one.
    """

    name: RepositoryName
    image: ImageName
    readable: Repository
    namespace: str | None = None

    @property
    def path(self) -> str:
        """The path of the image as the client named it; a relative ``Location`` begins with it."""
        return f"/v2/{self.name}"

    def following(self, query: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """The query of a list's next page, with the ``ns`` of this request."""
        if query is None or self.namespace is None:
            return query
        return {**query, "ns": self.namespace}

    @property
    def candidates(self) -> Sequence[ImageName]:
        """The images from which a pull may be answered, at least one; none of them need exist."""
        return self.readable.candidates(self.image)

    def pulled_by(self, asker: Asker, images: Collection[ImageName] | None) -> Target:
        """This target for ``asker``, who may pull only ``images`` of the candidates; None: all."""
        readable = self.readable
        if images is not None:
            readable = readable.limited_to(self.image, images)
        readable = readable.asked_by(asker)
        return self if readable is self.readable else evolve(self, readable=readable)

    @property
    def local(self) -> LocalRepository:
        """The repository that takes pushes.  :raises Unsupported: if none does."""
        return self.readable.pushable(self.name)

    @property
    def pushed(self) -> ImageName:
        """The image that takes pushes.  :raises Unsupported: if none does."""
        self.readable.pushable(self.name)
        return self.image


@frozen
class Registry:
    """
    All repositories, and the uploads under way to them.

    :ivar unprefixed: reads the names that begin with no configured repository.
    """

    names: Names
    repositories: Mapping[str, Repository]
    unprefixed: Unprefixed
    uploads: Uploads
    stored: Stored
    catalog: Catalog

    def target(self, name: str, namespace: str | None = None) -> Target:
        """
        Find the image and the repository that ``name`` stands for; the image need not exist.

        :param namespace: the ``ns`` of a mirror's request: the registry that it is meant for.
        :raises NameInvalid: if ``name`` is not a name.
        :raises NameUnknown: if ``name`` belongs to no repository, or no repository answers for
            ``namespace``.
        """
        parsed = RepositoryName.parse(name)
        if namespace is not None:
            image = self.names.mirrored(parsed, namespace)
            return Target(parsed, image, self.repositories[image.repository], namespace)
        prefixed = self.names.prefixed(parsed)
        if prefixed is not None:
            return Target(parsed, prefixed, self.repositories[prefixed.repository])
        default = self.names.default
        if default is None and not self.unprefixed.remotes:
            raise self.names.unknown(parsed)
        return Target(parsed, ImageName(default or "", parsed.text), self.unprefixed)

    def named(self, name: str, namespace: str | None = None) -> str:
        """The canonical name of an image, for logs; ``name`` itself if it has none."""
        try:
            return str(self.target(name, namespace).image)
        except RegistryError:
            return name

    async def mount(
        self,
        image: ImageName,
        digest: Digest,
        source: str | None,
        permitted: Callable[[ImageName], bool] | None = None,
        asker: Asker = NOBODY,
    ) -> bool:
        """
        Mount a blob: link it to ``image`` if the image ``source`` holds it, or, without a source,
        any image of the same repository.

        :param permitted: tells from which images a blob may be mounted; the source has to be named
            then.  ``None``: from all.
        :param asker: the client; without the proof that ``source`` wants, nothing is mounted.
        :return: whether the blob was mounted.
        :raises NameInvalid: if ``source`` is not a name.
        """  # end-11
        try:
            holder = self.names.resolve(RepositoryName.parse(source)) if source else None
        except NameUnknown:
            return False
        if permitted is not None and (holder is None or not permitted(holder)):
            return False
        if holder is not None:
            lender = self.repositories[holder.repository].asked_by(asker)
            if not await lender.lends(holder):
                return False
        quota = self.uploads.quotas.get(image.repository, 0)
        return await self.catalog.mount_blob(image, digest, holder, quota) is not None

    async def put_manifest(
        self,
        target: Target,
        reference: Reference,
        tags: list[Tag],
        content: bytes,
        content_type: str | None,
        precondition: Precondition,
        actor: str,
    ) -> Manifest:
        """Parse and store a manifest, as :meth:`LocalRepository.put_manifest`."""  # end-7
        local = target.local
        manifest = await local.parse(content, content_type, reference)
        put = local.wanted(target.image, reference, tags, manifest, precondition, actor)
        await target.readable.adopt(put)
        await local.put_manifest(put)
        return manifest

    async def images(
        self,
        after: str,
        limit: int,
        shown: Callable[[ImageName], bool] | None = None,
        asker: Asker = NOBODY,
    ) -> list[str]:
        """
        List at most ``limit`` names of images after ``after``, in ASCII order, each once.

        :param shown: tells which images to list; ``None``: all.
        :param asker: the client; images that want a proof are listed only if the client has it.
        """
        if shown is None:
            return await listed_images(self.catalog, self.names, after, limit)

        async def choose(images: Sequence[ImageName]) -> set[ImageName]:
            return await self._listable(list(filter(shown, images)), asker)

        return await listed_where(self.catalog, self.names, after, limit, choose)

    async def _listable(self, images: Sequence[ImageName], asker: Asker) -> set[ImageName]:
        listable: set[ImageName] = set()
        for name in {image.repository for image in images}:
            its = [image for image in images if image.repository == name]
            listable |= await self.repositories[name].asked_by(asker).listable(its)
        return listable

    def for_operator(self) -> Registry:
        """This registry without proofs of access: the operator has the upstreams' passwords."""
        repositories = {name: each.for_operator() for name, each in self.repositories.items()}
        return evolve(self, repositories=repositories, unprefixed=self.unprefixed.for_operator())
