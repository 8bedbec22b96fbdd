"""Upload sessions."""

from __future__ import annotations

from collections.abc import Callable
from sqlite3 import Connection

from artifactd.catalog.interfaces import UploadRecord
from artifactd.oci.digest import Algorithm
from artifactd.oci.name import ImageName

_COLUMNS = "id, repository, image, algorithm, started"
_Row = tuple[str, str, str, str, float]


def add(db: Connection, upload: UploadRecord, create: Callable[[], None]) -> None:
    """``Catalog.add_upload``."""
    image = upload.image
    create()
    db.execute(
        f"INSERT INTO upload ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
        (upload.id, image.repository, image.image, str(upload.algorithm), upload.started),
    )


def find(db: Connection, upload_id: str) -> UploadRecord | None:
    """``Catalog.upload``."""
    row = db.execute(f"SELECT {_COLUMNS} FROM upload WHERE id = ?", (upload_id,)).fetchone()
    return None if row is None else _record(row)


def delete(db: Connection, upload_id: str) -> bool:
    """``Catalog.delete_upload``."""
    return db.execute("DELETE FROM upload WHERE id = ?", (upload_id,)).rowcount > 0


def page(db: Connection, after: str, limit: int) -> list[UploadRecord]:
    """``Catalog.uploads``."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM upload WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
    )
    return [_record(row) for row in rows]


def _record(row: _Row) -> UploadRecord:
    upload_id, repository, image, algorithm, started = row
    return UploadRecord(upload_id, ImageName(repository, image), Algorithm(algorithm), started)
