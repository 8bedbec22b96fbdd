"""Whether rows agree with one another and with the bytes of manifests."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

from attrs import frozen

from artifactd.catalog import manifests
from artifactd.catalog.interfaces import ManifestRecord
from artifactd.catalog.leases import HELD, KEPT
from artifactd.catalog.repair import ListedManifest, Slip
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName

_MANIFESTS = (
    "SELECT manifest.id, repository, name, used_at IS NOT NULL, lost_at IS NOT NULL,"
    " manifest.digest, size, media_type, artifact_type, subject, annotations, free_since"
    " FROM manifest CROSS JOIN image ON image.id = image_id"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    " WHERE manifest.id > ? ORDER BY manifest.id LIMIT ?"
)
# What an index lists as a blob may be a manifest that we know nothing of.
_ENTRIES = (
    "SELECT digest, kind, (kind = 'blob' AND EXISTS ("
    "SELECT 1 FROM blob CROSS JOIN blob_link ON blob_link.blob_id = blob.id"
    " WHERE blob.digest = entry.digest AND lost_at IS NULL"
    " AND blob_link.image_id = entry.image_id)) OR EXISTS ("
    "SELECT 1 FROM manifest CROSS JOIN blob USING (digest)"
    " WHERE manifest.image_id = entry.image_id AND digest = entry.digest AND lost_at IS NULL)"
    " FROM manifest_entry AS entry WHERE manifest_id = ?"
)
_UNNEEDED = (
    "NOT EXISTS (SELECT 1 FROM blob_link WHERE blob_link.blob_id = blob.id)"
    " AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_manifest WHERE deleted_manifest.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_entry"
    " WHERE deleted_entry.digest = blob.digest AND linked = 1)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_blob WHERE deleted_blob.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM loose_blob WHERE loose_blob.blob_id = blob.id)"
)
_IMAGE = "repository || '/' || image.name"


@frozen
class _Check:
    kind: str
    text: str
    query: str  # the name of each that is wrong
    mended: str = ""  # ?1 is now


_CHECKS = (
    _Check(
        "entry",
        "what it holds is noted for another image",
        f"SELECT {_IMAGE} || '@' || manifest.digest FROM manifest_entry AS entry"
        " CROSS JOIN manifest ON manifest.id = manifest_id"
        " CROSS JOIN image ON image.id = manifest.image_id"
        " WHERE entry.image_id <> manifest.image_id",
        "UPDATE OR REPLACE manifest_entry SET image_id ="
        " (SELECT image_id FROM manifest WHERE id = manifest_id)"
        " WHERE ?1 AND image_id <> (SELECT image_id FROM manifest WHERE id = manifest_id)",
    ),
    _Check(
        "tag",
        "it points at a manifest of another image: push it again, or delete it",
        f"SELECT {_IMAGE} || ':' || tag.name FROM tag CROSS JOIN image ON image.id = tag.image_id"
        " CROSS JOIN manifest ON manifest.id = manifest_id"
        " WHERE manifest.image_id <> tag.image_id",
    ),
    _Check(
        "lease",
        "whether a manifest holds it is not as its row says, so that it stays or goes wrongly",
        f"SELECT {_IMAGE} || '@' || digest FROM blob_link"
        " CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
        f" WHERE used_at IS NULL AND (unheld_since IS NULL) <> {HELD}",
        "UPDATE blob_link SET unheld_since = CASE WHEN unheld_since IS NULL THEN ?1 END"
        f" WHERE used_at IS NULL AND (unheld_since IS NULL) <> {HELD}",
    ),
    _Check(
        "lease",
        "whether anything keeps it is not as its row says, so that it stays or goes wrongly",
        f"SELECT {_IMAGE} || '@' || digest FROM manifest CROSS JOIN image ON image.id = image_id"
        f" WHERE used_at IS NULL AND (free_since IS NULL) <> {KEPT}",
        "UPDATE manifest SET free_since = CASE WHEN free_since IS NULL THEN ?1 END"
        f" WHERE used_at IS NULL AND (free_since IS NULL) <> {KEPT}",
    ),
    _Check(
        "unneeded",
        "nothing needs these bytes, and they do not wait for collection",
        f"SELECT digest FROM blob WHERE {_UNNEEDED}",
        f"INSERT INTO loose_blob (blob_id, since) SELECT id, ?1 FROM blob WHERE {_UNNEEDED}",
    ),
)


def integrity(db: Connection) -> list[str]:
    """``RepairCatalog.integrity``."""
    wrong = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
        wrong.append(f"row {row} of {table} refers to a row of {parent} that is not there")
    return wrong


def slips(db: Connection, limit: int) -> list[Slip]:
    """``RepairCatalog.slips``."""
    return [
        Slip(check.kind, name, check.text, bool(check.mended))
        for check in _CHECKS
        for (name,) in db.execute(f"{check.query} LIMIT ?", (limit,))
    ]


def mend(db: Connection, at: float) -> None:
    """``RepairCatalog.mend``."""
    for check in _CHECKS:
        if check.mended:
            db.execute(check.mended, (at,))


def listed(db: Connection, after: int, limit: int) -> Sequence[ListedManifest]:
    """``RepairCatalog.listed_manifests``."""
    return [
        _listed(db, position, ImageName(repository, name), bool(remote), bool(lost), row)
        for position, repository, name, remote, lost, *row in db.execute(_MANIFESTS, (after, limit))
    ]


def _listed(
    db: Connection, position: int, image: ImageName, remote: bool, lost: bool, row: list[object]
) -> ListedManifest:
    entries, absent = set(), set()
    for text, kind, here in db.execute(_ENTRIES, (position,)):
        digest = Digest.parse(text)
        entries.add((digest, kind == "manifest"))
        if not here:
            absent.add(digest)
    record: ManifestRecord = manifests.record_of(row)
    return ListedManifest(
        position, image, remote, record, frozenset(entries), frozenset(absent), lost
    )


def rebuild(db: Connection, image: ImageName, manifest: Manifest, at: float) -> bool:
    """``RepairCatalog.rebuild_manifest``."""
    return manifests.rebuild(db, image, manifest, at)
