"""Blobs, and which image holds which."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from sqlite3 import Connection
from typing import Literal

from attrs import frozen

from artifactd.catalog import images, leases
from artifactd.catalog.leases import renew_blob
from artifactd.oci.digest import Digest
from artifactd.oci.errors import BlobUnknown, Unsupported
from artifactd.oci.names import ImageName

_HOLDERS_NAMED = 10


@frozen
class Link:
    """
    That an image holds a blob of ``size`` bytes; since ``unheld_since`` no manifest of it does, in
    seconds since the epoch.
    """

    size: int
    unheld_since: float | None


def size(db: Connection, image: ImageName, digest: Digest) -> int | None:
    """``Catalog.blob_size``."""
    found = link_of(db, image, digest)
    return None if found is None else found.size


def link_of(db: Connection, image: ImageName, digest: Digest) -> Link | None:
    """How ``image`` holds a blob, if it does."""
    row = db.execute(
        "SELECT blob.size, unheld_since FROM image"
        " JOIN blob ON blob.digest = ? AND lost_at IS NULL"
        " JOIN blob_link ON blob_link.image_id = image.id AND blob_link.blob_id = blob.id"
        " WHERE image.repository = ? AND image.name = ?",
        (str(digest), image.repository, image.image),
    ).fetchone()
    return None if row is None else Link(int(row[0]), row[1])


def promise(db: Connection, image: ImageName, digest: Digest, at: float, due: float) -> int | None:
    """``Catalog.promise_blob``: renew the lease if it runs from ``due`` or before."""
    renew_blob(db, image, digest, at, due)
    return size(db, image, digest)


def add(
    db: Connection,
    image: ImageName,
    digest: Digest,
    size: int,
    confirm: Callable[[], None],
    upload: str | None,
    at: float,
) -> None:
    """``Catalog.add_blob``."""
    confirm()
    record(db, digest, size, at)
    link(db, image, digest, used_at=None, at=at, due=at)
    if upload is not None:
        images.delete_upload(db, upload)


def record(db: Connection, digest: Digest, size: int, at: float) -> None:
    """List published bytes, of a blob or a manifest; what was lost is here again."""
    db.execute(
        "INSERT INTO blob (digest, size, created_at) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET size = excluded.size, lost_at = NULL"
        " WHERE lost_at IS NOT NULL",
        (str(digest), size, at),
    )


def mount(
    db: Connection,
    image: ImageName,
    digest: Digest,
    source: ImageName | None,
    at: float,
    due: float,
) -> int | None:
    """``Catalog.mount_blob``; ``due`` as for :func:`promise`."""
    if source is None:
        held = _size_in_repository(db, image.repository, digest)
    else:
        held = size(db, source, digest)
    if held is not None:
        link(db, image, digest, used_at=None, at=at, due=due)
    return held


def _size_in_repository(db: Connection, repository: str, digest: Digest) -> int | None:
    row = db.execute(
        "SELECT size FROM blob WHERE digest = ? AND lost_at IS NULL AND EXISTS ("
        "SELECT 1 FROM blob_link JOIN image ON image.id = blob_link.image_id"
        " WHERE blob_link.blob_id = blob.id AND image.repository = ?)",
        (str(digest), repository),
    ).fetchone()
    return None if row is None else int(row[0])


def size_anywhere(db: Connection, digest: Digest) -> int | None:
    """``RemoteCatalog.stored_size``."""
    row = db.execute(
        "SELECT size FROM blob WHERE digest = ? AND lost_at IS NULL"
        " AND EXISTS (SELECT 1 FROM blob_link WHERE blob_id = blob.id)",
        (str(digest),),
    ).fetchone()
    return None if row is None else int(row[0])


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
    Let ``image`` hold a blob that is listed; its lease runs from ``at`` where no manifest holds it.

    :param used_at: now, for one that comes from an upstream; ``None`` for one that is pushed here,
        which it then stays.
    :param due: a lease that runs already is renewed if it runs from then or before.
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


def delete(
    db: Connection, image: ImageName, digest: Digest, *, allow_held: bool, actor: str, at: float
) -> None:
    """``Catalog.delete_blob``."""
    image_id = images.find(db, image)
    if image_id is None or not _is_linked(db, image_id, digest):
        raise BlobUnknown("this image has no such blob", {"digest": str(digest)})
    if not allow_held:
        refuse_if_held(db, image_id, digest, "blob")
    leases.bury_blob(db, image_id, digest, actor=actor, at=at)
    db.execute(
        "DELETE FROM blob_link"
        " WHERE image_id = ? AND blob_id = (SELECT id FROM blob WHERE digest = ?)",
        (image_id, str(digest)),
    )


def _is_linked(db: Connection, image_id: int, digest: Digest) -> bool:
    """Whether an image holds a blob, be it lost or not."""
    row = db.execute(
        "SELECT 1 FROM blob_link"
        " WHERE image_id = ? AND blob_id = (SELECT id FROM blob WHERE digest = ?)",
        (image_id, str(digest)),
    ).fetchone()
    return row is not None


def refuse_if_held(
    db: Connection, image_id: int, digest: Digest, kind: Literal["blob", "manifest"]
) -> None:
    """:raises Unsupported: naming the manifests of the image that hold ``digest``."""
    rows = db.execute(
        "SELECT manifest.digest FROM manifest_entry"
        " JOIN manifest ON manifest.id = manifest_entry.manifest_id"
        " WHERE manifest_entry.image_id = ? AND manifest_entry.digest = ? LIMIT ?",
        (image_id, str(digest), _HOLDERS_NAMED),
    )
    holders = sorted(holder for (holder,) in rows)
    if holders:
        raise Unsupported(
            f"manifests of this image still hold this {kind}: delete those first",
            {"digest": str(digest), "heldBy": holders},
        )


def forget(db: Connection, digest: Digest, unlink: Callable[[], None]) -> bool:
    """``Catalog.forget_blob``."""
    listed = db.execute("SELECT 1 FROM blob WHERE digest = ?", (str(digest),)).fetchone()
    if listed is None:
        unlink()
    db.execute("DELETE FROM dropped_blob WHERE digest = ?", (str(digest),))
    return listed is None


def dropped(db: Connection, after: str, limit: int) -> list[Digest]:
    """``Catalog.dropped_blobs``."""
    rows = db.execute(
        "SELECT digest FROM dropped_blob WHERE digest > ? ORDER BY digest LIMIT ?", (after, limit)
    )
    return [Digest.parse(digest) for (digest,) in rows]


def unlist(db: Connection, digests: Iterable[Digest]) -> list[Digest]:
    """
    Take off the list what no image needs any more, as a blob or a manifest, nor could need to
    bring back what was deleted; what went.

    Each is remembered until it is forgotten: the process may die before.
    """
    gone = [
        digest
        for digest in digests
        if db.execute(
            "DELETE FROM blob WHERE digest = ?"
            " AND NOT EXISTS (SELECT 1 FROM blob_link WHERE blob_link.blob_id = blob.id)"
            " AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.digest = blob.digest)"
            " AND NOT EXISTS (SELECT 1 FROM deleted_manifest"
            " WHERE deleted_manifest.digest = blob.digest)"
            " AND NOT EXISTS (SELECT 1 FROM deleted_entry"
            " WHERE deleted_entry.digest = blob.digest AND linked = 1)"
            " AND NOT EXISTS (SELECT 1 FROM deleted_blob"
            " WHERE deleted_blob.digest = blob.digest)",
            (str(digest),),
        ).rowcount
    ]
    db.executemany(
        "INSERT INTO dropped_blob (digest) VALUES (?) ON CONFLICT DO NOTHING",
        [(str(digest),) for digest in gone],
    )
    return gone
