"""Whether the daemon can do its work."""

from __future__ import annotations

from attrs import frozen

from artifactd.catalog.records import Catalog
from artifactd.oci.errors import Unavailable
from artifactd.store.interfaces import BlobStore


@frozen
class Health:
    """What ``/readyz`` asks."""

    catalog: Catalog
    blobs: BlobStore

    async def check(self) -> None:
        """:raises Unavailable: if the catalog or the store can't be used, saying which and why."""
        await self.catalog.check()
        try:
            await self.blobs.check_writable()
        except OSError as error:
            raise Unavailable(f"the store can't be written: {error.strerror}") from error
