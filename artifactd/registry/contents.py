"""The bytes of manifests and small blobs, the hot ones kept in memory."""

from __future__ import annotations

from collections import OrderedDict

from artifactd.oci.digest import Digest
from artifactd.store.interfaces import BlobStore


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
