"""Purging: what goes out of remote images because somebody says so."""

from __future__ import annotations

from sqlite3 import Connection

from artifactd.catalog import blobs, images, manifests, remote_pages, tags
from artifactd.catalog.eviction import remove_manifest, unlink_blob
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName, Reference, Tag

_ACTOR = "purge"
_EVER = 1e300  # seconds since the epoch: whenever it was used


def purge(
    db: Connection, image: ImageName, reference: Reference | None, at: float
) -> list[Digest] | None:
    """``RemoteCatalog.purge``."""
    image_id = images.find(db, image)
    if image_id is None:
        return None
    if reference is None:
        gone = _all(db, image_id, at)
    elif isinstance(reference, Tag):
        gone = _tag(db, image_id, reference, at)
    else:
        gone = _digest(db, image_id, reference, at)
    if gone is not None:
        # They may tell of what has gone.
        remote_pages.delete_all(db, image_id)
        gone = blobs.unlist(db, dict.fromkeys(gone))
    return gone


def _all(db: Connection, image_id: int, at: float) -> list[Digest] | None:
    rows = db.execute(
        "SELECT digest FROM manifest WHERE image_id = ?1 AND used_at IS NOT NULL"
        " UNION ALL "
        "SELECT digest FROM blob_link JOIN blob ON blob.id = blob_id"
        " WHERE image_id = ?1 AND used_at IS NOT NULL",
        (image_id,),
    )
    gone = [Digest.parse(digest) for (digest,) in rows.fetchall()]
    for digest in gone:
        _out(db, image_id, digest, at)
    if gone:
        db.execute(
            "UPDATE image SET known_at = NULL"
            " WHERE id = ? AND NOT EXISTS (SELECT 1 FROM manifest WHERE image_id = image.id)",
            (image_id,),
        )
    return gone if remote_pages.delete_all(db, image_id) or gone else None


def _tag(db: Connection, image_id: int, tag: Tag, at: float) -> list[Digest] | None:
    row = db.execute(
        "SELECT manifest_id, digest FROM tag JOIN manifest ON manifest.id = manifest_id"
        " WHERE tag.image_id = ? AND tag.name = ? AND used_at IS NOT NULL",
        (image_id, tag.text),
    ).fetchone()
    if row is None:
        return None
    manifest_id, digest = int(row[0]), Digest.parse(row[1])
    tags.take_off(db, image_id, tag, digest, actor=_ACTOR, at=at)
    return [] if _is_tagged(db, manifest_id) else _digest(db, image_id, digest, at)


def _digest(db: Connection, image_id: int, digest: Digest, at: float) -> list[Digest] | None:
    """With all that nothing else in the image holds or points at."""
    gone: list[Digest] = []
    pending = [digest]
    while pending:
        each = pending.pop()
        entries = _entries(db, image_id, each)
        if _out(db, image_id, each, at):
            gone.append(each)
            pending += [entry for entry in entries if not _is_needed(db, image_id, entry)]
    return gone or None


def _out(db: Connection, image_id: int, digest: Digest, at: float) -> bool:
    """Take it out of an image, as a manifest and as a blob; whether it was there."""
    was_blob = unlink_blob(db, image_id, digest, _EVER)
    return remove_manifest(db, image_id, digest, _EVER, actor=_ACTOR, at=at) or was_blob


def _entries(db: Connection, image_id: int, digest: Digest) -> list[Digest]:
    manifest_id = manifests.row_of(db, image_id, digest)
    if manifest_id is None:
        return []
    rows = db.execute("SELECT digest FROM manifest_entry WHERE manifest_id = ?", (manifest_id,))
    return [Digest.parse(entry) for (entry,) in rows]


def _is_needed(db: Connection, image_id: int, digest: Digest) -> bool:
    held = db.execute(
        "SELECT 1 FROM manifest_entry WHERE image_id = ? AND digest = ? LIMIT 1",
        (image_id, str(digest)),
    ).fetchone()
    manifest_id = manifests.row_of(db, image_id, digest)
    return held is not None or (manifest_id is not None and _is_tagged(db, manifest_id))


def _is_tagged(db: Connection, manifest_id: int) -> bool:
    query = "SELECT 1 FROM tag WHERE manifest_id = ? LIMIT 1"
    return db.execute(query, (manifest_id,)).fetchone() is not None
