"""Manifests and tags of upstreams."""

from __future__ import annotations

from collections.abc import Callable
from sqlite3 import Connection

from artifactd.catalog import images, manifests, tags
from artifactd.catalog.interfaces import ManifestPut
from artifactd.catalog.remote import CachedTag
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName, Tag

_ACTOR = "upstream"


def find(db: Connection, image: ImageName, tag: Tag) -> CachedTag | None:
    """``RemoteCatalog.cached_tag``."""
    row = db.execute(
        "SELECT checked_at, candidate, candidate_at FROM image"
        " JOIN tag ON tag.image_id = image.id AND tag.name = ?"
        " WHERE image.repository = ? AND image.name = ? AND checked_at IS NOT NULL",
        (tag.text, image.repository, image.image),
    ).fetchone()
    record = None if row is None else manifests.find(db, image, tag)
    if record is None:
        return None
    checked_at, candidate, candidate_at = row
    return CachedTag(
        record, checked_at, None if candidate is None else Digest.parse(candidate), candidate_at
    )


def cache(
    db: Connection,
    image: ImageName,
    manifest: Manifest,
    tag: Tag | None,
    confirm: Callable[[], None],
    at: float,
) -> None:
    """``RemoteCatalog.cache_manifest``."""
    wanted = () if tag is None else (tag,)
    put = ManifestPut(image, manifest, wanted, actor=_ACTOR)
    manifests.store(db, put, confirm, at, used_at=at)
    if tag is not None:
        keep(db, image, tag, None, at)


def point(db: Connection, image: ImageName, tag: Tag, digest: Digest, at: float) -> bool:
    """``RemoteCatalog.point_tag``."""
    image_id = images.find(db, image)
    manifest_id = None if image_id is None else manifests.row_of(db, image_id, digest)
    if image_id is None or manifest_id is None:
        return False
    tags.move(db, image_id, tag, manifest_id, digest, _ACTOR, at)
    keep(db, image, tag, None, at)
    return True


def keep(db: Connection, image: ImageName, tag: Tag, candidate: Digest | None, at: float) -> None:
    """``RemoteCatalog.keep_tag``."""
    db.execute(
        "UPDATE tag SET checked_at = :at, candidate = :candidate, candidate_at ="
        " CASE WHEN :candidate IS NULL THEN NULL"
        " WHEN candidate = :candidate THEN candidate_at ELSE :at END"
        " WHERE image_id = (SELECT id FROM image WHERE repository = :repository AND name = :image)"
        " AND name = :tag",
        {
            "at": at,
            "candidate": None if candidate is None else str(candidate),
            "repository": image.repository,
            "image": image.image,
            "tag": tag.text,
        },
    )
