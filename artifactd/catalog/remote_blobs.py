"""Blobs of upstreams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sqlite3 import Connection

from artifactd.catalog import blobs
from artifactd.oci.digest import Digest
from artifactd.oci.names import ImageName


def link(db: Connection, image: ImageName, digest: Digest, at: float) -> int | None:
    """``RemoteCatalog.link_blob``."""
    size = blobs.size_anywhere(db, digest)
    if size is not None:
        blobs.link(db, image, digest, used_at=at, at=at, due=at)
    return size


def add(
    db: Connection,
    images: Sequence[ImageName],
    digest: Digest,
    size: int,
    confirm: Callable[[], None],
    at: float,
) -> None:
    """``RemoteCatalog.add_blobs``."""
    confirm()
    blobs.record(db, digest, size, at)
    for image in images:
        blobs.link(db, image, digest, used_at=at, at=at, due=at)
