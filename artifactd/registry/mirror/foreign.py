"""Foreign layers: blobs that an upstream lacks, from the URLs that manifests of the image name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import frozen

from artifactd.catalog.remote import RemoteCatalog
from artifactd.kit.deferreds import RunInThread
from artifactd.oci.manifest import foreign_layer
from artifactd.oci.names import Digest, ImageName
from artifactd.registry.content import KEPT, Contents
from artifactd.registry.mirror.fill import FillSource
from artifactd.store.fills import FillStore
from artifactd.upstream.downloads import Downloads
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.interfaces import BlobBody, Upstream

# Manifests of the image that are looked into, and URLs that are asked: each may take a timeout.
_MANIFESTS = 10
_URLS = 3


@frozen(kw_only=True)
class UrlSource(FillSource):
    """
    The source of a foreign layer's bytes: URLs, which are asked in turn.

    A person who pushes an image to the upstream chooses them.  So an answer from there counts for
    nothing but the bytes that it sends, and for this image alone.

    :ivar size: the size of the blob in bytes, as the manifest says.
    """

    downloads: Downloads
    urls: tuple[str, ...]
    size: int

    async def check(self, size: int | None) -> int | None:
        (await self.open(0, 0)).abort()
        return self.size

    async def open(
        self, first: int = 0, last: int | None = None, validator: str | None = None
    ) -> BlobBody:
        for number, url in enumerate(self.urls, start=1):
            try:
                return self._checked(
                    await self.downloads.open(url, self.image.image, first, last, validator)
                )
            except UpstreamError:
                if number == len(self.urls):
                    raise
        raise AssertionError("a foreign layer without a URL")

    def _checked(self, body: BlobBody) -> BlobBody:
        if body.size not in (None, self.size):
            body.abort()
            raise Unreachable(
                f"{body.host} has {body.size} bytes where the manifest says {self.size}", 200
            )
        body.size = self.size
        return body


@frozen
class ForeignLayers:
    """
    Finds the sources of foreign layers.

    :ivar store: returns the store of the fills of one image.
    """

    remote: RemoteCatalog
    contents: Contents
    downloads: Downloads
    store: Callable[[ImageName], FillStore]
    run: RunInThread

    async def source(
        self, upstream: Upstream, image: ImageName, digest: Digest
    ) -> UrlSource | None:
        """
        Return the source of a blob; ``None`` if no cached manifest of ``image`` has a URL of it.

        :param upstream: the one that lacks the blob.
        """
        for holder in await self.remote.holding(image, digest, _MANIFESTS):
            try:
                content = await self.contents.of(holder)
            except (OSError, RuntimeError):
                continue  # the manifest is damaged or evicted
            found = await self.run(partial(foreign_layer, content, digest, bounds=KEPT))
            if found is not None:
                return UrlSource(
                    upstream,
                    image,
                    digest,
                    self.store(image),
                    downloads=self.downloads,
                    urls=found.urls[:_URLS],
                    size=found.size,
                )
        return None
