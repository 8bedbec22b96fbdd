"""What the collector asks of a catalog."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from attrs import frozen

from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName, Reference


class Garbage(StrEnum):
    """Why something goes; docs/garbage-collection.md has the rules."""

    UNTAGGED = "untagged"
    """A manifest that no tag, index or subject has kept for as long as its repository allows."""
    LEASE = "lease"
    """An image's hold on a blob that no manifest of it holds, and whose lease is over."""
    DELETED = "deleted"
    """What was kept of a deleted manifest, tag or blob, which can't be brought back any more."""
    BYTES = "bytes"
    """A blob that nothing needs any more."""
    STRAY = "stray"
    """A file in the store that the catalog does not list."""


@frozen
class Collected:
    """
    Something that went.

    :ivar image: where it was; ``None`` for bytes.
    :ivar name: a digest, or a tag.
    :ivar size: of its bytes, which go only with a :attr:`Garbage.BYTES` or a
        :attr:`Garbage.STRAY` of that digest; 0 for a tag, and where nobody knows.
    :ivar since: since when it was of no use, in seconds since the epoch.
    """

    why: Garbage
    image: ImageName | None
    name: str
    size: int
    since: float


@frozen
class Restored:
    """
    What came back.

    :ivar occupied: tags that did not, since they point at something else by now.
    """

    manifests: tuple[Digest, ...] = ()
    tags: tuple[str, ...] = ()
    blobs: tuple[Digest, ...] = ()
    occupied: tuple[str, ...] = ()


class GarbageCatalog(Protocol):
    """
    The part of the catalog that the collector uses beside
    :class:`artifactd.catalog.interfaces.Catalog`, under the same rules.

    What collects does so to at most ``limit`` things in one transaction, none of which was of use
    after ``before``; it returns what went, nothing when nothing is left.  Images of remote
    repositories are left alone: eviction sees to them.
    """

    async def collect_untagged(
        self, repository: str, before: float, limit: int
    ) -> Sequence[Collected]:
        """
        Take manifests that nothing keeps out of the images of ``repository``, as if a client had
        deleted them: they can be brought back, and the time of what only they held or kept runs
        from now, since clients may have been told of that.
        """

    async def collect_links(self, before: float, limit: int) -> Sequence[Collected]:
        """Let images go on without blobs that no manifest of theirs holds."""

    async def collect_deleted(self, before: float, limit: int) -> Sequence[Collected]:
        """Forget deleted manifests, tags and blobs."""

    async def collect_bytes(self, before: float, limit: int) -> Sequence[Collected]:
        """
        Take blobs that nothing needs off the list; they are among ``Catalog.dropped_blobs`` until
        they are forgotten, and this is committed before anything else is.
        """

    async def unlisted(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those of ``digests`` that the catalog does not list."""

    async def undelete(self, image: ImageName, reference: Reference | None, actor: str) -> Restored:
        """
        Bring back what was deleted from an image, as it was: a tag with its manifest, if that went
        too; a manifest with what it held and kept and went with it or after it, and the tags it
        had; a blob; or (``None``) all there is.  Movements of tags are journalled.

        :raises ManifestUnknown: if there is nothing of that to bring back.
        :raises Unsupported: if the tag points at something else by now.
        """
