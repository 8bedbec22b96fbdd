"""
Leases of blobs and manifests that nothing holds or keeps, and records of deleted ones.

Each row of ``blob_link`` and ``manifest`` has the time since when nothing holds or keeps it, so
that the collection finds it by an index.  Every change that may let something go calls
:func:`settle` or :func:`loosen` in its transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sqlite3 import Connection

import msgspec

from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName

HELD = (
    "EXISTS (SELECT 1 FROM manifest_entry WHERE manifest_entry.image_id = blob_link.image_id"
    " AND manifest_entry.digest = (SELECT digest FROM blob WHERE id = blob_link.blob_id))"
)
"""SQL: a manifest of the image holds the blob of a row of ``blob_link``."""

KEPT = (
    "(EXISTS (SELECT 1 FROM tag WHERE tag.manifest_id = manifest.id)"
    " OR EXISTS (SELECT 1 FROM manifest_entry WHERE manifest_entry.image_id = manifest.image_id"
    " AND manifest_entry.digest = manifest.digest)"
    " OR EXISTS (SELECT 1 FROM manifest AS subject WHERE subject.image_id = manifest.image_id"
    " AND subject.digest = manifest.subject))"
)
"""SQL: a tag, an index or a subject keeps a row of ``manifest`` in its image."""

# Rows that are right already are not written.
_SETTLE_BLOBS = (
    "UPDATE blob_link SET unheld_since = CASE WHEN unheld_since IS NULL THEN :at END"
    " WHERE image_id = :image AND blob_id IN ("
    "SELECT blob.id FROM json_each(:digests) AS touched"
    " CROSS JOIN blob ON blob.digest = touched.value)"
    f" AND used_at IS NULL AND (unheld_since IS NULL) <> {HELD}"
)
_SETTLE_MANIFESTS = (
    "UPDATE manifest SET orphaned = 0, free_since = CASE WHEN free_since IS NULL THEN :at END"
    " WHERE image_id = :image AND digest IN (SELECT value FROM json_each(:digests))"
    f" AND used_at IS NULL AND (free_since IS NULL) <> {KEPT}"
)
_ORPHAN = (
    "UPDATE manifest SET orphaned = 1"
    " WHERE image_id = ? AND digest IN (SELECT value FROM json_each(?)) AND free_since IS NOT NULL"
)
_RENEW_BLOB = (
    "UPDATE blob_link SET unheld_since = :at"
    " WHERE image_id = (SELECT id FROM image WHERE repository = :repository AND name = :name)"
    " AND blob_id = (SELECT id FROM blob WHERE digest = :digest) AND unheld_since <= :due"
)
_RENEW_MANIFEST = (
    "UPDATE manifest SET free_since = :at"
    " WHERE image_id = (SELECT id FROM image WHERE repository = :repository AND name = :name)"
    " AND digest = :digest AND free_since <= :due"
)


def is_kept(db: Connection, manifest_id: int) -> bool:
    """Whether a tag, an index or a subject keeps a manifest in its image."""
    kept = f"SELECT 1 FROM manifest WHERE id = ? AND {KEPT}"
    return db.execute(kept, (manifest_id,)).fetchone() is not None


def settle(db: Connection, image_id: int, digests: Iterable[str], at: float) -> None:
    """
    Bring the leases of ``digests``, blobs or manifests of an image, up to date after a change of
    tags or manifests.  The leases of those that nothing holds any more run from ``at``; those that
    are held again have none.
    """
    touched = msgspec.json.encode(list(dict.fromkeys(digests))).decode()
    values = {"image": image_id, "digests": touched, "at": at}
    db.execute(_SETTLE_BLOBS, values)
    db.execute(_SETTLE_MANIFESTS, values)


def orphan(db: Connection, image_id: int, digests: Sequence[str]) -> None:
    """
    Mark orphans, which are collected after their leases: those of ``digests`` that nothing keeps
    any more.  To be called after :func:`settle`.

    :param digests: the manifests that a removed manifest kept.
    """
    db.execute(_ORPHAN, (image_id, msgspec.json.encode(digests).decode()))


def renew_blob(db: Connection, image: ImageName, digest: Digest, at: float, due: float) -> None:
    """Restart the lease of a blob at ``at``, unless it was restarted after ``due``."""
    db.execute(_RENEW_BLOB, _renewed(image, digest, at, due))


def renew_manifest(db: Connection, image: ImageName, digest: Digest, at: float, due: float) -> None:
    """Restart the lease of a manifest at ``at``, unless it was restarted after ``due``."""
    db.execute(_RENEW_MANIFEST, _renewed(image, digest, at, due))


def _renewed(image: ImageName, digest: Digest, at: float, due: float) -> dict[str, object]:
    return {
        "repository": image.repository,
        "name": image.image,
        "digest": str(digest),
        "at": at,
        "due": due,
    }


def loosen(db: Connection, digests: Iterable[str], since: float) -> None:
    """Queue the bytes of ``digests`` for collection: they may not be needed since ``since``."""
    db.executemany(
        "INSERT INTO loose_blob (blob_id, since) SELECT id, ? FROM blob WHERE digest = ?"
        " ON CONFLICT DO UPDATE SET since = max(since, excluded.since)",
        [(since, digest) for digest in digests],
    )


# -- deleted tags, manifests and blobs, kept as they were until their time for undelete is over


def bury_tag(
    db: Connection, image_id: int, name: str, digest: Digest, *, actor: str, at: float
) -> None:
    """Keep a record of a tag that is being deleted, and of the manifest it points at."""
    db.execute(
        "INSERT INTO deleted_tag (image_id, name, digest, actor, deleted_at)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET digest = excluded.digest, actor = excluded.actor, deleted_at = excluded.deleted_at",
        (image_id, name, str(digest), actor, at),
    )


def bury_manifest(
    db: Connection, manifest_id: int, *, actor: str, at: float, collected: bool = False
) -> None:
    """Keep a record of a manifest, its tags and the digests it holds, before it is deleted."""
    row = db.execute(
        "INSERT INTO deleted_manifest (image_id, digest, media_type, artifact_type, subject,"
        " annotations, pushed_at, actor, deleted_at, collected)"
        " SELECT image_id, digest, media_type, artifact_type, subject, annotations, pushed_at,"
        " ?, ?, ? FROM manifest WHERE id = ? RETURNING id",
        (actor, at, int(collected), manifest_id),
    ).fetchone()
    db.execute(
        "INSERT INTO deleted_entry (deleted_id, digest, kind, linked)"
        " SELECT ?, digest, kind, EXISTS (SELECT 1 FROM blob JOIN blob_link"
        " ON blob_link.image_id = manifest_entry.image_id AND blob_link.blob_id = blob.id"
        " WHERE blob.digest = manifest_entry.digest)"
        " FROM manifest_entry WHERE manifest_id = ?",
        (row[0], manifest_id),
    )
    db.execute(
        "INSERT INTO deleted_tag (image_id, name, digest, actor, deleted_at)"
        " SELECT tag.image_id, name, digest, ?, ? FROM tag"
        " JOIN manifest ON manifest.id = tag.manifest_id WHERE manifest_id = ?"
        " ON CONFLICT DO UPDATE"
        " SET digest = excluded.digest, actor = excluded.actor, deleted_at = excluded.deleted_at",
        (actor, at, manifest_id),
    )


def bury_blob(db: Connection, image_id: int, digest: Digest, *, actor: str, at: float) -> None:
    """Keep a record of a blob that is being deleted from an image."""
    db.execute(
        "INSERT INTO deleted_blob (image_id, digest, actor, deleted_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET actor = excluded.actor, deleted_at = excluded.deleted_at",
        (image_id, str(digest), actor, at),
    )


def forget_manifest(db: Connection, image_id: int, digest: str) -> None:
    """Drop the record of a deleted manifest: it is back, or its time for undelete is over."""
    row = db.execute(
        "SELECT id, deleted_at FROM deleted_manifest WHERE image_id = ? AND digest = ?",
        (image_id, digest),
    ).fetchone()
    if row is None:
        return
    kept = db.execute(
        "SELECT digest FROM deleted_entry WHERE deleted_id = ? AND linked = 1", (row[0],)
    )
    # Read before the delete, which cascades to the entries.
    loose = [digest, *(entry for (entry,) in kept.fetchall())]
    db.execute("DELETE FROM deleted_manifest WHERE id = ?", (row[0],))
    loosen(db, loose, row[1])


def forget_tag(db: Connection, image_id: int, name: str) -> None:
    """Drop the record of a deleted tag."""
    db.execute("DELETE FROM deleted_tag WHERE image_id = ? AND name = ?", (image_id, name))


def forget_blob(db: Connection, image_id: int, digest: str) -> None:
    """Drop the record of a blob that was deleted from an image."""
    row = db.execute(
        "DELETE FROM deleted_blob WHERE image_id = ? AND digest = ? RETURNING deleted_at",
        (image_id, digest),
    ).fetchone()
    if row is not None:
        loosen(db, [digest], row[0])
