"""A local repository: the genuine registry, push and pull."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from artifactd.catalog.interfaces import Catalog, ManifestPut, ManifestRecord, Precondition
from artifactd.oci.digest import Digest
from artifactd.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown
from artifactd.oci.manifest import Manifest, parse_manifest
from artifactd.oci.name import ImageName, Reference, Tag
from artifactd.registry.contents import Contents
from artifactd.registry.publication import publish
from artifactd.storage.interfaces import BlobStore, OpenBlob
from artifactd.storage.threads import RunInThread

# Bytes up to which a manifest or a blob is answered from memory, not opened for each request.
SMALL = 64 << 10

# Above this many bytes a manifest is hashed and parsed in a thread: it takes over a millisecond.
_PARSE_IN_THREAD = 64 << 10


@frozen
class LocalRules:
    """What an administrator may allow in a local repository; etc/artifactd.toml explains each."""

    other_media_types: bool = False
    sparse_indexes: bool = False
    delete_held: bool = False


@frozen
class LocalRepository:
    """Blobs and manifests of the images in one configured repository of kind ``local``."""

    rules: LocalRules
    catalog: Catalog
    blobs: BlobStore
    contents: Contents
    run: RunInThread

    async def blob_size(self, image: ImageName, digest: Digest) -> int:
        """Bytes of a blob of ``image``.  :raises BlobUnknown: if ``image`` does not hold it."""
        size = await self.catalog.blob_size(image, digest)
        if size is None:
            raise BlobUnknown("this image has no such blob", {"digest": str(digest)})
        return size

    async def open_blob(self, image: ImageName, digest: Digest, size: int) -> OpenBlob:
        """
        A blob of ``image``, to be closed by the caller; ``size`` is what :meth:`blob_size` told.

        :raises RuntimeError: if the store has lost it, or some of it.
        """
        blob = await self.blobs.open(digest)
        if blob is None:
            raise RuntimeError(f"the store has lost blob {digest} of {image}")
        if blob.size != size:
            blob.close()
            raise RuntimeError(f"blob {digest} of {image} has {blob.size} bytes, not {size}")
        return blob

    async def delete_blob(self, image: ImageName, digest: Digest) -> None:
        """end-10.  :raises BlobUnknown, Unsupported: as ``Catalog.delete_blob``."""
        await self.catalog.delete_blob(image, digest, allow_held=self.rules.delete_held)

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestRecord:
        """end-3.  :raises ManifestUnknown: if ``image`` has none under ``reference``."""
        record = await self.catalog.manifest(image, reference)
        if record is None:
            raise ManifestUnknown(
                "this image has no such manifest", {"name": str(image), "reference": str(reference)}
            )
        return record

    async def content(self, image: ImageName, digest: Digest) -> bytes:
        """
        The exact bytes of a manifest, or of a blob of at most :data:`SMALL` bytes, that ``image``
        holds.

        :raises RuntimeError: if the store has lost them, or some of them.
        """
        try:
            return await self.contents.of(digest)
        except (RuntimeError, OSError) as error:
            raise RuntimeError(f"{image}: {error}") from None

    async def put_manifest(
        self,
        image: ImageName,
        reference: Reference,
        tags: Sequence[Tag],
        content: bytes,
        content_type: str | None,
        precondition: Precondition,
        actor: str,
    ) -> Manifest:
        """
        end-7a, end-7b: store a manifest and let its tags point at it.

        :param tags: further tags, for a ``reference`` that is a digest.
        :raises DigestInvalid, ManifestInvalid, ManifestBlobUnknown, PreconditionFailed: then
            nothing has changed.
        """
        digest = reference if isinstance(reference, Digest) else None

        def parse() -> Manifest:
            return parse_manifest(
                content, content_type, digest, other_types=self.rules.other_media_types
            )

        manifest = parse() if len(content) <= _PARSE_IN_THREAD else await self.run(parse)
        put = ManifestPut(
            image=image,
            manifest=manifest,
            tags=(reference,) if isinstance(reference, Tag) else tuple(tags),
            precondition=precondition,
            sparse=self.rules.sparse_indexes,
            actor=actor,
        )
        # Asked before a byte is stored, so that a refused manifest leaves nothing; and again in
        # the transaction, since the answer may have changed.
        await self.catalog.check_manifest(put)
        staged = await self.blobs.stage(manifest.digest, content)
        await publish(
            staged,
            self.catalog,
            lambda: self.catalog.put_manifest(put, staged.confirm, staged.release),
        )
        return manifest

    async def delete_manifest(self, image: ImageName, reference: Reference, actor: str) -> None:
        """end-9: a tag, or a manifest with all its tags.  Errors as in ``Catalog``."""
        if isinstance(reference, Tag):
            await self.catalog.delete_tag(image, reference, actor=actor)
        else:
            await self.catalog.delete_manifest(
                image, reference, allow_held=self.rules.delete_held, actor=actor
            )

    async def tags(self, image: ImageName, after: str | None, limit: int) -> list[str]:
        """end-8: at most ``limit`` tags behind ``after``.  :raises NameUnknown: unknown image."""
        tags = await self.catalog.tags(image, after, limit)
        if tags is None:
            raise NameUnknown("no image of that name has been pushed here", {"name": str(image)})
        return tags

    async def referrers(
        self,
        image: ImageName,
        subject: Digest,
        artifact_type: str | None,
        after: str | None,
        limit: int,
    ) -> list[ManifestRecord]:
        """end-12: manifests of ``image`` with that subject; empty also for an unknown one."""
        return await self.catalog.referrers(image, subject, artifact_type, after, limit)
