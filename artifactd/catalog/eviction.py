"""What of remote images is used, and what goes because it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Connection

from artifactd.catalog import blobs, images, manifests
from artifactd.catalog.remote import Held
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName

_ACTOR = "eviction"

_IMAGE = "image_id = (SELECT id FROM image WHERE repository = ? AND name = ?)"
_TOUCH_BLOB = (
    f"UPDATE blob_link SET used_at = ? WHERE {_IMAGE}"
    " AND blob_id = (SELECT id FROM blob WHERE digest = ?) AND used_at < ?"
)
_TOUCH_MANIFEST = f"UPDATE manifest SET used_at = ? WHERE {_IMAGE} AND digest = ? AND used_at < ?"

_HELD_BYTES = (
    "SELECT coalesce(sum(size), 0) FROM blob WHERE id IN ("
    "SELECT blob_id FROM image JOIN blob_link ON blob_link.image_id = image.id"
    " WHERE repository = ?1 AND used_at IS NOT NULL"
    " UNION ALL "
    "SELECT blob.id FROM image JOIN manifest ON manifest.image_id = image.id"
    " JOIN blob ON blob.digest = manifest.digest"
    " WHERE repository = ?1 AND used_at IS NOT NULL)"
)

# CROSS JOIN keeps SQLite from beginning with the images, and sorting all that they hold.  What was
# used at the same time has an order too, so that pages neither overlap nor leave anything out.
_LEAST_USED = (
    "SELECT name, digest, size, used_at, 0 AS is_manifest, image_id, blob_id AS item"
    " FROM blob_link CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
    " WHERE used_at < ?1 AND repository = ?2"
    " UNION ALL "
    "SELECT name, manifest.digest, size, used_at, 1, image_id, manifest.id"
    " FROM manifest CROSS JOIN image ON image.id = image_id"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    " WHERE used_at < ?1 AND repository = ?2"
    " ORDER BY used_at, image_id, item, is_manifest LIMIT ?3 OFFSET ?4"
)


def touch(db: Connection, used: Mapping[tuple[ImageName, Digest], float]) -> None:
    """``RemoteCatalog.touch``."""
    rows = [
        (at, image.repository, image.image, str(digest), at) for (image, digest), at in used.items()
    ]
    db.executemany(_TOUCH_BLOB, rows)
    db.executemany(_TOUCH_MANIFEST, rows)


def held_bytes(db: Connection, repository: str) -> int:
    """``RemoteCatalog.held_bytes``."""
    return int(db.execute(_HELD_BYTES, (repository,)).fetchone()[0])


def least_used(db: Connection, repository: str, before: float, skip: int, limit: int) -> list[Held]:
    """``RemoteCatalog.least_used``."""
    return [
        Held(ImageName(repository, name), Digest.parse(digest), size, used_at, bool(is_manifest))
        for name, digest, size, used_at, is_manifest, *_ in db.execute(
            _LEAST_USED, (before, repository, limit, skip)
        )
    ]


def drop(db: Connection, held: Sequence[Held], at: float) -> list[Digest]:
    """``RemoteCatalog.drop``."""
    for each in held:
        image_id = images.find(db, each.image)
        if image_id is None:
            continue
        if each.is_manifest:
            remove_manifest(db, image_id, each.digest, each.used_at, actor=_ACTOR, at=at)
        else:
            unlink_blob(db, image_id, each.digest, each.used_at)
    return blobs.unlist(db, dict.fromkeys(each.digest for each in held))


def unlink_blob(db: Connection, image_id: int, digest: Digest, until: float) -> bool:
    """
    Take out of an image a blob that came from upstream and was not used after ``until``; whether
    there was one.
    """
    return (
        db.execute(
            "DELETE FROM blob_link WHERE image_id = ?"
            " AND blob_id = (SELECT id FROM blob WHERE digest = ?) AND used_at <= ?",
            (image_id, str(digest), until),
        ).rowcount
        > 0
    )


def remove_manifest(
    db: Connection, image_id: int, digest: Digest, until: float, *, actor: str, at: float
) -> bool:
    """As :func:`unlink_blob`, a manifest and its tags."""
    row = db.execute(
        "SELECT id FROM manifest WHERE image_id = ? AND digest = ? AND used_at <= ?",
        (image_id, str(digest), until),
    ).fetchone()
    if row is not None:
        manifests.remove(db, image_id, int(row[0]), digest, actor=actor, at=at)
    return row is not None
