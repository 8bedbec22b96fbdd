"""Images of remote repositories: names, cached manifests, tags and lists, and eviction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection
from types import MappingProxyType
from typing import Any

import msgspec
from attrs import field, frozen

from artifactd.catalog import images, manifests
from artifactd.catalog.cache import ReadCache
from artifactd.catalog.catalog import CACHED, record_bytes
from artifactd.catalog.database import Database, OnDatabase, read, write, write_last
from artifactd.catalog.images import loosen
from artifactd.catalog.records import ManifestPut, ManifestRecord, nothing
from artifactd.oci.errors import Unsupported
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import Digest, ImageName, Reference, Tag

# Actors in the journal of tags.
_UPSTREAM = "upstream"
_EVICTION = "eviction"
_PURGE = "purge"

# Pages of lists kept: of one image, and of all images of a repository, with their bytes.
_PAGES_KEPT = 50
_ALL_PAGES_KEPT = 1000
_PAGE_BYTES_KEPT = 64 << 20
_EVER = 1e300  # seconds since the epoch: later than any use

_query = msgspec.json.Decoder(dict[str, str])


# When blobs and manifests (by their digests) and pages (by their keys) were used, in seconds since
# the epoch.  Any is Digest or str: the keys of a Mapping are invariant.
Used = Mapping[tuple[ImageName, Any], float]


@frozen
class CachedTag:
    """
    A tag of an upstream as it is served here.  Times are in seconds since the epoch.

    :ivar record: the manifest that the tag is served as.
    :ivar checked_at: when the upstream last answered for the tag.
    :ivar candidate: another digest that the upstream has named since, which is not served yet.
    :ivar candidate_at: when the upstream first named ``candidate``.
    """

    record: ManifestRecord
    checked_at: float
    candidate: Digest | None = None
    candidate_at: float | None = None


@frozen
class CachedPage:
    """
    A page of an upstream's list.

    :ivar body: the JSON.
    :ivar next: the query of the page behind it, or ``None``.
    :ivar filtered: the ``OCI-Filters-Applied`` header, or ``None``.
    :ivar fetched_at: in seconds since the epoch.
    """

    body: bytes = field(repr=False)
    next: Mapping[str, str] | None
    filtered: str | None
    fetched_at: float


@frozen
class Held:
    """
    A blob, a manifest or a page of a list that an image of a remote repository holds.

    :ivar digest: of the blob or manifest; ``None``: it is a page.
    :ivar size: in bytes.
    :ivar used_at: when it was last pulled, or fetched, in seconds since the epoch.
    :ivar page: the key of the page, or ``None``.
    """

    image: ImageName
    digest: Digest | None
    size: int
    used_at: float
    is_manifest: bool
    page: str | None = None


_IMAGE = "image_id = (SELECT id FROM image WHERE repository = ? AND name = ?)"
_TOUCH_BLOB = (
    f"UPDATE blob_link SET used_at = ? WHERE {_IMAGE}"
    " AND blob_id = (SELECT id FROM blob WHERE digest = ?) AND used_at < ?"
)
_TOUCH_MANIFEST = f"UPDATE manifest SET used_at = ? WHERE {_IMAGE} AND digest = ? AND used_at < ?"
_TOUCH_PAGE = f"UPDATE upstream_page SET used_at = ? WHERE {_IMAGE} AND key = ? AND used_at < ?"

_DROP_PAGES = (
    "DELETE FROM upstream_page WHERE rowid IN (SELECT id FROM"
    " (SELECT rowid AS id, row_number() OVER used AS place, sum(size) OVER used AS bytes"
    " FROM upstream_page WHERE repository = ?1"
    " WINDOW used AS (ORDER BY used_at DESC, image_id DESC, rowid DESC))"
    " WHERE place > ?2 OR bytes > ?3)"
)

_PAGE_BYTES = "SELECT coalesce(sum(size), 0) FROM upstream_page WHERE repository = ?"
_HELD_BYTES = (
    "SELECT coalesce(sum(size), 0) FROM blob WHERE id IN ("
    "SELECT blob_id FROM image JOIN blob_link ON blob_link.image_id = image.id"
    " WHERE repository = ?1 AND used_at IS NOT NULL"
    " UNION ALL "
    "SELECT blob.id FROM image JOIN manifest ON manifest.image_id = image.id"
    " JOIN blob ON blob.digest = manifest.digest"
    " WHERE repository = ?1 AND used_at IS NOT NULL)"
)

# CROSS JOIN keeps SQLite from beginning with the images and sorting everything that they hold.
# Rows with the same time have an order too, so that pages neither overlap nor leave a row out.
_LEAST_USED = (
    "SELECT name, digest, size, used_at, 0 AS kind, image_id, blob_id AS item"
    " FROM blob_link CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
    " WHERE used_at < ?1 AND repository = ?2"
    " UNION ALL "
    "SELECT name, manifest.digest, size, used_at, 1, image_id, manifest.id"
    " FROM manifest CROSS JOIN image ON image.id = image_id"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    " WHERE used_at < ?1 AND repository = ?2"
    " UNION ALL "
    "SELECT name, key, size, used_at, 2, image_id, upstream_page.rowid"
    " FROM upstream_page CROSS JOIN image ON image.id = image_id"
    " WHERE used_at < ?1 AND upstream_page.repository = ?2"
    " ORDER BY used_at, image_id, item, kind LIMIT ?3 OFFSET ?4"
)


class RemoteCatalog(OnDatabase):
    """
    The part of the catalog that only remote repositories use.

    Their images, manifests, tags and blobs have the same rows as those of local repositories, but
    the blobs and children that a manifest holds need not be stored here.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        versions = database.versions
        self._known: ReadCache[ImageName, bool] = ReadCache(versions, str, CACHED)
        self._origins: ReadCache[str, str | None] = ReadCache(versions, str, CACHED)
        self._tags: ReadCache[tuple[ImageName, Tag], CachedTag | None] = ReadCache(
            versions,
            lambda key: str(key[0]),
            CACHED,
            lambda cached: 0 if cached is None else record_bytes(cached.record),
        )

    # -- names

    async def is_known(self, image: ImageName) -> bool:
        """Whether ``image`` has had a manifest and has not been released since."""
        return await self._known.get(
            image,
            lambda: self.database.read(lambda db: images.find_known(db, image) is not None),
        )

    @write
    def release_image(self, db: Connection, image: ImageName) -> None:
        """
        Make a local image without manifests unknown again.

        :raises NameUnknown: if the image is unknown.
        :raises Unsupported: if it still has manifests.
        """
        image_id = images.known(db, image)
        if db.execute("SELECT 1 FROM manifest WHERE image_id = ? LIMIT 1", (image_id,)).fetchone():
            raise Unsupported(
                "this image still has manifests: delete those first", {"name": str(image)}
            )
        db.execute("UPDATE image SET known_at = NULL WHERE id = ?", (image_id,))
        # An unknown image that held blobs would still answer for them.
        rows = db.execute(
            "SELECT digest FROM blob_link JOIN blob ON blob.id = blob_id WHERE image_id = ?",
            (image_id,),
        )
        held = [digest for (digest,) in rows.fetchall()]
        db.execute("DELETE FROM blob_link WHERE image_id = ?", (image_id,))
        loosen(db, held, self.database.now())

    async def origin(self, name: str) -> str | None:
        """The remote repository that has answered for the unprefixed ``name``, or ``None``."""
        return await self._origins.get(
            name, lambda: self.database.read(lambda db: _find_origin(db, name))
        )

    @write
    def set_origin(self, db: Connection, name: str, repository: str) -> str:
        """
        Record the repository that has answered for ``name``, unless one is recorded.

        :return: the recorded one.
        """
        db.execute(
            "INSERT INTO origin (name, repository) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (name, repository),
        )
        return _find_origin(db, name) or repository

    # -- manifests and tags

    async def cached_tag(self, image: ImageName, tag: Tag) -> CachedTag | None:
        """A tag with the manifest that it was last served as, or ``None``."""
        return await self._tags.get(
            (image, tag), lambda: self.database.read(lambda db: _find_tag(db, image, tag))
        )

    async def cache_manifest(
        self,
        image: ImageName,
        manifest: Manifest,
        tag: Tag | None,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
        told: Mapping[Tag, float] = MappingProxyType({}),
    ) -> None:
        """
        Put a manifest whose bytes are published into ``image``, and point ``tag``, checked now, at
        it.  Point the tags ``told`` at it too, each checked at its time (seconds since the epoch).
        The blobs and children it holds need not be here.  The tags' movements are journalled.
        ``confirm`` and ``release`` work as in ``Catalog.add_blob``.
        """

        def store(db: Connection) -> None:
            at = self.database.now()
            checked = {**told} if tag is None else {**told, tag: at}
            put = ManifestPut(image, manifest, tuple(checked), actor=_UPSTREAM)
            with self.database.outbox.telling(db, image, _UPSTREAM, at):
                manifests.store(db, put, confirm, at, used_at=at)
            for each, checked_at in checked.items():
                _keep_tag(db, image, each, None, checked_at)

        owner = image.repository if manifests.are_many(manifest) else None
        await self.database.write(store, release, long=owner)

    @write
    def point_tag(self, db: Connection, image: ImageName, tag: Tag, digest: Digest) -> bool:
        """
        Point ``tag``, checked now, at a manifest of ``image``, and forget the tag's candidate.

        :return: whether ``image`` has the manifest.
        """
        image_id = images.find(db, image)
        manifest_id = None if image_id is None else manifests.row_of(db, image_id, digest)
        if image_id is None or manifest_id is None:
            return False
        at = self.database.now()
        with self.database.outbox.telling(db, image, _UPSTREAM, at):
            images.move_tag(db, image_id, tag, manifest_id, digest, _UPSTREAM, at)
        _keep_tag(db, image, tag, None, at)
        return True

    @write
    def keep_tag(
        self, db: Connection, image: ImageName, tag: Tag, candidate: Digest | None
    ) -> None:
        """
        Record that ``tag`` was checked now and still points at the same manifest.

        :param candidate: the digest that the upstream names instead; one that was the candidate
            before keeps its time.  ``None`` forgets the candidate.
        """
        _keep_tag(db, image, tag, candidate, self.database.now())

    # -- blobs

    @read
    def stored_size(self, db: Connection, repository: str, digest: Digest) -> int | None:
        """
        The size in bytes of a blob that an image of a remote repository has from its upstream, or
        ``None`` if none has.

        Blobs of other repositories don't count: an upstream that says that it has one of those may
        know no more of it than the digest.
        """
        return _size_within(db, repository, digest)

    @write
    def link_blob(self, db: Connection, image: ImageName, digest: Digest) -> int | None:
        """
        Let ``image`` hold a blob that an image of the same repository has from the upstream.

        :return: its size in bytes, or ``None`` as :meth:`stored_size`.
        """
        size = _size_within(db, image.repository, digest)
        if size is not None:
            at = self.database.now()
            images.link_blob(db, image, digest, used_at=at, at=at, due=at)
        return size

    async def add_blobs(
        self,
        holders: Sequence[ImageName],
        digest: Digest,
        size: int,
        confirm: Callable[[], None],
        release: Callable[[], None] = nothing,
    ) -> None:
        """
        Let several images hold a blob whose bytes are published.  ``confirm`` and ``release`` work
        as in ``Catalog.add_blob``.
        """

        def add(db: Connection) -> None:
            at = self.database.now()
            confirm()
            images.record_blob(db, digest, size, at)
            for image in holders:
                images.link_blob(db, image, digest, used_at=at, at=at, due=at)

        await self.database.write(add, release)

    # -- lists

    @read
    def cached_page(self, db: Connection, image: ImageName, key: str) -> CachedPage | None:
        """A page of a list as it was last fetched; ``key`` names the list and the page."""
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

    @write
    def cache_page(
        self, db: Connection, image: ImageName, key: str, page: CachedPage, most: int | None = None
    ) -> None:
        """
        Store a page.  The oldest are deleted if the image has more than 50 then, and those longest
        not used if the repository has more than 1,000 of them, or more bytes than 64 MiB.

        :param most: bytes that all pages of the repository may have, if that is less.
        """
        image_id = images.add(db, image)
        following = None if page.next is None else msgspec.json.encode(page.next).decode()
        db.execute(
            "INSERT INTO upstream_page (image_id, repository, key, size, used_at, body, next,"
            " filtered, fetched_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET size = excluded.size, used_at = excluded.used_at,"
            " body = excluded.body, next = excluded.next, filtered = excluded.filtered,"
            " fetched_at = excluded.fetched_at",
            (
                image_id,
                image.repository,
                key,
                len(key) + len(page.body) + len(following or ""),
                page.fetched_at,
                page.body,
                following,
                page.filtered,
                page.fetched_at,
            ),
        )
        db.execute(
            "DELETE FROM upstream_page WHERE rowid IN (SELECT rowid FROM upstream_page"
            " WHERE image_id = ? ORDER BY fetched_at DESC, rowid DESC LIMIT -1 OFFSET ?)",
            (image_id, _PAGES_KEPT),
        )
        most = _PAGE_BYTES_KEPT if most is None else min(most, _PAGE_BYTES_KEPT)
        db.execute(_DROP_PAGES, (image.repository, _ALL_PAGES_KEPT, most))

    # -- use and eviction

    @write
    def touch(self, db: Connection, used: Used) -> None:
        """
        Record when blobs and manifests were last pulled, and pages (by their keys) last listed, in
        seconds since the epoch.
        """
        rows = [
            (at, image.repository, image.image, str(item), at) for (image, item), at in used.items()
        ]
        for statement in (_TOUCH_BLOB, _TOUCH_MANIFEST, _TOUCH_PAGE):
            db.executemany(statement, rows)

    @read
    def held_bytes(self, db: Connection, repository: str) -> int:
        """
        Bytes of the blobs and manifests that the images of a remote repository hold, each once, and
        of the cached pages of their lists.
        """
        return sum(
            int(db.execute(statement, (repository,)).fetchone()[0])
            for statement in (_HELD_BYTES, _PAGE_BYTES)
        )

    @read
    def least_used(
        self, db: Connection, repository: str, before: float, skip: int, limit: int
    ) -> list[Held]:
        """
        Blobs, manifests and pages that the images of ``repository`` hold and that were last used
        before ``before``, the least recently used first: at most ``limit``, without the first
        ``skip``.
        """
        return [
            Held(
                ImageName(repository, name),
                None if kind == 2 else Digest.parse(item),
                size,
                used_at,
                kind == 1,
                item if kind == 2 else None,
            )
            for name, item, size, used_at, kind, *_ in db.execute(
                _LEAST_USED, (before, repository, limit, skip)
            )
        ]

    @write_last
    def drop(self, db: Connection, held: Sequence[Held]) -> list[Digest]:
        """
        Take blobs, manifests with their tags, and pages of lists out of images of remote
        repositories, except those that were used since they were listed.

        :return: the digests that no image needs any more.  They are no longer listed; the caller
            now has their bytes removed (``Catalog.forget_blob``).  Until then they are among
            ``Catalog.dropped_blobs``.
        """
        at = self.database.now()
        for each in held:
            image_id = images.find(db, each.image)
            if image_id is None:
                continue
            if each.digest is None:
                _delete_page(db, image_id, each.page, each.used_at)
            elif each.is_manifest:
                _remove_manifest(db, image_id, each.digest, each.used_at, actor=_EVICTION, at=at)
            else:
                _unlink_blob(db, image_id, each.digest, each.used_at)
        return images.unlist(db, dict.fromkeys(each.digest for each in held if each.digest))

    @read
    def holding(self, db: Connection, image: ImageName, digest: Digest, limit: int) -> list[Digest]:
        """The manifests of ``image`` that hold ``digest``, the newest first, at most ``limit``."""
        rows = db.execute(
            "SELECT manifest.digest FROM image"
            " JOIN manifest_entry AS entry ON entry.image_id = image.id AND entry.digest = ?"
            " JOIN manifest ON manifest.id = entry.manifest_id"
            " JOIN blob ON blob.digest = manifest.digest AND lost_at IS NULL"
            " WHERE image.repository = ? AND image.name = ?"
            " ORDER BY manifest.id DESC LIMIT ?",
            (str(digest), image.repository, image.image, limit),
        )
        return [Digest.parse(holder) for (holder,) in rows]

    @read
    def lacking(
        self, db: Connection, image: ImageName, reference: Reference | None
    ) -> list[Digest]:
        """
        Those of the digests that :meth:`purge` takes out of a remote image, with all that they
        hold, whose bytes the image does not have: a fill of them may have begun.
        """
        image_id = images.find(db, image)
        pending = [reference] if isinstance(reference, Digest) else []
        if image_id is not None and not pending:
            pending = _roots(db, image_id, reference)
        lacking, seen = [], set[Digest]()
        while pending:
            each = pending.pop()
            if each in seen:
                continue
            seen.add(each)
            manifest_id = None if image_id is None else manifests.row_of(db, image_id, each)
            if manifest_id is not None:
                pending += map(Digest.parse, manifests.entries_of(db, manifest_id))
            elif images.link_of(db, image, each) is None:
                lacking.append(each)
        return lacking

    @write_last
    def purge(
        self, db: Connection, image: ImageName, reference: Reference | None
    ) -> list[Digest] | None:
        """
        Take a tag, a digest, or (``None``) everything out of a remote image, with its cached lists.
        A tag goes with its manifest, unless another tag points at that.

        :return: the same as :meth:`drop`; ``None`` if the image has nothing of the kind.
        """
        image_id = images.find(db, image)
        if image_id is None:
            return None
        at = self.database.now()
        if reference is None:
            gone = _purge_all(db, image_id, at)
        elif isinstance(reference, Tag):
            gone = _purge_tag(db, image_id, reference, at)
        else:
            gone = _purge_digest(db, image_id, reference, at)
        if gone is not None:
            _delete_pages(db, image_id)  # they may list tags and referrers that have gone
            gone = images.unlist(db, dict.fromkeys(gone))
        return gone


def _size_within(db: Connection, repository: str, digest: Digest) -> int | None:
    row = db.execute(
        "SELECT size FROM blob WHERE digest = ? AND lost_at IS NULL AND EXISTS ("
        "SELECT 1 FROM blob_link JOIN image ON image.id = blob_link.image_id"
        " WHERE blob_link.blob_id = blob.id AND image.repository = ? AND used_at IS NOT NULL)",
        (str(digest), repository),
    ).fetchone()
    return None if row is None else int(row[0])


def _find_origin(db: Connection, name: str) -> str | None:
    row = db.execute("SELECT repository FROM origin WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _find_tag(db: Connection, image: ImageName, tag: Tag) -> CachedTag | None:
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


def _keep_tag(
    db: Connection, image: ImageName, tag: Tag, candidate: Digest | None, at: float
) -> None:
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


def _delete_pages(db: Connection, image_id: int) -> int:
    return db.execute("DELETE FROM upstream_page WHERE image_id = ?", (image_id,)).rowcount


def _delete_page(db: Connection, image_id: int, key: str | None, until: float) -> None:
    db.execute(
        "DELETE FROM upstream_page WHERE image_id = ? AND key = ? AND used_at <= ?",
        (image_id, key, until),
    )


def _unlink_blob(db: Connection, image_id: int, digest: Digest, until: float) -> bool:
    """
    Take a blob that came from upstream and was not used after ``until`` out of an image.

    :return: whether there was one.
    """
    return (
        db.execute(
            "DELETE FROM blob_link WHERE image_id = ?"
            " AND blob_id = (SELECT id FROM blob WHERE digest = ?) AND used_at <= ?",
            (image_id, str(digest), until),
        ).rowcount
        > 0
    )


def _remove_manifest(
    db: Connection, image_id: int, digest: Digest, until: float, *, actor: str, at: float
) -> bool:
    """
    Remove a manifest that was not used after ``until``, and its tags.  Returns whether there was
    one.
    """
    row = db.execute(
        "SELECT id FROM manifest WHERE image_id = ? AND digest = ? AND used_at <= ?",
        (image_id, str(digest), until),
    ).fetchone()
    if row is not None:
        manifests.remove(db, image_id, int(row[0]), digest, actor=actor, at=at)
    return row is not None


def _purge_all(db: Connection, image_id: int, at: float) -> list[Digest] | None:
    rows = db.execute(
        "SELECT digest FROM manifest WHERE image_id = ?1 AND used_at IS NOT NULL"
        " UNION ALL "
        "SELECT digest FROM blob_link JOIN blob ON blob.id = blob_id"
        " WHERE image_id = ?1 AND used_at IS NOT NULL",
        (image_id,),
    )
    gone = [Digest.parse(digest) for (digest,) in rows.fetchall()]
    for digest in gone:
        _take_out(db, image_id, digest, at)
    if gone:
        db.execute(
            "UPDATE image SET known_at = NULL"
            " WHERE id = ? AND NOT EXISTS (SELECT 1 FROM manifest WHERE image_id = image.id)",
            (image_id,),
        )
    return gone if _delete_pages(db, image_id) or gone else None


def _roots(db: Connection, image_id: int, tag: Reference | None) -> list[Digest]:
    """The digest that a tag of an image points at; ``None``: of all its manifests."""
    if tag is None:
        rows = db.execute("SELECT digest FROM manifest WHERE image_id = ?", (image_id,))
    else:
        rows = db.execute(
            "SELECT digest FROM tag JOIN manifest ON manifest.id = manifest_id"
            " WHERE tag.image_id = ? AND tag.name = ?",
            (image_id, str(tag)),
        )
    return [Digest.parse(digest) for (digest,) in rows]


def _purge_tag(db: Connection, image_id: int, tag: Tag, at: float) -> list[Digest] | None:
    row = db.execute(
        "SELECT manifest_id, digest FROM tag JOIN manifest ON manifest.id = manifest_id"
        " WHERE tag.image_id = ? AND tag.name = ? AND used_at IS NOT NULL",
        (image_id, tag.text),
    ).fetchone()
    if row is None:
        return None
    manifest_id, digest = int(row[0]), Digest.parse(row[1])
    images.take_tag_off(db, image_id, tag, digest, actor=_PURGE, at=at)
    return [] if _is_tagged(db, manifest_id) else _purge_digest(db, image_id, digest, at)


def _purge_digest(db: Connection, image_id: int, digest: Digest, at: float) -> list[Digest] | None:
    """
    Take ``digest`` out of an image, with all it holds that no other manifest or tag there needs.

    Returns the digests taken out; ``None`` if the image does not have ``digest``.
    """
    gone: list[Digest] = []
    pending = [digest]
    while pending:
        each = pending.pop()
        manifest_id = manifests.row_of(db, image_id, each)
        entries = [] if manifest_id is None else manifests.entries_of(db, manifest_id)
        if _take_out(db, image_id, each, at):
            gone.append(each)
            held = map(Digest.parse, entries)
            pending += [entry for entry in held if not _is_needed(db, image_id, entry)]
    return gone or None


def _take_out(db: Connection, image_id: int, digest: Digest, at: float) -> bool:
    """
    Remove ``digest`` from an image, as a manifest and as a blob.  Returns whether it was there.
    """
    was_blob = _unlink_blob(db, image_id, digest, _EVER)
    return _remove_manifest(db, image_id, digest, _EVER, actor=_PURGE, at=at) or was_blob


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
