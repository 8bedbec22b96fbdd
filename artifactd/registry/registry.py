"""The whole registry: its repositories under their names."""

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
    What the ``<name>`` of a request stands for.

    :ivar image: its canonical name; where it is unprefixed, that of the local image.
    :ivar readable: where it is pulled from.
    :ivar namespace: the registry that a mirror's request named, if that was followed.
    """

    name: RepositoryName
    image: ImageName
    readable: Repository
    namespace: str | None = None

    @property
    def path(self) -> str:
        """Where it lies, as the client named it: begins a relative ``Location``."""
        return f"/v2/{self.name}"

    def following(self, query: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """The query of the next page of a list: of the same registry as this one."""
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
    All repositories, and the uploads that are on their way into them.

    :ivar unprefixed: what names without a repository are read from.
    """

    names: Names
    repositories: Mapping[str, Repository]
    unprefixed: Unprefixed
    uploads: Uploads
    stored: Stored
    catalog: Catalog

    def target(self, name: str, namespace: str | None = None) -> Target:
        """
        :param namespace: the registry that a mirror's request is meant for.
        :raises NameInvalid, NameUnknown: if ``name`` is none, or belongs to no repository, or
            nothing here answers for ``namespace``.
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
        """The canonical name of what ``name`` stands for, for logs; itself if it is for nothing."""
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
        end-11: let ``image`` hold a blob that the image named ``source`` holds; without a name,
        that any image of the same repository holds.  Whether there was one to mount; an image of an
        upstream that may not be pulled lends nothing.

        :param permitted: which images the blob may come from; then only from one that is named.
            ``None``: from each.
        :param asker: who wants it: an image of which a proof is wanted lends nothing without.
        :raises NameInvalid: if ``source`` is no name.  One of no repository here holds nothing.
        """
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
        quota = self.uploads.limits.quotas.get(image.repository, 0)
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
        """end-7; as :meth:`LocalRepository.put_manifest`."""
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
        At most ``limit`` images' listed names behind ``after``, in ASCII order, each once.

        :param shown: which images are; ``None``: all.
        :param asker: who reads it: images of which a proof is wanted are shown with it only.
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
