"""The bytes of what the catalog lists, from memory or from the store."""

from __future__ import annotations

from attrs import frozen

from artifactd.oci.digest import Digest
from artifactd.oci.name import ImageName
from artifactd.registry.contents import Contents
from artifactd.registry.found import LOCAL, BlobFound, BlobWanted, Provenance
from artifactd.storage.interfaces import BlobStore, OpenBlob

# Bytes up to which a manifest or a blob is answered from memory, not opened for each request.
SMALL = 64 << 10


class Lost(RuntimeError):
    """The catalog lists something of which the store has not, or not all, bytes."""


@frozen
class Stored:
    """Everything that is stored, of all repositories; who may have it is not asked here."""

    blobs: BlobStore
    contents: Contents

    async def body(self, image: ImageName, digest: Digest, size: int) -> OpenBlob | bytes:
        """
        A manifest or a blob of ``image``, of ``size`` bytes as the catalog says; to be closed.

        :raises Lost: if the store has lost it, or some of it.
        """
        if size <= SMALL:
            try:
                return await self.contents.of(digest)
            except (RuntimeError, OSError) as error:
                raise Lost(f"{image}: {error}") from None
        blob = await self.blobs.open(digest)
        if blob is None:
            raise Lost(f"the store has lost blob {digest} of {image}")
        if blob.size != size:
            blob.close()
            raise Lost(f"blob {digest} of {image} has {blob.size} bytes, not {size}")
        return blob

    async def blob(
        self,
        image: ImageName,
        digest: Digest,
        size: int,
        wanted: BlobWanted,
        provenance: Provenance = LOCAL,
    ) -> BlobFound:
        """As :meth:`body`, for a request.  :raises RangeNotSatisfiable: as ``wanted`` does."""
        if wanted.head:
            return BlobFound(size, None, None, provenance)
        span = wanted.part(size)
        body = await self.body(image, digest, size)
        if span is not None and isinstance(body, bytes):
            body = body[span.first : span.last + 1]
        return BlobFound(size, span, body, provenance)
