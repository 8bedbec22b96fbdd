"""The bytes of manifests and blobs: read, kept in memory where small, and published."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

from attrs import define, field, frozen
from cachetools import LRUCache
from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.errors import RegistryError, Unavailable
from artifactd.oci.manifest import Manifest, ManifestBounds
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.model import LOCAL, BlobFound, BlobWanted, Provenance
from artifactd.store.blobs import BlobStore, OpenBlob
from artifactd.store.publication import StagedBlob

_log = Logger()

# Bytes up to which a manifest or a blob is answered from memory instead of from an open file.
SMALL = 64 << 10

# Errors of the process or the machine, which say nothing of the blob.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


# Bytes that an entry of the cache takes beside its content.
_ENTRY = 512


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
        self._kept: LRUCache[Digest, bytes] = LRUCache(limit, lambda each: _ENTRY + len(each))

    async def of(self, digest: Digest) -> bytes:
        """
        Return the bytes of a manifest or a small blob that the catalog lists.

        :raises RuntimeError: if the store does not have them.
        :raises OSError: if the store has other bytes, or can't read them.
        """
        kept = self._kept.get(digest)
        if kept is not None:
            return kept
        content = await self._blobs.read(digest)
        if content is None:
            raise RuntimeError(f"the store has lost the bytes of {digest}")
        if _ENTRY + len(content) <= self._largest:
            self._kept[digest] = content
        return content

    def kept(self, digest: Digest) -> bytes | None:
        """Return the bytes if they are in memory; they were verified when they were read."""
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
        """:raises OSError: always, since :attr:`content` has the bytes."""
        raise OSError(errno.EBADF, "the bytes are in memory")

    def close(self) -> None:
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()


def _suspect_nothing(digest: Digest) -> None: ...


class Lost(RuntimeError):
    """The store lacks some or all bytes of a manifest or blob that the catalog lists."""


async def _inspect_nothing(digest: Digest, size: int | None) -> None:
    """Without an inspector, damage is only reported."""


@frozen
class Stored:
    """
    The bytes of all repositories' manifests and blobs; access is checked elsewhere.

    :ivar inspect: called with the digest and the size of bytes that can't be read before Lost is
        raised; it may quarantine them, or raise OSError or RegistryError if it can't look.
    :ivar suspect: called with the digest when an open blob can't be read to its end; returns at
        once.
    """

    blobs: BlobStore
    contents: Contents
    inspect: Callable[[Digest, int | None], Awaitable[object]] = _inspect_nothing
    suspect: Callable[[Digest], object] = _suspect_nothing

    async def body(self, image: ImageName, digest: Digest, size: int) -> OpenBlob:
        """
        Open a manifest or a blob that ``image`` holds; the caller closes it.

        :param size: in bytes, as the catalog says.
        :raises Lost: if the store has lost it, or some of it.
        :raises OSError: if the process can't open files just now, which says nothing of the blob.
        """
        content = self.contents.kept(digest) if size <= SMALL else None
        if content is not None:
            return InMemory(content)
        try:
            return await self._open(image, digest, size)
        except Lost:
            try:
                await self.inspect(digest, size)
            except (OSError, RegistryError) as error:
                _log.error("{digest} can't be looked at: {error}", digest=digest, error=error)
            raise

    async def _open(self, image: ImageName, digest: Digest, size: int) -> OpenBlob:
        try:
            if size <= SMALL:
                return InMemory(await self.contents.of(digest))
            blob = await self.blobs.open(digest)
        except RuntimeError as error:
            raise Lost(f"{image}: {error}") from None
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise Lost(f"{digest} of {image} can't be read: {error}") from None
        if blob is None:
            raise Lost(f"the store has lost blob {digest} of {image}")
        if blob.size != size:
            blob.close()
            raise Lost(f"blob {digest} of {image} has {blob.size} bytes, not {size}")
        blob.on_failure = lambda error: self.suspect(digest)
        return blob

    async def blob(
        self,
        image: ImageName,
        digest: Digest,
        size: int,
        wanted: BlobWanted,
        provenance: Provenance = LOCAL,
    ) -> BlobFound:
        """
        Answer a request for a blob that ``image`` holds; errors are those of :meth:`body`.

        :raises RangeNotSatisfiable: if the blob has no such part.
        """
        if wanted.head:
            return BlobFound(size, None, None, provenance)
        span = wanted.part(size)
        return BlobFound(size, span, await self.body(image, digest, size), provenance)


_TRIES = 3  # each of them waits for the catalog's lock


_T = TypeVar("_T")


async def publish(staged: StagedBlob, catalog: Catalog, insert: Callable[[], Awaitable[_T]]) -> _T:
    """
    Publish staged bytes, then insert their row: the one order in which both come into being.

    The staged copy is kept until the row is committed (architecture.md, "Publication").  While the
    catalog is unavailable the insertion is tried again, since a whole upload is at stake.

    :param insert: writes the row in one transaction, calling ``staged.confirm`` inside it and
        ``staged.release`` after it.
    :return: the result of ``insert``.
    :raises Exception: whatever failed; then neither row nor bytes are left by this call.
    """
    try:
        await staged.publish()
        tries = 0
        while True:
            tries += 1
            try:
                return await insert()
            except Unavailable as error:
                if tries == _TRIES:
                    raise
                _log.warn("writing to the catalog is tried again: {error}", error=error.message)
    except BaseException:
        await staged.withdraw(catalog.forget_blob)
        raise


# Bytes above which a manifest is hashed and parsed in a thread: it takes over a millisecond.
_IN_THREAD = 16 << 10

# Commas and brackets, or bytes, above which manifests are parsed one at a time in this process.
# For parts of the time nothing else runs in the interpreter, and each of several parsers would take
# the turn of the reactor.
_MANY = 20_000
_LARGE = 256 << 10
_many_values = DeferredSemaphore(1)

KEPT = ManifestBounds(nesting=500, entries=0, annotations=0)
"""The bounds of a manifest that is here: it was accepted once."""


async def parsed(
    run: RunInThread,
    content: bytes,
    parse: Callable[[], Manifest],
) -> Manifest:
    """
    Return what ``parse`` makes of ``content``; in a thread if that is large.

    :raises DigestInvalid, ManifestInvalid: what ``parse`` raises.
    """
    if len(content) <= _IN_THREAD:
        return parse()
    if len(content) > _LARGE or sum(map(content.count, (b",", b"[", b"{"))) > _MANY:
        return await _many_values.run(run, parse)
    return await run(parse)
