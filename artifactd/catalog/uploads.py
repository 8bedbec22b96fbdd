"""Upload sessions."""

from __future__ import annotations

from collections.abc import Callable
from sqlite3 import Connection

from artifactd.catalog.interfaces import UploadRecord
from artifactd.oci.digest import Algorithm
from artifactd.oci.errors import TooManyRequests
from artifactd.oci.names import ImageName

_COLUMNS = "id, repository, image, algorithm, started, owner"
_Row = tuple[str, str, str, str, float, str | None]
_RETRY_AFTER = "60"  # seconds: somebody may finish one, or cancel it


def add(db: Connection, upload: UploadRecord, create: Callable[[], None], most: int) -> None:
    """``Catalog.add_upload``."""
    image = upload.image
    if most and upload.owner is not None:
        _check_number(db, upload.owner, most)
    create()
    db.execute(
        f"INSERT INTO upload ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
        (
            upload.id,
            image.repository,
            image.image,
            str(upload.algorithm),
            upload.started,
            upload.owner,
        ),
    )


def _check_number(db: Connection, owner: str, most: int) -> None:
    last = db.execute(
        "SELECT 1 FROM upload WHERE owner = ? LIMIT 1 OFFSET ?", (owner, most - 1)
    ).fetchone()
    if last is not None:
        raise TooManyRequests(
            f"{owner} has too many upload sessions open: finish some, or cancel them",
            {"limit": most},
            {"Retry-After": _RETRY_AFTER},
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
    upload_id, repository, image, algorithm, started, owner = row
    return UploadRecord(
        upload_id, ImageName(repository, image), Algorithm(algorithm), started, owner
    )
