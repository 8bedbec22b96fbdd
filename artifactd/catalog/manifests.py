"""Manifests: what they hold, and what refers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from sqlite3 import Connection
from typing import Any

import msgspec

from artifactd.catalog import blobs, images, leases
from artifactd.catalog.leases import renew_manifest, settle
from artifactd.catalog.records import ManifestPut, ManifestRecord
from artifactd.oci.digest import Digest
from artifactd.oci.errors import (
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    PreconditionFailed,
)
from artifactd.oci.manifest import INDEX_TYPES, Descriptor, Manifest
from artifactd.oci.names import ImageName, Reference, Tag

# What must be so before a manifest can be put into an image.

# One parameter however many digests; CROSS JOIN keeps SQLite from reading the image's rows instead.
_BLOB_SIZES = (
    "SELECT blob.digest, blob.size FROM json_each(?) AS wanted"
    " CROSS JOIN blob ON blob.digest = wanted.value AND lost_at IS NULL"
    " CROSS JOIN blob_link ON blob_link.image_id = ? AND blob_link.blob_id = blob.id"
)
_MANIFEST_SIZES = (
    "SELECT blob.digest, blob.size FROM json_each(?) AS wanted"
    " CROSS JOIN manifest ON manifest.digest = wanted.value AND manifest.image_id = ?"
    " CROSS JOIN blob ON blob.digest = manifest.digest AND lost_at IS NULL"
)


def check_entries(db: Connection, image_id: int | None, put: ManifestPut) -> None:
    """
    :raises ManifestBlobUnknown: if the image lacks something that the manifest holds.
    :raises ManifestInvalid: if a descriptor's size is wrong.
    """
    manifest = put.manifest
    is_index = manifest.media_type in INDEX_TYPES
    # What an index lists under a media type that we know nothing of may be either.
    either = manifest.blobs if is_index else ()
    blob_sizes = _sizes(db, _BLOB_SIZES, image_id, manifest.blobs)
    manifest_sizes = _sizes(db, _MANIFEST_SIZES, image_id, (*manifest.children, *either))
    sizes = blob_sizes | manifest_sizes
    absent: list[str] = []
    if not is_index:
        absent = _absent(manifest.blobs, blob_sizes)
    elif not put.sparse:
        absent = _absent(manifest.blobs, sizes) + _absent(manifest.children, manifest_sizes)
    if absent:
        raise ManifestBlobUnknown(
            "this image lacks content that the manifest refers to: push or mount it first",
            {"digests": list(dict.fromkeys(absent))},
        )
    _check_sizes((*manifest.blobs, *manifest.children), sizes)


_DEPTH_BELOW = """
    WITH RECURSIVE below (digest, depth) AS (
        SELECT value, 1 FROM json_each(:children)
        UNION
        SELECT entry.digest, below.depth + 1 FROM below
            CROSS JOIN manifest ON manifest.image_id = :image AND manifest.digest = below.digest
            CROSS JOIN manifest_entry AS entry
                ON entry.manifest_id = manifest.id AND entry.kind = 'manifest'
            WHERE below.depth <= :most
    ) SELECT max(depth) FROM below
"""
_DEPTH_ABOVE = """
    WITH RECURSIVE above (digest, depth) AS (
        SELECT :digest, 0
        UNION
        SELECT manifest.digest, above.depth + 1 FROM above
            CROSS JOIN manifest_entry AS entry ON entry.image_id = :image
                AND entry.digest = above.digest AND entry.kind = 'manifest'
            CROSS JOIN manifest ON manifest.id = entry.manifest_id
            WHERE above.depth <= :most
    ) SELECT max(depth) FROM above
"""


def check_depth(db: Connection, image_id: int | None, put: ManifestPut) -> None:
    """
    An index of images has the depth 1.

    :raises ManifestInvalid: if the manifest, with what it holds and what holds it already in the
        image, is a nest of indexes that is too deep.
    """
    manifest = put.manifest
    if not manifest.children or image_id is None:
        return
    named: dict[str, object] = {
        "children": msgspec.json.encode({str(c.digest) for c in manifest.children}).decode(),
        "digest": str(manifest.digest),
        "image": image_id,
        "most": put.index_depth,
    }
    (depth,) = db.execute(_DEPTH_BELOW, named).fetchone()
    if put.sparse:  # else what it holds came before it
        depth += db.execute(_DEPTH_ABOVE, named).fetchone()[0]
    if depth > put.index_depth:
        raise ManifestInvalid(
            f"indexes are nested deeper than {put.index_depth}, which is the most that is accepted"
            " here",
            {"digest": str(manifest.digest), "limit": put.index_depth},
        )


def _sizes(
    db: Connection, query: str, image_id: int | None, entries: Iterable[Descriptor]
) -> dict[str, int]:
    wanted = {str(descriptor.digest) for descriptor in entries}
    if image_id is None or not wanted:
        return {}
    return dict(db.execute(query, (msgspec.json.encode(wanted).decode(), image_id)))


def _absent(entries: Sequence[Descriptor], sizes: Mapping[str, int]) -> list[str]:
    digests = (str(descriptor.digest) for descriptor in entries if not descriptor.optional)
    return [digest for digest in digests if digest not in sizes]


def _check_sizes(entries: Sequence[Descriptor], sizes: Mapping[str, int]) -> None:
    """What is absent has no size to compare with but that of another mention."""
    right = dict(sizes)
    for descriptor in entries:
        digest = str(descriptor.digest)
        size = right.setdefault(digest, descriptor.size)
        if descriptor.size != size:
            raise ManifestInvalid(
                f"a descriptor says {descriptor.size} bytes, but the content has {size}"
                if digest in sizes
                else f"two descriptors of one digest say {size} and {descriptor.size} bytes",
                {"digest": digest, "size": descriptor.size},
            )


def check_precondition(db: Connection, image_id: int | None, put: ManifestPut) -> None:
    """:raises PreconditionFailed: if it does not hold for one of the references."""
    precondition = put.precondition
    if precondition.if_match is None and precondition.if_none_match is None:
        return
    for reference in put.tags or (put.manifest.digest,):
        if image_id is None:
            current = None
        elif isinstance(reference, Digest):
            current = reference if _has_manifest(db, image_id, reference) else None
        else:
            current = images.tag_target(db, image_id, reference)
        if not precondition.holds(current):
            raise PreconditionFailed(
                "the precondition does not hold: fetch what the reference points at now and decide"
                " again",
                {
                    "reference": str(reference),
                    "current": None if current is None else str(current),
                },
            )


def _has_manifest(db: Connection, image_id: int, digest: Digest) -> bool:
    query = "SELECT 1 FROM manifest WHERE image_id = ? AND digest = ?"
    return db.execute(query, (image_id, str(digest))).fetchone() is not None


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
        leases.forget_manifest(db, image_id, str(manifest.digest))
    for tag in put.tags:
        images.move_tag(db, image_id, tag, manifest_id, manifest.digest, put.actor, at)
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
    leases.bury_manifest(db, manifest_id, actor=actor, at=at)
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
    images.delete_tags_of(db, manifest_id, digest, actor=actor, at=at)
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
