"""The requests and answers of a repository, as values, and the base class of all repositories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from artifactd.catalog.records import ManifestPut, ManifestRecord
from artifactd.oci.errors import Unsupported
from artifactd.oci.names import Digest, ImageName, Reference, RepositoryName
from artifactd.oci.ranges import ByteRange
from artifactd.store.blobs import OpenBlob
from artifactd.upstream.credentials import UpstreamLogin

if TYPE_CHECKING:  # local.py imports this module
    from artifactd.registry.local import LocalRepository


@frozen
class Provenance:
    """
    Where an answer's bytes came from, and what the cache did.

    :ivar source: pushed here, cached, or fetched from the upstream just now.
    :ivar cache: the parameters of ``Cache-Status`` (RFC 9211), after the cache's name.
    :ivar stale: the reason why an answer is served past its freshness; ``None`` if it is fresh.
    :ivar waited: seconds that the request waited for the upstream.
    :ivar verified: whether the bytes, or for HEAD the size, are those of the digest; ``False``: so
        far the upstream says so.
    """

    source: Literal["local", "cache", "remote"] = "local"
    cache: str = "hit"
    stale: str | None = None
    waited: float | None = None
    verified: bool = True


LOCAL = Provenance()
HIT = Provenance("cache")

# The query parameter in which a client returns the sealed query of an upstream's next page.
CONTINUATION = "continuation"


@frozen
class BlobWanted:
    """
    Which part of a blob a request asks for.

    :ivar head: only the size is wanted.
    :ivar span: maps the blob's size in bytes to the wanted part, or to ``None`` for all of it; may
        raise RangeNotSatisfiable.  ``None``: all of the blob is wanted.
    :ivar bounded: the part does not start at 0 and has an explicit end, so it may be answered
        before the whole blob is verified.
    :ivar patient: the client would take a truncated answer for a complete one (HTTP/1.0), so an
        answer without a length has to wait until the blob is verified.
    """

    head: bool = False
    span: Callable[[int], ByteRange | None] | None = None
    bounded: bool = False
    patient: bool = False

    def part(self, size: int) -> ByteRange | None:
        """
        The wanted part of a blob of ``size`` bytes; ``None`` for all of it.

        :raises RangeNotSatisfiable: if the blob has no such part.
        """
        return None if self.span is None else self.span(size)


@frozen
class BlobFound:
    """
    A blob that was found, opened for the wanted part.

    :ivar size: of the whole blob in bytes; ``None`` if the upstream doesn't say.
    :ivar span: the wanted part; ``None``: all of the blob.
    :ivar body: the whole blob, also where only a part is wanted; the caller closes it.  ``None`` if
        only ``head`` was wanted.
    """

    size: int | None
    span: ByteRange | None
    body: OpenBlob | None
    provenance: Provenance = LOCAL


@frozen
class ManifestFound:
    """A manifest that was found; ``image`` is the image it was found in, by its canonical name."""

    record: ManifestRecord
    image: ImageName
    provenance: Provenance = LOCAL


@frozen
class ListWanted:
    """
    Which page of a list is wanted: at most ``limit`` entries after ``after``.

    :ivar counted: whether the client gave the limit.
    :ivar sealed: the parameter :data:`CONTINUATION` that the client gave, or ``None``.
    """

    limit: int
    after: str | None = None
    counted: bool = False
    sealed: str | None = None


@frozen
class TagsFound:
    """
    A page of tags; ``next`` is the query of the next page.

    :ivar tags: a list of strings in JSON: some upstreams send hundreds of thousands.
    """

    tags: bytes
    next: Mapping[str, str] | None = None
    provenance: Provenance = LOCAL


@frozen
class ReferrersFound:
    """
    A page of referrers as an image index in JSON.

    :ivar filtered: whether the page has only referrers of the wanted artifact type.
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

    :cvar wants_proof: whether clients have to prove that an upstream lets them have an image.
    """

    __slots__ = ()

    wants_proof = False

    @abstractmethod
    async def manifest(
        self, image: ImageName, reference: Reference, *, head: bool = False
    ) -> ManifestFound:
        """
        Find a manifest by its tag or digest.

        :param head: whether only what it is is wanted.  Then its bytes need not be here afterwards,
            and :meth:`body` is not for it.
        """  # end-3

    async def manifest_for(
        self, image: ImageName, reference: Reference, may_push: Callable[[], bool], *, head: bool
    ) -> ManifestFound:
        """
        Find a manifest for a client that may be about to push it, and asks first.

        :param may_push: tells whether the client may.
        :param head: whether the client asks only whether the manifest is there.
        """
        return await self.manifest(image, reference, head=head)

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

    async def adopt(self, put: ManifestPut) -> ManifestPut:
        """
        Return ``put`` with what its image lacks and an upstream's of the same name has; only names
        without a prefix adopt anything.
        """
        return put

    async def lends(self, image: ImageName) -> bool:
        """Whether blobs of ``image`` may be mounted in another image."""
        return True

    async def listable(self, images: Collection[ImageName]) -> set[ImageName]:
        """Those of ``images`` whose names may be shown in a list."""
        return set(images)
