"""A local repository: the genuine registry, push and pull."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
from attrs import field, frozen

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import (
    ANYHOW,
    ImmutableTags,
    ManifestPut,
    ManifestRecord,
    Precondition,
)
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown
from artifactd.oci.manifest import OCI_INDEX, Manifest, ManifestBounds, parse_manifest
from artifactd.oci.names import Digest, ImageName, Reference, RepositoryName, Tag
from artifactd.registry.content import Lost, Stored, parsed, publish
from artifactd.registry.model import (
    BlobFound,
    BlobWanted,
    ListWanted,
    ManifestFound,
    ReferrersFound,
    Repository,
    TagsFound,
)
from artifactd.settings.settings import LimitsSettings, LocalSettings
from artifactd.store.blobs import OpenBlob

# Bytes of the image index that lists referrers: clients read 4 MiB, and annotations may be long.
_INDEX_BYTES = 3 << 20


def referrers_page(records: Sequence[ManifestRecord], limit: int) -> tuple[bytes, str | None]:
    """
    Make an image index of at most ``limit`` of ``records`` and about 3 MiB.

    :return: the JSON, and the last digest in it if there are more records, else ``None``.
    """
    encoded: list[bytes] = []
    size = 0
    for record in records[:limit]:
        descriptor = msgspec.json.encode(_descriptor(record))
        size += len(descriptor)
        if encoded and size > _INDEX_BYTES:
            break
        encoded.append(descriptor)
    last = str(records[len(encoded) - 1].digest) if 0 < len(encoded) < len(records) else None
    return _index(encoded), last


def index_of(descriptors: Sequence[object]) -> bytes:
    """An image index of ``descriptors`` in JSON."""
    return _index([msgspec.json.encode(descriptor) for descriptor in descriptors])


def _index(descriptors: Sequence[bytes]) -> bytes:
    index = b'{"schemaVersion":2,"mediaType":"%b","manifests":[%b]}'
    return index % (OCI_INDEX.encode(), b",".join(descriptors))


def _descriptor(record: ManifestRecord) -> dict[str, object]:
    # distribution-spec, "Listing Referrers": annotations MUST be included, and any artifactType.
    descriptor: dict[str, object] = {
        "mediaType": record.media_type,
        "digest": str(record.digest),
        "size": record.size,
    }
    if record.artifact_type is not None:
        descriptor["artifactType"] = record.artifact_type
    if record.annotations:
        descriptor["annotations"] = dict(record.annotations)
    return descriptor


@frozen
class LocalRepository(Repository):
    """Blobs and manifests of the images in one configured repository of kind ``local``."""

    settings: LocalSettings
    limits: LimitsSettings
    catalog: Catalog
    stored: Stored
    run: RunInThread
    _bounds: ManifestBounds = field(init=False)

    @_bounds.default
    def _of_limits(self) -> ManifestBounds:
        return self.limits.manifest_bounds

    async def blob(self, image: ImageName, digest: Digest, wanted: BlobWanted) -> BlobFound:
        """Open a blob.  :raises BlobUnknown: if ``image`` does not hold it."""  # end-2
        size = await self.catalog.promise_blob(image, digest)
        if size is None:
            raise _unknown(digest)
        return await self.promised(image, digest, size, wanted)

    async def promised(
        self, image: ImageName, digest: Digest, size: int, wanted: BlobWanted
    ) -> BlobFound:
        """Open a blob whose size ``Catalog.promise_blob`` has returned; errors as :meth:`blob`."""
        try:
            return await self.stored.blob(image, digest, size, wanted)
        except Lost:
            if await self.catalog.blob_size(image, digest) is None:
                raise _unknown(digest) from None  # deleted a moment ago
            raise

    async def delete_blob(self, image: ImageName, digest: Digest, actor: str) -> None:
        """Unlink a blob; errors are those of ``Catalog.delete_blob``."""  # end-10
        await self.catalog.delete_blob(
            image,
            digest,
            allow_held=self.settings.delete_held,
            actor=actor,
            immutable=self.immutable,
        )

    async def manifest(
        self, image: ImageName, reference: Reference, *, head: bool = False
    ) -> ManifestFound:
        """Find a manifest.  :raises ManifestUnknown: if ``image`` has none so named."""  # end-3
        record = await self.find(image, reference)
        if record is None:
            raise ManifestUnknown(
                "this image has no such manifest", {"name": str(image), "reference": str(reference)}
            )
        return ManifestFound(record, image)

    async def body(self, found: ManifestFound) -> OpenBlob:
        """:raises ManifestUnknown: if the manifest has been deleted since it was found."""
        image, record = found.image, found.record
        try:
            return await self.stored.body(image, record.digest, record.size)
        except Lost:
            if await self.catalog.manifest(image, record.digest) is None:
                raise ManifestUnknown(
                    "this image has no such manifest any more", {"digest": str(record.digest)}
                ) from None
            raise

    def pushable(self, name: RepositoryName) -> LocalRepository:
        return self

    async def find(self, image: ImageName, reference: Reference) -> ManifestRecord | None:
        """
        Return the manifest under ``reference``, or ``None``.

        The lease of a manifest that nothing keeps is renewed, where it may be collected.
        """
        expires = self.settings.untagged != "keep"
        return await self.catalog.promise_manifest(image, reference, expires=expires)

    async def parse(
        self, content: bytes, content_type: str | None, reference: Reference
    ) -> Manifest:
        """Parse a manifest.  :raises DigestInvalid, ManifestInvalid: if it can't be pushed so."""
        digest = reference if isinstance(reference, Digest) else None
        parse = partial(
            parse_manifest,
            content,
            content_type,
            digest,
            other_types=self.settings.other_media_types,
            bounds=self._bounds,
        )
        return await parsed(self.run, content, parse)

    @property
    def immutable(self) -> ImmutableTags:
        """The tags that clients must not move or delete."""
        return ImmutableTags(self.settings.immutable_tags)

    def wanted(
        self,
        image: ImageName,
        reference: Reference,
        tags: Sequence[Tag],
        manifest: Manifest,
        precondition: Precondition,
        actor: str,
    ) -> ManifestPut:
        """
        Return the arguments of :meth:`put_manifest`, completed from the settings.

        :param tags: further tags, if ``reference`` is a digest.
        """
        return ManifestPut(
            image=image,
            manifest=manifest,
            tags=(reference,) if isinstance(reference, Tag) else tuple(tags),
            precondition=precondition,
            immutable=self.immutable,
            sparse=self.settings.sparse,
            actor=actor,
            index_depth=self.limits.index_depth,
            quota=int(self.settings.quota),
        )

    async def put_manifest(self, put: ManifestPut) -> Mapping[Tag, Digest | None]:
        """
        Store a manifest and point its tags at it.

        :return: where each of the tags pointed before; ``None``: there was no such tag.
        :raises ManifestInvalid, ManifestBlobUnknown, PreconditionFailed, TagImmutable, TagExists:
            then nothing has changed.
        """  # end-7a, end-7b
        # Checked before a byte is stored, so that most refused manifests need no removal; and again
        # in the transaction, since the catalog may have changed.  What is adopted is only there in
        # the transaction.
        await self.stored.blobs.require_room()
        if put.adoption is None:
            await self.catalog.check_manifest(put)
        staged = await self.stored.blobs.publish(put.manifest.digest, put.manifest.content)
        return await publish(
            staged,
            self.catalog,
            lambda: self.catalog.put_manifest(put, staged.confirm, staged.release),
        )

    async def delete_manifest(
        self,
        image: ImageName,
        reference: Reference,
        actor: str,
        precondition: Precondition = ANYHOW,
    ) -> Digest:
        """
        Delete a tag, or a manifest with all its tags; errors: see ``Catalog``.

        :return: the digest of the manifest.
        """  # end-9
        immutable = self.immutable
        if isinstance(reference, Tag):
            return await self.catalog.delete_tag(
                image, reference, actor=actor, immutable=immutable, precondition=precondition
            )
        await self.catalog.delete_manifest(
            image,
            reference,
            allow_held=self.settings.delete_held,
            actor=actor,
            immutable=immutable,
            precondition=precondition,
        )
        return reference

    async def point_tag(
        self,
        image: ImageName,
        tag: Tag,
        digest: Digest,
        actor: str,
        precondition: Precondition,
        create_only: str,
    ) -> Digest | None:
        """
        Point a tag at a manifest that the image has; errors: see ``Catalog``.

        :param create_only: see :class:`ManifestPut`.
        :return: the digest that the tag pointed at before; ``None``: there was no such tag.
        """
        return await self.catalog.point_tag(
            image,
            tag,
            digest,
            actor=actor,
            immutable=self.immutable,
            precondition=precondition,
            create_only=create_only,
        )

    async def tags(self, image: ImageName, wanted: ListWanted) -> TagsFound:
        """List tags.  :raises NameUnknown: if there is no such image."""  # end-8
        page = await self.catalog.tag_page(image, wanted.after, wanted.limit)
        if page is None:
            raise NameUnknown("no image of that name has been pushed here", {"name": str(image)})
        if page.last is None:
            return TagsFound(page.tags)
        return TagsFound(page.tags, {"n": str(wanted.limit), "last": page.last})

    async def referrers(
        self, image: ImageName, subject: Digest, artifact_type: str | None, wanted: ListWanted
    ) -> ReferrersFound:
        """List the manifests of ``image`` with that subject, none if it is unknown."""  # end-12
        records = await self.catalog.referrers(
            image, subject, artifact_type, wanted.after, wanted.limit + 1
        )
        index, last = referrers_page(records, wanted.limit)
        following = None
        if last is not None:
            following = {"last": last}
            if wanted.counted:
                following["n"] = str(wanted.limit)
            if artifact_type is not None:
                following["artifactType"] = artifact_type
        return ReferrersFound(index, following, filtered=artifact_type is not None)


def _unknown(digest: Digest) -> BlobUnknown:
    return BlobUnknown("this image has no such blob", {"digest": str(digest)})
