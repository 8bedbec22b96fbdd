"""The catalog in a file of SQLite, shared by any number of processes of one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from sqlite3 import Connection

from twisted.internet.interfaces import IReactorFromThreads

from artifactd.catalog import blobs, images, manifests
from artifactd.catalog.database import Database, ReadCache
from artifactd.catalog.records import (
    ManifestPut,
    ManifestRecord,
    TagMovement,
    UploadRecord,
    nothing,
)
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName, Reference, Tag

CACHED = 8192  # results of each kind
LEASE = 24 * 3600.0  # seconds
_CACHED_ANNOTATIONS = 512  # characters of one manifest's


class SQLiteCatalog:
    """
    A :class:`artifactd.catalog.records.Catalog` in the file at ``path``, which
    :func:`artifactd.catalog.migrations.migrate` has made.

    Nothing is opened and no thread started before the first call, so it may be made before a fork.

    :param readers: how many reads go on at the same time, each in a thread.
    :param busy_timeout: seconds to wait for another process that is writing.
    :param lease: seconds for which what a client was told of stays although nothing holds it; they
        are renewed when a quarter has passed.
    :param now: seconds since the epoch.
    :ivar database: the connections to the file; :meth:`close` closes them.
    """

    def __init__(
        self,
        path: Path,
        reactor: IReactorFromThreads,
        *,
        readers: int = 4,
        busy_timeout: float = 5.0,
        lease: float = LEASE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.database = Database(path, reactor, readers=readers, busy_timeout=busy_timeout, now=now)
        version = self.database.version
        self._renewed_after = lease / 4
        self._links: ReadCache[tuple[ImageName, Digest], blobs.Link | None]
        self._links = ReadCache(version, CACHED)
        self._manifests: ReadCache[tuple[ImageName, Reference], ManifestRecord | None] = ReadCache(
            version, CACHED, is_light
        )

    async def blob_size(self, image: ImageName, digest: Digest) -> int | None:
        link = await self._link(image, digest)
        return None if link is None else link.size

    async def promise_blob(self, image: ImageName, digest: Digest) -> int | None:
        link = await self._link(image, digest)
        if link is None:
            return None
        at = self.database.now()
        if not self._is_due(link.unheld_since, at):
            return link.size
        due = at - self._renewed_after
        return await self.database.write(lambda db: blobs.promise(db, image, digest, at, due))

    async def _link(self, image: ImageName, digest: Digest) -> blobs.Link | None:
        def query(db: Connection) -> blobs.Link | None:
            return blobs.link_of(db, image, digest)

        return await self._links.get((image, digest), lambda: self.database.read(query))

    def _is_due(self, since: float | None, at: float) -> bool:
        """Whether a lease that runs from ``since`` has to be renewed."""
        return since is not None and since <= at - self._renewed_after

    async def add_blob(
        self,
        image: ImageName,
        digest: Digest,
        size: int,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
        upload: str | None = None,
        quota: int = 0,
    ) -> None:
        at = self.database.now()

        def add(db: Connection) -> None:
            with images.within_quota(db, image.repository, quota):
                blobs.add(db, image, digest, size, confirm, upload, at)

        await self.database.write(add, release)

    async def mount_blob(
        self, image: ImageName, digest: Digest, source: ImageName | None, quota: int = 0
    ) -> int | None:
        at = self.database.now()
        due = at - self._renewed_after

        def mount(db: Connection) -> int | None:
            with images.within_quota(db, image.repository, quota):
                return blobs.mount(db, image, digest, source, at, due)

        return await self.database.write(mount)

    async def repository_size(self, repository: str) -> int:
        return await self.database.read(lambda db: images.usage_size(db, repository))

    async def delete_blob(
        self, image: ImageName, digest: Digest, *, allow_held: bool, actor: str = ""
    ) -> None:
        at = self.database.now()
        await self.database.write(
            lambda db: blobs.delete(db, image, digest, allow_held=allow_held, actor=actor, at=at)
        )

    async def forget_blob(self, digest: Digest, unlink: Callable[[], None]) -> bool:
        return await self.database.write(lambda db: blobs.forget(db, digest, unlink))

    async def dropped_blobs(self, after: str, limit: int) -> list[Digest]:
        return await self.database.read(lambda db: blobs.dropped(db, after, limit))

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestRecord | None:
        def query(db: Connection) -> ManifestRecord | None:
            return manifests.find(db, image, reference)

        return await self._manifests.get((image, reference), lambda: self.database.read(query))

    async def promise_manifest(
        self, image: ImageName, reference: Reference
    ) -> ManifestRecord | None:
        record = await self.manifest(image, reference)
        at = self.database.now()
        if record is None or not self._is_due(record.free_since, at):
            return record
        digest, due = record.digest, at - self._renewed_after
        return await self.database.write(lambda db: manifests.promise(db, image, digest, at, due))

    async def check_manifest(self, put: ManifestPut) -> None:
        await self.database.read(lambda db: manifests.check(db, put))

    async def put_manifest(
        self, put: ManifestPut, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> None:
        at = self.database.now()

        def store(db: Connection) -> None:
            with images.within_quota(db, put.image.repository, put.quota):
                manifests.put(db, put, confirm, at)

        await self.database.write(store, release)

    async def delete_manifest(
        self, image: ImageName, digest: Digest, *, allow_held: bool, actor: str
    ) -> None:
        at = self.database.now()
        await self.database.write(
            lambda db: manifests.delete(
                db, image, digest, allow_held=allow_held, actor=actor, at=at
            )
        )

    async def delete_tag(self, image: ImageName, tag: Tag, *, actor: str) -> None:
        at = self.database.now()
        await self.database.write(lambda db: images.delete_tag(db, image, tag, actor=actor, at=at))

    async def tag_movements(self, image: ImageName, tag: Tag) -> Sequence[TagMovement]:
        return await self.database.read(lambda db: images.tag_movements(db, image, tag))

    async def tags(
        self, image: ImageName, after: str | None, limit: int | None
    ) -> list[str] | None:
        return await self.database.read(lambda db: images.tag_names(db, image, after, limit))

    async def images(self, repository: str, after: str, limit: int) -> list[str]:
        return await self.database.read(lambda db: images.image_names(db, repository, after, limit))

    async def referrers(
        self,
        image: ImageName,
        subject: Digest,
        artifact_type: str | None,
        after: str | None,
        limit: int,
    ) -> list[ManifestRecord]:
        return await self.database.read(
            lambda db: manifests.referrers(db, image, subject, artifact_type, after, limit)
        )

    async def add_upload(
        self, upload: UploadRecord, create: Callable[[], None] = nothing, most: int = 0
    ) -> None:
        await self.database.write(lambda db: images.add_upload(db, upload, create, most))

    async def upload(self, upload_id: str) -> UploadRecord | None:
        return await self.database.read(lambda db: images.find_upload(db, upload_id))

    async def delete_upload(self, upload_id: str) -> bool:
        return await self.database.write(lambda db: images.delete_upload(db, upload_id))

    async def uploads(self, after: str, limit: int) -> list[UploadRecord]:
        return await self.database.read(lambda db: images.upload_page(db, after, limit))

    async def check(self) -> None:
        self.database.check()
        await self.database.read(lambda db: db.execute("SELECT 1 FROM image LIMIT 1").fetchone())
        await self.database.write(lambda _: None)  # takes the lock, and writes nothing

    async def close(self) -> None:
        await self.database.close()


def is_light(record: ManifestRecord | None) -> bool:
    """Whether a record takes so little memory that it may be kept."""
    if record is None:
        return True
    return sum(len(k) + len(v) for k, v in record.annotations.items()) <= _CACHED_ANNOTATIONS
