"""Reads for the operator: images, tags and manifests with their sizes, and what keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from heapq import merge
from sqlite3 import Connection
from typing import Any, NamedTuple

import msgspec
from attrs import frozen

from artifactd.catalog import images, manifests
from artifactd.catalog.database import OnDatabase, read
from artifactd.oci.errors import ManifestUnknown
from artifactd.oci.names import ImageName, Reference, Tag

LISTED = 100
"""The most tags, indexes and referrers that are told of one manifest."""
ENTRIES = 1000
"""The most entries that are told of one manifest."""


@frozen
class ImageSeen:
    """
    An image.  Sizes are in bytes, times in seconds since the epoch.

    :ivar tags: how many it has.
    :ivar size: of all its blobs and manifests.
    :ivar own: of those that no other image has; ``None``: that is not for this caller.
    :ivar pushed: when a manifest last came, also one that is gone; ``None``: none ever has.
    :ivar pulled: when a manifest was last pulled, also one that is gone; ``None``: never.
    """

    image: str
    tags: int
    size: int
    own: int | None
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
    :ivar pulled: when it was last pulled, by its name or by the digest of the manifest; ``None``:
        never.
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

    :ivar size: in bytes; ``None``: the image does not have it.
    :ivar shared: how many other images have it, if this one has; ``None``: that is not for this
        caller.
    """

    digest: str
    kind: str
    size: int | None
    shared: int | None


@frozen
class Referrer:
    """
    A manifest that refers to another one, such as a signature.

    :ivar kind: its artifact type, or its media type.
    :ivar size: of the document, in bytes; ``None``: it is not here.
    :ivar pushed: in seconds since the epoch.
    """

    digest: str
    kind: str
    size: int | None
    pushed: float


@frozen
class ManifestSeen:
    """
    A manifest, and why it is kept.  There are at most :data:`LISTED` tags, indexes and referrers,
    and :data:`ENTRIES` entries.

    :ivar size: of the document, in bytes.
    :ivar tags: that point at it.
    :ivar indexes: digests of the indexes of the image that list it.
    :ivar subject: the digest that it refers to, or ``None``.
    :ivar referrers: the manifests that refer to it, in the order of their digests.
    :ivar pushed: in seconds since the epoch.
    :ivar pulled: when it was last pulled, by its digest or a tag; ``None``: never.
    :ivar is_cut: whether there are more of these than are listed.
    """

    image: str
    digest: str
    media_type: str
    artifact_type: str | None
    size: int
    pushed: float
    pulled: float | None
    tags: Sequence[str]
    indexes: Sequence[str]
    subject: str | None
    referrers: Sequence[Referrer]
    is_cut: bool
    entries: Sequence[Entry]


@frozen
class Deleted:
    """
    A deleted tag, manifest or blob that can be brought back.

    :ivar image: the canonical name.
    :ivar kind: ``tag``, ``manifest`` or ``blob``.
    :ivar name: a tag or a digest.
    :ivar actor: the user, or the part of artifactd, that deleted it.
    :ivar at: when it was deleted, in seconds since the epoch.
    """

    image: str
    kind: str
    name: str
    digest: str
    actor: str
    at: float


class DeletedAfter(NamedTuple):
    """Where a list of what was deleted goes on: behind this entry."""

    at: float
    image_id: int
    name: str
    kind: str


class TagOrder(StrEnum):
    """The order of a list of tags; a minus means the reverse."""

    NAME = "name"
    NAME_REVERSED = "-name"
    MOVED = "moved"
    MOVED_REVERSED = "-moved"


class TagAfter(NamedTuple):
    """Where a list of tags goes on: behind the tag of that name, which was last moved then."""

    moved: float
    name: str


@frozen
class RepositoryUsage:
    """How many images and tags a repository has, and the bytes of what they hold, each once."""

    repository: str
    images: int
    tags: int
    size: int


_IMAGES = """
    SELECT repository || '/' || name, tags, size, own, pushed_at, pulled_at
    FROM json_each(?) AS wanted
    CROSS JOIN image ON repository = json_extract(wanted.value, '$[0]')
        AND name = json_extract(wanted.value, '$[1]')
    CROSS JOIN image_count ON image_id = image.id
    WHERE known_at IS NOT NULL ORDER BY wanted.key
"""
_CHECKED = """
    SELECT checked_at FROM json_each(?) AS wanted
    LEFT JOIN image ON repository = json_extract(wanted.value, '$[0]')
        AND image.name = json_extract(wanted.value, '$[1]')
    LEFT JOIN tag ON image_id = image.id AND tag.name = json_extract(wanted.value, '$[2]')
    ORDER BY wanted.key
"""
_USAGE = """
    SELECT name, coalesce(images, 0), coalesce(tags, 0), coalesce(size, 0) FROM repository
    LEFT JOIN repository_count ON repository_count.repository = name
    LEFT JOIN repository_usage ON repository_usage.repository = name
    ORDER BY name
"""
_TAGS = """
    SELECT tag.name, manifest.digest, coalesce(artifact_type, media_type), moved_at, coalesce(
        (SELECT actor FROM tag_movement
            WHERE tag_movement.image_id = tag.image_id AND tag = tag.name ORDER BY id DESC LIMIT 1),
        ''), coalesce(used_at,
            nullif(max(coalesce(tag.pulled_at, 0), coalesce(manifest.pulled_at, 0)), 0)),
        held_size
    FROM tag JOIN manifest ON manifest.id = tag.manifest_id WHERE tag.image_id = :image
"""
# The beginning of a list, what is behind an entry of it, and its order.
_ORDERS = {
    TagOrder.NAME: (TagAfter(0, ""), "tag.name > :name", "tag.name"),
    TagOrder.NAME_REVERSED: (TagAfter(0, "\x7f"), "tag.name < :name", "tag.name DESC"),
    TagOrder.MOVED: (
        TagAfter(-1, ""),
        "(moved_at, tag.name) > (:moved, :name)",
        "moved_at, tag.name",
    ),
    TagOrder.MOVED_REVERSED: (
        TagAfter(1e100, ""),
        "(moved_at, tag.name) < (:moved, :name)",
        "moved_at DESC, tag.name DESC",
    ),
}
_MANIFEST = (
    "SELECT manifest.id, media_type, artifact_type, size, pushed_at, subject, max("
    "coalesce(used_at, pulled_at, 0),"
    " coalesce((SELECT max(pulled_at) FROM tag WHERE manifest_id = manifest.id), 0))"
    " FROM manifest JOIN blob USING (digest)"
    " WHERE image_id = ? AND digest = ? AND lost_at IS NULL"
)
_ENTRIES = (
    "SELECT entry.digest, kind, blob.size,"
    " (SELECT count(*) FROM blob_link WHERE blob_id = blob.id AND image_id <> ?2)"
    " + (SELECT count(*) FROM manifest WHERE digest = blob.digest AND image_id <> ?2)"
    " FROM manifest_entry AS entry LEFT JOIN blob ON blob.digest = entry.digest"
    f" AND lost_at IS NULL AND {manifests.HELD_BY.format(image='?2')} WHERE manifest_id = ?1"
    " ORDER BY kind DESC, entry.digest LIMIT ?3"
)


class Overview(OnDatabase):
    """
    Reads of the whole catalog.

    Lists come in pages, so that each read is short and takes little memory however much there is.
    """

    @read
    def images(
        self, db: Connection, wanted: Sequence[ImageName], *, with_own: bool = True
    ) -> list[ImageSeen]:
        """
        Those of ``wanted`` that are known, in the same order.

        :param with_own: whether to tell what no other image has.
        """
        names = msgspec.json.encode([(each.repository, each.image) for each in wanted]).decode()
        return [
            ImageSeen(image, tags, size, own if with_own else None, pushed, pulled)
            for image, tags, size, own, pushed, pulled in db.execute(_IMAGES, (names,))
        ]

    @read
    def tags(
        self,
        db: Connection,
        image: ImageName,
        after: TagAfter | None,
        limit: int,
        pattern: str = "*",
        order: TagOrder = TagOrder.NAME,
    ) -> list[TagSeen]:
        """
        Tags of ``image``, at most ``limit`` behind ``after``; ``None``: from the beginning.

        :param pattern: as of a shell (:mod:`fnmatch`).
        :raises NameUnknown: if the image is unknown.
        """
        image_id = images.known(db, image)
        beginning, behind, sorting = _ORDERS[order]
        moved, name = after or beginning
        query = f"{_TAGS} AND tag.name GLOB :pattern AND {behind} ORDER BY {sorting} LIMIT :limit"
        values = {"image": image_id, "pattern": glob(pattern), "moved": moved, "name": name}
        return [_tag_of(db, image_id, row) for row in db.execute(query, {**values, "limit": limit})]

    @read
    def tag(self, db: Connection, image: ImageName, tag: Tag) -> TagSeen:
        """
        One tag of ``image``.

        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if it has no such tag.
        """
        image_id = images.known(db, image)
        row = db.execute(
            f"{_TAGS} AND tag.name = :name", {"image": image_id, "name": tag.text}
        ).fetchone()
        if row is None:
            raise ManifestUnknown("this image has no such tag", {"tag": tag.text})
        return _tag_of(db, image_id, row)

    @read
    def held(self, db: Connection, image: ImageName, digests: Iterable[str]) -> set[str]:
        """Those blobs of ``digests`` that ``image`` has; others may be no digests at all."""
        wanted = msgspec.json.encode(list(digests)).decode()
        rows = db.execute(manifests.BLOB_SIZES, (wanted, images.find(db, image)))
        return {digest for digest, _ in rows}

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
        row = db.execute(_MANIFEST, (image_id, str(digest))).fetchone()
        if row is None:
            raise ManifestUnknown("this image has no such manifest", {"reference": str(reference)})
        manifest_id, media_type, artifact_type, size, pushed, subject, pulled = row
        tags = db.execute(
            "SELECT name FROM tag WHERE manifest_id = ? ORDER BY name LIMIT ?",
            (manifest_id, LISTED + 1),
        ).fetchall()
        indexes = db.execute(
            "SELECT manifest.digest FROM manifest_entry AS entry"
            " JOIN manifest ON manifest.id = entry.manifest_id"
            " WHERE entry.image_id = ? AND entry.digest = ? LIMIT ?",
            (image_id, str(digest), LISTED + 1),
        ).fetchall()
        referrers = db.execute(
            "SELECT digest, coalesce(artifact_type, media_type),"
            " (SELECT size FROM blob WHERE blob.digest = manifest.digest AND lost_at IS NULL),"
            " pushed_at FROM manifest WHERE image_id = ? AND subject = ? ORDER BY digest LIMIT ?",
            (image_id, str(digest), LISTED + 1),
        ).fetchall()
        entries = db.execute(_ENTRIES, (manifest_id, image_id, ENTRIES + 1)).fetchall()
        return ManifestSeen(
            image=str(image),
            digest=str(digest),
            media_type=media_type,
            artifact_type=artifact_type,
            size=size,
            pushed=pushed,
            pulled=pulled or None,
            tags=[name for (name,) in tags[:LISTED]],
            indexes=sorted(held_by for (held_by,) in indexes[:LISTED]),
            subject=subject,
            referrers=[Referrer(*each) for each in referrers[:LISTED]],
            is_cut=len(entries) > ENTRIES
            or any(len(each) > LISTED for each in (tags, indexes, referrers)),
            entries=[Entry(*each) for each in entries[:ENTRIES]],
        )

    @read
    def deleted(
        self,
        db: Connection,
        image: ImageName | None,
        after: DeletedAfter | None,
        limit: int,
        shown: Callable[[ImageName], bool] | None = None,
        among: Sequence[str] | None = None,
        most: int = 1000,
    ) -> tuple[list[Deleted], DeletedAfter | None]:
        """
        What was deleted and can be brought back, the newest first: at most ``limit`` behind
        ``after``.

        :param image: of this image alone; ``None``: of all.
        :param shown: tells the images of which to list something; ``None``: all.  It is called in
            a reader's thread.
        :param among: patterns for names of images, of which the others match none; ``None``: that
            is not known.
        :param most: entries of such images that are looked at.
        :return: the entries, and the last one that was looked at; ``None`` if there are no more
            behind it.
        """
        image_id = None if image is None else images.find(db, image)
        if image is not None and image_id is None:
            return [], None
        of: Sequence[int | None] = _few(db, among) if image_id is None else [image_id]
        found: list[Deleted] = []
        looked: DeletedAfter | None = None
        rows = merge(
            *(_deleted(db, kind, each, after, most + 1, among) for kind in _DELETED for each in of),
            key=lambda row: row[0],
            reverse=True,
        )
        for number, (place, entry) in enumerate(rows):
            if len(found) == limit or number == most:
                return found, looked
            looked = place
            if shown is None or shown(ImageName.of(entry.image)):
                found.append(entry)
        return found, None

    @read
    def checked(
        self, db: Connection, wanted: Sequence[tuple[ImageName, str]]
    ) -> list[float | None]:
        """
        When the upstream last answered for each of these tags, in seconds since the epoch;
        ``None``: there is no such tag, or it was pushed here.
        """
        names = [(image.repository, image.image, tag) for image, tag in wanted]
        rows = db.execute(_CHECKED, (msgspec.json.encode(names).decode(),))
        return [checked for (checked,) in rows]

    @read
    def usage(self, db: Connection) -> list[RepositoryUsage]:
        """What each configured repository holds."""
        return [RepositoryUsage(*row) for row in db.execute(_USAGE)]


def _tag_of(db: Connection, image_id: int, row: Sequence[Any]) -> TagSeen:
    name, digest, kind, moved, actor, pulled, size = row
    if size is None:
        size, _ = manifests.sum_held(db, image_id, digest)
    return TagSeen(name, digest, kind, size, moved, actor, pulled)


_DELETED = {"tag": "name", "manifest": "digest", "blob": "digest"}


def _few(db: Connection, among: Sequence[str] | None) -> Sequence[int | None]:
    """The images that match, if they are few; ``[None]``: look at all."""
    fits, patterns = matching("repository || '/' || name", among)
    if among is None or len(among) > _FEW:
        return [None]
    rows = db.execute(f"SELECT id FROM image WHERE {fits} LIMIT ?", (*patterns, _FEW + 1))
    ids = [image_id for (image_id,) in rows]
    return [None] if len(ids) > _FEW else ids


def _deleted(
    db: Connection,
    kind: str,
    image_id: int | None,
    after: DeletedAfter | None,
    limit: int,
    among: Sequence[str] | None,
) -> Iterator[tuple[DeletedAfter, Deleted]]:
    """Deleted tags, manifests or blobs, the newest first: at most ``limit`` behind ``after``."""
    name, behind = f"deleted.{_DELETED[kind]}", after or DeletedAfter(1e100, 0, "", "")
    fits, patterns = matching("repository || '/' || image.name", among)
    if image_id is None:
        within = f"(deleted_at, image_id, {name}) <= (?, ?, ?)"
        order = f"deleted_at DESC, image_id DESC, {name} DESC"
        values: list[object] = [behind.at, behind.image_id, behind.name]
    else:
        within = f"image_id = ? AND (deleted_at, {name}) <= (?, ?)"
        order = f"deleted_at DESC, {name} DESC"
        values = [image_id, behind.at, behind.name]
        if image_id != behind.image_id:  # of the same time, all of it is behind, or none
            values[2] = "" if image_id > behind.image_id else "\x7f"
    # The entry itself is read again where another kind has the same time, image and name.
    query = f"""
        SELECT image_id, repository || '/' || image.name, {name}, digest, actor, deleted_at
        FROM deleted_{kind} AS deleted CROSS JOIN image ON image.id = image_id
        WHERE {within} AND {fits} ORDER BY {order} LIMIT ?
    """
    for row in db.execute(query, (*values, *patterns, limit + 1)):
        number, image, name, digest, actor, at = row
        place = DeletedAfter(at, number, name, kind)
        if place < behind:
            yield place, Deleted(image, kind, name, digest, actor, at)


_FEW = 50  # patterns that are worth a look at each row, and images whose rows are read one by one


def matching(value: str, patterns: Sequence[str] | None) -> tuple[str, Sequence[str]]:
    """
    A condition that leaves out rows whose ``value`` (SQL) matches none of ``patterns``, which have
    no brackets; and its parameters.  Of many patterns, or ``None``, it leaves out nothing.
    """
    if patterns is None or len(patterns) > _FEW:
        return "1", ()
    return f"({' OR '.join([f'{value} GLOB ?'] * len(patterns)) or '0'})", patterns


def glob(pattern: str) -> str:
    """A shell's ``pattern`` (:mod:`fnmatch`) as SQLite's GLOB takes it."""
    return pattern.replace("[!", "[^")
