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


class Catalog:
    """
    The registry's metadata, in the file at ``path``, which
    :func:`artifactd.catalog.migrations.migrate` has made.

    A method either does everything it says, durably, or raises and does nothing.  Every later call
    of any process sees what a method has done.

    A client's mistakes are raised as :mod:`artifactd.oci.errors`.  A catalog that can't be used now
    (locked, full disk) raises :class:`artifactd.oci.errors.Unavailable`.

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
        """The size in bytes of a blob that ``image`` holds, or ``None`` if it holds none such."""
        link = await self._link(image, digest)
        return None if link is None else link.size

    async def promise_blob(self, image: ImageName, digest: Digest) -> int | None:
        """
        As :meth:`blob_size`, for a client that may rely on it: where no manifest of ``image`` holds
        the blob its lease is renewed first, if a quarter of it has passed.
        """
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
        """
        Let ``image`` hold a blob whose bytes are published, and end the upload session they came
        by.  ``confirm`` is called inside the transaction, ``release`` after it, in the same thread
        (``StagedBlob``); if ``release`` fails that is logged and changes nothing.

        :param quota: bytes that the image's repository may hold; 0: any number.
        :raises QuotaExceeded: if it holds more with it than that, and than before; ``detail`` is
            ``{"repository", "quota", "used", "requested"}``.
        """
        at = self.database.now()

        def add(db: Connection) -> None:
            with images.within_quota(db, image.repository, quota):
                blobs.add(db, image, digest, size, confirm, upload, at)

        await self.database.write(add, release)

    async def mount_blob(
        self, image: ImageName, digest: Digest, source: ImageName | None, quota: int = 0
    ) -> int | None:
        """
        Let ``image`` hold a blob that ``source`` (``None``: any image of the same repository)
        holds.  Not of any other: whoever knows a digest need not have access to every repository.
        Its lease is renewed as by :meth:`promise_blob`.

        Its size in bytes, or ``None`` if ``source`` does not hold it.

        :raises QuotaExceeded: as :meth:`add_blob`.
        """
        at = self.database.now()
        due = at - self._renewed_after

        def mount(db: Connection) -> int | None:
            with images.within_quota(db, image.repository, quota):
                return blobs.mount(db, image, digest, source, at, due)

        return await self.database.write(mount)

    async def repository_size(self, repository: str) -> int:
        """Bytes of all that the images of ``repository`` hold, blobs and manifests, each once."""
        return await self.database.read(lambda db: images.usage_size(db, repository))

    async def delete_blob(
        self, image: ImageName, digest: Digest, *, allow_held: bool, actor: str = ""
    ) -> None:
        """
        Take a blob out of ``image``; it can be brought back (``GarbageCatalog.undelete``).

        :raises BlobUnknown: if ``image`` does not hold it.
        :raises Unsupported: if a manifest of ``image`` holds it, unless ``allow_held``; ``detail``
            is ``{"digest": …, "heldBy": [digests, at most 10]}``.
        """
        at = self.database.now()
        await self.database.write(
            lambda db: blobs.delete(db, image, digest, allow_held=allow_held, actor=actor, at=at)
        )

    async def forget_blob(self, digest: Digest, unlink: Callable[[], None]) -> bool:
        """
        Inside a write transaction: if no row needs the bytes of ``digest``, call ``unlink``.

        Whether it did.  Rows need the bytes of a blob while the catalog lists it at all.
        """
        return await self.database.write(lambda db: blobs.forget(db, digest, unlink))

    async def dropped_blobs(self, after: str, limit: int) -> list[Digest]:
        """
        Digests that are listed no longer and were not forgotten since: a process may die between
        the two.  In the order of their text, those behind ``after``, at most ``limit``.
        """
        return await self.database.read(lambda db: blobs.dropped(db, after, limit))

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestRecord | None:
        """The manifest that ``reference`` names in ``image``, or ``None``."""

        def query(db: Connection) -> ManifestRecord | None:
            return manifests.find(db, image, reference)

        return await self._manifests.get((image, reference), lambda: self.database.read(query))

    async def promise_manifest(
        self, image: ImageName, reference: Reference
    ) -> ManifestRecord | None:
        """
        As :meth:`manifest`, for a client that may rely on it: where nothing keeps it in ``image``
        that counts as pushed anew, if a quarter of a lease has passed.
        """
        record = await self.manifest(image, reference)
        at = self.database.now()
        if record is None or not self._is_due(record.free_since, at):
            return record
        digest, due = record.digest, at - self._renewed_after
        return await self.database.write(lambda db: manifests.promise(db, image, digest, at, due))

    async def check_manifest(self, put: ManifestPut) -> None:
        """
        Raise what :meth:`put_manifest` would raise if called now.

        :raises ManifestBlobUnknown: if blobs or children are absent from the image, unless
            optional; ``detail`` is ``{"digests": […]}``.
        :raises ManifestInvalid: if a descriptor's size is not that of the stored content, or
            indexes would be nested deeper than they may.
        :raises PreconditionFailed: if the precondition does not hold.
        """
        await self.database.read(lambda db: manifests.check(db, put))

    async def put_manifest(
        self, put: ManifestPut, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> None:
        """
        Put a manifest whose bytes are published into an image and move its tags to it, journalling
        each movement; all in one transaction.  Raises as :meth:`check_manifest` and, for the
        quota, as :meth:`add_blob`.

        A tag that points at the manifest already does not move.  The media type of a manifest
        pushed again is the newer one.
        """
        at = self.database.now()

        def store(db: Connection) -> None:
            with images.within_quota(db, put.image.repository, put.quota):
                manifests.put(db, put, confirm, at)

        await self.database.write(store, release)

    async def delete_manifest(
        self, image: ImageName, digest: Digest, *, allow_held: bool, actor: str
    ) -> None:
        """
        Take a manifest and all its tags out of ``image``.  They can be brought back
        (``GarbageCatalog.undelete``); the lease of what nothing else holds runs from now.

        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if ``image`` does not have it.
        :raises Unsupported: if an index of ``image`` holds it, unless ``allow_held``; ``detail``
            as for :meth:`delete_blob`.
        """
        at = self.database.now()
        await self.database.write(
            lambda db: manifests.delete(
                db, image, digest, allow_held=allow_held, actor=actor, at=at
            )
        )

    async def delete_tag(self, image: ImageName, tag: Tag, *, actor: str) -> None:
        """
        Take a tag off; it can be brought back (``GarbageCatalog.undelete``).

        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if there is no such tag.
        """
        at = self.database.now()
        await self.database.write(lambda db: images.delete_tag(db, image, tag, actor=actor, at=at))

    async def tag_movements(self, image: ImageName, tag: Tag) -> Sequence[TagMovement]:
        """The journal of a tag, oldest first."""
        return await self.database.read(lambda db: images.tag_movements(db, image, tag))

    async def tags(
        self, image: ImageName, after: str | None, limit: int | None
    ) -> list[str] | None:
        """
        Tags in ASCII order, those behind ``after``, at most ``limit``; ``None`` if the image is
        unknown: it has never had a manifest.
        """
        return await self.database.read(lambda db: images.tag_names(db, image, after, limit))

    async def images(self, repository: str, after: str, limit: int) -> list[str]:
        """
        The names inside ``repository`` of its known images, in ASCII order, those behind ``after``.
        """
        return await self.database.read(lambda db: images.image_names(db, repository, after, limit))

    async def referrers(
        self,
        image: ImageName,
        subject: Digest,
        artifact_type: str | None,
        after: str | None,
        limit: int,
    ) -> list[ManifestRecord]:
        """
        The manifests of ``image`` whose subject is ``subject``, ordered by the text of their
        digest, those behind ``after``, at most ``limit``, only those of ``artifact_type`` if given.

        Fewer where their annotations exceed 3 MiB: then the last is one more than that.
        """
        return await self.database.read(
            lambda db: manifests.referrers(db, image, subject, artifact_type, after, limit)
        )

    async def add_upload(
        self, upload: UploadRecord, create: Callable[[], None] = nothing, most: int = 0
    ) -> None:
        """
        Remember an upload session.  ``create`` is called inside the transaction before the row is
        written (``UploadStore.create``).

        :param most: how many sessions of its owner there may be; 0: any number.
        :raises TooManyRequests: if there are so many already; then ``create`` is not called.
        """
        await self.database.write(lambda db: images.add_upload(db, upload, create, most))

    async def upload(self, upload_id: str) -> UploadRecord | None:
        """The session of that id, or ``None``."""
        return await self.database.read(lambda db: images.find_upload(db, upload_id))

    async def delete_upload(self, upload_id: str) -> bool:
        """Forget a session; whether there was one."""
        return await self.database.write(lambda db: images.delete_upload(db, upload_id))

    async def uploads(self, after: str, limit: int) -> list[UploadRecord]:
        """Sessions in the order of their ids, those behind ``after``, at most ``limit``."""
        return await self.database.read(lambda db: images.upload_page(db, after, limit))

    async def check(self) -> None:
        """:raises Unavailable: if the catalog can't be read, or can't be locked for writing."""
        self.database.check()
        await self.database.read(lambda db: db.execute("SELECT 1 FROM image LIMIT 1").fetchone())
        await self.database.write(lambda _: None)  # takes the lock, and writes nothing

    async def close(self) -> None:
        """Wait for what is in flight and close."""
        await self.database.close()


def is_light(record: ManifestRecord | None) -> bool:
    """Whether a record takes so little memory that it may be kept."""
    if record is None:
        return True
    return sum(len(k) + len(v) for k, v in record.annotations.items()) <= _CACHED_ANNOTATIONS
