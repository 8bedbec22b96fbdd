"""What must be so before a manifest can be put into an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Connection

import msgspec

from artifactd.catalog import tags
from artifactd.catalog.interfaces import ManifestPut
from artifactd.oci.digest import Digest
from artifactd.oci.errors import ManifestBlobUnknown, ManifestInvalid, PreconditionFailed
from artifactd.oci.manifest import INDEX_TYPES, Descriptor

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
            current = tags.target(db, image_id, reference)
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
