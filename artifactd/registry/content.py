"""The bytes of manifests and small blobs, the hot ones kept in memory."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import define, field, frozen
from cachetools import LRUCache
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.digest import Digest
from artifactd.oci.errors import RegistryError, Unavailable
from artifactd.oci.manifest import Manifest, ManifestBounds, parse_manifest
from artifactd.oci.names import ImageName
from artifactd.registry.model import LOCAL, BlobFound, BlobWanted, Provenance
from artifactd.store.blobs import BlobStore, OpenBlob
from artifactd.store.publication import StagedBlob


class Contents:
    """
    An LRU cache of the bytes of manifests and small blobs, by their digest.

    The bytes of a digest never change, so nothing in the cache is ever stale.  Whether an image
    holds the digest is for the catalog to say.

    :param limit: bytes kept at most, over all digests; more than an eighth of that is not kept.
    """

    def __init__(self, blobs: BlobStore, limit: int = 16 << 20) -> None:
        self._blobs = blobs
        self._largest = limit // 8
        self._kept: LRUCache[Digest, bytes] = LRUCache(limit, getsizeof=len)

    async def of(self, digest: Digest) -> bytes:
        """
        The bytes of a manifest or a small blob that the catalog lists.

        :raises RuntimeError: if the store does not have them.
        :raises OSError: if the store has other bytes, or can't read them.
        """
        kept = self._kept.get(digest)
        if kept is not None:
            return kept
        content = await self._blobs.read(digest)
        if content is None:
            raise RuntimeError(f"the store has lost the bytes of {digest}")
        if len(content) <= self._largest:
            self._kept[digest] = content
        return content

    def kept(self, digest: Digest) -> bytes | None:
        """The bytes, if they are in memory; they were verified when they were read."""
        return self._kept.get(digest)


@define(eq=False)
class InMemory:
    """A small blob whose bytes are in memory (:class:`artifactd.store.blobs.OpenBlob`)."""

    content: bytes
    on_failure: Callable[[OSError], object] | None = field(default=None, init=False)
    on_close: Callable[[], object] | None = field(default=None, init=False)

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def available(self) -> int:
        return len(self.content)

    def wait(self, beyond: int) -> Deferred[None]:
        return succeed(None)

    def fileno(self) -> int:
        """:raises OSError: always: :attr:`content` has the bytes."""
        raise OSError(errno.EBADF, "the bytes are in memory")

    def close(self) -> None:
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()


# The bytes of what the catalog lists, from memory or from the store.

# Bytes up to which a manifest or a blob is answered from memory, not opened for each request.
SMALL = 64 << 10


_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_log = Logger()


class Lost(RuntimeError):
    """The catalog lists something of which the store has not, or not all, bytes."""


class Inspector(Protocol):
    """Who sees to what can't be read (:class:`artifactd.registry.upkeep.damage.Damage`)."""

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

    async def body(self, image: ImageName, digest: Digest, size: int) -> OpenBlob:
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

    async def _body(self, image: ImageName, digest: Digest, size: int) -> OpenBlob:
        if size <= SMALL:
            try:
                return InMemory(await self.contents.of(digest))
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
        blob.on_failure = lambda error: self.inspector.suspect(digest)
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
        return BlobFound(size, span, await self.body(image, digest, size), provenance)


# The one order in which bytes and rows come into being; architecture.md, "Publication".

_TRIES = 3  # each of them waits for the lock


async def publish(
    staged: StagedBlob, catalog: Catalog, insert: Callable[[], Awaitable[None]]
) -> None:
    """
    Bytes before rows, and the staged copy kept until the row is committed.

    :param insert: writes the row in one transaction, calling ``staged.confirm`` inside it and
        ``staged.release`` after it.
    :raises Exception: whatever failed; then neither row nor bytes are left by this call.
    """
    try:
        await staged.publish()
        await _persistently(insert)
    except BaseException:
        await staged.withdraw(catalog.forget_blob)
        raise


async def _persistently(insert: Callable[[], Awaitable[None]]) -> None:
    """The catalog may be locked for a while by another process: a whole upload is at stake."""
    for _ in range(_TRIES - 1):
        try:
            return await insert()
        except Unavailable as error:
            _log.warn("tried again: {error}", error=error.message)
    return await insert()


# Manifests parsed without making anybody wait.

# Above this many bytes a manifest is hashed and parsed in a thread: it takes over a millisecond.
_IN_THREAD = 16 << 10

KEPT = ManifestBounds(nesting=500, entries=0, annotations=0)
"""Of what is here: it was accepted once."""


async def parsed(
    run: RunInThread,
    content: bytes,
    content_type: str | None,
    digest: Digest | None,
    *,
    other_types: bool,
    bounds: ManifestBounds,
) -> Manifest:
    """
    As :func:`artifactd.oci.manifest.parse_manifest`, in a thread if it is large.

    :raises DigestInvalid, ManifestInvalid: as that does.
    """

    def parse() -> Manifest:
        return parse_manifest(content, content_type, digest, other_types=other_types, bounds=bounds)

    return parse() if len(content) <= _IN_THREAD else await run(parse)
