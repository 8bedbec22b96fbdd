"""Bringing back what was deleted."""

from __future__ import annotations

from sqlite3 import Connection

from attrs import define, field

from artifactd.catalog import images, manifests, tags, tombstones
from artifactd.catalog.garbage import Restored
from artifactd.catalog.leases import settle
from artifactd.oci.digest import Digest
from artifactd.oci.errors import ManifestUnknown, Unsupported
from artifactd.oci.names import ImageName, Reference, Tag


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
        current = tags.target(self._db, self._image_id, tag)
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
        tombstones.forget_manifest(db, image_id, digest)
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
        current = tags.target(db, self._image_id, tag)
        if current is not None:
            if str(current) != digest and name not in self._occupied:
                self._occupied.append(name)
            return
        tags.move(db, self._image_id, tag, manifest_id, Digest.parse(digest), self._actor, self._at)
        tombstones.forget_tag(db, self._image_id, name)
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
        tombstones.forget_blob(db, image_id, digest)
        settle(db, image_id, [digest], self._at)
        self._blobs.append(digest)
