"""Retention: when tags were last pushed and pulled, and dropping those that no rule keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Connection

import msgspec
from attrs import frozen
from msgspec.structs import replace

from artifactd.catalog import images, manifests
from artifactd.catalog.database import OnDatabase, read, write
from artifactd.catalog.events import event_of
from artifactd.oci.names import Digest, ImageName, Reference, Tag
from artifactd.settings.webhooks import EventKind

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
_USES = (
    "SELECT tag.name, manifest.digest, max(moved_at, coalesce(tag.pushed_at, 0)),"
    " max(coalesce(tag.pulled_at, 0), coalesce(manifest.pulled_at, 0))"
    " FROM tag JOIN manifest ON manifest.id = tag.manifest_id WHERE tag.image_id = ?"
)
_STILL_NEWEST = (
    "SELECT count(*) FROM json_each(?) AS wanted"
    " CROSS JOIN tag ON tag.image_id = ? AND tag.name = wanted.value"
    " WHERE max(moved_at, coalesce(pushed_at, 0)) >= ?"
)


@frozen
class TagUse:
    """
    A tag, and when it was last used.  Times are in seconds since the epoch.

    :ivar pushed: the last push, also of the same manifest.
    :ivar pulled: the last pull by its name, or by the digest of its manifest, to :data:`HOUR`; 0:
        none is known.
    """

    name: str
    digest: str
    pushed: float
    pulled: float

    @property
    def age(self) -> tuple[float, str]:
        """Tells which of two tags of an image is the newer one: it is the greater."""
        return self.pushed, self.name


@frozen
class Newest:
    """
    The tags of an image that were pushed last; a retention rule keeps them, and drops others as
    long as these are there.

    :ivar oldest: the :attr:`TagUse.age` of the oldest of them.
    """

    names: tuple[str, ...]
    oldest: tuple[float, str]

    def stands(self, db: Connection, image_id: int) -> bool:
        """Whether all of them are there still, and none is older than it was."""
        names = msgspec.json.encode(self.names).decode()
        (count,) = db.execute(_STILL_NEWEST, (names, image_id, self.oldest[0])).fetchone()
        return bool(count == len(self.names))


@frozen
class Drop:
    """
    A tag that is to be dropped, if it is still what was judged.

    :ivar actor: names the rules that were for it, for the journal of tags.
    :ivar newest: the tags on whose being newer it rests that it goes.
    :ivar may_be_last: whether it goes, too, if the image has no other tag.
    """

    use: TagUse
    actor: str
    newest: tuple[Newest, ...] = ()
    may_be_last: bool = False


class RetentionCatalog(OnDatabase):
    """
    The part of the catalog that knows when images that were pushed here were last used, and drops
    tags.
    """

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

    @read
    def pulls_known_since(self, db: Connection) -> float:
        """
        Since when pulls are noted, in seconds since the epoch; 0: for as long as there is the
        catalog.
        """
        row = db.execute("SELECT max(since) FROM pulls_known").fetchone()
        return float(row[0] or 0)

    @read
    def images(self, db: Connection, repository: str, after: str, limit: int) -> list[ImageName]:
        """Known images of a repository by name: at most ``limit`` behind the name ``after``."""
        rows = db.execute(
            "SELECT name FROM image WHERE repository = ? AND name > ? AND known_at IS NOT NULL"
            " ORDER BY name LIMIT ?",
            (repository, after, limit),
        )
        return [ImageName(repository, name) for (name,) in rows]

    @read
    def tags(self, db: Connection, image: ImageName, after: str, limit: int) -> list[TagUse]:
        """The tags of an image in ASCII order: at most ``limit`` behind ``after``."""
        rows = db.execute(
            f"{_USES} AND tag.name > ? ORDER BY tag.name LIMIT ?",
            (images.find(db, image), after, limit),
        )
        return [TagUse(*row) for row in rows]

    async def drop(self, image: ImageName, drops: Sequence[Drop]) -> list[TagUse]:
        """
        Delete tags of an image in one transaction; ``GarbageCatalog.undelete`` brings them back.
        Their manifests stay as those of other deleted tags.

        A tag is left alone if it was pushed, moved or pulled since it was judged, if the tags that
        were newer are not all there any more, or if it would be the last one to go.

        :return: those that were deleted.
        """

        def delete(db: Connection) -> list[TagUse]:
            at = self.database.now()
            image_id = images.find(db, image)
            if image_id is None:
                return []
            standing: dict[Newest, bool] = {}
            gone, events = [], []
            for each in drops:
                row = db.execute(f"{_USES} AND tag.name = ?", (image_id, each.use.name)).fetchone()
                if row is None or TagUse(*row) != each.use:
                    continue
                for newest in each.newest:
                    if newest not in standing:
                        standing[newest] = newest.stands(db, image_id)
                if not all(standing[newest] for newest in each.newest):
                    continue
                if not each.may_be_last and _is_last(db, image_id, each.use.name):
                    continue
                tag, digest = Tag.parse(each.use.name), Digest.parse(each.use.digest)
                images.bury_tag(db, image_id, tag.text, digest, actor=each.actor, at=at)
                images.take_tag_off(db, image_id, tag, digest, actor=each.actor, at=at)
                gone.append(each.use)
                event = event_of(EventKind.RETENTION, image, each.actor, digest=each.use.digest)
                events.append(replace(event, tag=tag.text))
            self.database.outbox.write(db, at, events)
            return gone

        return await self.database.write(delete, frees=True)


def _is_last(db: Connection, image_id: int, tag: str) -> bool:
    other = "SELECT 1 FROM tag WHERE image_id = ? AND name <> ? LIMIT 1"
    return db.execute(other, (image_id, tag)).fetchone() is None
