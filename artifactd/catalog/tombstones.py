"""What clients have deleted, kept as it was until it is brought back or its time is over."""

from __future__ import annotations

from sqlite3 import Connection

from artifactd.catalog.leases import loosen
from artifactd.oci.digest import Digest


def bury_tag(
    db: Connection, image_id: int, name: str, digest: Digest, *, actor: str, at: float
) -> None:
    """Remember a tag that is deleted now, and the manifest it points at."""
    db.execute(
        "INSERT INTO deleted_tag (image_id, name, digest, actor, deleted_at)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET digest = excluded.digest, actor = excluded.actor, deleted_at = excluded.deleted_at",
        (image_id, name, str(digest), actor, at),
    )


def bury_manifest(
    db: Connection, manifest_id: int, *, actor: str, at: float, collected: bool = False
) -> None:
    """Remember a manifest, with its tags and what it holds, before it is deleted."""
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
    """Remember that a blob is deleted from an image now."""
    db.execute(
        "INSERT INTO deleted_blob (image_id, digest, actor, deleted_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET actor = excluded.actor, deleted_at = excluded.deleted_at",
        (image_id, str(digest), actor, at),
    )


def forget_manifest(db: Connection, image_id: int, digest: str) -> None:
    """Keep a deleted manifest no longer: it is back, or its time is over."""
    row = db.execute(
        "SELECT id, deleted_at FROM deleted_manifest WHERE image_id = ? AND digest = ?",
        (image_id, digest),
    ).fetchone()
    if row is None:
        return
    kept = db.execute(
        "SELECT digest FROM deleted_entry WHERE deleted_id = ? AND linked = 1", (row[0],)
    )
    # The entries go with it, so they are read before.
    loose = [digest, *(entry for (entry,) in kept.fetchall())]
    db.execute("DELETE FROM deleted_manifest WHERE id = ?", (row[0],))
    loosen(db, loose, row[1])


def forget_tag(db: Connection, image_id: int, name: str) -> None:
    """Keep a deleted tag no longer."""
    db.execute("DELETE FROM deleted_tag WHERE image_id = ? AND name = ?", (image_id, name))


def forget_blob(db: Connection, image_id: int, digest: str) -> None:
    """Keep a blob that was deleted from an image no longer."""
    row = db.execute(
        "DELETE FROM deleted_blob WHERE image_id = ? AND digest = ? RETURNING deleted_at",
        (image_id, digest),
    ).fetchone()
    if row is not None:
        loosen(db, [digest], row[0])
