"""Values that the catalog takes and gives."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName, Tag

# What a client wants to be so before anything is changed.


@frozen
class Precondition:
    """
    RFC 9110, 13.1.1 and 13.1.2, on what a reference points at now.

    ``if_match``: strong comparison, ``("*",)`` for "anything"; ``None`` where the header is absent.
    Values are entity tags without weakness, e.g. ``"sha256:…"`` with its quotes; a weak one
    (``W/"…"``) stands here with its prefix, so that it never matches strongly.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def holds(self, current: Digest | None) -> bool:
        """Whether it holds where the reference now points at ``current``."""
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


def _strong(etag: str) -> str:
    return etag.removeprefix("W/")


ANYHOW = Precondition()
"""Nothing has to be so."""


@frozen
class ManifestRecord:
    """
    What the catalog knows of a manifest in an image.  ``size`` is in bytes.

    :ivar free_since: since when neither a tag nor an index nor a subject that is there keeps it,
        in seconds since the epoch; ``None`` where one does.  No part of what it is.
    """

    digest: Digest
    size: int
    media_type: str
    artifact_type: str | None = None
    subject: Digest | None = None
    annotations: Mapping[str, str] = field(factory=dict)
    free_since: float | None = field(default=None, eq=False)


@frozen
class UploadRecord:
    """
    An upload session.

    :ivar started: in seconds since the epoch.
    :ivar owner: who has begun it, a user or an address; ``None`` where nobody counts.
    """

    id: str
    image: ImageName
    algorithm: Algorithm
    started: float
    owner: str | None = None


@frozen
class TagMovement:
    """
    One line of the journal: ``tag`` went from one digest to another (``None``: absent).
    ``at`` is in seconds since the epoch.
    """

    tag: str
    actor: str
    at: float
    before: Digest | None
    after: Digest | None


@frozen
class ManifestPut:
    """
    A manifest to be put into an image.

    :ivar tags: the tags that shall point at it; may be empty.
    :ivar precondition: must hold for every one of ``tags``, or without tags for the manifest.
    :ivar sparse: children of an index may be absent.
    :ivar actor: who does it, for the journal.
    :ivar index_depth: how deep indexes may be nested.
    :ivar quota: as for ``Catalog.add_blob``.
    """

    image: ImageName
    manifest: Manifest
    tags: tuple[Tag, ...] = ()
    precondition: Precondition = ANYHOW
    sparse: bool = False
    actor: str = ""
    index_depth: int = 100
    quota: int = 0


def nothing() -> None:
    """Nothing has to be done with the bytes."""
