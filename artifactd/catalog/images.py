"""Rows of images and tags, and quotas: functions that methods of the catalog share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from sqlite3 import Connection

from artifactd.catalog.leases import settle
from artifactd.oci.digest import Digest
from artifactd.oci.errors import NameUnknown, QuotaExceeded
from artifactd.oci.names import ImageName, Tag


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
    settle(db, image_id, [str(each) for each in (before, digest) if each is not None], at)
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
