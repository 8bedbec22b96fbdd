"""What a repository holds, and whether it may hold more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Connection

from artifactd.oci.digest import Digest
from artifactd.oci.errors import QuotaExceeded


def size(db: Connection, repository: str) -> int:
    """Bytes of all blobs and manifests of its images, each once."""
    row = db.execute(
        "SELECT size FROM repository_usage WHERE repository = ?", (repository,)
    ).fetchone()
    return 0 if row is None else int(row[0])


def size_with(db: Connection, repository: str, digest: Digest | None, more: int) -> int:
    """``Catalog.repository_size``."""
    if digest is not None and _holds(db, repository, digest):
        more = 0
    return size(db, repository) + more


def _holds(db: Connection, repository: str, digest: Digest) -> bool:
    row = db.execute(
        "SELECT 1 FROM blob JOIN repository_blob ON repository_blob.blob_id = blob.id"
        " WHERE blob.digest = ? AND repository_blob.repository = ?",
        (str(digest), repository),
    ).fetchone()
    return row is not None


@contextmanager
def within(db: Connection, repository: str, quota: int) -> Iterator[None]:
    """
    For what adds to ``repository``; inside a write transaction.

    :param quota: bytes; 0: none.  A repository that has more already may be added to what it has.
    :raises QuotaExceeded: at the end, if it has grown to more than that; the caller undoes it all.
    """
    before = size(db, repository) if quota else 0
    yield
    if quota:
        after = size(db, repository)
        if after > max(quota, before):
            raise QuotaExceeded(repository, quota, before, after - before)
