"""Rows of images."""

from __future__ import annotations

from sqlite3 import Connection

from artifactd.catalog.leases import loosen
from artifactd.oci.errors import NameUnknown, Unsupported
from artifactd.oci.names import ImageName


def find(db: Connection, image: ImageName) -> int | None:
    """The row of ``image``, known or not."""
    row = db.execute(
        "SELECT id FROM image WHERE repository = ? AND name = ?", (image.repository, image.image)
    ).fetchone()
    return None if row is None else int(row[0])


def find_known(db: Connection, image: ImageName) -> int | None:
    """The row of ``image`` if it has ever had a manifest, and was not released since."""
    row = db.execute(
        "SELECT id FROM image WHERE repository = ? AND name = ? AND known_at IS NOT NULL",
        (image.repository, image.image),
    ).fetchone()
    return None if row is None else int(row[0])


def known(db: Connection, image: ImageName) -> int:
    """The row of ``image``.  :raises NameUnknown: if it has never had a manifest."""
    image_id = find_known(db, image)
    if image_id is None:
        raise NameUnknown("no image of that name has been pushed here", {"name": str(image)})
    return image_id


def add(db: Connection, image: ImageName) -> int:
    """The row of ``image``, made if there is none; that alone does not make it known."""
    image_id = find(db, image)
    if image_id is None:
        image_id = db.execute(
            "INSERT INTO image (repository, name) VALUES (?, ?)", (image.repository, image.image)
        ).lastrowid
        assert image_id is not None  # after an INSERT it is there
    return image_id


def make_known(db: Connection, image: ImageName, at: float) -> int:
    """The row of ``image``, known from ``at`` on if it was not before."""
    image_id = add(db, image)
    db.execute("UPDATE image SET known_at = ? WHERE id = ? AND known_at IS NULL", (at, image_id))
    return image_id


def release(db: Connection, image: ImageName, at: float) -> None:
    """``RemoteCatalog.release_image``."""
    image_id = known(db, image)
    if db.execute("SELECT 1 FROM manifest WHERE image_id = ? LIMIT 1", (image_id,)).fetchone():
        raise Unsupported(
            "this image still has manifests: delete those first", {"name": str(image)}
        )
    db.execute("UPDATE image SET known_at = NULL WHERE id = ?", (image_id,))
    # An unknown image that held blobs would go on answering for them.
    rows = db.execute(
        "SELECT digest FROM blob_link JOIN blob ON blob.id = blob_id WHERE image_id = ?",
        (image_id,),
    )
    held = [digest for (digest,) in rows.fetchall()]
    db.execute("DELETE FROM blob_link WHERE image_id = ?", (image_id,))
    loosen(db, held, at)


def names(db: Connection, repository: str, after: str, limit: int) -> list[str]:
    """``Catalog.images``."""
    rows = db.execute(
        "SELECT name FROM image"
        " WHERE repository = ? AND name > ? AND known_at IS NOT NULL ORDER BY name LIMIT ?",
        (repository, after, limit),
    )
    return [name for (name,) in rows]
