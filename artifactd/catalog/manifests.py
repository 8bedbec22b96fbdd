"""Manifests: what they hold, and what refers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from sqlite3 import Connection
from typing import Any

import msgspec

from artifactd.catalog import blobs, images, tags, tombstones
from artifactd.catalog.interfaces import ManifestPut, ManifestRecord
from artifactd.catalog.leases import renew_manifest, settle
from artifactd.catalog.requirements import check_depth, check_entries, check_precondition
from artifactd.oci.digest import Digest
from artifactd.oci.errors import ManifestUnknown
from artifactd.oci.manifest import Descriptor, Manifest
from artifactd.oci.names import ImageName, Reference, Tag

_SELECT = (
    "SELECT manifest.digest, blob.size, media_type, artifact_type, subject, annotations, free_since"
    " FROM image"
)
_BLOB = (
    " JOIN blob ON blob.digest = manifest.digest AND lost_at IS NULL"
    " WHERE image.repository = ? AND image.name = ?"
)
_BY_DIGEST = (
    f"{_SELECT} JOIN manifest ON manifest.image_id = image.id AND manifest.digest = ?{_BLOB}"
)
_BY_TAG = (
    f"{_SELECT} JOIN tag ON tag.image_id = image.id AND tag.name = ?"
    f" JOIN manifest ON manifest.id = tag.manifest_id{_BLOB}"
)
_BY_SUBJECT = (
    f"{_SELECT} JOIN manifest ON manifest.image_id = image.id{_BLOB}"
    " AND subject = ? AND manifest.digest > ?"
)

# Characters of annotations in one list of referrers; a manifest may have 4 MiB of them.
_ANNOTATIONS = 3 << 20

_annotations = msgspec.json.Decoder(dict[str, str])


def find(db: Connection, image: ImageName, reference: Reference) -> ManifestRecord | None:
    """``Catalog.manifest``."""
    query = _BY_TAG if isinstance(reference, Tag) else _BY_DIGEST
    row = db.execute(query, (str(reference), image.repository, image.image)).fetchone()
    return None if row is None else record_of(row)


def promise(
    db: Connection, image: ImageName, digest: Digest, at: float, due: float
) -> ManifestRecord | None:
    """``Catalog.promise_manifest``: renew the lease if it runs from ``due`` or before."""
    renew_manifest(db, image, digest, at, due)
    return find(db, image, digest)


def referrers(
    db: Connection,
    image: ImageName,
    subject: Digest,
    artifact_type: str | None,
    after: str | None,
    limit: int,
) -> list[ManifestRecord]:
    """``Catalog.referrers``."""
    wanted: list[str | int] = [image.repository, image.image, str(subject), after or ""]
    query = _BY_SUBJECT
    if artifact_type is not None:
        query += " AND artifact_type = ?"
        wanted.append(artifact_type)
    records: list[ManifestRecord] = []
    size = 0
    for row in db.execute(f"{query} ORDER BY manifest.digest LIMIT ?", (*wanted, limit)):
        records.append(record_of(row))
        if size > _ANNOTATIONS:
            break  # one more than fits, which tells that there are more
        size += len(row[5])
    return records


def record_of(row: Sequence[Any]) -> ManifestRecord:
    """
    A row of digest, size, media type, artifact type, subject, annotations and ``free_since``.
    """
    digest, size, media_type, artifact_type, subject, annotations, free_since = row
    return ManifestRecord(
        digest=Digest.parse(digest),
        size=size,
        media_type=media_type,
        artifact_type=artifact_type,
        subject=None if subject is None else Digest.parse(subject),
        annotations=_annotations.decode(annotations),
        free_since=free_since,
    )


def check(db: Connection, put: ManifestPut) -> None:
    """``Catalog.check_manifest``."""
    image_id = images.find(db, put.image)
    check_entries(db, image_id, put)
    check_depth(db, image_id, put)
    check_precondition(db, image_id, put)  # last: RFC 9110, 13.2.1


def put(db: Connection, put: ManifestPut, confirm: Callable[[], None], at: float) -> None:
    """``Catalog.put_manifest``."""
    check(db, put)
    store(db, put, confirm, at, used_at=None)


def store(
    db: Connection,
    put: ManifestPut,
    confirm: Callable[[], None],
    at: float,
    *,
    used_at: float | None,
) -> None:
    """
    Put a manifest into an image, and move its tags, whether what it holds is there or not.

    :param used_at: as for :func:`artifactd.catalog.blobs.link`.
    """
    confirm()
    manifest = put.manifest
    blobs.record(db, manifest.digest, len(manifest.content), at)
    image_id = images.make_known(db, put.image, at)
    is_new = row_of(db, image_id, manifest.digest) is None
    manifest_id = _upsert(db, image_id, manifest, at, used_at)
    touched = _entries(db, manifest_id) if not is_new else []
    _replace_entries(db, image_id, manifest_id, manifest)
    touched += _entries(db, manifest_id)
    if is_new:
        touched += referrers_of(db, image_id, str(manifest.digest))
        tombstones.forget_manifest(db, image_id, str(manifest.digest))
    for tag in put.tags:
        tags.move(db, image_id, tag, manifest_id, manifest.digest, put.actor, at)
    settle(db, image_id, [str(manifest.digest), *touched], at)
    db.execute(
        "UPDATE manifest SET free_since = ? WHERE id = ? AND free_since < ?", (at, manifest_id, at)
    )


def rebuild(db: Connection, image: ImageName, manifest: Manifest, at: float) -> bool:
    """``RepairCatalog.rebuild_manifest``."""
    image_id = images.find(db, image)
    manifest_id = None if image_id is None else row_of(db, image_id, manifest.digest)
    if image_id is None or manifest_id is None:
        return False
    touched = _entries(db, manifest_id)
    db.execute(
        "UPDATE manifest SET media_type = ?, artifact_type = ?, subject = ?, annotations = ?"
        " WHERE id = ?",
        (*_described(manifest), manifest_id),
    )
    _replace_entries(db, image_id, manifest_id, manifest)
    settle(db, image_id, [str(manifest.digest), *touched, *_entries(db, manifest_id)], at)
    return True


def _described(manifest: Manifest) -> tuple[str, str | None, str | None, str]:
    return (
        manifest.media_type,
        manifest.artifact_type,
        None if manifest.subject is None else str(manifest.subject),
        msgspec.json.encode(manifest.annotations).decode(),
    )


def _upsert(
    db: Connection, image_id: int, manifest: Manifest, at: float, used_at: float | None
) -> int:
    row = db.execute(
        "INSERT INTO manifest"
        " (image_id, digest, media_type, artifact_type, subject, annotations, pushed_at, used_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET media_type = excluded.media_type,"
        " artifact_type = excluded.artifact_type, subject = excluded.subject,"
        " annotations = excluded.annotations, pushed_at = excluded.pushed_at,"
        " used_at = max(manifest.used_at, excluded.used_at)"  # NULL, if one of them is
        " RETURNING id",
        (
            image_id,
            str(manifest.digest),
            *_described(manifest),
            at,
            used_at,
        ),
    ).fetchone()
    return int(row[0])


def _replace_entries(db: Connection, image_id: int, manifest_id: int, manifest: Manifest) -> None:
    """Replaced, since the same bytes may mean something else under another media type."""

    def entries(kind: str, held: Iterable[Descriptor]) -> Iterable[tuple[int, str, str, int]]:
        return ((image_id, str(descriptor.digest), kind, manifest_id) for descriptor in held)

    db.execute("DELETE FROM manifest_entry WHERE manifest_id = ?", (manifest_id,))
    insert = (
        "INSERT INTO manifest_entry (image_id, digest, kind, manifest_id) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING"  # a layer may be listed twice
    )
    db.executemany(insert, entries("blob", manifest.blobs))
    db.executemany(insert, entries("manifest", manifest.children))


def delete(
    db: Connection, image: ImageName, digest: Digest, *, allow_held: bool, actor: str, at: float
) -> None:
    """``Catalog.delete_manifest``."""
    image_id = images.known(db, image)
    manifest_id = row_of(db, image_id, digest)
    if manifest_id is None:
        raise ManifestUnknown("this image has no such manifest", {"digest": str(digest)})
    if not allow_held:
        blobs.refuse_if_held(db, image_id, digest, "manifest")
    tombstones.bury_manifest(db, manifest_id, actor=actor, at=at)
    remove(db, image_id, manifest_id, digest, actor=actor, at=at)


def row_of(db: Connection, image_id: int, digest: Digest) -> int | None:
    """The row of a manifest of an image."""
    row = db.execute(
        "SELECT id FROM manifest WHERE image_id = ? AND digest = ?", (image_id, str(digest))
    ).fetchone()
    return None if row is None else int(row[0])


def remove(
    db: Connection, image_id: int, manifest_id: int, digest: Digest, *, actor: str, at: float
) -> None:
    """
    Take out a manifest and its tags, and journal those; leases of what only it held run from now.
    """
    touched = _entries(db, manifest_id) + referrers_of(db, image_id, str(digest))
    tags.delete_all_of(db, manifest_id, digest, actor=actor, at=at)
    db.execute("DELETE FROM manifest WHERE id = ?", (manifest_id,))
    settle(db, image_id, touched, at)


def _entries(db: Connection, manifest_id: int) -> list[str]:
    rows = db.execute("SELECT digest FROM manifest_entry WHERE manifest_id = ?", (manifest_id,))
    return [digest for (digest,) in rows]


def referrers_of(db: Connection, image_id: int, subject: str) -> list[str]:
    """The digests of the manifests of an image whose subject is ``subject``."""
    rows = db.execute(
        "SELECT digest FROM manifest WHERE image_id = ? AND subject = ?", (image_id, subject)
    )
    return [digest for (digest,) in rows]
