"""What the collector asks of the catalog of SQLite, in the same file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sqlite3 import Connection

from artifactd.catalog import collection, undelete
from artifactd.catalog.database import Database
from artifactd.catalog.garbage import Collected, Restored
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName, Reference


class SQLiteGarbageCatalog:
    """
    A :class:`artifactd.catalog.garbage.GarbageCatalog`.

    :param database: that of a :class:`artifactd.catalog.sqlite.SQLiteCatalog`, which closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def collect_untagged(
        self, repository: str, before: float, limit: int
    ) -> Sequence[Collected]:
        at = self._database.now()
        return await self._collect(
            [(collection.UNTAGGED, (before, repository, 1))],
            lambda db: collection.collect_untagged(db, repository, before, limit, at),
        )

    async def collect_links(self, before: float, limit: int) -> Sequence[Collected]:
        return await self._collect(
            [(collection.LINKS, (before, 1))],
            lambda db: collection.collect_links(db, before, limit),
        )

    async def collect_deleted(self, before: float, limit: int) -> Sequence[Collected]:
        return await self._collect(
            [
                (query, (before, 1))
                for query in (
                    collection.DELETED_MANIFESTS,
                    collection.DELETED_TAGS,
                    collection.DELETED_BLOBS,
                )
            ],
            lambda db: collection.collect_deleted(db, before, limit),
        )

    async def collect_bytes(self, before: float, limit: int) -> Sequence[Collected]:
        # What is looked at and needed after all leaves the queue, so that it ends.
        while await self._any([(collection.LOOSE, (before, 1))]):
            # Last: forget_blob in the same transaction would remove bytes whose rows a failing
            # commit brings back.
            collected = await self._database.write(
                lambda db: collection.collect_bytes(db, before, limit), last=True
            )
            if collected:
                return collected
        return ()

    async def unlisted(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        return await self._database.read(lambda db: collection.unlisted(db, digests))

    async def undelete(self, image: ImageName, reference: Reference | None, actor: str) -> Restored:
        at = self._database.now()
        return await self._database.write(
            lambda db: undelete.undelete(db, image, reference, actor, at)
        )

    async def _collect(
        self,
        queries: Sequence[tuple[str, tuple[object, ...]]],
        write: Callable[[Connection], list[Collected]],
    ) -> Sequence[Collected]:
        # Nobody is kept from writing where there is nothing to do.
        return await self._database.write(write) if await self._any(queries) else ()

    async def _any(self, queries: Sequence[tuple[str, tuple[object, ...]]]) -> bool:
        def read(db: Connection) -> bool:
            return any(db.execute(query, values).fetchone() for query, values in queries)

        return await self._database.read(read)
