"""What the JSON API and the page share: images by one name, and the changes that both make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from attrs import define, evolve, field

from artifactd.auth.identity import Kind
from artifactd.catalog.garbage import GarbageCatalog, Restored
from artifactd.catalog.records import ANYHOW, Precondition
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.errors import ManifestUnknown, NameUnknown
from artifactd.oci.names import Digest, ImageName, Reference, Tag
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.registry import Target
from artifactd.registry.seeing import DeletedShown, MovementShown, Page, Seeing, TagShown
from artifactd.web.api import actor_of, deletion
from artifactd.web.audit import Change
from artifactd.web.routing import Routed
from artifactd.web.server.protocol import RegistryRequest
from artifactd.web.status import WholeDaemon

_Change = TypeVar("_Change", TagShown, MovementShown, DeletedShown)
# Everybody is the one, and may have an account for the other.
_ANYBODY = (Kind.ANONYMOUS, Kind.UPSTREAM)


@define(slots=False)  # as its base
class Operated(Routed):
    """
    The base of the classes with routes for operators.  A name of an image means one image, as for
    the commands: without a repository's name before it, that of the default repository.

    :param purge: drops a tag or digest of an upstream's image from the cache; returns ``None`` if
        it is not there.
    """

    mirrors = False

    seeing: Seeing = field(kw_only=True)
    garbage: GarbageCatalog = field(kw_only=True)
    run: RunInThread = field(kw_only=True)
    purge: Callable[[ImageName, Reference | None], Awaitable[object]] = field(kw_only=True)
    daemon: WholeDaemon = field(kw_only=True)

    def is_remote(self, image: ImageName) -> bool:
        """Whether ``image`` comes from an upstream."""
        return isinstance(self.registry.repositories[image.repository], RemoteRepository)

    def sees_all(self, request: RegistryRequest) -> bool:
        """Whether the caller may know of every image, see :meth:`Seeing.image`."""
        wants_proof = any(each.wants_proof for each in self.registry.repositories.values())
        return not wants_proof and self.gate.sees_all(request)

    async def told(self, request: RegistryRequest, page: Page[_Change]) -> Page[_Change]:
        """
        ``page`` as the caller is told of it: who has changed something, and from which address, is
        for callers with an account, where there are accounts.
        """
        if request.site.guarded and request.caller.identity.kind in _ANYBODY:
            return await self.run(_without_actors, page)
        return page

    async def readable(self, target: Target) -> ImageName:
        """The image, for a caller who may pull it.  :raises NameUnknown: if a proof is lacking."""
        image = target.image
        if image not in await target.readable.listable([image]):
            raise NameUnknown("no image of that name has been pushed here", {"name": str(image)})
        return image

    async def delete(
        self,
        request: RegistryRequest,
        target: Target,
        reference: Reference,
        condition: Precondition = ANYHOW,
    ) -> Change:
        """
        Delete a tag or a manifest; evict one of an upstream from the cache.

        :return: the change, for the audit log.
        :raises RegistryError: see ``LocalRepository.delete_manifest``.
        """
        if self.is_remote(target.image):
            image = await self.readable(target)
            record = await self.registry.catalog.manifest(image, reference)
            cached = None if record is None else record.digest
            condition.require(reference, cached)
            if await self.purge(image, reference) is None:
                raise ManifestUnknown("not in the cache", {"reference": str(reference)})
            return deletion(reference, cached)
        digest = await target.local.delete_manifest(
            target.image, reference, actor_of(request), condition
        )
        return deletion(reference, digest)

    async def point(
        self,
        request: RegistryRequest,
        target: Target,
        tag: Tag,
        digest: Digest,
        condition: Precondition = ANYHOW,
    ) -> Change:
        """
        Point a tag at a manifest that the image has.

        :return: the change, with the digest that the tag pointed at before.
        :raises RegistryError: see ``LocalRepository.point_tag``.
        """
        image, create_only = target.pushed, self.gate.create_only(request, target)
        before = await target.local.point_tag(
            image, tag, digest, actor_of(request), condition, create_only
        )
        return Change(digest=digest, tag=tag, before=before)

    async def bring_back(
        self, request: RegistryRequest, target: Target, reference: Reference | None
    ) -> tuple[Restored, Sequence[Change]]:
        """
        Undelete a tag, a manifest or a blob, or (``None``) all that was deleted from an image.

        :return: what was brought back, and the same for the audit log.
        :raises RegistryError: see ``GarbageCatalog.undelete``.
        """
        quota = int(target.local.settings.quota)
        restored = await self.garbage.undelete(target.pushed, reference, actor_of(request), quota)
        back = [*restored.manifests, *restored.blobs]
        changes = [Change(digest=digest) for digest in back]
        return restored, [*changes, *(Change(tag=Tag(tag)) for tag in restored.tags)]


def _without_actors(page: Page[_Change]) -> Page[_Change]:
    return evolve(page, entries=[evolve(each, actor="") for each in page.entries])
