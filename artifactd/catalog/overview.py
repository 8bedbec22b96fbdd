"""Reads for the operator: images, tags and manifests with their sizes, and what keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

from attrs import frozen

from artifactd.catalog import images
from artifactd.catalog.database import OnDatabase, read
from artifactd.oci.errors import ManifestUnknown
from artifactd.oci.names import ImageName, Reference, Tag


@frozen
class ImageSeen:
    """
    An image.  Sizes are in bytes, times in seconds since the epoch.

    :ivar tags: how many it has.
    :ivar size: of all its blobs and manifests.
    :ivar own: of those that no other image has.
    :ivar pushed: when a manifest last came, or ``None``: it has none.
    :ivar pulled: when a manifest was last pulled; ``None`` for images that were pushed here.
    """

    image: str
    tags: int
    size: int
    own: int
    pushed: float | None
    pulled: float | None


@frozen
class TagSeen:
    """
    A tag.  Sizes are in bytes, times in seconds since the epoch.

    :ivar kind: the manifest's artifact type, or its media type.
    :ivar size: of the manifest with all that it holds, also by way of its children.
    :ivar moved: when it was last pointed at another manifest.
    :ivar actor: the user, or the part of artifactd, that pointed it there.
    :ivar pulled: when the manifest was last pulled; ``None`` for what was pushed here.
    """

    tag: str
    digest: str
    kind: str
    size: int
    moved: float
    actor: str
    pulled: float | None


@frozen
class Entry:
    """
    A blob or manifest that a manifest holds.

    :ivar size: in bytes; ``None``: it is not here.
    :ivar shared: how many other images have it.
    """

    digest: str
    kind: str
    size: int | None
    shared: int


@frozen
class ManifestSeen:
    """
    A manifest, and why it is kept.

    :ivar size: of the document, in bytes.
    :ivar tags: that point at it.
    :ivar indexes: digests of the indexes of the image that list it.
    :ivar subject: the digest that it refers to, or ``None``.
    :ivar referrers: digests of the manifests that refer to it, each with its artifact type.
    :ivar pushed: in seconds since the epoch.
    """

    image: str
    digest: str
    media_type: str
    artifact_type: str | None
    size: int
    pushed: float
    tags: Sequence[str]
    indexes: Sequence[str]
    subject: str | None
    referrers: Sequence[tuple[str, str | None]]
    entries: Sequence[Entry]


@frozen
class Deleted:
    """
    A deleted tag, manifest or blob that can be brought back.

    :ivar kind: ``tag``, ``manifest`` or ``blob``.
    :ivar name: a tag or a digest.
    :ivar at: when it was deleted, in seconds since the epoch.
    """

    kind: str
    name: str
    digest: str
    actor: str
    at: float


@frozen
class RepositoryUsage:
    """How many images and tags a repository has, and the bytes of what they hold, each once."""

    repository: str
    images: int
    tags: int
    size: int


# Sizes are summed up for the images of the page alone.  A blob is the image's own if all
# repositories together count no more links to it than this image has, as a blob and as a manifest.
_IMAGES = """
    WITH page AS MATERIALIZED (
        SELECT id, repository, name FROM image
        WHERE known_at IS NOT NULL AND (repository, name) > (?, ?)
        AND (repository || '/' || name) GLOB ?
        ORDER BY repository, name LIMIT ?
    ), held (image_id, id, pushed, used) AS (
        SELECT page.id, blob_id, NULL, NULL FROM page
            CROSS JOIN blob_link ON blob_link.image_id = page.id
        UNION ALL SELECT page.id, blob.id, pushed_at, manifest.used_at FROM page
            CROSS JOIN manifest ON manifest.image_id = page.id
            CROSS JOIN blob ON blob.digest = manifest.digest
    ), each AS (
        SELECT image_id, id, count(*) AS mine, max(pushed) AS pushed, max(used) AS used
        FROM held GROUP BY image_id, id
    ), sums AS MATERIALIZED (
        SELECT image_id, sum(size) AS size, max(pushed) AS pushed, max(used) AS used,
            sum(size) FILTER (WHERE mine = (
                SELECT sum(links) FROM repository_usage
                CROSS JOIN repository_blob USING (repository) WHERE blob_id = each.id
            )) AS own
        FROM each CROSS JOIN blob ON blob.id = each.id GROUP BY image_id
    )
    SELECT repository || '/' || name, (SELECT count(*) FROM tag WHERE image_id = page.id),
        coalesce(sums.size, 0), coalesce(own, 0), pushed, used
    FROM page LEFT JOIN sums ON sums.image_id = page.id ORDER BY repository, name
"""
# NOT INDEXED and the plus let SQLite read images, and so their tags, in the order in which they lie
# on the disk; by the index on names it would look up each by itself.  Counting all tags is much
# quicker than counting those of each image, so the repository with most images has what is left.
_USAGE = """
    WITH counted AS MATERIALIZED (
        SELECT repository, count(*) AS rows, sum(known_at IS NOT NULL) AS images
        FROM image NOT INDEXED GROUP BY +repository
    ), largest AS MATERIALIZED (
        SELECT repository FROM counted ORDER BY rows DESC LIMIT 1
    ), others AS MATERIALIZED (
        SELECT repository, sum((SELECT count(*) FROM tag WHERE image_id = image.id)) AS tags
        FROM image NOT INDEXED WHERE repository <> (SELECT repository FROM largest)
        GROUP BY +repository
    )
    SELECT name, coalesce(images, 0),
        CASE WHEN name = (SELECT repository FROM largest)
            THEN (SELECT count(*) FROM tag) - (SELECT coalesce(sum(tags), 0) FROM others)
            ELSE coalesce(tags, 0) END,
        coalesce(size, 0)
    FROM repository
    LEFT JOIN counted ON counted.repository = name
    LEFT JOIN others ON others.repository = name
    LEFT JOIN repository_usage ON repository_usage.repository = name
    ORDER BY name
"""
_TAGS = (
    "SELECT tag.name, manifest.digest, coalesce(artifact_type, media_type),"
    " moved_at, coalesce((SELECT actor FROM tag_movement WHERE tag_movement.image_id = tag.image_id"
    " AND tag = tag.name ORDER BY id DESC LIMIT 1), ''), used_at"
    " FROM tag JOIN manifest ON manifest.id = tag.manifest_id"
    " WHERE tag.image_id = ? AND tag.name > ? ORDER BY tag.name LIMIT ?"
)
_SIZE = """
    WITH RECURSIVE below (digest) AS (
        SELECT ?2
        UNION
        SELECT entry.digest FROM below
            CROSS JOIN manifest ON manifest.image_id = ?1 AND manifest.digest = below.digest
            CROSS JOIN manifest_entry AS entry ON entry.manifest_id = manifest.id
    ) SELECT coalesce(sum(size), 0) FROM below CROSS JOIN blob USING (digest)
"""
_ENTRIES = (
    "SELECT entry.digest, kind, blob.size,"
    " (SELECT count(*) FROM blob_link WHERE blob_id = blob.id AND image_id <> ?2)"
    " + (SELECT count(*) FROM manifest WHERE digest = entry.digest AND image_id <> ?2)"
    " FROM manifest_entry AS entry LEFT JOIN blob ON blob.digest = entry.digest"
    " AND lost_at IS NULL WHERE manifest_id = ?1 ORDER BY kind DESC, entry.digest"
)


class Overview(OnDatabase):
    """
    Reads of the whole catalog.

    Lists come in pages, so that each read is short and takes little memory however much there is.
    """

    @read
    def images(
        self, db: Connection, after: ImageName | None, limit: int, pattern: str = "*"
    ) -> list[ImageSeen]:
        """
        Known images by repository and name, at most ``limit`` behind ``after``.

        :param pattern: for canonical names, as of a shell (:mod:`fnmatch`); ``*`` matches slashes
            too.
        """
        behind = ("", "") if after is None else (after.repository, after.image)
        glob = pattern.replace("[!", "[^")
        return [ImageSeen(*row) for row in db.execute(_IMAGES, (*behind, glob, limit))]

    @read
    def tags(self, db: Connection, image: ImageName, after: str, limit: int) -> list[TagSeen]:
        """
        Tags of ``image`` in ASCII order, at most ``limit`` behind ``after``.

        :raises NameUnknown: if the image is unknown.
        """
        image_id = images.known(db, image)
        return [
            TagSeen(name, digest, kind, _size_of(db, image_id, digest), moved, actor, pulled)
            for name, digest, kind, moved, actor, pulled in db.execute(
                _TAGS, (image_id, after, limit)
            )
        ]

    @read
    def manifest(self, db: Connection, image: ImageName, reference: Reference) -> ManifestSeen:
        """
        The manifest that ``reference`` names in ``image``, what it holds and what keeps it.

        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if the image does not have it.
        """
        image_id = images.known(db, image)
        if isinstance(reference, Tag):
            digest = images.tag_target(db, image_id, reference)
        else:
            digest = reference
        row = db.execute(
            "SELECT manifest.id, media_type, artifact_type, size, pushed_at, subject FROM manifest"
            " JOIN blob USING (digest) WHERE image_id = ? AND digest = ? AND lost_at IS NULL",
            (image_id, str(digest)),
        ).fetchone()
        if row is None:
            raise ManifestUnknown("this image has no such manifest", {"reference": str(reference)})
        manifest_id, media_type, artifact_type, size, pushed, subject = row
        tags = db.execute(
            "SELECT name FROM tag WHERE manifest_id = ? ORDER BY name", (manifest_id,)
        )
        indexes = db.execute(
            "SELECT manifest.digest FROM manifest_entry AS entry"
            " JOIN manifest ON manifest.id = entry.manifest_id"
            " WHERE entry.image_id = ? AND entry.digest = ? ORDER BY manifest.digest",
            (image_id, str(digest)),
        )
        referrers = db.execute(
            "SELECT digest, artifact_type FROM manifest WHERE image_id = ? AND subject = ?"
            " ORDER BY digest",
            (image_id, str(digest)),
        )
        return ManifestSeen(
            image=str(image),
            digest=str(digest),
            media_type=media_type,
            artifact_type=artifact_type,
            size=size,
            pushed=pushed,
            tags=[name for (name,) in tags],
            indexes=[held_by for (held_by,) in indexes],
            subject=subject,
            referrers=[(referrer, kind) for referrer, kind in referrers],
            entries=[Entry(*each) for each in db.execute(_ENTRIES, (manifest_id, image_id))],
        )

    @read
    def deleted(self, db: Connection, image: ImageName) -> list[Deleted]:
        """What was deleted from ``image`` and can be brought back, the newest first."""
        rows = db.execute(
            "SELECT 'tag', name, digest, actor, deleted_at AS at FROM deleted_tag"
            " WHERE image_id = ?1"
            " UNION ALL SELECT 'manifest', digest, digest, actor, deleted_at"
            " FROM deleted_manifest WHERE image_id = ?1"
            " UNION ALL SELECT 'blob', digest, digest, actor, deleted_at FROM deleted_blob"
            " WHERE image_id = ?1 ORDER BY at DESC, 2",
            (images.find(db, image),),
        )
        return [Deleted(*row) for row in rows]

    @read
    def usage(self, db: Connection) -> list[RepositoryUsage]:
        """What each configured repository holds."""
        return [RepositoryUsage(*row) for row in db.execute(_USAGE)]


def _size_of(db: Connection, image_id: int, digest: str) -> int:
    return int(db.execute(_SIZE, (image_id, digest)).fetchone()[0])
