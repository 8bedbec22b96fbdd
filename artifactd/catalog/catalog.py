"""Images with their blobs, manifests and tags, and upload sessions: rows in SQLite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection
from sys import getsizeof

from artifactd.catalog import images, manifests
from artifactd.catalog.cache import ReadCache
from artifactd.catalog.database import Database, OnDatabase, read, write, write_freeing
from artifactd.catalog.overview import glob, matching
from artifactd.catalog.records import (
    ANYHOW,
    MOVABLE,
    ImageSpan,
    ImmutableTags,
    ManifestPut,
    ManifestRecord,
    Precondition,
    TagMovement,
    TagPage,
    UploadEnded,
    UploadRecord,
    nothing,
    session_key,
)
from artifactd.oci.errors import BlobUnknown, ManifestUnknown, TagExists
from artifactd.oci.names import Algorithm, Digest, ImageName, Reference, Tag

CACHED = 8 << 20  # bytes of the results of each kind that are kept in memory
LEASE = 24 * 3600.0  # seconds
_REFERRERS_TEXT = 3 << 20  # characters in one list; one manifest may have 4 MiB
_BEHIND_ALL = "~"  # no tag has it, and all are before it
_UPLOAD_COLUMNS = "id, repository, image, algorithm, started"


def _image_of(key: tuple[ImageName, object]) -> str:
    return str(key[0])


def _session_of(upload_id: str) -> str:
    return (session_key(upload_id) or b"").hex().upper()  # as SQLite's hex()


class Catalog(OnDatabase):
    """
    The registry's metadata, shared by all processes on the data folder.

    A method either does everything it says, durably, or raises and does nothing.  Every later call
    of any process sees what a method has done.

    A client's mistakes are raised as :mod:`artifactd.oci.errors`.  A catalog that can't be used now
    (locked, full disk) raises :class:`artifactd.oci.errors.Unavailable`.

    :param lease: seconds for which a blob or manifest stays after a client was told that it is
        here, although nothing holds it; renewed once a quarter has passed.
    """

    def __init__(self, database: Database, *, lease: float = LEASE) -> None:
        super().__init__(database)
        self._renewed_after = lease / 4
        self._links: ReadCache[tuple[ImageName, Digest], images.Link | None]
        self._links = ReadCache(database.versions, _image_of, CACHED)
        self._ended: ReadCache[str, bool] = ReadCache(database.versions, _session_of, CACHED)
        self._manifests: ReadCache[tuple[ImageName, Reference], ManifestRecord | None]
        self._manifests = ReadCache(database.versions, _image_of, CACHED, record_bytes)
        # First pages: they are asked for again and again, by programs that wait for a new tag.
        self._tag_pages: ReadCache[tuple[ImageName, int], TagPage | None]
        self._tag_pages = ReadCache(
            database.versions, _image_of, CACHED, lambda page: len(page.tags) if page else 0
        )

    # -- blobs

    async def blob_size(self, image: ImageName, digest: Digest) -> int | None:
        """The size in bytes of a blob that ``image`` holds, or ``None`` if it does not hold it."""
        link = await self._link(image, digest)
        return None if link is None else link.size

    async def promise_blob(self, image: ImageName, digest: Digest) -> int | None:
        """
        The same as :meth:`blob_size`, for a client that may rely on the answer: if no manifest of
        ``image`` holds the blob, its lease is renewed once a quarter of it has passed.
        """
        link = await self._link(image, digest)
        if link is None:
            return None
        if not self._is_due(link.unheld_since):
            return link.size
        return await self._renew_blob(image, digest)

    async def _link(self, image: ImageName, digest: Digest) -> images.Link | None:
        return await self._links.get(
            (image, digest),
            lambda: self.database.read(lambda db: images.link_of(db, image, digest)),
        )

    @write
    def _renew_blob(self, db: Connection, image: ImageName, digest: Digest) -> int | None:
        at = self.database.now()
        images.renew_blob(db, image, digest, at, at - self._renewed_after)
        link = images.link_of(db, image, digest)
        return None if link is None else link.size

    def _is_due(self, since: float | None) -> bool:
        """Whether a lease that runs from ``since`` has to be renewed."""
        return since is not None and since <= self.database.now() - self._renewed_after

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
        Let ``image`` hold a blob whose bytes are published, and end the upload session that they
        came by.

        :param confirm: called inside the transaction to see that the bytes are there
            (``StagedBlob``).
        :param release: called after the commit, in the same thread; an error that it raises is
            logged.
        :param quota: bytes that the image's repository may hold; 0: any number.
        :raises UploadEnded: if that session has ended before.
        :raises QuotaExceeded: if the repository would hold more than ``quota``, and more than
            before; ``full_detail`` is ``{"repository", "quota", "used", "requested"}``.
        """

        def add(db: Connection) -> None:
            at = self.database.now()
            with images.within_quota(db, image.repository, quota):
                confirm()
                images.record_blob(db, digest, size, at)
                images.link_blob(db, image, digest, used_at=None, at=at, due=at)
            if upload is not None and not _end_upload(db, upload):
                raise UploadEnded(upload)

        await self.database.write(add, release)

    @write
    def mount_blob(
        self,
        db: Connection,
        image: ImageName,
        digest: Digest,
        source: ImageName | None,
        quota: int = 0,
    ) -> int | None:
        """
        Let ``image`` hold a blob that ``source`` holds (``None``: any image of the same
        repository).  Other repositories are not searched, because a client that knows a digest may
        have no access to them.  The lease is renewed as by :meth:`promise_blob`.

        :return: the size in bytes, or ``None`` if ``source`` does not hold the blob.
        :raises QuotaExceeded: the same as :meth:`add_blob`.
        """
        at = self.database.now()
        with images.within_quota(db, image.repository, quota):
            if source is not None:
                link = images.link_of(db, source, digest)
                size = None if link is None else link.size
            else:
                row = db.execute(
                    "SELECT size FROM blob WHERE digest = ? AND lost_at IS NULL AND EXISTS ("
                    "SELECT 1 FROM blob_link JOIN image ON image.id = blob_link.image_id"
                    " WHERE blob_link.blob_id = blob.id AND image.repository = ?)",
                    (str(digest), image.repository),
                ).fetchone()
                size = None if row is None else int(row[0])
            if size is not None:
                due = at - self._renewed_after
                images.link_blob(db, image, digest, used_at=None, at=at, due=due)
        return size

    @read
    def repository_size(self, db: Connection, repository: str) -> int:
        """Bytes of all blobs and manifests that the images of ``repository`` hold, each once."""
        return images.usage_size(db, repository)

    @write_freeing
    def delete_blob(
        self,
        db: Connection,
        image: ImageName,
        digest: Digest,
        *,
        allow_held: bool,
        actor: str = "",
        immutable: ImmutableTags = MOVABLE,
    ) -> None:
        """
        Take a blob out of ``image``; ``GarbageCatalog.undelete`` can bring it back.

        :param immutable: the tags whose content must stay.
        :raises TagImmutable: if the manifest of one of these holds the blob.
        :raises BlobUnknown: if ``image`` does not hold the blob.
        :raises Unsupported: if a manifest of ``image`` holds it, unless ``allow_held``; ``detail``
            is ``{"digest": …}``, and ``stored`` ``{"heldBy": [digests, at most 10]}``.
        """
        image_id = images.find(db, image)
        # A blob whose bytes are lost can be deleted too.
        link = (image_id, str(digest))
        where = "image_id = ? AND blob_id = (SELECT id FROM blob WHERE digest = ?)"
        linked = db.execute(f"SELECT 1 FROM blob_link WHERE {where}", link).fetchone()
        if image_id is None or linked is None:
            raise BlobUnknown("this image has no such blob", {"digest": str(digest)})
        if not allow_held:
            manifests.refuse_if_held(db, image_id, digest, "blob")
        manifests.refuse_if_immutable(db, image, image_id, digest, immutable)
        images.bury_blob(db, image_id, digest, actor=actor, at=self.database.now())
        db.execute(f"DELETE FROM blob_link WHERE {where}", link)

    @write_freeing
    def forget_blob(self, db: Connection, digest: Digest, unlink: Callable[[], None]) -> bool:
        """
        Call ``unlink`` inside the write transaction if the catalog does not list ``digest``.

        :return: whether ``unlink`` was called.
        """
        listed = db.execute("SELECT 1 FROM blob WHERE digest = ?", (str(digest),)).fetchone()
        if listed is None:
            unlink()
        db.execute("DELETE FROM dropped_blob WHERE digest = ?", (str(digest),))
        return listed is None

    @read
    def dropped_blobs(self, db: Connection, after: str, limit: int) -> list[Digest]:
        """
        Digests that are no longer listed and have not been forgotten since: a process may die
        between the two.  At most ``limit`` behind ``after``, in the order of their text.
        """
        rows = db.execute(
            "SELECT digest FROM dropped_blob WHERE digest > ? ORDER BY digest LIMIT ?",
            (after, limit),
        )
        return [Digest.parse(digest) for (digest,) in rows]

    # -- manifests

    async def manifest(self, image: ImageName, reference: Reference) -> ManifestRecord | None:
        """The manifest that ``reference`` names in ``image``, or ``None``."""
        return await self._manifests.get(
            (image, reference),
            lambda: self.database.read(lambda db: manifests.find(db, image, reference)),
        )

    async def promise_manifest(
        self, image: ImageName, reference: Reference, *, expires: bool
    ) -> ManifestRecord | None:
        """
        The same as :meth:`manifest`, for a client that may rely on the answer: if nothing keeps the
        manifest in ``image``, its lease is renewed once a quarter of it has passed.

        :param expires: whether all manifests that nothing keeps are collected, or orphans alone.
        """
        record = await self.manifest(image, reference)
        if record is None or not (expires or record.orphaned):
            return record
        if not self._is_due(record.free_since):
            return record
        return await self._renew_manifest(image, record.digest)

    @write
    def _renew_manifest(
        self, db: Connection, image: ImageName, digest: Digest
    ) -> ManifestRecord | None:
        at = self.database.now()
        images.renew_manifest(db, image, digest, at, at - self._renewed_after)
        return manifests.find(db, image, digest)

    @read
    def check_manifest(self, db: Connection, put: ManifestPut) -> None:
        """
        Raise the error that :meth:`put_manifest` would raise now without an adoption, the quota's
        excepted.

        :raises ManifestBlobUnknown: if blobs or children are absent from the image, unless
            optional; ``detail`` is ``{"digests": […]}``.
        :raises ManifestInvalid: if a descriptor's size is not that of the stored content, or
            indexes would be nested too deep.
        :raises PreconditionFailed: if the precondition does not hold.
        """
        manifests.check(db, put)

    async def put_manifest(
        self, put: ManifestPut, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> Mapping[Tag, Digest | None]:
        """
        Put a manifest whose bytes are published into an image, move its tags to it and journal each
        movement, all in one transaction.  ``confirm`` and ``release`` work as in :meth:`add_blob`.

        A tag that points at the manifest already does not move.  A manifest that is pushed again
        takes the media type of the newer push.  With an ``adoption`` the manifest is judged as if
        the image had what is adopted, and either both are stored or neither.

        :return: where each of the tags pointed before; ``None``: there was no such tag.
        :raises RegistryError: the errors of :meth:`check_manifest` and ``QuotaExceeded``.
        """

        def store(db: Connection) -> Mapping[Tag, Digest | None]:
            at = self.database.now()
            with images.within_quota(db, put.image.repository, put.quota):
                if put.adoption is not None:
                    manifests.adopt(db, put, put.adoption, at)
                manifests.check(db, put)
                with self.database.outbox.telling(db, put.image, put.actor, at, pushed=put):
                    return manifests.store(db, put, confirm, at, used_at=None)

        adopted = () if put.adoption is None else put.adoption.manifests
        long = manifests.are_many(put.manifest, *adopted)
        return await self.database.write(store, release, long=put.actor if long else None)

    async def delete_manifest(
        self,
        image: ImageName,
        digest: Digest,
        *,
        allow_held: bool,
        actor: str,
        unless_kept: bool = False,
        immutable: ImmutableTags = MOVABLE,
        precondition: Precondition = ANYHOW,
    ) -> bool:
        """
        Take a manifest and all its tags out of ``image``.  ``GarbageCatalog.undelete`` can bring
        them back.  The leases of blobs and manifests that nothing else holds run from now; the
        manifests that it listed, and that nothing keeps now, are collected after theirs.

        :param unless_kept: do nothing if a tag, an index or a subject keeps it.
        :param immutable: the tags whose content must stay.
        :param precondition: must hold for the digest.
        :return: whether it was taken out.
        :raises TagImmutable: if one of these points at the manifest, or at an index that holds it.
        :raises PreconditionFailed: if the precondition does not hold.
        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if ``image`` does not have the manifest.
        :raises Unsupported: if an index of ``image`` holds it, unless ``allow_held``; ``detail``
            is the same as for :meth:`delete_blob`.
        """

        def delete(db: Connection) -> bool:
            at = self.database.now()
            image_id = images.known(db, image)
            manifest_id = manifests.row_of(db, image_id, digest)
            if manifest_id is None:
                raise ManifestUnknown("this image has no such manifest", {"digest": str(digest)})
            precondition.require(digest, digest)
            if unless_kept and images.is_kept(db, manifest_id):
                return False
            if not allow_held:
                manifests.refuse_if_held(db, image_id, digest, "manifest")
            manifests.refuse_if_immutable(db, image, image_id, digest, immutable)
            children = manifests.children_of(db, manifest_id)
            images.bury_manifest(db, manifest_id, actor=actor, at=at)
            with self.database.outbox.telling(db, image, actor, at, deleted=digest):
                manifests.remove(db, image_id, manifest_id, digest, actor=actor, at=at)
            images.orphan(db, image_id, children)
            return True

        long = await self.database.read(lambda db: manifests.holds_many(db, image, digest))
        return await self.database.write(delete, long=actor if long else None, frees=True)

    @read
    def check_mutable(
        self, db: Connection, image: ImageName, reference: Reference, immutable: ImmutableTags
    ) -> None:
        """
        Raise the error that :meth:`delete_tag` or :meth:`delete_manifest` would raise because of
        ``immutable``.

        :raises TagImmutable: see there.
        """
        image_id = images.find(db, image)
        if image_id is None:
            return
        if isinstance(reference, Digest):
            manifests.refuse_if_immutable(db, image, image_id, reference, immutable)
        elif (current := images.tag_target(db, image_id, reference)) is not None:
            immutable.refuse(image, reference.text, current)

    @read
    def referrers(
        self,
        db: Connection,
        image: ImageName,
        subject: Digest,
        artifact_type: str | None,
        after: str | None,
        limit: int,
    ) -> list[ManifestRecord]:
        """
        The manifests of ``image`` whose subject is ``subject``, in the order of their digests'
        text: at most ``limit`` behind ``after``, only those of ``artifact_type`` if it is given.

        The list is shorter if its annotations and types exceed 3 MiB: it ends with the manifest
        behind the one that exceeded them.
        """
        query = manifests.BY_SUBJECT
        values: list[str | int] = [image.repository, image.image, str(subject), after or ""]
        if artifact_type is not None:
            query += " AND artifact_type = ?"
            values.append(artifact_type)
        records: list[ManifestRecord] = []
        size = 0
        for row in db.execute(f"{query} ORDER BY manifest.digest LIMIT ?", (*values, limit)):
            records.append(manifests.record_of(row))
            if size > _REFERRERS_TEXT:
                break  # one more than fits, which tells that there are more
            size += len(row[2]) + len(row[3] or "") + len(row[5])
        return records

    # -- images and tags

    @read
    def images_between(
        self,
        db: Connection,
        spans: Sequence[ImageSpan],
        limit: int,
        shown: Callable[[ImageName], bool] | None = None,
        pattern: str = "*",
        among: Sequence[str] | None = None,
        most: int = 1000,
    ) -> tuple[list[ImageName], ImageName | None]:
        """
        The known images in ``spans``, in their order: at most ``limit`` of those that ``shown``
        tells to list (``None``: all).  It is called in a reader's thread.

        :param pattern: for canonical names, as of a shell (:mod:`fnmatch`); ``*`` matches slashes
            too.
        :param among: patterns, of which the others match none; ``None``: that is not known.
        :param most: names that fit the patterns and are looked at.
        :return: the images, and the last one that was looked at; ``None`` if there are no more
            behind it.
        """
        found: list[ImageName] = []
        looked = 0
        image: ImageName | None = None
        fits, patterns = matching("repository || '/' || name", among)
        for span in spans:
            rows = db.execute(
                "SELECT name FROM image WHERE repository = ? AND name > ? AND name < ?"
                f" AND repository || '/' || name GLOB ? AND {fits} AND known_at IS NOT NULL"
                " ORDER BY name LIMIT ?",
                (
                    *(span.repository, span.after, span.before, glob(pattern)),
                    *(*patterns, most - looked),
                ),
            )
            for (name,) in rows:
                looked += 1
                image = ImageName(span.repository, name)
                if shown is None or shown(image):
                    found.append(image)
                if len(found) == limit or looked == most:
                    return found, image
        return found, None

    @read
    def tags(
        self, db: Connection, image: ImageName, after: str | None, limit: int | None
    ) -> list[str] | None:
        """
        The tags of ``image`` in ASCII order: at most ``limit`` behind ``after``.  ``None`` if the
        image is unknown: it has never had a manifest.
        """
        image_id = images.find_known(db, image)
        if image_id is None:
            return None
        rows = db.execute(
            "SELECT name FROM tag WHERE image_id = ? AND name > ? ORDER BY name LIMIT ?",
            (image_id, after or "", -1 if limit is None else limit),
        )
        return [name for (name,) in rows]

    async def tag_page(self, image: ImageName, after: str | None, limit: int) -> TagPage | None:
        """The same as :meth:`tags`, as JSON."""
        if after:
            return await self._read_tag_page(image, after, limit)
        return await self._tag_pages.get(
            (image, limit), lambda: self._read_tag_page(image, "", limit)
        )

    @read
    def _read_tag_page(
        self, db: Connection, image: ImageName, after: str, limit: int
    ) -> TagPage | None:
        # SQLite makes the JSON, without the interpreter's lock, which a thread would otherwise take
        # anew for each tag.
        image_id = images.find_known(db, image)
        if image_id is None:
            return None
        # No subquery: that would take three times as long.  A search by the primary key, which
        # the table is ordered by, finds the rows in order.
        searched = "FROM tag NOT INDEXED WHERE image_id = ? AND name > ?"
        first = (image_id, after)
        behind = db.execute(
            f"SELECT name {searched} ORDER BY name LIMIT 1 OFFSET ?", (*first, limit)
        ).fetchone()
        before = (*first, _BEHIND_ALL if behind is None else behind[0])
        (tags,) = db.execute(
            f"SELECT CAST(json_group_array(name) AS BLOB) {searched} AND name < ?", before
        ).fetchone()
        if behind is None:
            return TagPage(tags, None)
        (last,) = db.execute(f"SELECT max(name) {searched} AND name < ?", before).fetchone()
        return TagPage(tags, last)

    @read
    def tag_movements(
        self,
        db: Connection,
        image: ImageName,
        tag: Tag | None,
        after: int | None = None,
        limit: int = -1,
        *,
        newest_first: bool = False,
    ) -> Sequence[TagMovement]:
        """
        The journal of a tag, or of all tags of ``image`` (``None``); oldest first unless
        ``newest_first``.

        :param after: the number of a movement: only those behind it, in that order.
        :param limit: how many at most; -1: all.
        """
        query = (
            "SELECT tag, actor, at, before, after, id FROM tag_movement"
            " WHERE image_id = (SELECT id FROM image WHERE repository = ? AND name = ?)"
        )
        values: list[str | int] = [image.repository, image.image]
        if tag is not None:
            query += " AND tag = ?"
            values.append(tag.text)
        if after is not None:
            query += f" AND id {'<' if newest_first else '>'} ?"
            values.append(after)
        order = "id DESC" if newest_first else "id"
        rows = db.execute(f"{query} ORDER BY {order} LIMIT ?", (*values, limit))
        return [
            TagMovement(
                name,
                actor,
                at,
                None if before is None else Digest.parse(before),
                None if after is None else Digest.parse(after),
                number,
            )
            for name, actor, at, before, after, number in rows
        ]

    @read
    def tag_at(self, db: Connection, image: ImageName, tag: Tag, at: float) -> Digest | None:
        """
        The digest that a tag pointed at.

        :param at: in seconds since the epoch.
        :return: ``None``: there was no such tag then.
        """
        row = db.execute(
            "SELECT after FROM tag_movement"
            " WHERE image_id = (SELECT id FROM image WHERE repository = ? AND name = ?)"
            " AND tag = ? AND at <= ? ORDER BY id DESC LIMIT 1",
            (image.repository, image.image, tag.text, at),
        ).fetchone()
        return None if row is None or row[0] is None else Digest.parse(row[0])

    @write
    def point_tag(
        self,
        db: Connection,
        image: ImageName,
        tag: Tag,
        digest: Digest,
        *,
        actor: str,
        immutable: ImmutableTags = MOVABLE,
        precondition: Precondition = ANYHOW,
        create_only: str = "",
    ) -> Digest | None:
        """
        Point a tag at a manifest that the image has, and journal the movement.

        :param immutable: the tags that must not be moved.
        :param precondition: must hold for the digest that the tag points at.
        :param create_only: see :class:`ManifestPut`.
        :return: the digest that the tag pointed at before; ``None``: there was no such tag.
        :raises NameUnknown: if the image is unknown.
        :raises PreconditionFailed: if the precondition does not hold.
        :raises TagImmutable: if it is one that must not be moved, and points at another manifest.
        :raises TagExists: if the user may only create, and it points at another manifest.
        :raises ManifestUnknown: if the image does not have the manifest.
        """
        image_id = images.known(db, image)
        manifest_id = manifests.row_of(db, image_id, digest)
        if manifest_id is None:
            raise ManifestUnknown(
                "this image has no such manifest: bring it back with undelete first",
                {"digest": str(digest)},
            )
        before = images.tag_target(db, image_id, tag)
        precondition.require(tag, before)
        if before is not None and before != digest:
            immutable.refuse(image, tag.text, before)
            if create_only:
                raise TagExists(tag, create_only, before)
        at = self.database.now()
        with self.database.outbox.telling(db, image, actor, at, back=True):
            return images.move_tag(db, image_id, tag, manifest_id, digest, actor, at)

    @write_freeing
    def delete_tag(
        self,
        db: Connection,
        image: ImageName,
        tag: Tag,
        *,
        actor: str,
        immutable: ImmutableTags = MOVABLE,
        precondition: Precondition = ANYHOW,
    ) -> Digest:
        """
        Delete a tag; ``GarbageCatalog.undelete`` can bring it back.

        :param immutable: the tags that must not be deleted.
        :param precondition: must hold for the digest that the tag points at.
        :return: the digest that it pointed at.
        :raises NameUnknown: if the image is unknown.
        :raises TagImmutable: if this is one of them.
        :raises ManifestUnknown: if there is no such tag.
        :raises PreconditionFailed: if the precondition does not hold.
        """
        at = self.database.now()
        image_id = images.known(db, image)
        before = images.tag_target(db, image_id, tag)
        if before is None:
            raise ManifestUnknown("this image has no such tag", {"tag": tag.text})
        precondition.require(tag, before)
        immutable.refuse(image, tag.text, before)
        images.bury_tag(db, image_id, tag.text, before, actor=actor, at=at)
        with self.database.outbox.telling(db, image, actor, at):
            images.take_tag_off(db, image_id, tag, before, actor=actor, at=at)
        return before

    # -- upload sessions

    @read
    def upload(self, db: Connection, upload_id: str) -> UploadRecord | None:
        """The session of that id, if an older release has opened it, and it has not ended."""
        row = db.execute(
            f"SELECT {_UPLOAD_COLUMNS} FROM upload WHERE id = ?", (upload_id,)
        ).fetchone()
        return None if row is None else _upload_record(*row)

    @read
    def uploads(self, db: Connection, after: str, limit: int) -> list[UploadRecord]:
        """Such sessions in the order of their ids, at most ``limit`` behind ``after``."""
        rows = db.execute(
            f"SELECT {_UPLOAD_COLUMNS} FROM upload WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [_upload_record(*row) for row in rows]

    def upload_opened(self, upload_id: str) -> None:
        """Note that a session whose id was just made has not ended: so that needs no read."""
        self._ended.put(upload_id, False)

    async def is_upload_ended(self, upload_id: str) -> bool:
        """
        Whether a session was closed or cancelled.  Never true of one that an older release has
        opened: its end is that its record is gone.
        """

        def ended(db: Connection) -> bool:
            query = "SELECT 1 FROM ended_upload WHERE id = ?"
            return db.execute(query, (session_key(upload_id),)).fetchone() is not None

        return await self._ended.get(upload_id, lambda: self.database.read(ended))

    async def end_upload(self, upload_id: str, release: Callable[[], None] = nothing) -> bool:
        """
        Note that a session has ended.  Returns whether it had not before.

        :param release: called after the commit, in the same thread; an error that it raises is
            logged.
        """
        # It leads to the removal of bytes.
        return await self.database.write(lambda db: _end_upload(db, upload_id), release, frees=True)

    @write
    def forget_ended_uploads(self, db: Connection, before: float, limit: int) -> int:
        """
        Forget ended sessions that were opened earlier than ``before``, in seconds since the epoch.

        Returns how many were forgotten, ``limit`` at most.
        """
        first = int(before * 1000).to_bytes(6)
        return db.execute(
            "DELETE FROM ended_upload WHERE id IN"
            " (SELECT id FROM ended_upload WHERE id < ? ORDER BY id LIMIT ?)",
            (first, limit),
        ).rowcount


def _upload_record(
    upload_id: str, repository: str, image: str, algorithm: str, started: float
) -> UploadRecord:
    return UploadRecord(upload_id, ImageName(repository, image), Algorithm(algorithm), started)


def _end_upload(db: Connection, upload_id: str) -> bool:
    key = session_key(upload_id)
    if key is None:
        return db.execute("DELETE FROM upload WHERE id = ?", (upload_id,)).rowcount > 0
    ended = db.execute("INSERT INTO ended_upload (id) VALUES (?) ON CONFLICT DO NOTHING", (key,))
    return ended.rowcount > 0


def record_bytes(record: ManifestRecord | None) -> int:
    """The bytes of memory that the texts of a record take which a client chooses."""
    if record is None:
        return 0
    texts = [record.media_type, record.artifact_type or ""]
    for name, value in record.annotations.items():
        texts += (name, value)
    return sum(map(getsizeof, texts))
