"""Tags and the journal of their movements."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

from artifactd.catalog import images, tombstones
from artifactd.catalog.interfaces import TagMovement
from artifactd.catalog.leases import settle
from artifactd.oci.digest import Digest
from artifactd.oci.errors import ManifestUnknown
from artifactd.oci.names import ImageName, Tag


def target(db: Connection, image_id: int, tag: Tag) -> Digest | None:
    """The digest that ``tag`` points at, or ``None`` if there is no such tag."""
    row = db.execute(
        "SELECT manifest.digest FROM tag JOIN manifest ON manifest.id = tag.manifest_id"
        " WHERE tag.image_id = ? AND tag.name = ?",
        (image_id, tag.text),
    ).fetchone()
    return None if row is None else Digest.parse(row[0])


def move(
    db: Connection, image_id: int, tag: Tag, manifest_id: int, digest: Digest, actor: str, at: float
) -> None:
    """Let ``tag`` point at a manifest, and journal it; nothing if it does already."""
    before = target(db, image_id, tag)
    if before == digest:
        return
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


def delete(db: Connection, image: ImageName, tag: Tag, *, actor: str, at: float) -> None:
    """``Catalog.delete_tag``."""
    image_id = images.known(db, image)
    before = target(db, image_id, tag)
    if before is None:
        raise ManifestUnknown("this image has no such tag", {"tag": tag.text})
    tombstones.bury_tag(db, image_id, tag.text, before, actor=actor, at=at)
    take_off(db, image_id, tag, before, actor=actor, at=at)


def take_off(
    db: Connection, image_id: int, tag: Tag, before: Digest, *, actor: str, at: float
) -> None:
    """Take a tag off the manifest it points at, and journal it."""
    db.execute("DELETE FROM tag WHERE image_id = ? AND name = ?", (image_id, tag.text))
    db.execute(
        "INSERT INTO tag_movement (image_id, tag, actor, at, before) VALUES (?, ?, ?, ?, ?)",
        (image_id, tag.text, actor, at, str(before)),
    )
    settle(db, image_id, [str(before)], at)


def delete_all_of(
    db: Connection, manifest_id: int, digest: Digest, *, actor: str, at: float
) -> None:
    """Take off every tag that points at a manifest, and journal it."""
    db.execute(
        "INSERT INTO tag_movement (image_id, tag, actor, at, before)"
        " SELECT image_id, name, ?, ?, ? FROM tag WHERE manifest_id = ? ORDER BY name",
        (actor, at, str(digest), manifest_id),
    )
    db.execute("DELETE FROM tag WHERE manifest_id = ?", (manifest_id,))


def movements(db: Connection, image: ImageName, tag: Tag) -> Sequence[TagMovement]:
    """``Catalog.tag_movements``."""
    rows = db.execute(
        "SELECT actor, at, before, after FROM tag_movement"
        " WHERE image_id = (SELECT id FROM image WHERE repository = ? AND name = ?) AND tag = ?"
        " ORDER BY id",
        (image.repository, image.image, tag.text),
    )
    return [
        TagMovement(tag.text, actor, at, _digest(before), _digest(after))
        for actor, at, before, after in rows
    ]


def _digest(text: str | None) -> Digest | None:
    return None if text is None else Digest.parse(text)


def names(
    db: Connection, image: ImageName, after: str | None, limit: int | None
) -> list[str] | None:
    """``Catalog.tags``."""
    image_id = images.find_known(db, image)
    if image_id is None:
        return None
    rows = db.execute(
        "SELECT name FROM tag WHERE image_id = ? AND name > ? ORDER BY name LIMIT ?",
        (image_id, after or "", -1 if limit is None else limit),
    )
    return [name for (name,) in rows]
