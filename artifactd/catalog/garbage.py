"""What the collector asks of a catalog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from sqlite3 import Connection

import msgspec
from attrs import define, field, frozen

from artifactd.catalog import blobs, images, leases, manifests
from artifactd.catalog.database import Database
from artifactd.catalog.leases import HELD, KEPT, loosen, settle
from artifactd.oci.digest import Digest
from artifactd.oci.errors import ManifestUnknown, Unsupported
from artifactd.oci.names import ImageName, Reference, Tag


class Garbage(StrEnum):
    """Why something goes; docs/garbage-collection.md has the rules."""

    UNTAGGED = "untagged"
    """A manifest that no tag, index or subject has kept for as long as its repository allows."""
    LEASE = "lease"
    """An image's hold on a blob that no manifest of it holds, and whose lease is over."""
    DELETED = "deleted"
    """What was kept of a deleted manifest, tag or blob, which can't be brought back any more."""
    BYTES = "bytes"
    """A blob that nothing needs any more."""
    STRAY = "stray"
    """A file in the store that the catalog does not list."""


@frozen
class Collected:
    """
    Something that went.

    :ivar image: where it was; ``None`` for bytes.
    :ivar name: a digest, or a tag.
    :ivar size: of its bytes, which go only with a :attr:`Garbage.BYTES` or a
        :attr:`Garbage.STRAY` of that digest; 0 for a tag, and where nobody knows.
    :ivar since: since when it was of no use, in seconds since the epoch.
    """

    why: Garbage
    image: ImageName | None
    name: str
    size: int
    since: float


@frozen
class Restored:
    """
    What came back.

    :ivar occupied: tags that did not, since they point at something else by now.
    """

    manifests: tuple[Digest, ...] = ()
    tags: tuple[str, ...] = ()
    blobs: tuple[Digest, ...] = ()
    occupied: tuple[str, ...] = ()


# Collecting: a page of what is of no use at a time, each found by an index.

_ACTOR = "collection"

UNTAGGED = (
    "SELECT image.name, image.id, manifest.id, manifest.digest, size, free_since"
    " FROM image CROSS JOIN manifest ON manifest.image_id = image.id AND free_since <= ?"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    f" WHERE repository = ? AND used_at IS NULL AND NOT {KEPT} LIMIT ?"
)
LINKS = (
    "SELECT repository, name, image_id, blob_id, digest, size, unheld_since"
    " FROM blob_link CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
    f" WHERE unheld_since <= ? AND used_at IS NULL AND NOT {HELD} ORDER BY unheld_since LIMIT ?"
)
_DELETED = (
    "SELECT repository, name, image_id, digest, size, deleted_at"
    " FROM {table} CROSS JOIN image ON image.id = image_id CROSS JOIN blob USING (digest)"
    " WHERE deleted_at <= ? ORDER BY deleted_at LIMIT ?"
)
DELETED_MANIFESTS = _DELETED.format(table="deleted_manifest")
DELETED_BLOBS = _DELETED.format(table="deleted_blob")
DELETED_TAGS = (
    "SELECT repository, image.name, image_id, deleted_tag.name, 0, deleted_at"
    " FROM deleted_tag CROSS JOIN image ON image.id = image_id"
    " WHERE deleted_at <= ? ORDER BY deleted_at LIMIT ?"
)
LOOSE = (
    "SELECT blob_id, digest, size, since FROM loose_blob CROSS JOIN blob ON blob.id = blob_id"
    " WHERE since <= ? ORDER BY since LIMIT ?"
)


def collect_untagged(
    db: Connection, repository: str, before: float, limit: int, at: float
) -> list[Collected]:
    """``GarbageCatalog.collect_untagged``."""
    collected = []
    rows = db.execute(UNTAGGED, (before, repository, limit)).fetchall()
    for name, image_id, manifest_id, text, size, since in rows:
        digest = Digest.parse(text)
        leases.bury_manifest(db, manifest_id, actor=_ACTOR, at=at, collected=True)
        manifests.remove(db, image_id, manifest_id, digest, actor=_ACTOR, at=at)
        collected.append(
            Collected(Garbage.UNTAGGED, ImageName(repository, name), text, size, since)
        )
    return collected


def collect_links(db: Connection, before: float, limit: int) -> list[Collected]:
    """``GarbageCatalog.collect_links``."""
    collected = []
    rows = db.execute(LINKS, (before, limit)).fetchall()
    for repository, name, image_id, blob_id, digest, size, since in rows:
        db.execute("DELETE FROM blob_link WHERE image_id = ? AND blob_id = ?", (image_id, blob_id))
        loosen(db, [digest], since)
        image = ImageName(repository, name)
        collected.append(Collected(Garbage.LEASE, image, digest, size, since))
    return collected


def collect_deleted(db: Connection, before: float, limit: int) -> list[Collected]:
    """``GarbageCatalog.collect_deleted``."""
    collected: list[Collected] = []
    for query, forget in (
        (DELETED_TAGS, leases.forget_tag),
        (DELETED_MANIFESTS, leases.forget_manifest),
        (DELETED_BLOBS, leases.forget_blob),
    ):
        rows = db.execute(query, (before, limit - len(collected))).fetchall()
        for repository, image, image_id, name, size, since in rows:
            forget(db, image_id, name)
            collected.append(
                Collected(Garbage.DELETED, ImageName(repository, image), name, size, since)
            )
    return collected


def collect_bytes(db: Connection, before: float, limit: int) -> list[Collected]:
    """``GarbageCatalog.collect_bytes``, of at most ``limit`` that are looked at."""
    rows = db.execute(LOOSE, (before, limit)).fetchall()
    gone = {str(digest) for digest in blobs.unlist(db, [Digest.parse(row[1]) for row in rows])}
    # What is needed after all is put here again when that ends.
    db.executemany("DELETE FROM loose_blob WHERE blob_id = ?", [(row[0],) for row in rows])
    return [
        Collected(Garbage.BYTES, None, digest, size, since)
        for _, digest, size, since in rows
        if digest in gone
    ]


def unlisted(db: Connection, digests: Sequence[Digest]) -> list[Digest]:
    """``GarbageCatalog.unlisted``."""
    rows = db.execute(
        "SELECT value FROM json_each(?) AS found"
        " WHERE NOT EXISTS (SELECT 1 FROM blob WHERE blob.digest = found.value)",
        (msgspec.json.encode([str(digest) for digest in digests]).decode(),),
    )
    return [Digest.parse(digest) for (digest,) in rows]


# Bringing back what was deleted.


def undelete(
    db: Connection, image: ImageName, reference: Reference | None, actor: str, at: float
) -> Restored:
    """``GarbageCatalog.undelete``."""
    image_id = images.find(db, image)
    if image_id is None:
        raise _nothing(image, reference)
    undeletion = _Undeletion(db, image_id, actor, at)
    if reference is None:
        undeletion.everything()
    elif isinstance(reference, Tag):
        undeletion.tag(reference)
    else:
        undeletion.digest(str(reference))
    restored = undeletion.restored
    if restored == Restored():
        raise _nothing(image, reference)
    images.make_known(db, image, at)
    return restored


def _nothing(image: ImageName, reference: Reference | None) -> ManifestUnknown:
    return ManifestUnknown(
        "nothing of that was deleted here that could be brought back",
        {"name": str(image), "reference": None if reference is None else str(reference)},
    )


@define
class _Undeletion:
    """Of one image, in one transaction."""

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
                "the tag points at something else by now: delete it first, or bring back the"
                " digest that it had",
                {"tag": tag.text, "current": str(current), "deleted": row[0]},
            )
        # Without the other tags that it had.
        self._manifest(row[0], with_tags=False)
        self._tag(tag.text, row[0])

    def digest(self, digest: str) -> None:
        self._manifest(digest)
        self._blob(digest)

    def _all(self, query: str) -> list[tuple[str, ...]]:
        return self._db.execute(query, (self._image_id,)).fetchall()

    def _manifest(self, digest: str, *, with_tags: bool = True) -> None:
        """With what it held or kept, if that went when it did, or later."""
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
        leases.forget_manifest(db, image_id, digest)
        settle(db, image_id, touched, self._at)
        self._manifests.append(digest)

    def _tags_of(self, digest: str, deleted_at: float) -> None:
        """Those that went with it."""
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
        leases.forget_tag(db, self._image_id, name)
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
        leases.forget_blob(db, image_id, digest)
        settle(db, image_id, [digest], self._at)
        self._blobs.append(digest)


class GarbageCatalog:
    """
    The part of the catalog that only the collector uses.

    Each ``collect_…`` method takes at most ``limit`` things in one transaction, each of them
    unused since ``before`` at the latest, and returns what it took: nothing when nothing is left.
    Images of remote repositories are left alone: eviction sees to them.

    :param database: that of a :class:`artifactd.catalog.catalog.Catalog`, which closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def collect_untagged(
        self, repository: str, before: float, limit: int
    ) -> Sequence[Collected]:
        """
        Take manifests that nothing keeps out of the images of ``repository``, as if a client had
        deleted them: they can be brought back, and the time of what only they held or kept runs
        from now, since clients may have been told of that.
        """
        at = self._database.now()
        return await self._collect(
            [(UNTAGGED, (before, repository, 1))],
            lambda db: collect_untagged(db, repository, before, limit, at),
        )

    async def collect_links(self, before: float, limit: int) -> Sequence[Collected]:
        """Let images go on without blobs that no manifest of theirs holds."""
        return await self._collect(
            [(LINKS, (before, 1))],
            lambda db: collect_links(db, before, limit),
        )

    async def collect_deleted(self, before: float, limit: int) -> Sequence[Collected]:
        """Forget deleted manifests, tags and blobs."""
        return await self._collect(
            [
                (query, (before, 1))
                for query in (
                    DELETED_MANIFESTS,
                    DELETED_TAGS,
                    DELETED_BLOBS,
                )
            ],
            lambda db: collect_deleted(db, before, limit),
        )

    async def collect_bytes(self, before: float, limit: int) -> Sequence[Collected]:
        """
        Take blobs that nothing needs off the list; they are among ``Catalog.dropped_blobs`` until
        they are forgotten, and this is committed before anything else is.
        """
        # What is looked at and needed after all leaves the queue, so that it ends.
        while await self._any([(LOOSE, (before, 1))]):
            # Last: forget_blob in the same transaction would remove bytes whose rows a failing
            # commit brings back.
            collected = await self._database.write(
                lambda db: collect_bytes(db, before, limit), last=True
            )
            if collected:
                return collected
        return ()

    async def unlisted(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those of ``digests`` that the catalog does not list."""
        return await self._database.read(lambda db: unlisted(db, digests))

    async def undelete(self, image: ImageName, reference: Reference | None, actor: str) -> Restored:
        """
        Bring back what was deleted from an image, as it was: a tag with its manifest, if that went
        too; a manifest with what it held and kept and went with it or after it, and the tags it
        had; a blob; or (``None``) all there is.  Movements of tags are journalled.

        :raises ManifestUnknown: if there is nothing of that to bring back.
        :raises Unsupported: if the tag points at something else by now.
        """
        at = self._database.now()
        return await self._database.write(lambda db: undelete(db, image, reference, actor, at))

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
