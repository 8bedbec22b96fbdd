"""What one client knows of an image that nobody else changes."""

from __future__ import annotations

from attrs import define, field

from artifactd.catalog.garbage import Restored
from artifactd.oci.names import Digest
from tests.collection.registry import SHORT, children_of, subject_of


@define
class Image:
    """
    :ivar tags: those that were pushed, and not deleted.
    :ivar manifests: the bytes of those.
    :ivar orphans: those of them that nothing keeps since their index was deleted: they go.
    :ivar doubtful: those that may go, or may not: what kept them was an orphan, and has gone,
        before or after they were pushed again or lost a tag.
    :ivar deleted: those that were deleted, and when: not later than that.
    :ivar deleted_tags: the same of tags, with what they pointed at.
    """

    name: str
    tags: dict[str, Digest] = field(factory=dict)
    manifests: dict[Digest, bytes] = field(factory=dict)
    orphans: set[Digest] = field(factory=set)
    doubtful: set[Digest] = field(factory=set)
    deleted: dict[Digest, float] = field(factory=dict)
    deleted_tags: dict[str, tuple[Digest, float]] = field(factory=dict)
    known: dict[Digest, bytes] = field(factory=dict)

    def pushed(self, content: bytes, tag: str | None) -> None:
        digest = Digest.of(content)
        self.manifests[digest] = self.known[digest] = content
        self.deleted.pop(digest, None)
        if tag is not None:
            self.tags[tag] = digest
        self.stay(digest)

    def gone(self, digest: Digest, at: float) -> None:
        """It was deleted, not before ``at``."""
        content = self.manifests.pop(digest)
        self.deleted[digest] = at
        for tag in [tag for tag, target in self.tags.items() if target == digest]:
            self.tag_gone(tag, at)
        free = set(filter(self.is_free, children_of(content)))
        self.orphans = (self.orphans | free) - {digest}
        self.doubtful -= free | {digest}

    def collected(self, digest: Digest) -> None:
        """It went some time ago, when nothing kept it."""
        content = self.manifests.pop(digest)
        self.doubtful.update(filter(self.is_free, children_of(content) + self.referrers(digest)))
        self.doubtful -= self.orphans | {digest}
        self.orphans.discard(digest)

    def stay(self, *digests: Digest) -> None:
        """They were pushed or brought back: neither they nor what they keep goes."""
        self.orphans = set(filter(self.is_free, self.orphans.difference(digests)))
        self.doubtful = set(filter(self.is_free, self.doubtful.difference(digests)))

    def is_free(self, digest: Digest) -> bool:
        """Whether it is here, and neither a tag nor an index nor a subject keeps it."""
        return digest in self.manifests and not (
            digest in self.tags.values()
            or any(digest in children_of(each) for each in self.manifests.values())
            or subject_of(self.manifests[digest]) in self.manifests
        )

    def referrers(self, digest: Digest) -> list[Digest]:
        return [d for d, each in self.manifests.items() if subject_of(each) == digest]

    def tag_gone(self, tag: str, at: float) -> None:
        self.deleted_tags[tag] = self.tags.pop(tag), at

    def restored(self, restored: Restored) -> None:
        for digest in restored.manifests:
            self.manifests[digest] = self.known[digest]
            self.deleted.pop(digest, None)
        for tag in restored.tags:
            self.tags[tag], _ = self.deleted_tags.pop(tag)
        self.stay(*restored.manifests)

    @property
    def required(self) -> dict[Digest, bytes]:
        """
        The manifests that must be there: those that a tag keeps, and where untagged ones stay those
        that nothing keeps, but for those that may go; and what these keep.
        """
        wanted, required = list(self.tags.values()), dict[Digest, bytes]()
        if not self.name.startswith(f"{SHORT}/"):
            certain = self.manifests.keys() - self.orphans - self.doubtful
            wanted += filter(self.is_free, certain)
        while wanted:
            digest = wanted.pop()
            if digest in required:
                continue
            required[digest] = content = self.manifests[digest]
            wanted += children_of(content)
            wanted += self.referrers(digest)
        return required

    @property
    def told(self) -> dict[str, object]:
        """
        What must be there, and what must have gone in the end, as JSON has it; and what of the
        rest may be there.
        """
        required = self.required
        rest = self.manifests.keys() - required.keys()
        return {
            "tags": {name: str(digest) for name, digest in self.tags.items()},
            "manifests": {str(digest): content.decode() for digest, content in required.items()},
            "gone": [str(digest) for digest in self.orphans],
            "perhaps": [str(digest) for digest in rest - self.orphans],
        }
