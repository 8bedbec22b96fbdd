"""Rows of manifests: functions that methods of the catalog share, inside their transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from sqlite3 import Connection
from typing import Any, Literal

import msgspec

from artifactd.catalog import images
from artifactd.catalog.images import settle
from artifactd.catalog.records import (
    Adoption,
    ImmutableTags,
    ManifestPut,
    ManifestRecord,
    nothing,
)
from artifactd.oci.errors import (
    ManifestBlobUnknown,
    ManifestInvalid,
    TagExists,
    Unsupported,
)
from artifactd.oci.manifest import INDEX_TYPES, Descriptor, Manifest, Sparse, may_lack
from artifactd.oci.names import Digest, ImageName, Reference, Tag

MANY = 500
"""Entries of a manifest beyond which putting or deleting it is a long write."""

_HOLDERS_NAMED = 10  # of the manifests that keep a blob or manifest from being deleted

# -- checks before a manifest is put into an image

# All digests are one parameter, a JSON list.  CROSS JOIN keeps SQLite from beginning with the
# image's rows.
BLOB_SIZES = (
    "SELECT blob.digest, blob.size FROM json_each(?) AS wanted"
    " CROSS JOIN blob ON blob.digest = wanted.value AND lost_at IS NULL"
    " CROSS JOIN blob_link ON blob_link.image_id = ? AND blob_link.blob_id = blob.id"
)
"""SQL: digests and sizes of those blobs of a JSON list that an image has."""
_MANIFEST_SIZES = (
    "SELECT blob.digest, blob.size FROM json_each(?) AS wanted"
    " CROSS JOIN manifest ON manifest.digest = wanted.value AND manifest.image_id = ?"
    " CROSS JOIN blob ON blob.digest = manifest.digest AND lost_at IS NULL"
)


def check(db: Connection, put: ManifestPut) -> None:
    """Raise the errors of ``Catalog.check_manifest``."""
    image_id = images.find(db, put.image)
    _check_entries(db, image_id, put)
    _check_depth(db, image_id, put)
    _check_tags(db, image_id, put)
    _check_precondition(db, image_id, put)  # last: RFC 9110, 13.2.1


def _check_entries(db: Connection, image_id: int | None, put: ManifestPut) -> None:
    """
    :raises ManifestBlobUnknown: if the image lacks something that the manifest holds.
    :raises ManifestInvalid: if a descriptor's size is wrong.
    """
    manifest = put.manifest
    is_index = manifest.media_type in INDEX_TYPES
    # An index may list blobs or manifests under a media type that artifactd does not know.
    either = manifest.blobs if is_index else ()
    blob_sizes = _sizes(db, BLOB_SIZES, image_id, manifest.blobs)
    manifest_sizes = _sizes(db, _MANIFEST_SIZES, image_id, (*manifest.children, *either))
    sizes = blob_sizes | manifest_sizes
    absent = _absent(manifest.blobs, sizes if is_index else blob_sizes)
    absent += _absent(manifest.children, manifest_sizes)
    if may_lack(put.sparse, manifest.media_type):
        promised = set() if put.adoption is None else set(map(str, put.adoption.promised))
        absent = [digest for digest in absent if digest in promised]
    if absent:
        raise ManifestBlobUnknown(
            "this image lacks content that the manifest refers to: push or mount it first",
            {"digests": list(dict.fromkeys(absent))},
        )
    _check_sizes((*manifest.blobs, *manifest.children), sizes)


NESTED = 50_000
"""
The most entries of the indexes that an index holds, over all levels, and of those that hold it.
Walking so many takes about 0.1 s.
"""

# One level further down, or up; without DISTINCT, since the limit is one of rows that are visited.
_ENTRIES_OF = """
    SELECT entry.digest FROM json_each(:digests) AS wanted
        CROSS JOIN manifest ON manifest.image_id = :image AND manifest.digest = wanted.value
        CROSS JOIN manifest_entry AS entry
            ON entry.manifest_id = manifest.id AND entry.kind = 'manifest'
    LIMIT :most
"""
_HOLDERS_OF = """
    SELECT manifest.digest FROM json_each(:digests) AS wanted
        CROSS JOIN manifest_entry AS entry ON entry.image_id = :image
            AND entry.digest = wanted.value AND entry.kind = 'manifest'
        CROSS JOIN manifest ON manifest.id = entry.manifest_id
    LIMIT :most
"""


def _check_depth(db: Connection, image_id: int | None, put: ManifestPut) -> None:
    """
    :raises ManifestInvalid: if indexes would be nested too deep, counting those that the manifest
        holds and those of the image that hold it, or these have more than :data:`NESTED` entries.
        An index of image manifests has depth 1.
    """
    manifest, most = put.manifest, put.index_depth
    if not manifest.children or image_id is None:
        return
    depth = _levels(db, _ENTRIES_OF, image_id, {str(c.digest) for c in manifest.children}, most)
    if put.sparse != "no":  # otherwise an index comes after its children, so nothing holds it yet
        depth += _levels(db, _HOLDERS_OF, image_id, {str(manifest.digest)}, most + 1) - 1
    if depth > most:
        raise ManifestInvalid(
            f"indexes are nested deeper than {most}, which is the most that is accepted here",
            {"digest": str(manifest.digest), "limit": most},
        )


def _levels(db: Connection, query: str, image_id: int, digests: set[str], most: int) -> int:
    """
    The number of levels of manifests, from ``digests`` on; ``most`` + 1 if there are more.

    :raises ManifestInvalid: if that takes more than :data:`NESTED` entries.
    """
    levels, left = 0, NESTED
    while digests:
        levels += 1
        if levels > most:
            break
        wanted = msgspec.json.encode(digests).decode()
        named = {"digests": wanted, "image": image_id, "most": left + 1}
        found = db.execute(query, named).fetchall()
        left -= len(found)
        if left < 0:
            raise ManifestInvalid(
                f"the indexes that it holds, or that hold it, have more than {NESTED} entries"
                " together: split them up",
                {"limit": NESTED},
            )
        digests = {digest for (digest,) in found}
    return levels


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
    """Absent content has no known size: its descriptors are compared with one another."""
    right = dict(sizes)
    for descriptor in entries:
        digest = str(descriptor.digest)
        size = right.setdefault(digest, descriptor.size)
        if descriptor.size != size:
            given = {"digest": digest, "size": descriptor.size}
            if digest in sizes:
                raise ManifestInvalid(
                    f"a descriptor says {descriptor.size} bytes, but the content has another size",
                    given,
                    stored={"actual": size},
                )
            raise ManifestInvalid(
                f"two descriptors of one digest say {size} and {descriptor.size} bytes", given
            )


def _check_tags(db: Connection, image_id: int | None, put: ManifestPut) -> None:
    """
    :raises TagImmutable: if a tag has to stay at another digest, or at the manifest as it is.
    :raises TagExists: if the user may only create, and a tag or the manifest would change.
    """
    if image_id is None or not (put.immutable.patterns or put.create_only):
        return
    for tag in put.tags:
        current = images.tag_target(db, image_id, tag)
        if current is not None and current != put.manifest.digest:
            put.immutable.refuse(put.image, tag.text, current)
            if put.create_only:
                raise TagExists(tag, put.create_only, current)
    digest = put.manifest.digest
    row = db.execute(
        "SELECT media_type FROM manifest WHERE image_id = ? AND digest = ?", (image_id, str(digest))
    ).fetchone()
    if row is not None and row[0] != put.manifest.media_type:
        refuse_if_immutable(db, put.image, image_id, digest, put.immutable)
        if put.create_only:
            raise TagExists(digest, put.create_only, digest)


# A digest, and the manifests that hold it, also by way of others.
_TAGS_ABOVE = """
    WITH RECURSIVE above (digest) AS (
        SELECT :digest
        UNION
        SELECT manifest.digest FROM above
            CROSS JOIN manifest_entry AS entry
                ON entry.image_id = :image AND entry.digest = above.digest
            CROSS JOIN manifest ON manifest.id = entry.manifest_id
    )
    SELECT tag.name, above.digest FROM above
        CROSS JOIN manifest ON manifest.image_id = :image AND manifest.digest = above.digest
        CROSS JOIN tag ON tag.manifest_id = manifest.id
"""


def refuse_if_immutable(
    db: Connection, image: ImageName, image_id: int, digest: Digest, immutable: ImmutableTags
) -> None:
    """
    :raises TagImmutable: if a tag has to stay at the manifest ``digest``, or at one that holds it,
        a manifest or a blob.
    """
    if immutable.patterns:
        named = {"image": image_id, "digest": str(digest)}
        for tag, holder in db.execute(_TAGS_ABOVE, named):
            immutable.refuse(image, tag, holder)


def _check_precondition(db: Connection, image_id: int | None, put: ManifestPut) -> None:
    """:raises PreconditionFailed: if the precondition does not hold for one of the references."""
    precondition = put.precondition
    if precondition.if_match is None and precondition.if_none_match is None:
        return
    for reference in put.tags or (put.manifest.digest,):
        if image_id is None:
            current = None
        elif isinstance(reference, Digest):
            current = None if row_of(db, image_id, reference) is None else reference
        else:
            current = images.tag_target(db, image_id, reference)
        precondition.require(reference, current)


# -- reading


_SELECT = (
    "SELECT manifest.digest, blob.size, media_type, artifact_type, subject, annotations,"
    " free_since, orphaned FROM image"
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
BY_SUBJECT = (
    f"{_SELECT} JOIN manifest ON manifest.image_id = image.id{_BLOB}"
    " AND subject = ? AND manifest.digest > ?"
)

_annotations = msgspec.json.Decoder(dict[str, str])


def find(db: Connection, image: ImageName, reference: Reference) -> ManifestRecord | None:
    """The manifest that ``reference`` names in ``image``, or ``None``."""
    query = _BY_TAG if isinstance(reference, Tag) else _BY_DIGEST
    row = db.execute(query, (str(reference), image.repository, image.image)).fetchone()
    return None if row is None else record_of(row)


def record_of(row: Sequence[Any]) -> ManifestRecord:
    """
    The record of a row of digest, size, media type, artifact type, subject, annotations,
    ``free_since`` and ``orphaned``.
    """
    digest, size, media_type, artifact_type, subject, annotations, free_since, orphaned = row
    return ManifestRecord(
        digest=Digest.parse(digest),
        size=size,
        media_type=media_type,
        artifact_type=artifact_type,
        subject=None if subject is None else Digest.parse(subject),
        annotations=_annotations.decode(annotations),
        free_since=free_since,
        orphaned=bool(orphaned),
    )


def row_of(db: Connection, image_id: int, digest: Digest) -> int | None:
    """The id of the row of a manifest of an image, or ``None``."""
    row = db.execute(
        "SELECT id FROM manifest WHERE image_id = ? AND digest = ?", (image_id, str(digest))
    ).fetchone()
    return None if row is None else int(row[0])


def entries_of(db: Connection, manifest_id: int) -> list[str]:
    """The digests of the blobs and manifests that a manifest holds."""
    rows = db.execute("SELECT digest FROM manifest_entry WHERE manifest_id = ?", (manifest_id,))
    return [digest for (digest,) in rows]


def children_of(db: Connection, manifest_id: int) -> list[str]:
    """The digests of the manifests that an index lists."""
    rows = db.execute(
        "SELECT digest FROM manifest_entry WHERE manifest_id = ? AND kind = 'manifest'",
        (manifest_id,),
    )
    return [digest for (digest,) in rows]


def referrers_of(db: Connection, image_id: int, subject: str) -> list[str]:
    """The digests of the manifests of an image whose subject is ``subject``."""
    rows = db.execute(
        "SELECT digest FROM manifest WHERE image_id = ? AND subject = ?", (image_id, subject)
    )
    return [digest for (digest,) in rows]


HELD_BY = (
    "(EXISTS (SELECT 1 FROM blob_link WHERE image_id = {image} AND blob_id = blob.id)"
    " OR EXISTS (SELECT 1 FROM manifest AS same WHERE same.image_id = {image}"
    " AND same.digest = blob.digest))"
)
"""
SQL: ``image`` has a row of ``blob``, as a blob or a manifest.  That another image has it is nothing
to tell.
"""

_SUM = f"""
    WITH RECURSIVE below (digest) AS (
        SELECT {{digest}}
        UNION
        SELECT entry.digest FROM below
            CROSS JOIN manifest ON manifest.image_id = {{image}} AND manifest.digest = below.digest
            CROSS JOIN manifest_entry AS entry ON entry.manifest_id = manifest.id
    ) SELECT {{sums}} FROM below CROSS JOIN blob USING (digest) WHERE {HELD_BY}
"""
_SUM_OF = _SUM.format(digest="?2", image="?1", sums="coalesce(sum(size), 0), count(*)")
HELD_SIZE = f"({_SUM.format(digest='its.digest', image='its.image_id', sums='sum(size)')})"
"""SQL: the bytes that :func:`sum_held` tells of ``its``, a row of ``manifest``."""


def sum_held(db: Connection, image_id: int, digest: str) -> tuple[int, int]:
    """
    The bytes of a manifest with all that its image has of what it holds, also by way of its
    children, each once; and how many blobs and manifests these are.
    """
    size, count = db.execute(_SUM_OF, (image_id, digest)).fetchone()
    return size, count


# -- writing


def note_size(db: Connection, manifest_id: int) -> int:
    """
    Store what :func:`sum_held` tells of a manifest.  Triggers forget it as soon as it is not true
    any more.  Returns how many blobs and manifests were looked at.
    """
    image_id, digest = db.execute(
        "SELECT image_id, digest FROM manifest WHERE id = ?", (manifest_id,)
    ).fetchone()
    size, count = sum_held(db, image_id, digest)
    db.execute("UPDATE manifest SET held_size = ? WHERE id = ?", (size, manifest_id))
    return count


def store(
    db: Connection,
    put: ManifestPut,
    confirm: Callable[[], None],
    at: float,
    *,
    used_at: float | None,
) -> dict[Tag, Digest | None]:
    """
    Put a manifest into an image and move its tags, without any check.

    :param used_at: see :func:`artifactd.catalog.images.link_blob`.
    :return: where each of the tags pointed before; ``None``: there was no such tag.
    """
    confirm()
    manifest = put.manifest
    images.record_blob(db, manifest.digest, len(manifest.content), at)
    image_id = images.make_known(db, put.image, at)
    is_new = row_of(db, image_id, manifest.digest) is None
    manifest_id = _upsert(db, image_id, manifest, at, used_at)
    digest = str(manifest.digest)
    if is_new:
        touched = _add_entries(db, image_id, manifest_id, _held(manifest))
        touched += referrers_of(db, image_id, digest)
        images.forget_manifest(db, image_id, digest)
    else:
        touched = entries_of(db, manifest_id)
        if replace_entries(db, image_id, manifest_id, manifest):
            touched += entries_of(db, manifest_id)
        else:
            touched.clear()  # it holds what it held
    before = {
        tag: images.place_tag(db, image_id, tag, manifest_id, manifest.digest, put.actor, at)
        for tag in put.tags
    }
    again = [tag.text for tag, earlier in before.items() if earlier == manifest.digest]
    if used_at is None and again:
        images.note_push(db, image_id, again, at)
    gone = [str(earlier) for earlier in before.values() if earlier is not None]
    settle(db, image_id, [digest, *gone, *touched], at)
    # What comes from an upstream is followed by its layers, each of which would undo this.
    if used_at is None and (is_new or touched):
        note_size(db, manifest_id)
    if is_new:
        return before
    # A client that pushes it by itself means it to stay, whatever kept it before.
    db.execute(
        "UPDATE manifest SET orphaned = 0, free_since = ?"
        " WHERE id = ? AND (free_since < ? OR orphaned = 1)",
        (at, manifest_id, at),
    )
    return before


def adopt(db: Connection, put: ManifestPut, adoption: Adoption, at: float) -> None:
    """
    Copy into the image of ``put`` what ``adoption`` names, inside the transaction that judges and
    stores ``put``.  The bytes are here, since the source holds them.

    :raises RegistryError: the errors of :func:`check`, for one of the manifests.
    """
    is_known = images.find_known(db, put.image) is not None
    for digest in adoption.blobs:
        if is_known and digest not in adoption.promised:
            continue
        if images.link_of(db, adoption.source, digest) is not None:
            images.link_blob(db, put.image, digest, used_at=None, at=at, due=at)
    for manifest in adoption.manifests:
        if is_known and manifest.digest not in adoption.promised:
            continue
        if find(db, adoption.source, manifest.digest) is not None:
            sparse: Sparse = "no" if manifest.digest in adoption.promised else put.sparse
            child = ManifestPut(put.image, manifest, sparse=sparse, index_depth=put.index_depth)
            check(db, child)
            store(db, child, nothing, at, used_at=None)


def columns_of(manifest: Manifest) -> tuple[str, str | None, str | None, str]:
    """The values of the columns media type, artifact type, subject and annotations."""
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
        " used_at = max(manifest.used_at, excluded.used_at)"  # NULL if one of them is
        " RETURNING id",
        (
            image_id,
            str(manifest.digest),
            *columns_of(manifest),
            at,
            used_at,
        ),
    ).fetchone()
    return int(row[0])


def replace_entries(db: Connection, image_id: int, manifest_id: int, manifest: Manifest) -> bool:
    """
    Record what a manifest holds; return whether that is not what was recorded before.  Its bytes
    may have been recorded under another media type, and mean something else under this one.
    """
    held = _held(manifest)
    rows = db.execute(
        "SELECT digest, kind FROM manifest_entry WHERE manifest_id = ?", (manifest_id,)
    )
    if held == set(rows):
        return False
    db.execute("UPDATE manifest SET held_size = NULL WHERE id = ?", (manifest_id,))
    db.execute("INSERT INTO held_part VALUES (?, ?)", (image_id, str(manifest.digest)))
    db.execute("DELETE FROM manifest_entry WHERE manifest_id = ?", (manifest_id,))
    _add_entries(db, image_id, manifest_id, held)
    return True


_Held = set[tuple[str, Literal["blob", "manifest"]]]


def _held(manifest: Manifest) -> _Held:
    """The digests that a manifest holds, with the kind of their entries."""
    held: _Held = {(str(each.digest), "blob") for each in manifest.blobs}
    held |= {(str(digest), "blob") for digest in manifest.others}
    held |= {(str(each.digest), "manifest") for each in manifest.children}
    return held


def _add_entries(db: Connection, image_id: int, manifest_id: int, held: _Held) -> list[str]:
    """Record what a manifest holds that had no entries; return the digests."""
    rows = [(image_id, digest, kind, manifest_id) for digest, kind in sorted(held)]
    db.executemany(
        "INSERT INTO manifest_entry (image_id, digest, kind, manifest_id) VALUES (?, ?, ?, ?)", rows
    )
    return [row[1] for row in rows]


def are_many(*manifests: Manifest) -> bool:
    """Whether manifests hold more than :data:`MANY` blobs and manifests together."""
    return sum(len(m.blobs) + len(m.children) + len(m.others) for m in manifests) > MANY


def holds_many(db: Connection, image: ImageName, digest: Digest) -> bool:
    """Whether a manifest of ``image`` holds more than :data:`MANY` blobs and manifests."""
    rows = db.execute(
        "SELECT 1 FROM image JOIN manifest ON manifest.image_id = image.id AND manifest.digest = ?"
        " JOIN manifest_entry ON manifest_entry.manifest_id = manifest.id"
        " WHERE image.repository = ? AND image.name = ? LIMIT 1 OFFSET ?",
        (str(digest), image.repository, image.image, MANY),
    )
    return rows.fetchone() is not None


def refuse_if_held(
    db: Connection, image_id: int, digest: Digest, kind: Literal["blob", "manifest"]
) -> None:
    """:raises Unsupported: if manifests of the image hold ``digest``; names at most 10 of them."""
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
            {"digest": str(digest)},
            stored={"heldBy": holders},
        )


def remove(
    db: Connection, image_id: int, manifest_id: int, digest: Digest, *, actor: str, at: float
) -> None:
    """
    Delete a manifest and its tags from an image, and journal the tags' movements.  The leases of
    blobs and manifests that only this one held run from ``at``.
    """
    touched = entries_of(db, manifest_id) + referrers_of(db, image_id, str(digest))
    images.delete_tags_of(db, manifest_id, digest, actor=actor, at=at)
    db.execute("DELETE FROM manifest WHERE id = ?", (manifest_id,))
    settle(db, image_id, touched, at)
