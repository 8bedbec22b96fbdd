"""Values that the catalog takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from attrs import field, frozen

from artifactd.oci.errors import PreconditionFailed, TagImmutable
from artifactd.oci.manifest import Manifest, Sparse
from artifactd.oci.names import Algorithm, Digest, ImageName, Tag, matches


@frozen
class ImmutableTags:
    """
    The tags that no client moves or deletes, nor the manifests at which they point.

    :ivar patterns: of tags, such as ``v*``, or of an image within its repository and a tag, such
        as ``team/*:v*``.
    """

    patterns: tuple[str, ...] = ()

    def rule(self, image: ImageName, tag: str) -> str | None:
        """Return the first pattern that is for a tag; ``None``: it may be moved."""
        for pattern in self.patterns:
            if matches(f"{image.image}:{tag}" if ":" in pattern else tag, (pattern,)):
                return pattern
        return None

    def refuse(self, image: ImageName, tag: str, current: object) -> None:
        """:raises TagImmutable: if ``tag``, which points at ``current``, has to stay there."""
        rule = self.rule(image, tag)
        if rule is not None:
            raise TagImmutable(tag, rule, current)


MOVABLE = ImmutableTags()
"""Every tag may be moved and deleted."""


@frozen
class Precondition:
    """
    A client's ``If-Match`` and ``If-None-Match`` headers, about the digest that a reference points
    at now (RFC 9110, 13.1.1 and 13.1.2).

    Values are entity tags with their quotes, e.g. ``"sha256:…"``.  Weak ones keep their prefix
    (``W/"…"``), so that they never match strongly.

    :ivar if_match: compared strongly; ``("*",)`` matches any digest; ``None``: no header.
    :ivar if_none_match: compared weakly; otherwise the same.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def holds(self, current: Digest | None) -> bool:
        """
        Whether the precondition holds for a reference that points at ``current``; ``None``: at
        nothing.
        """
        etag = f'"{current}"'
        if self.if_match is not None and (
            current is None or not ("*" in self.if_match or etag in self.if_match)
        ):
            return False
        return not (
            self.if_none_match is not None
            and current is not None
            and ("*" in self.if_none_match or etag in (_strong(t) for t in self.if_none_match))
        )

    def require(self, reference: object, current: Digest | None) -> None:
        """:raises PreconditionFailed: if it does not hold; ``reference`` points at ``current``."""
        if not self.holds(current):
            raise PreconditionFailed(
                "the precondition does not hold: fetch what the reference points at now and decide"
                " again",
                {"reference": str(reference)},
                stored={"current": None if current is None else str(current)},
            )


def _strong(etag: str) -> str:
    return etag.removeprefix("W/")


ANYHOW = Precondition()
"""A precondition that always holds."""


@frozen
class ManifestRecord:
    """
    A manifest in an image, without its bytes.

    :ivar size: in bytes.
    :ivar free_since: since when neither a tag nor an index nor an existing subject keeps it, in
        seconds since the epoch; ``None`` where one does.  Comparison leaves it out.
    :ivar orphaned: whether it is collected after a lease wherever it is, since an index that was
        deleted was the last that kept it.  Comparison leaves it out.
    """

    digest: Digest
    size: int
    media_type: str
    artifact_type: str | None = None
    subject: Digest | None = None
    annotations: Mapping[str, str] = field(factory=dict)
    free_since: float | None = field(default=None, eq=False)
    orphaned: bool = field(default=False, eq=False)


@frozen
class UploadRecord:
    """
    An upload session that an older release has opened.  Since then, the id of a session says what
    its record would.

    :ivar id: a UUID.
    :ivar started: in seconds since the epoch.
    """

    id: str
    image: ImageName
    algorithm: Algorithm
    started: float


class UploadEnded(Exception):
    """An upload session was closed or cancelled before."""


def session_key(upload_id: str) -> bytes | None:
    """
    Return the UUID at the beginning of a session's id (``registry.upload_id``), by which it is
    noted that the session has ended: 16 bytes, the first six of which are the milliseconds since
    the epoch at which it was opened.

    ``None``: the id is a UUID and nothing else, that of a push in one request, or of a session that
    an older release has opened.
    """
    uuid, dot, _ = upload_id.partition(".")
    return UUID(uuid).bytes if dot else None


@frozen
class TagPage:
    """
    Tags of an image, in ASCII order.

    :ivar tags: a list of strings in JSON.
    :ivar last: the last of them, if more come behind it; otherwise ``None``.
    """

    tags: bytes
    last: str | None


@frozen
class TagMovement:
    """
    One line of the journal of tags.

    :ivar actor: the user, or the part of artifactd, that moved the tag.
    :ivar at: in seconds since the epoch.
    :ivar before: the digest that the tag pointed at before; ``None``: there was no such tag.
    :ivar after: the digest that it points at since; ``None``: it was deleted.
    :ivar number: its place in the journal of all images: a later one's is greater.  Comparison
        leaves it out.
    """

    tag: str
    actor: str
    at: float
    before: Digest | None
    after: Digest | None
    number: int = field(default=0, eq=False)


@frozen
class Adoption:
    """
    Blobs and manifests that a pushed manifest refers to and its image lacks, to be copied from an
    upstream's image of the same name.  Those that ``source`` does not hold any more are left out.

    :ivar source: the upstream's image.
    :ivar manifests: children before their index.
    :ivar promised: what a client was told is here: copied even if a manifest has been pushed under
        the name meanwhile, and not to be absent, even of a sparse manifest.
    """

    source: ImageName
    manifests: tuple[Manifest, ...] = ()
    blobs: tuple[Digest, ...] = ()
    promised: frozenset[Digest] = frozenset()


@frozen
class ImageSpan:
    """The images of a repository whose names come after one and before another, in ASCII order."""

    repository: str
    after: str
    before: str


@frozen
class ManifestPut:
    """
    A manifest to be put into an image.

    :ivar tags: the tags to point at it; may be empty.
    :ivar precondition: must hold for every one of ``tags``, or, without tags, for the digest.
    :ivar immutable: the tags that must not be moved.
    :ivar create_only: what lets the user push only what is not there; empty: they may push
        anything.
    :ivar sparse: whether blobs and children may be absent.
    :ivar actor: the user, for the journal of tags.
    :ivar index_depth: how deep indexes may be nested.
    :ivar quota: bytes that the image's repository may hold; 0: any number.
    :ivar adoption: what the image gets from an upstream's image, if the manifest is stored.
    """

    image: ImageName
    manifest: Manifest
    tags: tuple[Tag, ...] = ()
    precondition: Precondition = ANYHOW
    immutable: ImmutableTags = MOVABLE
    create_only: str = ""
    sparse: Sparse = "no"
    actor: str = ""
    index_depth: int = 100
    quota: int = 0
    adoption: Adoption | None = None


def nothing() -> None:
    """A ``confirm``, ``release`` or ``create`` that does nothing."""
