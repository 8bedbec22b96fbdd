"""What the registry asks of a catalog about images whose home is an upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection

import msgspec
from attrs import field, frozen

from artifactd.catalog import blobs, images, manifests
from artifactd.catalog.catalog import CACHED, is_light
from artifactd.catalog.database import Database, ReadCache
from artifactd.catalog.records import ManifestPut, ManifestRecord, nothing
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName, Reference, Tag


@frozen
class CachedTag:
    """
    A tag of an upstream as it is served here.  Times are in seconds since the epoch.

    :ivar record: the manifest it is served as.
    :ivar checked_at: when the upstream was last asked, and answered.
    :ivar candidate: another digest that the upstream has given it, which is not served yet.
    :ivar candidate_at: since when the upstream has been seen to give it that one.
    """

    record: ManifestRecord
    checked_at: float
    candidate: Digest | None = None
    candidate_at: float | None = None


@frozen
class CachedPage:
    """
    A page of an upstream's list: ``body`` is the JSON, ``next`` the query of the page behind it.
    """

    body: bytes = field(repr=False)
    next: Mapping[str, str] | None
    filtered: str | None
    fetched_at: float


@frozen
class Held:
    """
    A blob or a manifest that an image of a remote repository holds.

    :ivar size: in bytes.
    :ivar used_at: when it was last pulled (or came), in seconds since the epoch.
    """

    image: ImageName
    digest: Digest
    size: int
    used_at: float
    is_manifest: bool


# Blobs of upstreams.


def link_remote_blob(db: Connection, image: ImageName, digest: Digest, at: float) -> int | None:
    """``RemoteCatalog.link_blob``."""
    size = blobs.size_anywhere(db, digest)
    if size is not None:
        blobs.link(db, image, digest, used_at=at, at=at, due=at)
    return size


def add_remote_blob(
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


# Pages of upstreams' lists.

_KEPT = 50  # of one image

_query = msgspec.json.Decoder(dict[str, str])


def find_page(db: Connection, image: ImageName, key: str) -> CachedPage | None:
    """``RemoteCatalog.cached_page``."""
    row = db.execute(
        "SELECT body, next, filtered, fetched_at FROM image"
        " JOIN upstream_page ON image_id = image.id AND key = ?"
        " WHERE image.repository = ? AND image.name = ?",
        (key, image.repository, image.image),
    ).fetchone()
    if row is None:
        return None
    body, following, filtered, fetched_at = row
    following = None if following is None else _query.decode(following)
    return CachedPage(body, following, filtered, fetched_at)


def put_page(db: Connection, image: ImageName, key: str, page: CachedPage) -> None:
    """``RemoteCatalog.cache_page``."""
    image_id = images.add(db, image)
    following = None if page.next is None else msgspec.json.encode(page.next).decode()
    db.execute(
        "INSERT INTO upstream_page (image_id, key, body, next, filtered, fetched_at)"
        " VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET body = excluded.body, next = excluded.next,"
        " filtered = excluded.filtered, fetched_at = excluded.fetched_at",
        (image_id, key, page.body, following, page.filtered, page.fetched_at),
    )
    db.execute(
        "DELETE FROM upstream_page WHERE rowid IN (SELECT rowid FROM upstream_page"
        " WHERE image_id = ? ORDER BY fetched_at DESC, rowid DESC LIMIT -1 OFFSET ?)",
        (image_id, _KEPT),
    )


def delete_pages(db: Connection, image_id: int) -> int:
    """Forget the pages of an image; how many there were."""
    return db.execute("DELETE FROM upstream_page WHERE image_id = ?", (image_id,)).rowcount


# Manifests and tags of upstreams.

_UPSTREAM = "upstream"


def find_tag(db: Connection, image: ImageName, tag: Tag) -> CachedTag | None:
    """``RemoteCatalog.cached_tag``."""
    row = db.execute(
        "SELECT checked_at, candidate, candidate_at FROM image"
        " JOIN tag ON tag.image_id = image.id AND tag.name = ?"
        " WHERE image.repository = ? AND image.name = ? AND checked_at IS NOT NULL",
        (tag.text, image.repository, image.image),
    ).fetchone()
    record = None if row is None else manifests.find(db, image, tag)
    if record is None:
        return None
    checked_at, candidate, candidate_at = row
    return CachedTag(
        record, checked_at, None if candidate is None else Digest.parse(candidate), candidate_at
    )


def cache_manifest(
    db: Connection,
    image: ImageName,
    manifest: Manifest,
    tag: Tag | None,
    confirm: Callable[[], None],
    at: float,
) -> None:
    """``RemoteCatalog.cache_manifest``."""
    wanted = () if tag is None else (tag,)
    put = ManifestPut(image, manifest, wanted, actor=_UPSTREAM)
    manifests.store(db, put, confirm, at, used_at=at)
    if tag is not None:
        keep_tag(db, image, tag, None, at)


def point_tag(db: Connection, image: ImageName, tag: Tag, digest: Digest, at: float) -> bool:
    """``RemoteCatalog.point_tag``."""
    image_id = images.find(db, image)
    manifest_id = None if image_id is None else manifests.row_of(db, image_id, digest)
    if image_id is None or manifest_id is None:
        return False
    images.move_tag(db, image_id, tag, manifest_id, digest, _UPSTREAM, at)
    keep_tag(db, image, tag, None, at)
    return True


def keep_tag(
    db: Connection, image: ImageName, tag: Tag, candidate: Digest | None, at: float
) -> None:
    """``RemoteCatalog.keep_tag``."""
    db.execute(
        "UPDATE tag SET checked_at = :at, candidate = :candidate, candidate_at ="
        " CASE WHEN :candidate IS NULL THEN NULL"
        " WHEN candidate = :candidate THEN candidate_at ELSE :at END"
        " WHERE image_id = (SELECT id FROM image WHERE repository = :repository AND name = :image)"
        " AND name = :tag",
        {
            "at": at,
            "candidate": None if candidate is None else str(candidate),
            "repository": image.repository,
            "image": image.image,
            "tag": tag.text,
        },
    )


# What of remote images is used, and what goes because it is not.

_EVICTION = "eviction"

_IMAGE = "image_id = (SELECT id FROM image WHERE repository = ? AND name = ?)"
_TOUCH_BLOB = (
    f"UPDATE blob_link SET used_at = ? WHERE {_IMAGE}"
    " AND blob_id = (SELECT id FROM blob WHERE digest = ?) AND used_at < ?"
)
_TOUCH_MANIFEST = f"UPDATE manifest SET used_at = ? WHERE {_IMAGE} AND digest = ? AND used_at < ?"

_HELD_BYTES = (
    "SELECT coalesce(sum(size), 0) FROM blob WHERE id IN ("
    "SELECT blob_id FROM image JOIN blob_link ON blob_link.image_id = image.id"
    " WHERE repository = ?1 AND used_at IS NOT NULL"
    " UNION ALL "
    "SELECT blob.id FROM image JOIN manifest ON manifest.image_id = image.id"
    " JOIN blob ON blob.digest = manifest.digest"
    " WHERE repository = ?1 AND used_at IS NOT NULL)"
)

# CROSS JOIN keeps SQLite from beginning with the images, and sorting all that they hold.  What was
# used at the same time has an order too, so that pages neither overlap nor leave anything out.
_LEAST_USED = (
    "SELECT name, digest, size, used_at, 0 AS is_manifest, image_id, blob_id AS item"
    " FROM blob_link CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
    " WHERE used_at < ?1 AND repository = ?2"
    " UNION ALL "
    "SELECT name, manifest.digest, size, used_at, 1, image_id, manifest.id"
    " FROM manifest CROSS JOIN image ON image.id = image_id"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    " WHERE used_at < ?1 AND repository = ?2"
    " ORDER BY used_at, image_id, item, is_manifest LIMIT ?3 OFFSET ?4"
)


def touch(db: Connection, used: Mapping[tuple[ImageName, Digest], float]) -> None:
    """``RemoteCatalog.touch``."""
    rows = [
        (at, image.repository, image.image, str(digest), at) for (image, digest), at in used.items()
    ]
    db.executemany(_TOUCH_BLOB, rows)
    db.executemany(_TOUCH_MANIFEST, rows)


def held_bytes(db: Connection, repository: str) -> int:
    """``RemoteCatalog.held_bytes``."""
    return int(db.execute(_HELD_BYTES, (repository,)).fetchone()[0])


def least_used(db: Connection, repository: str, before: float, skip: int, limit: int) -> list[Held]:
    """``RemoteCatalog.least_used``."""
    return [
        Held(ImageName(repository, name), Digest.parse(digest), size, used_at, bool(is_manifest))
        for name, digest, size, used_at, is_manifest, *_ in db.execute(
            _LEAST_USED, (before, repository, limit, skip)
        )
    ]


def drop(db: Connection, held: Sequence[Held], at: float) -> list[Digest]:
    """``RemoteCatalog.drop``."""
    for each in held:
        image_id = images.find(db, each.image)
        if image_id is None:
            continue
        if each.is_manifest:
            remove_manifest(db, image_id, each.digest, each.used_at, actor=_EVICTION, at=at)
        else:
            unlink_blob(db, image_id, each.digest, each.used_at)
    return blobs.unlist(db, dict.fromkeys(each.digest for each in held))


def unlink_blob(db: Connection, image_id: int, digest: Digest, until: float) -> bool:
    """
    Take out of an image a blob that came from upstream and was not used after ``until``; whether
    there was one.
    """
    return (
        db.execute(
            "DELETE FROM blob_link WHERE image_id = ?"
            " AND blob_id = (SELECT id FROM blob WHERE digest = ?) AND used_at <= ?",
            (image_id, str(digest), until),
        ).rowcount
        > 0
    )


def remove_manifest(
    db: Connection, image_id: int, digest: Digest, until: float, *, actor: str, at: float
) -> bool:
    """As :func:`unlink_blob`, a manifest and its tags."""
    row = db.execute(
        "SELECT id FROM manifest WHERE image_id = ? AND digest = ? AND used_at <= ?",
        (image_id, str(digest), until),
    ).fetchone()
    if row is not None:
        manifests.remove(db, image_id, int(row[0]), digest, actor=actor, at=at)
    return row is not None


# Purging: what goes out of remote images because somebody says so.

_PURGE = "purge"
_EVER = 1e300  # seconds since the epoch: whenever it was used


def purge(
    db: Connection, image: ImageName, reference: Reference | None, at: float
) -> list[Digest] | None:
    """``RemoteCatalog.purge``."""
    image_id = images.find(db, image)
    if image_id is None:
        return None
    if reference is None:
        gone = _all(db, image_id, at)
    elif isinstance(reference, Tag):
        gone = _tag(db, image_id, reference, at)
    else:
        gone = _digest(db, image_id, reference, at)
    if gone is not None:
        # They may tell of what has gone.
        delete_pages(db, image_id)
        gone = blobs.unlist(db, dict.fromkeys(gone))
    return gone


def _all(db: Connection, image_id: int, at: float) -> list[Digest] | None:
    rows = db.execute(
        "SELECT digest FROM manifest WHERE image_id = ?1 AND used_at IS NOT NULL"
        " UNION ALL "
        "SELECT digest FROM blob_link JOIN blob ON blob.id = blob_id"
        " WHERE image_id = ?1 AND used_at IS NOT NULL",
        (image_id,),
    )
    gone = [Digest.parse(digest) for (digest,) in rows.fetchall()]
    for digest in gone:
        _out(db, image_id, digest, at)
    if gone:
        db.execute(
            "UPDATE image SET known_at = NULL"
            " WHERE id = ? AND NOT EXISTS (SELECT 1 FROM manifest WHERE image_id = image.id)",
            (image_id,),
        )
    return gone if delete_pages(db, image_id) or gone else None


def _tag(db: Connection, image_id: int, tag: Tag, at: float) -> list[Digest] | None:
    row = db.execute(
        "SELECT manifest_id, digest FROM tag JOIN manifest ON manifest.id = manifest_id"
        " WHERE tag.image_id = ? AND tag.name = ? AND used_at IS NOT NULL",
        (image_id, tag.text),
    ).fetchone()
    if row is None:
        return None
    manifest_id, digest = int(row[0]), Digest.parse(row[1])
    images.take_tag_off(db, image_id, tag, digest, actor=_PURGE, at=at)
    return [] if _is_tagged(db, manifest_id) else _digest(db, image_id, digest, at)


def _digest(db: Connection, image_id: int, digest: Digest, at: float) -> list[Digest] | None:
    """With all that nothing else in the image holds or points at."""
    gone: list[Digest] = []
    pending = [digest]
    while pending:
        each = pending.pop()
        entries = _entries(db, image_id, each)
        if _out(db, image_id, each, at):
            gone.append(each)
            pending += [entry for entry in entries if not _is_needed(db, image_id, entry)]
    return gone or None


def _out(db: Connection, image_id: int, digest: Digest, at: float) -> bool:
    """Take it out of an image, as a manifest and as a blob; whether it was there."""
    was_blob = unlink_blob(db, image_id, digest, _EVER)
    return remove_manifest(db, image_id, digest, _EVER, actor=_PURGE, at=at) or was_blob


def _entries(db: Connection, image_id: int, digest: Digest) -> list[Digest]:
    manifest_id = manifests.row_of(db, image_id, digest)
    if manifest_id is None:
        return []
    rows = db.execute("SELECT digest FROM manifest_entry WHERE manifest_id = ?", (manifest_id,))
    return [Digest.parse(entry) for (entry,) in rows]


def _is_needed(db: Connection, image_id: int, digest: Digest) -> bool:
    held = db.execute(
        "SELECT 1 FROM manifest_entry WHERE image_id = ? AND digest = ? LIMIT 1",
        (image_id, str(digest)),
    ).fetchone()
    manifest_id = manifests.row_of(db, image_id, digest)
    return held is not None or (manifest_id is not None and _is_tagged(db, manifest_id))


def _is_tagged(db: Connection, manifest_id: int) -> bool:
    query = "SELECT 1 FROM tag WHERE manifest_id = ? LIMIT 1"
    return db.execute(query, (manifest_id,)).fetchone() is not None


class RemoteCatalog:
    """
    The part of the catalog that only remote repositories use.

    Their images, manifests, tags and blobs have the same rows as those of local repositories, but
    the blobs and children that a manifest holds need not be stored here.

    :param database: that of a :class:`artifactd.catalog.catalog.Catalog`, which closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        version = database.version
        self._known: ReadCache[ImageName, bool] = ReadCache(version, CACHED)
        self._origins: ReadCache[str, str | None] = ReadCache(version, CACHED)
        self._tags: ReadCache[tuple[ImageName, Tag], CachedTag | None] = ReadCache(
            version, CACHED, lambda cached: cached is None or is_light(cached.record)
        )

    async def is_known(self, image: ImageName) -> bool:
        """Whether ``image`` has ever had a manifest, and has not been released since."""

        def query(db: Connection) -> bool:
            return images.find_known(db, image) is not None

        return await self._known.get(image, lambda: self._database.read(query))

    async def release_image(self, image: ImageName) -> None:
        """
        Let a local image without manifests be unknown again.

        :raises NameUnknown: if it is unknown.
        :raises Unsupported: if it still has manifests.
        """
        at = self._database.now()
        await self._database.write(lambda db: images.release(db, image, at))

    async def origin(self, name: str) -> str | None:
        """The remote repository that has answered for the unprefixed ``name``, or ``None``."""

        def query(db: Connection) -> str | None:
            return images.find_origin(db, name)

        return await self._origins.get(name, lambda: self._database.read(query))

    async def set_origin(self, name: str, repository: str) -> str:
        """Remember one; the one that counts, which is the first that anybody remembered."""
        return await self._database.write(lambda db: images.remember_origin(db, name, repository))

    async def cached_tag(self, image: ImageName, tag: Tag) -> CachedTag | None:
        """A tag as it was last seen, or ``None`` if it never was."""

        def query(db: Connection) -> CachedTag | None:
            return find_tag(db, image, tag)

        return await self._tags.get((image, tag), lambda: self._database.read(query))

    async def cache_manifest(
        self,
        image: ImageName,
        manifest: Manifest,
        tag: Tag | None,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
    ) -> None:
        """
        Let ``image`` have a manifest whose bytes are published, and ``tag``, checked now, point at
        it.  Nothing of what it holds need be here.  The movement of the tag is journalled.
        """
        at = self._database.now()
        await self._database.write(
            lambda db: cache_manifest(db, image, manifest, tag, confirm, at), release
        )

    async def point_tag(self, image: ImageName, tag: Tag, digest: Digest) -> bool:
        """
        Let ``tag``, checked now, point at a manifest of ``image``, its candidate forgotten; whether
        ``image`` has it.
        """
        at = self._database.now()
        return await self._database.write(lambda db: point_tag(db, image, tag, digest, at))

    async def keep_tag(self, image: ImageName, tag: Tag, candidate: Digest | None) -> None:
        """
        ``tag`` was checked now and stays as it is.

        :param candidate: what the upstream says instead.  One that was the candidate before keeps
            its time; ``None`` forgets it.
        """
        at = self._database.now()
        await self._database.write(lambda db: keep_tag(db, image, tag, candidate, at))

    async def stored_size(self, digest: Digest) -> int | None:
        """Bytes of a blob that some image, any one, holds; ``None`` if none does."""
        return await self._database.read(lambda db: blobs.size_anywhere(db, digest))

    async def link_blob(self, image: ImageName, digest: Digest) -> int | None:
        """Let ``image`` hold a blob that some image holds; its bytes, ``None`` if none does."""
        at = self._database.now()
        return await self._database.write(lambda db: link_remote_blob(db, image, digest, at))

    async def add_blobs(
        self,
        images: Sequence[ImageName],
        digest: Digest,
        size: int,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
    ) -> None:
        """As ``Catalog.add_blob``, for several images at once."""
        at = self._database.now()
        await self._database.write(
            lambda db: add_remote_blob(db, images, digest, size, confirm, at), release
        )

    async def cached_page(self, image: ImageName, key: str) -> CachedPage | None:
        """A page of a list as it was last fetched; ``key`` says which list and which page."""
        return await self._database.read(lambda db: find_page(db, image, key))

    async def cache_page(self, image: ImageName, key: str, page: CachedPage) -> None:
        """Keep a page; of one image the oldest beyond 50 go."""
        await self._database.write(lambda db: put_page(db, image, key, page))

    async def touch(self, used: Mapping[tuple[ImageName, Digest], float]) -> None:
        """Blobs and manifests were pulled at those times, in seconds since the epoch."""
        await self._database.write(lambda db: touch(db, used))

    async def held_bytes(self, repository: str) -> int:
        """Bytes of the blobs and manifests that the images of ``repository`` hold, each once."""
        return await self._database.read(lambda db: held_bytes(db, repository))

    async def least_used(self, repository: str, before: float, skip: int, limit: int) -> list[Held]:
        """
        What the images of ``repository`` hold that was not used since ``before``, the longest
        unused first, without the first ``skip``.
        """
        return await self._database.read(lambda db: least_used(db, repository, before, skip, limit))

    async def drop(self, held: Sequence[Held]) -> list[Digest]:
        """
        Take blobs, and manifests with their tags, out of images of remote repositories, those
        excepted that were used since they were listed.

        The digests that no image needs any more: they are listed no longer, and their bytes are to
        be forgotten (``Catalog.forget_blob``), now that this is committed.  Until then they are
        among ``Catalog.dropped_blobs``.
        """
        at = self._database.now()
        # Last: forget_blob in the same transaction would remove bytes whose rows a failing commit
        # brings back.
        return await self._database.write(lambda db: drop(db, held, at), last=True)

    async def purge(self, image: ImageName, reference: Reference | None) -> list[Digest] | None:
        """
        Take a tag, a digest, or (``None``) everything out of a remote image, its lists too.  A tag
        goes with the manifest it points at, unless another tag does.

        As :meth:`drop`; ``None`` if there was nothing of that.
        """
        at = self._database.now()
        return await self._database.write(lambda db: purge(db, image, reference, at), last=True)
