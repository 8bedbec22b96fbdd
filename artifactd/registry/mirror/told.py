"""What an upstream has said by HEAD of tags whose manifests are not here."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen
from cachetools import LRUCache

from artifactd.catalog.records import ManifestRecord
from artifactd.oci.names import Digest, ImageName, Tag

_REMEMBERED = 1024  # looked through for each manifest that is fetched


@frozen
class _Told:
    record: ManifestRecord
    at: float


@define(eq=False)
class ToldTags:
    """
    Remembers, in the memory of one process, which manifests HEAD has said that tags are.

    A client that was told a digest fetches the manifest by that: then its tags are known, too.

    :param freshness: seconds for which HEADs of clients are answered from it.
    :param now: seconds since the epoch.
    """

    freshness: float
    now: Callable[[], float]
    _told: LRUCache[tuple[ImageName, Tag], _Told] = field(
        factory=lambda: LRUCache(_REMEMBERED), init=False
    )

    def remember(self, image: ImageName, tag: Tag, record: ManifestRecord) -> None:
        """Note that the upstream has just said that ``tag`` is this manifest."""
        self._told[image, tag] = _Told(record, self.now())

    def forget(self, image: ImageName, tag: Tag) -> None:
        """Forget what the upstream has said of ``tag``."""
        self._told.pop((image, tag), None)

    def fresh(self, image: ImageName, tag: Tag) -> ManifestRecord | None:
        """What ``tag`` is, if the upstream has said so lately."""
        told = self._told.get((image, tag))
        is_fresh = told is not None and 0 <= self.now() - told.at < self.freshness
        return told.record if told is not None and is_fresh else None

    def tags_of(self, image: ImageName, digest: Digest) -> dict[Tag, float]:
        """The tags that the upstream has last said to be ``digest``, and when it did."""
        return {
            tag: told.at
            for (tagged, tag), told in self._told.items()
            if tagged == image and told.record.digest == digest
        }
