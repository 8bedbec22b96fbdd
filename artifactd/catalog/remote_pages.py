"""Pages of upstreams' lists."""

from __future__ import annotations

from sqlite3 import Connection

import msgspec

from artifactd.catalog import images
from artifactd.catalog.remote import CachedPage
from artifactd.oci.names import ImageName

_KEPT = 50  # of one image

_query = msgspec.json.Decoder(dict[str, str])


def find(db: Connection, image: ImageName, key: str) -> CachedPage | None:
    """``RemoteCatalog.cached_page``."""
    row = db.execute(
        "SELECT body, next, filtered, fetched_at FROM image"
        " JOIN upstream_page ON image_id = image.id AND key = ?"
        " WHERE image.repository = ? AND image.name = ?",
        (key, image.repository, image.image),
    ).fetchone()
    if row is None:
        return None
    body, following, filtered, fetched_at = row
    following = None if following is None else _query.decode(following)
    return CachedPage(body, following, filtered, fetched_at)


def put(db: Connection, image: ImageName, key: str, page: CachedPage) -> None:
    """``RemoteCatalog.cache_page``."""
    image_id = images.add(db, image)
    following = None if page.next is None else msgspec.json.encode(page.next).decode()
    db.execute(
        "INSERT INTO upstream_page (image_id, key, body, next, filtered, fetched_at)"
        " VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET body = excluded.body, next = excluded.next,"
        " filtered = excluded.filtered, fetched_at = excluded.fetched_at",
        (image_id, key, page.body, following, page.filtered, page.fetched_at),
    )
    db.execute(
        "DELETE FROM upstream_page WHERE rowid IN (SELECT rowid FROM upstream_page"
        " WHERE image_id = ? ORDER BY fetched_at DESC, rowid DESC LIMIT -1 OFFSET ?)",
        (image_id, _KEPT),
    )


def delete_all(db: Connection, image_id: int) -> int:
    """Forget the pages of an image; how many there were."""
    return db.execute("DELETE FROM upstream_page WHERE image_id = ?", (image_id,)).rowcount
