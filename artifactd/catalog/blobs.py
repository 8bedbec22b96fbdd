"""Rows of blobs: functions that methods of the catalog share, inside their transactions."""

from __future__ import annotations

from collections.abc import Iterable
from sqlite3 import Connection

from attrs import frozen

from artifactd.catalog import images
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName


@frozen
class Link:
    """
    An image's hold on a blob.

    :ivar size: the size of the blob in bytes.
    :ivar unheld_since: since when no manifest of the image holds the blob, in seconds since the
        epoch; ``None`` where one does.
    """

    size: int
    unheld_since: float | None


def link_of(db: Connection, image: ImageName, digest: Digest) -> Link | None:
    """The hold of ``image`` on a blob, or ``None``."""
    row = db.execute(
        "SELECT blob.size, unheld_since FROM image"
        " JOIN blob ON blob.digest = ? AND lost_at IS NULL"
        " JOIN blob_link ON blob_link.image_id = image.id AND blob_link.blob_id = blob.id"
        " WHERE image.repository = ? AND image.name = ?",
        (str(digest), image.repository, image.image),
    ).fetchone()
    return None if row is None else Link(int(row[0]), row[1])


def record(db: Connection, digest: Digest, size: int, at: float) -> None:
    """List the published bytes of a blob or manifest.  If they were lost, they no longer are."""
    db.execute(
        "INSERT INTO blob (digest, size, created_at) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET size = excluded.size, lost_at = NULL"
        " WHERE lost_at IS NOT NULL",
        (str(digest), size, at),
    )


def link(
    db: Connection,
    image: ImageName,
    digest: Digest,
    *,
    used_at: float | None,
    at: float,
    due: float,
) -> None:
    """
    Let ``image`` hold a blob that is listed.  If no manifest holds it, its lease runs from ``at``.

    :param used_at: now, for a blob that comes from an upstream; ``None`` for one that is pushed
        here, which counts as pushed from then on.
    :param due: a running lease is renewed unless it was renewed after ``due``.
    """
    db.execute(
        "INSERT INTO blob_link (image_id, blob_id, used_at, unheld_since)"
        " SELECT :image, id, :used_at, CASE WHEN :used_at IS NULL AND NOT EXISTS ("
        "SELECT 1 FROM manifest_entry WHERE image_id = :image AND digest = :digest) THEN :at END"
        " FROM blob WHERE digest = :digest"
        # max() of anything and NULL is NULL.
        " ON CONFLICT DO UPDATE SET used_at = max(blob_link.used_at, excluded.used_at),"
        " unheld_since = excluded.unheld_since"
        " WHERE blob_link.used_at IS NOT NULL"
        " OR (excluded.used_at IS NULL AND blob_link.unheld_since <= :due)",
        {
            "image": images.add(db, image),
            "used_at": used_at,
            "digest": str(digest),
            "at": at,
            "due": due,
        },
    )


UNNEEDED = (
    "NOT EXISTS (SELECT 1 FROM blob_link WHERE blob_link.blob_id = blob.id)"
    " AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_manifest WHERE deleted_manifest.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_entry"
    " WHERE deleted_entry.digest = blob.digest AND linked = 1)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_blob WHERE deleted_blob.digest = blob.digest)"
)
"""
SQL: no image needs a row of ``blob`` any more, as a blob or a manifest, nor could need it to bring
back what was deleted.
"""


def unlist(db: Connection, digests: Iterable[Digest]) -> list[Digest]:
    """
    Delete the rows of those of ``digests`` that are not needed any more, and return those.

    Each stays in ``dropped_blob`` until ``Catalog.forget_blob``: the process may die before.
    """
    gone = [
        digest
        for digest in digests
        if db.execute(f"DELETE FROM blob WHERE digest = ? AND {UNNEEDED}", (str(digest),)).rowcount
    ]
    db.executemany(
        "INSERT INTO dropped_blob (digest) VALUES (?) ON CONFLICT DO NOTHING",
        [(str(digest),) for digest in gone],
    )
    return gone
