"""The bytes of what the catalog lists, from memory or from the store."""

from __future__ import annotations

import errno
from functools import partial
from typing import Protocol

from attrs import field, frozen
from twisted.logger import Logger

from artifactd.oci.digest import Digest
from artifactd.oci.errors import RegistryError
from artifactd.oci.names import ImageName
from artifactd.registry.contents import Contents
from artifactd.registry.found import LOCAL, BlobFound, BlobWanted, Provenance
from artifactd.registry.reading import Watched
from artifactd.store.interfaces import BlobStore, OpenBlob

# Bytes up to which a manifest or a blob is answered from memory, not opened for each request.
SMALL = 64 << 10


_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_log = Logger()


class Lost(RuntimeError):
    """The catalog lists something of which the store has not, or not all, bytes."""


class Inspector(Protocol):
    """Who sees to what can't be read (:class:`artifactd.registry.damage.Damage`)."""

    async def inspect(self, digest: Digest, size: int | None = None) -> str | None:
        """Look at it, and see to it."""

    def suspect(self, digest: Digest) -> None:
        """:meth:`inspect` it some time."""


class Nobody:
    """An :class:`Inspector` who does nothing."""

    async def inspect(self, digest: Digest, size: int | None = None) -> str | None:
        return None

    def suspect(self, digest: Digest) -> None:
        pass


@frozen
class Stored:
    """
    Everything that is stored, of all repositories; who may have it is not asked here.

    :ivar inspector: sees to what can't be read; what it finds lost is listed no more to readers.
    """

    blobs: BlobStore
    contents: Contents
    inspector: Inspector = field(factory=Nobody)

    async def body(self, image: ImageName, digest: Digest, size: int) -> OpenBlob | bytes:
        """
        A manifest or a blob of ``image``, of ``size`` bytes as the catalog says; to be closed.

        :raises Lost: if the store has lost it, or some of it.
        :raises OSError: if the process can't open files just now, which says nothing of the blob.
        """
        try:
            return await self._body(image, digest, size)
        except Lost:
            try:
                await self.inspector.inspect(digest, size)
            except (OSError, RegistryError) as error:
                _log.error("{digest} can't be looked at: {error}", digest=digest, error=error)
            raise

    async def _body(self, image: ImageName, digest: Digest, size: int) -> OpenBlob | bytes:
        if size <= SMALL:
            try:
                return await self.contents.of(digest)
            except RuntimeError as error:
                raise Lost(f"{image}: {error}") from None
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                raise Lost(f"{image}: {error}") from None
        try:
            blob = await self.blobs.open(digest)
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise Lost(f"blob {digest} of {image} can't be opened: {error}") from None
        if blob is None:
            raise Lost(f"the store has lost blob {digest} of {image}")
        if blob.size != size:
            blob.close()
            raise Lost(f"blob {digest} of {image} has {blob.size} bytes, not {size}")
        return Watched(blob, partial(self.inspector.suspect, digest))

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
