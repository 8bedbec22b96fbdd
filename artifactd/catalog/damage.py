"""What was lost of the store: rows that stay, so that it is known what to push or fetch again."""

from __future__ import annotations

from collections.abc import Callable
from sqlite3 import Connection

from artifactd.catalog import blobs, manifests
from artifactd.catalog.leases import loosen
from artifactd.catalog.repair import Holder, ListedBlob
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName

_ACTOR = "fsck"

# By turns, so that neither those who can push it again nor those who can fetch it are cut off.
_HOLDERS = (
    "SELECT repository, name, is_manifest, is_remote FROM ("
    "SELECT *, row_number() OVER ("
    "PARTITION BY is_remote ORDER BY repository, name, is_manifest) AS turn FROM ("
    "SELECT repository, name, 0 AS is_manifest, used_at IS NOT NULL AS is_remote"
    " FROM blob CROSS JOIN blob_link ON blob_id = blob.id CROSS JOIN image ON image.id = image_id"
    " WHERE digest = ?1"
    " UNION ALL "
    "SELECT repository, name, 1, used_at IS NOT NULL"
    " FROM manifest CROSS JOIN image ON image.id = image_id WHERE digest = ?1"
    ")) ORDER BY turn, is_remote LIMIT ?2"
)


def lose(db: Connection, digest: Digest, is_so: Callable[[], bool], at: float) -> bool:
    """``RepairCatalog.lose_blob``."""
    if not is_so():
        return False
    db.execute(
        "UPDATE blob SET lost_at = ? WHERE digest = ? AND lost_at IS NULL", (at, str(digest))
    )
    return True


def take_out(db: Connection, digest: Digest, move: Callable[[], bool]) -> bool:
    """``RepairCatalog.take_out``."""
    listed = db.execute(
        "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NULL", (str(digest),)
    ).fetchone()
    return listed is None and move()


def is_lost(db: Connection, digest: Digest) -> bool:
    """``RepairCatalog.is_lost``."""
    lost = "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NOT NULL"
    return db.execute(lost, (str(digest),)).fetchone() is not None


def restore(db: Connection, digest: Digest, confirm: Callable[[], None]) -> None:
    """``RepairCatalog.restore_blob``."""
    confirm()
    db.execute("UPDATE blob SET lost_at = NULL WHERE digest = ?", (str(digest),))


def holders(db: Connection, digest: Digest, limit: int) -> list[Holder]:
    """``RepairCatalog.holders``."""
    return [
        Holder(ImageName(repository, name), bool(is_manifest), bool(is_remote))
        for repository, name, is_manifest, is_remote in db.execute(_HOLDERS, (str(digest), limit))
    ]


def drop_lost(db: Connection, digest: Digest, at: float) -> int:
    """``RepairCatalog.drop_lost``."""
    lost = db.execute(
        "SELECT id FROM blob WHERE digest = ? AND lost_at IS NOT NULL", (str(digest),)
    ).fetchone()
    if lost is None:
        return 0
    dropped = db.execute(
        "DELETE FROM blob_link WHERE used_at IS NOT NULL AND blob_id = ?", lost
    ).rowcount
    rows = db.execute(
        "SELECT image_id, id FROM manifest WHERE used_at IS NOT NULL AND digest = ?",
        (str(digest),),
    ).fetchall()
    for image_id, manifest_id in rows:
        manifests.remove(db, image_id, manifest_id, digest, actor=_ACTOR, at=at)
    if dropped or rows:
        blobs.unlist(db, [digest])
        loosen(db, [str(digest)], at)
    return dropped + len(rows)


def listed(db: Connection, after: str, limit: int) -> list[ListedBlob]:
    """``RepairCatalog.listed_blobs``."""
    rows = db.execute(
        "SELECT digest, size, lost_at FROM blob WHERE digest > ? ORDER BY digest LIMIT ?",
        (after, limit),
    )
    return [ListedBlob(Digest.parse(digest), size, lost_at) for digest, size, lost_at in rows]


def is_absent(db: Connection, digest: Digest, is_there: Callable[[], bool]) -> bool:
    """``RepairCatalog.is_absent``."""
    listed = db.execute(
        "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NULL", (str(digest),)
    ).fetchone()
    return listed is not None and not is_there()
