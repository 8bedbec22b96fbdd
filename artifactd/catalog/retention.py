"""When tags were last pushed and pulled."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection

from artifactd.catalog import images, manifests
from artifactd.catalog.database import OnDatabase, write
from artifactd.oci.names import ImageName, Reference, Tag

HOUR = 3600.0
"""Seconds; a pull that comes within so long after one that was noted is not noted."""

_NOTE_TAG = (
    "UPDATE tag SET pulled_at = :at WHERE image_id = :image AND name = :name"
    " AND (pulled_at IS NULL OR pulled_at <= :at - :hour)"
)
_NOTE_MANIFEST = (
    "UPDATE manifest SET pulled_at = :at WHERE image_id = :image AND digest = :name"
    " AND used_at IS NULL AND (pulled_at IS NULL OR pulled_at <= :at - :hour)"
)


class RetentionCatalog(OnDatabase):
    """The part of the catalog that knows the last pulls of images that were pushed here."""

    @write
    def note_pulls(
        self, db: Connection, pulls: Mapping[tuple[ImageName, Reference], float]
    ) -> frozenset[tuple[ImageName, Reference]]:
        """
        Note when tags and manifests were last pulled: at most one row of each in an hour.

        :param pulls: in seconds since the epoch.
        :return: those that are not there any more.
        """
        gone = []
        for (image, reference), at in pulls.items():
            image_id = images.find(db, image)
            by_tag = isinstance(reference, Tag)
            noted = {"image": image_id, "name": str(reference), "at": at, "hour": HOUR}
            if db.execute(_NOTE_TAG if by_tag else _NOTE_MANIFEST, noted).rowcount:
                continue
            if image_id is None or manifests.find(db, image, reference) is None:
                gone.append((image, reference))
        return frozenset(gone)
