"""What scrubbing and ``artifactd fsck`` ask of the catalog of SQLite, in the same file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sqlite3 import Connection

from artifactd.catalog import checks, damage
from artifactd.catalog.database import Database
from artifactd.catalog.interfaces import nothing
from artifactd.catalog.repair import Holder, ListedBlob, ListedManifest, Slip
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName


class SQLiteRepairCatalog:
    """
    A :class:`artifactd.catalog.repair.RepairCatalog`.

    :param database: that of a :class:`artifactd.catalog.sqlite.SQLiteCatalog`, which closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lose_blob(self, digest: Digest, is_so: Callable[[], bool]) -> bool:
        at = self._database.now()
        return await self._database.write(lambda db: damage.lose(db, digest, is_so, at))

    async def take_out(self, digest: Digest, move: Callable[[], bool]) -> bool:
        return await self._database.write(lambda db: damage.take_out(db, digest, move))

    async def is_lost(self, digest: Digest) -> bool:
        return await self._database.read(lambda db: damage.is_lost(db, digest))

    async def restore_blob(
        self, digest: Digest, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> None:
        await self._database.write(lambda db: damage.restore(db, digest, confirm), release)

    async def holders(self, digest: Digest, limit: int) -> Sequence[Holder]:
        return await self._database.read(lambda db: damage.holders(db, digest, limit))

    async def drop_lost(self, digest: Digest) -> int:
        at = self._database.now()
        return await self._database.write(lambda db: damage.drop_lost(db, digest, at), last=True)

    async def integrity(self) -> Sequence[str]:
        return await self._database.read(checks.integrity)

    async def listed_blobs(self, after: str, limit: int) -> Sequence[ListedBlob]:
        return await self._database.read(lambda db: damage.listed(db, after, limit))

    async def is_absent(self, digest: Digest, is_there: Callable[[], bool]) -> bool:
        return await self._database.write(lambda db: damage.is_absent(db, digest, is_there))

    async def listed_manifests(self, after: int, limit: int) -> Sequence[ListedManifest]:
        return await self._database.read(lambda db: checks.listed(db, after, limit))

    async def rebuild_manifest(self, image: ImageName, manifest: Manifest) -> bool:
        at = self._database.now()
        return await self._database.write(lambda db: checks.rebuild(db, image, manifest, at))

    async def correct_size(self, digest: Digest, size: int) -> None:
        def write(db: Connection) -> None:
            db.execute("UPDATE blob SET size = ? WHERE digest = ?", (size, str(digest)))

        await self._database.write(write)

    async def slips(self, limit: int) -> Sequence[Slip]:
        return await self._database.read(lambda db: checks.slips(db, limit))

    async def mend(self) -> None:
        at = self._database.now()
        await self._database.write(lambda db: checks.mend(db, at))
