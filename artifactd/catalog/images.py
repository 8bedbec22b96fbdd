"""Rows of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from sqlite3 import Connection

from artifactd.catalog import leases
from artifactd.catalog.leases import loosen, settle
from artifactd.catalog.records import TagMovement, UploadRecord
from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.errors import (
    ManifestUnknown,
    NameUnknown,
    QuotaExceeded,
    TooManyRequests,
    Unsupported,
)
from artifactd.oci.names import ImageName, Tag


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


def image_names(db: Connection, repository: str, after: str, limit: int) -> list[str]:
    """``Catalog.images``."""
    rows = db.execute(
        "SELECT name FROM image"
        " WHERE repository = ? AND name > ? AND known_at IS NOT NULL ORDER BY name LIMIT ?",
        (repository, after, limit),
    )
    return [name for (name,) in rows]


# Tags and the journal of their movements.


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
) -> None:
    """Let ``tag`` point at a manifest, and journal it; nothing if it does already."""
    before = tag_target(db, image_id, tag)
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


def delete_tag(db: Connection, image: ImageName, tag: Tag, *, actor: str, at: float) -> None:
    """``Catalog.delete_tag``."""
    image_id = known(db, image)
    before = tag_target(db, image_id, tag)
    if before is None:
        raise ManifestUnknown("this image has no such tag", {"tag": tag.text})
    leases.bury_tag(db, image_id, tag.text, before, actor=actor, at=at)
    take_tag_off(db, image_id, tag, before, actor=actor, at=at)


def take_tag_off(
    db: Connection, image_id: int, tag: Tag, before: Digest, *, actor: str, at: float
) -> None:
    """Take a tag off the manifest it points at, and journal it."""
    db.execute("DELETE FROM tag WHERE image_id = ? AND name = ?", (image_id, tag.text))
    db.execute(
        "INSERT INTO tag_movement (image_id, tag, actor, at, before) VALUES (?, ?, ?, ?, ?)",
        (image_id, tag.text, actor, at, str(before)),
    )
    settle(db, image_id, [str(before)], at)


def delete_tags_of(
    db: Connection, manifest_id: int, digest: Digest, *, actor: str, at: float
) -> None:
    """Take off every tag that points at a manifest, and journal it."""
    db.execute(
        "INSERT INTO tag_movement (image_id, tag, actor, at, before)"
        " SELECT image_id, name, ?, ?, ? FROM tag WHERE manifest_id = ? ORDER BY name",
        (actor, at, str(digest), manifest_id),
    )
    db.execute("DELETE FROM tag WHERE manifest_id = ?", (manifest_id,))


def tag_movements(db: Connection, image: ImageName, tag: Tag) -> Sequence[TagMovement]:
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


def tag_names(
    db: Connection, image: ImageName, after: str | None, limit: int | None
) -> list[str] | None:
    """``Catalog.tags``."""
    image_id = find_known(db, image)
    if image_id is None:
        return None
    rows = db.execute(
        "SELECT name FROM tag WHERE image_id = ? AND name > ? ORDER BY name LIMIT ?",
        (image_id, after or "", -1 if limit is None else limit),
    )
    return [name for (name,) in rows]


# Upload sessions.

_UPLOAD_COLUMNS = "id, repository, image, algorithm, started, owner"
_Row = tuple[str, str, str, str, float, str | None]
_RETRY_AFTER = "60"  # seconds: somebody may finish one, or cancel it


def add_upload(db: Connection, upload: UploadRecord, create: Callable[[], None], most: int) -> None:
    """``Catalog.add_upload``."""
    image = upload.image
    if most and upload.owner is not None:
        _check_number(db, upload.owner, most)
    create()
    db.execute(
        f"INSERT INTO upload ({_UPLOAD_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
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


def find_upload(db: Connection, upload_id: str) -> UploadRecord | None:
    """``Catalog.upload``."""
    row = db.execute(f"SELECT {_UPLOAD_COLUMNS} FROM upload WHERE id = ?", (upload_id,)).fetchone()
    return None if row is None else _upload_record(row)


def delete_upload(db: Connection, upload_id: str) -> bool:
    """``Catalog.delete_upload``."""
    return db.execute("DELETE FROM upload WHERE id = ?", (upload_id,)).rowcount > 0


def upload_page(db: Connection, after: str, limit: int) -> list[UploadRecord]:
    """``Catalog.uploads``."""
    rows = db.execute(
        f"SELECT {_UPLOAD_COLUMNS} FROM upload WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
    )
    return [_upload_record(row) for row in rows]


def _upload_record(row: _Row) -> UploadRecord:
    upload_id, repository, image, algorithm, started, owner = row
    return UploadRecord(
        upload_id, ImageName(repository, image), Algorithm(algorithm), started, owner
    )


# What a repository holds, and whether it may hold more.


def usage_size(db: Connection, repository: str) -> int:
    """Bytes of all blobs and manifests of its images, each once."""
    row = db.execute(
        "SELECT size FROM repository_usage WHERE repository = ?", (repository,)
    ).fetchone()
    return 0 if row is None else int(row[0])


@contextmanager
def within_quota(db: Connection, repository: str, quota: int) -> Iterator[None]:
    """
    For what adds to ``repository``; inside a write transaction.

    :param quota: bytes; 0: none.  A repository that has more already may be added to what it has.
    :raises QuotaExceeded: at the end, if it has grown to more than that; the caller undoes it all.
    """
    before = usage_size(db, repository) if quota else 0
    yield
    if quota:
        after = usage_size(db, repository)
        if after > max(quota, before):
            raise QuotaExceeded(repository, quota, before, after - before)


# Which remote repository answers for an unprefixed name.


def find_origin(db: Connection, name: str) -> str | None:
    """``RemoteCatalog.origin``."""
    row = db.execute("SELECT repository FROM origin WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def remember_origin(db: Connection, name: str, repository: str) -> str:
    """``RemoteCatalog.set_origin``."""
    db.execute(
        "INSERT INTO origin (name, repository) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (name, repository),
    )
    return find_origin(db, name) or repository
