"""What a repository is asked for, and what it answers, whether its home is here or upstream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from artifactd.catalog.records import ManifestPut, ManifestRecord
from artifactd.oci.digest import Digest
from artifactd.oci.errors import Unsupported
from artifactd.oci.names import ImageName, Reference, RepositoryName
from artifactd.oci.ranges import ByteRange
from artifactd.store.blobs import OpenBlob
from artifactd.upstream.credentials import UpstreamLogin

if TYPE_CHECKING:  # local.py imports this module
    from artifactd.registry.local import LocalRepository


@frozen
class Provenance:
    """
    How an answer was come by.

    :ivar source: where the bytes come from: pushed here, cached, or the upstream just now.
    :ivar cache: the parameters of ``Cache-Status`` (RFC 9211), behind the cache's name.
    :ivar stale: why an answer older than its freshness is given; ``None`` if it isn't older.
    :ivar waited: seconds for which the upstream was waited for.
    """

    source: Literal["local", "cache", "remote"] = "local"
    cache: str = "hit"
    stale: str | None = None
    waited: float | None = None


LOCAL = Provenance()
HIT = Provenance("cache")

# What says which page of a list is wanted, here and at registries with ways of their own.  Nothing
# else of a client's query goes upstream.
PAGING = frozenset({"n", "last", "artifactType", "next_page", "limit", "page"})

# What holds, as a query of its own, whatever else an upstream's Link to the next page has.
PACKED = "next"


@frozen
class BlobWanted:
    """
    What of a blob is wanted.

    :ivar head: only whether it is there, and its size.
    :ivar span: given the size in bytes, the part that is wanted (``None``: all of it); may raise
        RangeNotSatisfiable.  ``None``: all of it.
    :ivar bounded: that part neither starts at 0 nor runs on to an end the client doesn't name, so
        that it may be answered before the whole blob is verified.
    :ivar patient: the client would take an answer that breaks off for a whole one, so that an
        answer without a length has to wait until the blob is verified (HTTP/1.0).
    """

    head: bool = False
    span: Callable[[int], ByteRange | None] | None = None
    bounded: bool = False
    patient: bool = False

    def part(self, size: int) -> ByteRange | None:
        """:raises RangeNotSatisfiable: if a blob of ``size`` bytes has no such part."""
        return None if self.span is None else self.span(size)


@frozen
class BlobFound:
    """
    A blob, or a part of it.

    :ivar size: of the whole blob in bytes; ``None`` where the upstream doesn't say.
    :ivar span: the part that was asked for; ``None``: all of it.
    :ivar body: the whole blob, also where only a part is wanted; the caller closes it.  ``None`` if
        only ``head`` was wanted.
    """

    size: int | None
    span: ByteRange | None
    body: OpenBlob | None
    provenance: Provenance = LOCAL


@frozen
class ManifestFound:
    """A manifest; ``image`` is the canonical name of the image it is answered from."""

    record: ManifestRecord
    image: ImageName
    provenance: Provenance = LOCAL


@frozen
class ListWanted:
    """
    Which page of a list is wanted: at most ``limit`` entries behind ``after``.

    :ivar query: those of :data:`PAGING` and :data:`PACKED` that were given, for an upstream that
        has other ones for its pages.
    """

    limit: int
    after: str | None = None
    query: Mapping[str, str] = field(factory=dict)


@frozen
class TagsFound:
    """A page of tags; ``next`` is the query of the one behind it."""

    tags: list[str]
    next: Mapping[str, str] | None = None
    provenance: Provenance = LOCAL


@frozen
class ReferrersFound:
    """
    A page of referrers as an image index in JSON.

    :ivar filtered: whether only those of the artifact type asked for are in it.
    """

    index: bytes
    next: Mapping[str, str] | None = None
    filtered: bool = False
    provenance: Provenance = LOCAL


@frozen
class Asker:
    """
    The client on whose behalf an image is read, for repositories that want a proof of access.

    :ivar known: whether the client has logged in, by any of the ways there are.
    :ivar presented: the login that the client brings for the upstream of one repository.
    """

    known: bool = False
    presented: UpstreamLogin | None = None


NOBODY = Asker()


class Repository(ABC):
    """
    Images to pull from, and perhaps to push to.

    Reading a blob, manifest or image that is not there raises BlobUnknown, ManifestUnknown or
    NameUnknown.  The other methods have the defaults of a repository that serves everybody.
    """

    __slots__ = ()

    @abstractmethod
    async def manifest(self, image: ImageName, reference: Reference) -> ManifestFound:
        """Find a manifest by its tag or digest."""  # end-3

    @abstractmethod
    async def body(self, found: ManifestFound) -> OpenBlob:
        """
        Open the bytes of a manifest of this repository; the caller closes them.

        :raises Lost: if the store has lost the bytes, and they can't be fetched again.
        """

    @abstractmethod
    async def blob(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        """Open a blob, or the part of it that is wanted."""  # end-2
        # RangeNotSatisfiable comes from ``wanted.part``.

    @abstractmethod
    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        """List one page of tags."""  # end-8

    @abstractmethod
    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        """List one page of referrers; the page is empty if the image is unknown."""  # end-12

    def candidates(self, image: ImageName) -> Sequence[ImageName]:
        """
        The images from which a pull of ``image`` may be answered, at least one.

        Nothing is looked up, so the images need not exist.
        """
        return [image]

    def limited_to(self, image: ImageName, permitted: Collection[ImageName]) -> Repository:
        """This repository for a client that may pull only ``permitted`` of the candidates."""
        return self

    def asked_by(self, asker: Asker) -> Repository:
        """This repository for ``asker``."""
        return self

    def for_operator(self) -> Repository:
        """This repository without proofs of access: the operator has the upstream's password."""
        return self

    def pushable(self, name: RepositoryName) -> LocalRepository:
        """
        The local repository that takes pushes under ``name``.

        :raises Unsupported: if the images come from an upstream.
        """
        raise Unsupported(
            "images of this name come from an upstream and can't be changed here: push under"
            " another name",
            {"name": str(name)},
            {"Allow": "GET, HEAD"},
        )

    async def adopt(self, put: ManifestPut) -> None:  # noqa: B027 - a default, not abstract
        """Prepare the image that ``put`` pushes to; only names without a prefix have to."""

    async def lends(self, image: ImageName) -> bool:
        """Whether blobs of ``image`` may be mounted in another image."""
        return True

    async def listable(self, images: Collection[ImageName]) -> set[ImageName]:
        """Those of ``images`` whose names may be shown in a list."""
        return set(images)
