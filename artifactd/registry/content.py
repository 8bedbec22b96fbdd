"""The bytes of manifests and small blobs, the hot ones kept in memory."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
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
    Bytes by digest, for what is small enough to be answered from memory.

    What a digest names never changes, so what is kept is never stale; whether an image holds it is
    for the catalog to say.

    :param limit: bytes kept at most, over all digests.
    """

    def __init__(self, blobs: BlobStore, limit: int = 16 << 20) -> None:
        self._blobs = blobs
        self._limit = limit
        self._kept: OrderedDict[Digest, bytes] = OrderedDict()
        self._size = 0

    async def of(self, digest: Digest) -> bytes:
        """
        The bytes of something that the catalog lists.

        :raises RuntimeError: if the store does not have them.
        :raises OSError: if it has others, or can't read them.
        """
        kept = self._kept.get(digest)
        if kept is not None:
            self._kept.move_to_end(digest)
            return kept
        content = await self._blobs.read(digest)
        if content is None:
            raise RuntimeError(f"the store has lost the bytes of {digest}")
        self._keep(digest, content)
        return content

    def kept(self, digest: Digest) -> bytes | None:
        """The bytes, if they are in memory: they were verified then."""
        return self._kept.get(digest)

    def _keep(self, digest: Digest, content: bytes) -> None:
        if digest in self._kept or len(content) > self._limit // 8:
            return
        self._kept[digest] = content
        self._size += len(content)
        while self._size > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)


# Open blobs that tell somebody when they have been read, or can't be.


@define(eq=False)
class Passed:
    """``blob`` itself: what is to be different about it, a subclass says."""

    blob: OpenBlob

    @property
    def size(self) -> int | None:
        return self.blob.size

    @property
    def available(self) -> int:
        return self.blob.available

    def wait(self, beyond: int) -> Deferred[None]:
        return self.blob.wait(beyond)

    def fileno(self) -> int:
        return self.blob.fileno()

    def failed(self, error: OSError) -> None:
        self.blob.failed(error)

    def close(self) -> None:
        self.blob.close()


@define(eq=False)
class Reading(Passed):
    """``blob`` itself; :meth:`close` calls ``end`` besides, once."""

    _end: Callable[[], None]
    _closed: bool = field(default=False, init=False)

    def close(self) -> None:
        super().close()
        if not self._closed:
            self._closed = True
            self._end()


@define(eq=False)
class Watched(Passed):
    """``blob`` itself; where reading it fails, ``suspect`` is told."""

    _suspect: Callable[[], None]

    def failed(self, error: OSError) -> None:
        self._suspect()


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
