"""What the registry asks of a catalog; ``tests/contracts`` holds every backend to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName, Reference, Tag

# What a client wants to be so before anything is changed.


@frozen
class Precondition:
    """
    RFC 9110, 13.1.1 and 13.1.2, on what a reference points at now.

    ``if_match``: strong comparison, ``("*",)`` for "anything"; ``None`` where the header is absent.
    Values are entity tags without weakness, e.g. ``"sha256:…"`` with its quotes; a weak one
    (``W/"…"``) stands here with its prefix, so that it never matches strongly.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def holds(self, current: Digest | None) -> bool:
        """Whether it holds where the reference now points at ``current``."""
        etag = f'"{current}"'
        if self.if_match is not None and (
            current is None or not ("*" in self.if_match or etag in self.if_match)
        ):
            return False
        return not (
            self.if_none_match is not None
            and current is not None
            and ("*" in self.if_none_match or etag in (_strong(t) for t in self.if_none_match))
        )


def _strong(etag: str) -> str:
    return etag.removeprefix("W/")


ANYHOW = Precondition()
"""Nothing has to be so."""


@frozen
class ManifestRecord:
    """
    What the catalog knows of a manifest in an image.  ``size`` is in bytes.

    :ivar free_since: since when neither a tag nor an index nor a subject that is there keeps it,
        in seconds since the epoch; ``None`` where one does.  No part of what it is.
    """

    digest: Digest
    size: int
    media_type: str
    artifact_type: str | None = None
    subject: Digest | None = None
    annotations: Mapping[str, str] = field(factory=dict)
    free_since: float | None = field(default=None, eq=False)


@frozen
class UploadRecord:
    """
    An upload session.

    :ivar started: in seconds since the epoch.
    :ivar owner: who has begun it, a user or an address; ``None`` where nobody counts.
    """

    id: str
    image: ImageName
    algorithm: Algorithm
    started: float
    owner: str | None = None


@frozen
class TagMovement:
    """
    One line of the journal: ``tag`` went from one digest to another (``None``: absent).
    ``at`` is in seconds since the epoch.
    """

    tag: str
    actor: str
    at: float
    before: Digest | None
    after: Digest | None


@frozen
class ManifestPut:
    """
    A manifest to be put into an image.

    :ivar tags: the tags that shall point at it; may be empty.
    :ivar precondition: must hold for every one of ``tags``, or without tags for the manifest.
    :ivar sparse: children of an index may be absent.
    :ivar actor: who does it, for the journal.
    :ivar index_depth: how deep indexes may be nested.
    :ivar quota: as for ``Catalog.add_blob``.
    """

    image: ImageName
    manifest: Manifest
    tags: tuple[Tag, ...] = ()
    precondition: Precondition = ANYHOW
    sparse: bool = False
    actor: str = ""
    index_depth: int = 100
    quota: int = 0


def nothing() -> None:
    """Nothing has to be done with the bytes."""


class Catalog(Protocol):
    """
    The registry's metadata.  A method either does all it says, durably, or raises and does
    nothing; what it has done is seen by every later call of any process.

    Errors that are a client's are raised as :mod:`artifactd.oci.errors`; a catalog that can't be
    used now (locked, full disk) raises :class:`artifactd.oci.errors.Unavailable`.
    """

    # -- blobs

    async def blob_size(self, image: ImageName, digest: Digest) -> int | None:
        """The size in bytes of a blob that ``image`` holds, or ``None`` if it holds none such."""

    async def promise_blob(self, image: ImageName, digest: Digest) -> int | None:
        """
        As :meth:`blob_size`, for a client that may rely on it: where no manifest of ``image`` holds
        the blob its lease is renewed first, if a quarter of it has passed.
        """

    async def add_blob(
        self,
        image: ImageName,
        digest: Digest,
        size: int,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
        upload: str | None = None,
        quota: int = 0,
    ) -> None:
        """
        Let ``image`` hold a blob whose bytes are published, and end the upload session they came
        by.  ``confirm`` is called inside the transaction, ``release`` after it, in the same thread
        (``StagedBlob``); if ``release`` fails that is logged and changes nothing.

        :param quota: bytes that the image's repository may hold; 0: any number.
        :raises QuotaExceeded: if it holds more with it than that, and than before; ``detail`` is
            ``{"repository", "quota", "used", "requested"}``.
        """

    async def mount_blob(
        self, image: ImageName, digest: Digest, source: ImageName | None, quota: int = 0
    ) -> int | None:
        """
        Let ``image`` hold a blob that ``source`` (``None``: any image of the same repository)
        holds.  Not of any other: whoever knows a digest need not have access to every repository.
        Its lease is renewed as by :meth:`promise_blob`.

        Its size in bytes, or ``None`` if ``source`` does not hold it.

        :raises QuotaExceeded: as :meth:`add_blob`.
        """

    async def repository_size(self, repository: str) -> int:
        """Bytes of all that the images of ``repository`` hold, blobs and manifests, each once."""

    async def delete_blob(
        self, image: ImageName, digest: Digest, *, allow_held: bool, actor: str = ""
    ) -> None:
        """
        Take a blob out of ``image``; it can be brought back (``GarbageCatalog.undelete``).

        :raises BlobUnknown: if ``image`` does not hold it.
        :raises Unsupported: if a manifest of ``image`` holds it, unless ``allow_held``; ``detail``
            is ``{"digest": …, "heldBy": [digests, at most 10]}``.
        """

    async def forget_blob(self, digest: Digest, unlink: Callable[[], None]) -> bool:
        """
        Inside a write transaction: if no row needs the bytes of ``digest``, call ``unlink``.

        Whether it did.  Rows need the bytes of a blob while the catalog lists it at all.
        """

    async def dropped_blobs(self, after: str, limit: int) -> list[Digest]:
        """
        Digests that are listed no longer and were not forgotten since: a process may die between
        the two.  In the order of their text, those behind ``after``, at most ``limit``.
        """

    # -- manifests

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestRecord | None:
        """The manifest that ``reference`` names in ``image``, or ``None``."""

    async def promise_manifest(
        self, image: ImageName, reference: Reference
    ) -> ManifestRecord | None:
        """
        As :meth:`manifest`, for a client that may rely on it: where nothing keeps it in ``image``
        that counts as pushed anew, if a quarter of a lease has passed.
        """

    async def check_manifest(self, put: ManifestPut) -> None:
        """
        Raise what :meth:`put_manifest` would raise if called now.

        :raises ManifestBlobUnknown: if blobs or children are absent from the image, unless
            optional; ``detail`` is ``{"digests": […]}``.
        :raises ManifestInvalid: if a descriptor's size is not that of the stored content, or
            indexes would be nested deeper than they may.
        :raises PreconditionFailed: if the precondition does not hold.
        """

    async def put_manifest(
        self, put: ManifestPut, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> None:
        """
        Put a manifest whose bytes are published into an image and move its tags to it, journalling
        each movement; all in one transaction.  Raises as :meth:`check_manifest` and, for the
        quota, as :meth:`add_blob`.

        A tag that points at the manifest already does not move.  The media type of a manifest
        pushed again is the newer one.
        """

    async def delete_manifest(
        self, image: ImageName, digest: Digest, *, allow_held: bool, actor: str
    ) -> None:
        """
        Take a manifest and all its tags out of ``image``.  They can be brought back
        (``GarbageCatalog.undelete``); the lease of what nothing else holds runs from now.

        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if ``image`` does not have it.
        :raises Unsupported: if an index of ``image`` holds it, unless ``allow_held``; ``detail``
            as for :meth:`delete_blob`.
        """

    async def delete_tag(self, image: ImageName, tag: Tag, *, actor: str) -> None:
        """
        Take a tag off; it can be brought back (``GarbageCatalog.undelete``).

        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if there is no such tag.
        """

    async def tag_movements(self, image: ImageName, tag: Tag) -> Sequence[TagMovement]:
        """The journal of a tag, oldest first."""

    # -- listings

    async def tags(
        self, image: ImageName, after: str | None, limit: int | None
    ) -> list[str] | None:
        """
        Tags in ASCII order, those behind ``after``, at most ``limit``; ``None`` if the image is
        unknown: it has never had a manifest.
        """

    async def images(self, repository: str, after: str, limit: int) -> list[str]:
        """
        The names inside ``repository`` of its known images, in ASCII order, those behind ``after``.
        """

    async def referrers(
        self,
        image: ImageName,
        subject: Digest,
        artifact_type: str | None,
        after: str | None,
        limit: int,
    ) -> list[ManifestRecord]:
        """
        The manifests of ``image`` whose subject is ``subject``, ordered by the text of their
        digest, those behind ``after``, at most ``limit``, only those of ``artifact_type`` if given.

        Fewer where their annotations exceed 3 MiB: then the last is one more than that.
        """

    # -- upload sessions

    async def add_upload(
        self, upload: UploadRecord, create: Callable[[], None] = nothing, most: int = 0
    ) -> None:
        """
        Remember an upload session.  ``create`` is called inside the transaction before the row is
        written (``UploadStore.create``).

        :param most: how many sessions of its owner there may be; 0: any number.
        :raises TooManyRequests: if there are so many already; then ``create`` is not called.
        """

    async def upload(self, upload_id: str) -> UploadRecord | None:
        """The session of that id, or ``None``."""

    async def delete_upload(self, upload_id: str) -> bool:
        """Forget a session; whether there was one."""

    async def uploads(self, after: str, limit: int) -> list[UploadRecord]:
        """Sessions in the order of their ids, those behind ``after``, at most ``limit``."""

    # -- the catalog itself

    async def check(self) -> None:
        """:raises Unavailable: if the catalog can't be read, or can't be locked for writing."""

    async def close(self) -> None:
        """Wait for what is in flight and close."""
