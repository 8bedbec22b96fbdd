"""What a repository holds, and whether it may hold more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Connection

from artifactd.oci.errors import QuotaExceeded


def size(db: Connection, repository: str) -> int:
    """Bytes of all blobs and manifests of its images, each once."""
    row = db.execute(
        "SELECT size FROM repository_usage WHERE repository = ?", (repository,)
    ).fetchone()
    return 0 if row is None else int(row[0])


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
