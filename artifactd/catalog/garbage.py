"""Garbage collection, and bringing back deleted manifests, tags and blobs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from sqlite3 import Connection

import msgspec
from attrs import define, field, frozen

from artifactd.catalog import images, manifests
from artifactd.catalog.database import OnDatabase, read, write
from artifactd.catalog.events import event_of
from artifactd.catalog.images import HELD, KEPT, loosen, settle
from artifactd.oci.errors import ManifestUnknown, NameUnknown, Unsupported
from artifactd.oci.names import Digest, ImageName, Reference, Tag
from artifactd.settings.webhooks import EventKind


class Garbage(StrEnum):
    """The reason why an item is collected; docs/garbage-collection.md has the rules."""

    RETENTION = "retention"
    """A tag that no rule of its repository's retention keeps."""
    UNTAGGED = "untagged"
    """A manifest that no tag, index or subject has kept for as long as its repository allows."""
    ORPHANED = "orphaned"
    """A manifest that only an index kept, which was deleted, and whose lease is over."""
    LEASE = "lease"
    """An image's hold on a blob that no manifest of the image holds, and whose lease is over."""
    DELETED = "deleted"
    """A deleted manifest, tag or blob whose time for undelete is over."""
    BYTES = "bytes"
    """The bytes of a blob that nothing needs any more."""
    STRAY = "stray"
    """A file in the store that the catalog does not list."""


@frozen
class Collected:
    """
    An item that was collected.

    :ivar image: the image it was in; ``None`` for bytes.
    :ivar name: a digest, or a tag.
    :ivar size: bytes of its content, which are removed only with a :attr:`Garbage.BYTES` or a
        :attr:`Garbage.STRAY` of that digest; 0 for a tag, and where the size is unknown.
    :ivar since: since when it was unused, in seconds since the epoch.
    """

    why: Garbage
    image: ImageName | None
    name: str
    size: int
    since: float


@frozen
class Restored:
    """
    The manifests, tags and blobs that were brought back.

    :ivar occupied: deleted tags that were not, because they point at another manifest now.
    """

    manifests: tuple[Digest, ...] = ()
    tags: tuple[str, ...] = ()
    blobs: tuple[Digest, ...] = ()
    occupied: tuple[str, ...] = ()


_ACTOR = "collection"  # in the journal of tags

_Values = tuple[object, ...] | dict[str, object]  # of a query

# -- the rows that may be collected, each found by an index

UNTAGGED = (
    "SELECT repository, image.name, image.id, manifest.id, manifest.digest, size, free_since"
    " FROM image CROSS JOIN manifest ON manifest.image_id = image.id AND free_since <= ?"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    f" WHERE repository = ? AND used_at IS NULL AND NOT {KEPT} LIMIT ?"
)
_ORPHANED = (
    "SELECT repository, image.name, image.id, manifest.id, manifest.digest, size, free_since"
    " FROM manifest CROSS JOIN image ON image.id = manifest.image_id"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    f" WHERE {{where}} AND orphaned = 1 AND NOT {KEPT} ORDER BY free_since LIMIT :limit"
)
ORPHANED = _ORPHANED.format(where="free_since <= :before")
ORPHANED_OF = _ORPHANED.format(where="manifest.image_id = :image AND free_since <= :before")
LINKS = (
    "SELECT repository, name, image_id, blob_id, digest, size, unheld_since"
    " FROM blob_link CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
    f" WHERE unheld_since <= ? AND used_at IS NULL AND NOT {HELD} ORDER BY unheld_since LIMIT ?"
)
_DELETED = (
    "SELECT repository, image.name, image_id, {name}, {size}, deleted_at"
    " FROM {table} CROSS JOIN image ON image.id = image_id{blob}"
    " WHERE {where}deleted_at <= :before ORDER BY deleted_at LIMIT :limit"
)
_WITH_SIZE = {"name": "digest", "size": "size", "blob": " CROSS JOIN blob USING (digest)"}
_TAG = {"table": "deleted_tag", "name": "deleted_tag.name", "size": "0", "blob": ""}
_OF = "image_id = :image AND "
DELETED_MANIFESTS = _DELETED.format(table="deleted_manifest", where="", **_WITH_SIZE)
DELETED_BLOBS = _DELETED.format(table="deleted_blob", where="", **_WITH_SIZE)
DELETED_TAGS = _DELETED.format(where="", **_TAG)
DELETED_MANIFESTS_OF = _DELETED.format(table="deleted_manifest", where=_OF, **_WITH_SIZE)
DELETED_BLOBS_OF = _DELETED.format(table="deleted_blob", where=_OF, **_WITH_SIZE)
DELETED_TAGS_OF = _DELETED.format(where=_OF, **_TAG)
LOOSE = (
    "SELECT blob_id, digest, size, since FROM loose_blob CROSS JOIN blob ON blob.id = blob_id"
    " WHERE since <= ? ORDER BY since LIMIT ?"
)
LOOSE_AMONG = (
    "SELECT blob_id, digest, size, since FROM json_each(?) AS wanted"
    " CROSS JOIN blob ON blob.digest = wanted.value"
    " CROSS JOIN loose_blob ON loose_blob.blob_id = blob.id"
)
_UNSIZED = "SELECT id FROM manifest WHERE held_size IS NULL AND used_at IS NULL ORDER BY id LIMIT ?"

# Entries of all manifests that one transaction deletes or sums up, unless it is one manifest: more
# of them would keep other writers waiting for longer.
_ENTRIES = 2000

_DELETED_ENTRIES = (
    "SELECT count(*) FROM deleted_manifest AS deleted"
    " JOIN deleted_entry ON deleted_entry.deleted_id = deleted.id"
    " WHERE deleted.image_id = ? AND deleted.digest = ?"
)

_RELEASE = (
    "DELETE FROM blob_link WHERE image_id = :image AND blob_id IN ("
    "SELECT blob.id FROM deleted_manifest AS deleted"
    " JOIN deleted_entry ON deleted_entry.deleted_id = deleted.id"
    " JOIN blob ON blob.digest = deleted_entry.digest"
    " WHERE deleted.image_id = :image AND deleted.digest = :digest)"
    f" AND unheld_since IS NOT NULL AND used_at IS NULL AND NOT {HELD} RETURNING blob_id"
)


def _released(
    db: Connection, image_id: int, image: ImageName, digest: str, since: float
) -> list[Collected]:
    """Remove the blobs that only a deleted manifest held from its image."""
    released = []
    for (blob_id,) in db.execute(_RELEASE, {"image": image_id, "digest": digest}).fetchall():
        held, size = db.execute("SELECT digest, size FROM blob WHERE id = ?", (blob_id,)).fetchone()
        loosen(db, [held], since)
        released.append(Collected(Garbage.DELETED, image, held, size, since))
    return released


class GarbageCatalog(OnDatabase):
    """
    The part of the catalog that only the collector uses.

    Each ``collect_…`` method takes at most ``limit`` things in one transaction, each of them
    unused since ``before`` at the latest, and returns what it took: nothing when nothing is left.
    Images of remote repositories are left alone: eviction sees to them.
    """

    async def collect_untagged(
        self, repository: str, before: float, limit: int
    ) -> Sequence[Collected]:
        """
        Delete manifests that nothing keeps from the images of ``repository``, as a client would:
        they can be brought back.  The leases of blobs and manifests that only they held run from
        now, because clients may have been told of those.
        """
        values = (before, repository, limit)
        return await self._collect_manifests(Garbage.UNTAGGED, UNTAGGED, values)

    async def collect_orphaned(
        self, before: float, limit: int, image: ImageName | None = None
    ) -> Sequence[Collected]:
        """
        Delete orphans (:attr:`ManifestRecord.orphaned`), which then are part of what a client
        deleted: they can be brought back with it, and as long as it.  What only they kept, as an
        index or a subject, is orphaned in turn, and has a lease from now.

        :param image: collect of this image alone.
        """
        query = ORPHANED if image is None else ORPHANED_OF
        values = await self._values(before, limit, image)
        return await self._collect_manifests(Garbage.ORPHANED, query, values)

    async def _collect_manifests(
        self, why: Garbage, query: str, values: _Values
    ) -> Sequence[Collected]:
        """Delete the manifests of ``query``, which are untagged or (``why``) orphans."""

        def collect(db: Connection) -> list[Collected]:
            at = self.database.now()
            collected: list[Collected] = []
            entries = 0
            rows = db.execute(query, values).fetchall()
            for repository, name, image_id, manifest_id, text, size, since in rows:
                entries += len(manifests.entries_of(db, manifest_id))
                if collected and entries > _ENTRIES:
                    break
                buried, kept = at, list[str]()
                if why is Garbage.ORPHANED:  # it was deleted with what kept it
                    buried, kept = since, manifests.children_of(db, manifest_id)
                    kept += manifests.referrers_of(db, image_id, text)
                digest = Digest.parse(text)
                images.bury_manifest(db, manifest_id, actor=_ACTOR, at=buried, collected=True)
                manifests.remove(db, image_id, manifest_id, digest, actor=_ACTOR, at=at)
                images.orphan(db, image_id, kept)
                image = ImageName(repository, name)
                collected.append(Collected(why, image, text, size, since))
            told = [
                event_of(EventKind.DELETE, each.image, _ACTOR, digest=each.name)
                for each in collected
                if each.image is not None
            ]
            self.database.outbox.write(db, at, told)
            return collected

        if not await self._finds((query, values)):
            return ()
        return await self.database.write(collect, long=_ACTOR, frees=True)

    async def collect_links(self, before: float, limit: int) -> Sequence[Collected]:
        """Remove from images those blobs that no manifest of the image holds."""

        def collect(db: Connection) -> list[Collected]:
            collected = []
            rows = db.execute(LINKS, (before, limit)).fetchall()
            for repository, name, image_id, blob_id, digest, size, since in rows:
                db.execute(
                    "DELETE FROM blob_link WHERE image_id = ? AND blob_id = ?", (image_id, blob_id)
                )
                loosen(db, [digest], since)
                image = ImageName(repository, name)
                collected.append(Collected(Garbage.LEASE, image, digest, size, since))
            return collected

        if not await self._finds((LINKS, (before, 1))):
            return ()
        return await self.database.write(collect, frees=True)

    async def collect_deleted(
        self,
        before: float,
        limit: int,
        image: ImageName | None = None,
        *,
        ends_leases: bool = False,
    ) -> Sequence[Collected]:
        """
        Delete the records of deleted manifests, tags and blobs, which ends their undelete.

        :param image: collect of this image alone.
        :param ends_leases: remove the blobs that a deleted manifest held, and that nothing holds
            any more, from its image too, before their leases are over.
        """
        tags, deleted_manifests, deleted_blobs = (
            (DELETED_TAGS, DELETED_MANIFESTS, DELETED_BLOBS)
            if image is None
            else (DELETED_TAGS_OF, DELETED_MANIFESTS_OF, DELETED_BLOBS_OF)
        )
        values = await self._values(before, limit, image)

        def collect(db: Connection) -> list[Collected]:
            collected: list[Collected] = []
            entries = 0
            for query, forget in (
                (tags, images.forget_tag),
                (deleted_manifests, images.forget_manifest),
                (deleted_blobs, images.forget_blob),
            ):
                left = {**values, "limit": max(0, limit - len(collected))}
                rows = db.execute(query, left).fetchall()
                for repository, name, image_id, deleted, size, since in rows:
                    image = ImageName(repository, name)
                    if query is deleted_manifests:
                        (held,) = db.execute(_DELETED_ENTRIES, (image_id, deleted)).fetchone()
                        entries += held
                        if collected and entries > _ENTRIES:
                            break
                        if ends_leases:
                            collected += _released(db, image_id, image, deleted, since)
                    forget(db, image_id, deleted)
                    collected.append(Collected(Garbage.DELETED, image, deleted, size, since))
            return collected

        queries = (deleted_manifests, tags, deleted_blobs)
        if not await self._finds(*((query, values) for query in queries)):
            return ()
        return await self.database.write(collect, long=_ACTOR, frees=True)

    async def note_sizes(self, limit: int) -> int:
        """
        Sum up what pushed manifests hold where that is not known: of at most ``limit`` of them,
        fewer if they hold much.  Returns how many these were; 0: all are known.
        """

        def note(db: Connection) -> int:
            count = entries = 0
            for (manifest_id,) in db.execute(_UNSIZED, (limit,)).fetchall():
                entries += manifests.note_size(db, manifest_id)
                count += 1
                if entries > _ENTRIES:
                    break
            return count

        if not await self._finds((_UNSIZED, (1,))):
            return 0
        return await self.database.write(note, long=_ACTOR)

    async def collect_bytes(
        self, before: float, limit: int, among: Sequence[str] | None = None
    ) -> Sequence[Collected]:
        """
        Delete the rows of blobs that nothing needs.  This is committed before any later write;
        until ``Catalog.forget_blob`` their digests are among ``Catalog.dropped_blobs``.

        :param among: delete those of these digests, at most ``limit``, whenever they were unused.
        """
        wanted = (
            (LOOSE, (before, limit))
            if among is None
            else (LOOSE_AMONG, (msgspec.json.encode(among).decode(),))
        )

        def collect(db: Connection) -> list[Collected]:
            rows = db.execute(*wanted).fetchall()
            gone = set(images.unlist(db, [Digest.parse(digest) for _, digest, *_ in rows]))
            # A blob that is needed after all is queued again when that need ends.
            db.executemany("DELETE FROM loose_blob WHERE blob_id = ?", [(row[0],) for row in rows])
            return [
                Collected(Garbage.BYTES, None, digest, size, since)
                for _, digest, size, since in rows
                if Digest.parse(digest) in gone
            ]

        # Each round takes what it looks at out of the queue, so that the loop ends.
        while await self._finds(wanted):
            # Last: a forget_blob in the same transaction would remove bytes whose rows come back
            # if the commit fails.
            collected = await self.database.write(collect, last=True, frees=True)
            if collected:
                return collected
        return ()

    @read
    def _finds(self, db: Connection, *queries: tuple[str, _Values]) -> bool:
        """
        Whether any of ``queries`` has a row.  Asked before each write, so that no other writer
        waits where there is nothing to collect.
        """
        return any(db.execute(query, values).fetchone() for query, values in queries)

    async def _values(
        self, before: float, limit: int, image: ImageName | None
    ) -> dict[str, object]:
        """
        Values of the queries that take them by name.

        :raises NameUnknown: if there is no such image.
        """
        image_id = None if image is None else await self._row_of(image)
        return {"before": before, "limit": limit, "image": image_id}

    @read
    def _row_of(self, db: Connection, image: ImageName) -> int:
        image_id = images.find(db, image)
        if image_id is None:
            raise NameUnknown(f"{image}: there is no such image here", {"name": str(image)})
        return image_id

    @read
    def unlisted(self, db: Connection, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those of ``digests`` that the catalog does not list."""
        rows = db.execute(
            "SELECT value FROM json_each(?) AS found"
            " WHERE NOT EXISTS (SELECT 1 FROM blob WHERE blob.digest = found.value)",
            (msgspec.json.encode([str(digest) for digest in digests]).decode(),),
        )
        return [Digest.parse(digest) for (digest,) in rows]

    @write
    def undelete(
        self,
        db: Connection,
        image: ImageName,
        reference: Reference | None,
        actor: str,
        quota: int = 0,
    ) -> Restored:
        """
        Bring back, as it was, what was deleted from an image:

        - a tag, with its manifest if that was deleted too;
        - a manifest, with its tags, and with the blobs and manifests that it held or kept and that
          were deleted with it or after it;
        - a blob;
        - everything (``None``).

        Movements of tags are journalled.

        :param quota: bytes that the image's repository may hold; 0: any number.
        :raises QuotaExceeded: if the repository would hold more than ``quota``, and more than
            before.
        :raises ManifestUnknown: if there is nothing of the kind to bring back.
        :raises Unsupported: if the tag points at another manifest now.
        """
        image_id = images.find(db, image)
        restored = Restored()
        at = self.database.now()
        if image_id is not None:
            undeletion = _Undeletion(db, image_id, actor, at)
            with (
                images.within_quota(db, image.repository, quota),
                self.database.outbox.telling(db, image, actor, at, back=True),
            ):
                if reference is None:
                    undeletion.everything()
                elif isinstance(reference, Tag):
                    undeletion.tag(reference)
                else:
                    undeletion.digest(str(reference))
            restored = undeletion.restored
        if restored == Restored():
            raise ManifestUnknown(
                "nothing that was deleted here under this reference can be brought back",
                {"name": str(image), "reference": None if reference is None else str(reference)},
            )
        images.make_known(db, image, at)
        return restored


@define
class _Undeletion:
    """Brings back what was deleted from one image, in one transaction."""

    _db: Connection
    _image_id: int
    _actor: str
    _at: float
    _manifests: list[str] = field(factory=list)
    _tags: list[str] = field(factory=list)
    _blobs: list[str] = field(factory=list)
    _occupied: list[str] = field(factory=list)

    @property
    def restored(self) -> Restored:
        return Restored(
            tuple(map(Digest.parse, self._manifests)),
            tuple(self._tags),
            tuple(map(Digest.parse, self._blobs)),
            tuple(self._occupied),
        )

    def everything(self) -> None:
        for (digest,) in self._all("SELECT digest FROM deleted_manifest WHERE image_id = ?"):
            self._manifest(digest)
        for (digest,) in self._all("SELECT digest FROM deleted_blob WHERE image_id = ?"):
            self._blob(digest)
        for name, digest in self._all("SELECT name, digest FROM deleted_tag WHERE image_id = ?"):
            self._tag(name, digest)

    def tag(self, tag: Tag) -> None:
        row = self._db.execute(
            "SELECT digest FROM deleted_tag WHERE image_id = ? AND name = ?",
            (self._image_id, tag.text),
        ).fetchone()
        if row is None:
            return
        current = images.tag_target(self._db, self._image_id, tag)
        if current is not None and str(current) != row[0]:
            raise Unsupported(
                "the tag points at another manifest now: delete it first, or bring back the"
                " digest that it had",
                {"tag": tag.text},
                stored={"current": str(current), "deleted": row[0]},
            )
        # The other tags that the manifest had stay deleted.
        self._manifest(row[0], with_tags=False)
        self._tag(tag.text, row[0])

    def digest(self, digest: str) -> None:
        self._manifest(digest)
        self._blob(digest)

    def _all(self, query: str) -> list[tuple[str, ...]]:
        return self._db.execute(query, (self._image_id,)).fetchall()

    def _manifest(self, digest: str, *, with_tags: bool = True) -> None:
        """
        Bring back a manifest, and those it held or kept that were deleted with it or later.
        """
        wanted, since = [digest], 0.0
        while wanted:
            each = wanted.pop()
            row = self._db.execute(
                "SELECT id, deleted_at FROM deleted_manifest"
                " WHERE image_id = ? AND digest = ? AND deleted_at >= ?",
                (self._image_id, each, since),
            ).fetchone()
            if row is None:
                continue
            deleted_id, deleted_at = row
            since = max(since, deleted_at) if each == digest else since
            wanted += self._children(deleted_id) + self._collected_referrers(each)
            self._insert(deleted_id, each)
            if with_tags:
                self._tags_of(each, deleted_at)

    def _children(self, deleted_id: int) -> list[str]:
        rows = self._db.execute(
            "SELECT digest FROM deleted_entry WHERE deleted_id = ?", (deleted_id,)
        )
        return [digest for (digest,) in rows]

    def _collected_referrers(self, subject: str) -> list[str]:
        rows = self._db.execute(
            "SELECT digest FROM deleted_manifest"
            " WHERE image_id = ? AND subject = ? AND collected = 1",
            (self._image_id, subject),
        )
        return [digest for (digest,) in rows]

    def _insert(self, deleted_id: int, digest: str) -> None:
        db, image_id = self._db, self._image_id
        manifest_id = db.execute(
            "INSERT INTO manifest (image_id, digest, media_type, artifact_type, subject,"
            " annotations, pushed_at)"
            " SELECT image_id, digest, media_type, artifact_type, subject, annotations, pushed_at"
            " FROM deleted_manifest WHERE id = ? RETURNING id",
            (deleted_id,),
        ).fetchone()[0]
        db.execute(
            "INSERT INTO manifest_entry (image_id, digest, kind, manifest_id)"
            " SELECT ?, digest, kind, ? FROM deleted_entry WHERE deleted_id = ?",
            (image_id, manifest_id, deleted_id),
        )
        db.execute(
            "INSERT INTO blob_link (image_id, blob_id)"
            " SELECT ?, blob.id FROM deleted_entry"
            " CROSS JOIN blob ON blob.digest = deleted_entry.digest"
            " WHERE deleted_id = ? AND linked = 1 ON CONFLICT DO NOTHING",
            (image_id, deleted_id),
        )
        touched = [
            digest,
            *self._children(deleted_id),
            *manifests.referrers_of(db, image_id, digest),
        ]
        images.forget_manifest(db, image_id, digest)
        settle(db, image_id, touched, self._at)
        self._manifests.append(digest)

    def _tags_of(self, digest: str, deleted_at: float) -> None:
        """Bring back the tags that were deleted together with a manifest."""
        rows = self._db.execute(
            "SELECT name FROM deleted_tag WHERE image_id = ? AND digest = ? AND deleted_at = ?",
            (self._image_id, digest, deleted_at),
        )
        for (name,) in rows.fetchall():
            self._tag(name, digest)

    def _tag(self, name: str, digest: str) -> None:
        db, tag = self._db, Tag.parse(name)
        manifest_id = manifests.row_of(db, self._image_id, Digest.parse(digest))
        if manifest_id is None:
            return
        current = images.tag_target(db, self._image_id, tag)
        if current is not None:
            if str(current) != digest and name not in self._occupied:
                self._occupied.append(name)
            return
        images.move_tag(
            db, self._image_id, tag, manifest_id, Digest.parse(digest), self._actor, self._at
        )
        images.forget_tag(db, self._image_id, name)
        self._tags.append(name)

    def _blob(self, digest: str) -> None:
        db, image_id = self._db, self._image_id
        kept = db.execute(
            "SELECT 1 FROM deleted_blob WHERE image_id = ? AND digest = ?", (image_id, digest)
        ).fetchone()
        if kept is None:
            return
        db.execute(
            "INSERT INTO blob_link (image_id, blob_id) SELECT ?, id FROM blob WHERE digest = ?"
            " ON CONFLICT DO NOTHING",
            (image_id, digest),
        )
        images.forget_blob(db, image_id, digest)
        settle(db, image_id, [digest], self._at)
        self._blobs.append(digest)
