"""Rows of images, tags and blobs, their leases, what was deleted, and quotas: shared functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from sqlite3 import Connection

import msgspec
from attrs import frozen

from artifactd.oci.errors import NameUnknown, QuotaExceeded
from artifactd.oci.names import Digest, ImageName, Tag

# -- images


def find(db: Connection, image: ImageName) -> int | None:
    """The row of ``image``, known or not."""
    row = db.execute(
        "SELECT id FROM image WHERE repository = ? AND name = ?", (image.repository, image.image)
    ).fetchone()
    return None if row is None else int(row[0])


def find_known(db: Connection, image: ImageName) -> int | None:
    """The row of ``image`` if it has had a manifest and has not been released since."""
    row = db.execute(
        "SELECT id FROM image WHERE repository = ? AND name = ? AND known_at IS NOT NULL",
        (image.repository, image.image),
    ).fetchone()
    return None if row is None else int(row[0])


def known(db: Connection, image: ImageName) -> int:
    """
    The row of ``image``.

    :raises NameUnknown: if it has never had a manifest.
    """
    image_id = find_known(db, image)
    if image_id is None:
        raise NameUnknown("no image of that name has been pushed here", {"name": str(image)})
    return image_id


def add(db: Connection, image: ImageName) -> int:
    """The row of ``image``, inserted if there is none; a row alone does not make it known."""
    image_id = find(db, image)
    if image_id is None:
        image_id = db.execute(
            "INSERT INTO image (repository, name) VALUES (?, ?)", (image.repository, image.image)
        ).lastrowid
        assert image_id is not None  # after an INSERT it is there
    return image_id


def make_known(db: Connection, image: ImageName, at: float) -> int:
    """The row of ``image``, which is known from now on: since ``at``, if it was not before."""
    image_id = add(db, image)
    db.execute("UPDATE image SET known_at = ? WHERE id = ? AND known_at IS NULL", (at, image_id))
    return image_id


# -- tags


def tag_target(db: Connection, image_id: int, tag: Tag) -> Digest | None:
    """The digest that ``tag`` points at, or ``None`` if there is no such tag."""
    row = db.execute(
        "SELECT manifest.digest FROM tag JOIN manifest ON manifest.id = tag.manifest_id"
        " WHERE tag.image_id = ? AND tag.name = ?",
        (image_id, tag.text),
    ).fetchone()
    return None if row is None else Digest.parse(row[0])


def move_tag(
    db: Connection, image_id: int, tag: Tag, manifest_id: int, digest: Digest, actor: str, at: float
) -> Digest | None:
    """
    Point ``tag`` at a manifest and journal the movement, unless it points there already.

    :return: the digest that it pointed at before; ``None``: there was no such tag.
    """
    before = place_tag(db, image_id, tag, manifest_id, digest, actor, at)
    if before != digest:
        settle(db, image_id, [str(each) for each in (before, digest) if each is not None], at)
    return before


def place_tag(
    db: Connection, image_id: int, tag: Tag, manifest_id: int, digest: Digest, actor: str, at: float
) -> Digest | None:
    """Do what :func:`move_tag` does, but for the leases: the caller settles both manifests."""
    before = tag_target(db, image_id, tag)
    if before == digest:
        return before
    db.execute(
        "INSERT INTO tag (image_id, name, manifest_id, moved_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE"
        " SET manifest_id = excluded.manifest_id, moved_at = excluded.moved_at",
        (image_id, tag.text, manifest_id, at),
    )
    db.execute(
        "INSERT INTO tag_movement (image_id, tag, actor, at, before, after)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (image_id, tag.text, actor, at, None if before is None else str(before), str(digest)),
    )
    return before


def note_push(db: Connection, image_id: int, tags: Iterable[str], at: float) -> None:
    """Note that tags were pushed again to the manifests at which they are."""
    db.executemany(
        "UPDATE tag SET pushed_at = ? WHERE image_id = ? AND name = ?",
        [(at, image_id, tag) for tag in tags],
    )


def take_tag_off(
    db: Connection, image_id: int, tag: Tag, before: Digest, *, actor: str, at: float
) -> None:
    """Delete a tag and journal the movement."""
    db.execute("DELETE FROM tag WHERE image_id = ? AND name = ?", (image_id, tag.text))
    db.execute(
        "INSERT INTO tag_movement (image_id, tag, actor, at, before) VALUES (?, ?, ?, ?, ?)",
        (image_id, tag.text, actor, at, str(before)),
    )
    settle(db, image_id, [str(before)], at)


def delete_tags_of(
    db: Connection, manifest_id: int, digest: Digest, *, actor: str, at: float
) -> None:
    """Delete every tag that points at a manifest and journal the movements."""
    db.execute(
        "INSERT INTO tag_movement (image_id, tag, actor, at, before)"
        " SELECT image_id, name, ?, ?, ? FROM tag WHERE manifest_id = ? ORDER BY name",
        (actor, at, str(digest), manifest_id),
    )
    db.execute("DELETE FROM tag WHERE manifest_id = ?", (manifest_id,))


# -- blobs


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


def record_blob(db: Connection, digest: Digest, size: int, at: float) -> None:
    """List the published bytes of a blob or manifest.  If they were lost, they no longer are."""
    db.execute(
        "INSERT INTO blob (digest, size, created_at) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET size = excluded.size, lost_at = NULL"
        " WHERE lost_at IS NOT NULL",
        (str(digest), size, at),
    )


def link_blob(
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
            "image": add(db, image),
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


# -- leases, and what is collected after them

HELD = (
    "EXISTS (SELECT 1 FROM manifest_entry WHERE manifest_entry.image_id = blob_link.image_id"
    " AND manifest_entry.digest = (SELECT digest FROM blob WHERE id = blob_link.blob_id))"
)
"""SQL: a manifest of the image holds the blob of a row of ``blob_link``."""

KEPT = (
    "(EXISTS (SELECT 1 FROM tag WHERE tag.manifest_id = manifest.id)"
    " OR EXISTS (SELECT 1 FROM manifest_entry WHERE manifest_entry.image_id = manifest.image_id"
    " AND manifest_entry.digest = manifest.digest)"
    " OR EXISTS (SELECT 1 FROM manifest AS subject WHERE subject.image_id = manifest.image_id"
    " AND subject.digest = manifest.subject))"
)
"""SQL: a tag, an index or a subject keeps a row of ``manifest`` in its image."""

# Rows that are right already are not written.
_SETTLE_BLOBS = (
    "UPDATE blob_link SET unheld_since = CASE WHEN unheld_since IS NULL THEN :at END"
    " WHERE image_id = :image AND blob_id IN ("
    "SELECT blob.id FROM json_each(:digests) AS touched"
    " CROSS JOIN blob ON blob.digest = touched.value)"
    f" AND used_at IS NULL AND (unheld_since IS NULL) <> {HELD}"
)
_SETTLE_MANIFESTS = (
    "UPDATE manifest SET orphaned = 0, free_since = CASE WHEN free_since IS NULL THEN :at END"
    " WHERE image_id = :image AND digest IN (SELECT value FROM json_each(:digests))"
    f" AND used_at IS NULL AND (free_since IS NULL) <> {KEPT}"
)
_ORPHAN = (
    "UPDATE manifest SET orphaned = 1"
    " WHERE image_id = ? AND digest IN (SELECT value FROM json_each(?)) AND free_since IS NOT NULL"
)
_RENEW_BLOB = (
    "UPDATE blob_link SET unheld_since = :at"
    " WHERE image_id = (SELECT id FROM image WHERE repository = :repository AND name = :name)"
    " AND blob_id = (SELECT id FROM blob WHERE digest = :digest) AND unheld_since <= :due"
)
_RENEW_MANIFEST = (
    "UPDATE manifest SET free_since = :at"
    " WHERE image_id = (SELECT id FROM image WHERE repository = :repository AND name = :name)"
    " AND digest = :digest AND free_since <= :due"
)


def is_kept(db: Connection, manifest_id: int) -> bool:
    """Whether a tag, an index or a subject keeps a manifest in its image."""
    kept = f"SELECT 1 FROM manifest WHERE id = ? AND {KEPT}"
    return db.execute(kept, (manifest_id,)).fetchone() is not None


def settle(db: Connection, image_id: int, digests: Iterable[str], at: float) -> None:
    """
    Bring the leases of ``digests``, blobs or manifests of an image, up to date after a change of
    tags or manifests.  The leases of those that nothing holds any more run from ``at``; those that
    are held again have none.
    """
    touched = msgspec.json.encode(list(dict.fromkeys(digests))).decode()
    values = {"image": image_id, "digests": touched, "at": at}
    db.execute(_SETTLE_BLOBS, values)
    db.execute(_SETTLE_MANIFESTS, values)


def orphan(db: Connection, image_id: int, digests: Sequence[str]) -> None:
    """
    Mark orphans, which are collected after their leases: those of ``digests`` that nothing keeps
    any more.  To be called after :func:`settle`.

    :param digests: the manifests that a removed manifest kept.
    """
    db.execute(_ORPHAN, (image_id, msgspec.json.encode(digests).decode()))


def renew_blob(db: Connection, image: ImageName, digest: Digest, at: float, due: float) -> None:
    """Restart the lease of a blob at ``at``, unless it was restarted after ``due``."""
    db.execute(_RENEW_BLOB, _renewed(image, digest, at, due))


def renew_manifest(db: Connection, image: ImageName, digest: Digest, at: float, due: float) -> None:
    """Restart the lease of a manifest at ``at``, unless it was restarted after ``due``."""
    db.execute(_RENEW_MANIFEST, _renewed(image, digest, at, due))


def _renewed(image: ImageName, digest: Digest, at: float, due: float) -> dict[str, object]:
    return {
        "repository": image.repository,
        "name": image.image,
        "digest": str(digest),
        "at": at,
        "due": due,
    }


def loosen(db: Connection, digests: Iterable[str], since: float) -> None:
    """Queue the bytes of ``digests`` for collection: they may not be needed since ``since``."""
    db.executemany(
        "INSERT INTO loose_blob (blob_id, since) SELECT id, ? FROM blob WHERE digest = ?"
        " ON CONFLICT DO UPDATE SET since = max(since, excluded.since)",
        [(since, digest) for digest in digests],
    )


# -- deleted tags, manifests and blobs, kept as they were until their time for undelete is over


def bury_tag(
    db: Connection, image_id: int, name: str, digest: Digest, *, actor: str, at: float
) -> None:
    """Keep a record of a tag that is being deleted, and of the manifest it points at."""
    db.execute(
        "INSERT INTO deleted_tag (image_id, name, digest, actor, deleted_at)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET digest = excluded.digest, actor = excluded.actor, deleted_at = excluded.deleted_at",
        (image_id, name, str(digest), actor, at),
    )


def bury_manifest(
    db: Connection, manifest_id: int, *, actor: str, at: float, collected: bool = False
) -> None:
    """Keep a record of a manifest, its tags and the digests it holds, before it is deleted."""
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
    """Keep a record of a blob that is being deleted from an image."""
    db.execute(
        "INSERT INTO deleted_blob (image_id, digest, actor, deleted_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET actor = excluded.actor, deleted_at = excluded.deleted_at",
        (image_id, str(digest), actor, at),
    )


def forget_manifest(db: Connection, image_id: int, digest: str) -> None:
    """Drop the record of a deleted manifest: it is back, or its time for undelete is over."""
    row = db.execute(
        "SELECT id, deleted_at FROM deleted_manifest WHERE image_id = ? AND digest = ?",
        (image_id, digest),
    ).fetchone()
    if row is None:
        return
    kept = db.execute(
        "SELECT digest FROM deleted_entry WHERE deleted_id = ? AND linked = 1", (row[0],)
    )
    # Read before the delete, which cascades to the entries.
    loose = [digest, *(entry for (entry,) in kept.fetchall())]
    db.execute("DELETE FROM deleted_manifest WHERE id = ?", (row[0],))
    loosen(db, loose, row[1])


def forget_tag(db: Connection, image_id: int, name: str) -> None:
    """Drop the record of a deleted tag."""
    db.execute("DELETE FROM deleted_tag WHERE image_id = ? AND name = ?", (image_id, name))


def forget_blob(db: Connection, image_id: int, digest: str) -> None:
    """Drop the record of a blob that was deleted from an image."""
    row = db.execute(
        "DELETE FROM deleted_blob WHERE image_id = ? AND digest = ? RETURNING deleted_at",
        (image_id, digest),
    ).fetchone()
    if row is not None:
        loosen(db, [digest], row[0])


# -- quotas


def usage_size(db: Connection, repository: str) -> int:
    """Bytes of all blobs and manifests of a repository's images, each once."""
    row = db.execute(
        "SELECT size FROM repository_usage WHERE repository = ?", (repository,)
    ).fetchone()
    return 0 if row is None else int(row[0])


@contextmanager
def within_quota(db: Connection, repository: str, quota: int) -> Iterator[None]:
    """
    Hold the block's additions to ``repository`` to a quota, inside a write transaction.

    :param quota: bytes; 0: no quota.  A repository that exceeds it already may not grow.
    :raises QuotaExceeded: at the end of the block, if the repository has grown beyond ``quota``;
        the caller's transaction is rolled back then.
    """
    before = usage_size(db, repository) if quota else 0
    yield
    if quota:
        after = usage_size(db, repository)
        if after > max(quota, before):
            raise QuotaExceeded(repository, quota, before, after - before)
