"""Collecting: a page of what is of no use at a time, each found by an index."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

import msgspec

from artifactd.catalog import blobs, manifests, tombstones
from artifactd.catalog.garbage import Collected, Garbage
from artifactd.catalog.leases import HELD, KEPT, loosen
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName

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
        tombstones.bury_manifest(db, manifest_id, actor=_ACTOR, at=at, collected=True)
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
        (DELETED_TAGS, tombstones.forget_tag),
        (DELETED_MANIFESTS, tombstones.forget_manifest),
        (DELETED_BLOBS, tombstones.forget_blob),
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
