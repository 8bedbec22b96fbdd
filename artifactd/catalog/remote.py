"""What the registry asks of a catalog about images whose home is an upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from artifactd.catalog.interfaces import ManifestRecord, nothing
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName, Reference, Tag


@frozen
class CachedTag:
    """
    A tag of an upstream as it is served here.  Times are in seconds since the epoch.

    :ivar record: the manifest it is served as.
    :ivar checked_at: when the upstream was last asked, and answered.
    :ivar candidate: another digest that the upstream has given it, which is not served yet.
    :ivar candidate_at: since when the upstream has been seen to give it that one.
    """

    record: ManifestRecord
    checked_at: float
    candidate: Digest | None = None
    candidate_at: float | None = None


@frozen
class CachedPage:
    """
    A page of an upstream's list: ``body`` is the JSON, ``next`` the query of the page behind it.
    """

    body: bytes = field(repr=False)
    next: Mapping[str, str] | None
    filtered: str | None
    fetched_at: float


@frozen
class Held:
    """
    A blob or a manifest that an image of a remote repository holds.

    :ivar size: in bytes.
    :ivar used_at: when it was last pulled (or came), in seconds since the epoch.
    """

    image: ImageName
    digest: Digest
    size: int
    used_at: float
    is_manifest: bool


class RemoteCatalog(Protocol):
    """
    The part of the catalog that remote repositories use beside
    :class:`artifactd.catalog.interfaces.Catalog`, under the same rules.

    Their images, manifests, tags and blobs are rows as those of local ones; what they hold need
    not be here.
    """

    # -- names

    async def is_known(self, image: ImageName) -> bool:
        """Whether ``image`` has ever had a manifest, and has not been released since."""

    async def release_image(self, image: ImageName) -> None:
        """
        Let a local image without manifests be unknown again.

        :raises NameUnknown: if it is unknown.
        :raises Unsupported: if it still has manifests.
        """

    async def origin(self, name: str) -> str | None:
        """The remote repository that has answered for the unprefixed ``name``, or ``None``."""

    async def set_origin(self, name: str, repository: str) -> str:
        """Remember one; the one that counts, which is the first that anybody remembered."""

    # -- manifests and tags

    async def cached_tag(self, image: ImageName, tag: Tag) -> CachedTag | None:
        """A tag as it was last seen, or ``None`` if it never was."""

    async def cache_manifest(
        self,
        image: ImageName,
        manifest: Manifest,
        tag: Tag | None,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
    ) -> None:
        """
        Let ``image`` have a manifest whose bytes are published, and ``tag``, checked now, point at
        it.  Nothing of what it holds need be here.  The movement of the tag is journalled.
        """

    async def point_tag(self, image: ImageName, tag: Tag, digest: Digest) -> bool:
        """
        Let ``tag``, checked now, point at a manifest of ``image``, its candidate forgotten; whether
        ``image`` has it.
        """

    async def keep_tag(self, image: ImageName, tag: Tag, candidate: Digest | None) -> None:
        """
        ``tag`` was checked now and stays as it is.

        :param candidate: what the upstream says instead.  One that was the candidate before keeps
            its time; ``None`` forgets it.
        """

    # -- blobs

    async def stored_size(self, digest: Digest) -> int | None:
        """Bytes of a blob that some image, any one, holds; ``None`` if none does."""

    async def link_blob(self, image: ImageName, digest: Digest) -> int | None:
        """Let ``image`` hold a blob that some image holds; its bytes, ``None`` if none does."""

    async def add_blobs(
        self,
        images: Sequence[ImageName],
        digest: Digest,
        size: int,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
    ) -> None:
        """As ``Catalog.add_blob``, for several images at once."""

    # -- lists

    async def cached_page(self, image: ImageName, key: str) -> CachedPage | None:
        """A page of a list as it was last fetched; ``key`` says which list and which page."""

    async def cache_page(self, image: ImageName, key: str, page: CachedPage) -> None:
        """Keep a page; of one image the oldest beyond 50 go."""

    # -- what is used, and what goes

    async def touch(self, used: Mapping[tuple[ImageName, Digest], float]) -> None:
        """Blobs and manifests were pulled at those times, in seconds since the epoch."""

    async def held_bytes(self, repository: str) -> int:
        """Bytes of the blobs and manifests that the images of ``repository`` hold, each once."""

    async def least_used(self, repository: str, before: float, skip: int, limit: int) -> list[Held]:
        """
        What the images of ``repository`` hold that was not used since ``before``, the longest
        unused first, without the first ``skip``.
        """

    async def drop(self, held: Sequence[Held]) -> list[Digest]:
        """
        Take blobs, and manifests with their tags, out of images of remote repositories, those
        excepted that were used since they were listed.

        The digests that no image needs any more: they are listed no longer, and their bytes are to
        be forgotten (``Catalog.forget_blob``), now that this is committed.  Until then they are
        among ``Catalog.dropped_blobs``.
        """

    async def purge(self, image: ImageName, reference: Reference | None) -> list[Digest] | None:
        """
        Take a tag, a digest, or (``None``) everything out of a remote image, its lists too.  A tag
        goes with the manifest it points at, unless another tag does.

        As :meth:`drop`; ``None`` if there was nothing of that.
        """
