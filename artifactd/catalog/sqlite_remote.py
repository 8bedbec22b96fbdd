"""What the catalog of SQLite knows of remote images, in the same file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection

from artifactd.catalog import (
    blobs,
    eviction,
    images,
    origins,
    purge,
    remote_blobs,
    remote_pages,
    remote_tags,
)
from artifactd.catalog.cache import ReadCache
from artifactd.catalog.database import Database
from artifactd.catalog.interfaces import nothing
from artifactd.catalog.remote import CachedPage, CachedTag, Held
from artifactd.catalog.sqlite import CACHED, is_light
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName, Reference, Tag


class SQLiteRemoteCatalog:
    """
    A :class:`artifactd.catalog.remote.RemoteCatalog`.

    :param database: that of a :class:`artifactd.catalog.sqlite.SQLiteCatalog`, which closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        version = database.version
        self._known: ReadCache[ImageName, bool] = ReadCache(version, CACHED)
        self._origins: ReadCache[str, str | None] = ReadCache(version, CACHED)
        self._tags: ReadCache[tuple[ImageName, Tag], CachedTag | None] = ReadCache(
            version, CACHED, lambda cached: cached is None or is_light(cached.record)
        )

    async def is_known(self, image: ImageName) -> bool:
        def query(db: Connection) -> bool:
            return images.find_known(db, image) is not None

        return await self._known.get(image, lambda: self._database.read(query))

    async def release_image(self, image: ImageName) -> None:
        at = self._database.now()
        await self._database.write(lambda db: images.release(db, image, at))

    async def origin(self, name: str) -> str | None:
        def query(db: Connection) -> str | None:
            return origins.find(db, name)

        return await self._origins.get(name, lambda: self._database.read(query))

    async def set_origin(self, name: str, repository: str) -> str:
        return await self._database.write(lambda db: origins.remember(db, name, repository))

    async def cached_tag(self, image: ImageName, tag: Tag) -> CachedTag | None:
        def query(db: Connection) -> CachedTag | None:
            return remote_tags.find(db, image, tag)

        return await self._tags.get((image, tag), lambda: self._database.read(query))

    async def cache_manifest(
        self,
        image: ImageName,
        manifest: Manifest,
        tag: Tag | None,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
    ) -> None:
        at = self._database.now()
        await self._database.write(
            lambda db: remote_tags.cache(db, image, manifest, tag, confirm, at), release
        )

    async def point_tag(self, image: ImageName, tag: Tag, digest: Digest) -> bool:
        at = self._database.now()
        return await self._database.write(lambda db: remote_tags.point(db, image, tag, digest, at))

    async def keep_tag(self, image: ImageName, tag: Tag, candidate: Digest | None) -> None:
        at = self._database.now()
        await self._database.write(lambda db: remote_tags.keep(db, image, tag, candidate, at))

    async def stored_size(self, digest: Digest) -> int | None:
        return await self._database.read(lambda db: blobs.size_anywhere(db, digest))

    async def link_blob(self, image: ImageName, digest: Digest) -> int | None:
        at = self._database.now()
        return await self._database.write(lambda db: remote_blobs.link(db, image, digest, at))

    async def add_blobs(
        self,
        images: Sequence[ImageName],
        digest: Digest,
        size: int,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
    ) -> None:
        at = self._database.now()
        await self._database.write(
            lambda db: remote_blobs.add(db, images, digest, size, confirm, at), release
        )

    async def cached_page(self, image: ImageName, key: str) -> CachedPage | None:
        return await self._database.read(lambda db: remote_pages.find(db, image, key))

    async def cache_page(self, image: ImageName, key: str, page: CachedPage) -> None:
        await self._database.write(lambda db: remote_pages.put(db, image, key, page))

    async def touch(self, used: Mapping[tuple[ImageName, Digest], float]) -> None:
        await self._database.write(lambda db: eviction.touch(db, used))

    async def held_bytes(self, repository: str) -> int:
        return await self._database.read(lambda db: eviction.held_bytes(db, repository))

    async def least_used(self, repository: str, before: float, skip: int, limit: int) -> list[Held]:
        return await self._database.read(
            lambda db: eviction.least_used(db, repository, before, skip, limit)
        )

    async def drop(self, held: Sequence[Held]) -> list[Digest]:
        at = self._database.now()
        # Last: forget_blob in the same transaction would remove bytes whose rows a failing commit
        # brings back.
        return await self._database.write(lambda db: eviction.drop(db, held, at), last=True)

    async def purge(self, image: ImageName, reference: Reference | None) -> list[Digest] | None:
        at = self._database.now()
        return await self._database.write(
            lambda db: purge.purge(db, image, reference, at), last=True
        )
