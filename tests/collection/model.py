"""What one client knows of an image that nobody else changes."""

from __future__ import annotations

from attrs import define, field

from artifactd.catalog.garbage import Restored
from artifactd.oci.digest import Digest
from tests.collection.registry import SHORT, children_of, subject_of


@define
class Image:
    """
    :ivar tags: those that were pushed, and not deleted.
    :ivar manifests: the bytes of those.
    :ivar deleted: those that were deleted, and when: not later than that.
    :ivar deleted_tags: the same of tags, with what they pointed at.
    """

    name: str
    tags: dict[str, Digest] = field(factory=dict)
    manifests: dict[Digest, bytes] = field(factory=dict)
    deleted: dict[Digest, float] = field(factory=dict)
    deleted_tags: dict[str, tuple[Digest, float]] = field(factory=dict)
    known: dict[Digest, bytes] = field(factory=dict)

    def pushed(self, content: bytes, tag: str | None) -> None:
        digest = Digest.of(content)
        self.manifests[digest] = self.known[digest] = content
        self.deleted.pop(digest, None)
        if tag is not None:
            self.tags[tag] = digest

    def gone(self, digest: Digest, at: float) -> None:
        """It was deleted, not before ``at``."""
        self.manifests.pop(digest, None)
        self.deleted[digest] = at
        for tag in [tag for tag, target in self.tags.items() if target == digest]:
            self.tag_gone(tag, at)

    def tag_gone(self, tag: str, at: float) -> None:
        self.deleted_tags[tag] = self.tags.pop(tag), at

    def restored(self, restored: Restored) -> None:
        for digest in restored.manifests:
            self.manifests[digest] = self.known[digest]
            self.deleted.pop(digest, None)
        for tag in restored.tags:
            self.tags[tag], _ = self.deleted_tags.pop(tag)

    @property
    def required(self) -> dict[Digest, bytes]:
        """The manifests that must be there: all, or those that something keeps."""
        if not self.name.startswith(f"{SHORT}/"):
            return self.manifests
        wanted, required = list(self.tags.values()), dict[Digest, bytes]()
        while wanted:
            digest = wanted.pop()
            if digest in required:
                continue
            required[digest] = content = self.manifests[digest]
            wanted += children_of(content)
            wanted += [d for d, each in self.manifests.items() if subject_of(each) == digest]
        return required
