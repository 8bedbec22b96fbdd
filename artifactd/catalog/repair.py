"""What is asked of a catalog to see whether it and the store agree, and to mend what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sqlite3 import Connection

from attrs import frozen

from artifactd.catalog import blobs, manifests
from artifactd.catalog.database import Database
from artifactd.catalog.leases import HELD, KEPT, loosen
from artifactd.catalog.records import ManifestRecord, nothing
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName


@frozen
class Holder:
    """
    An image that has a digest.

    :ivar is_manifest: as a manifest; else as a blob.
    :ivar is_remote: it came from an upstream, where it can be had again; else it was pushed here.
    """

    image: ImageName
    is_manifest: bool
    is_remote: bool


@frozen
class ListedBlob:
    """
    Bytes that the catalog lists; ``size`` in bytes.

    :ivar lost_at: since when they are known to be lost, in seconds since the epoch, or ``None``.
    """

    digest: Digest
    size: int
    lost_at: float | None


@frozen
class ListedManifest:
    """
    A manifest of an image as the catalog has it.

    :ivar position: where to go on behind it.
    :ivar entries: what it holds: digests, and whether as a manifest.
    :ivar absent: those of them that the image does not have, or that are lost.
    :ivar is_lost: whether its own bytes are.
    """

    position: int
    image: ImageName
    is_remote: bool
    record: ManifestRecord
    entries: frozenset[tuple[Digest, bool]]
    absent: frozenset[Digest]
    is_lost: bool


@frozen
class Slip:
    """
    A row that contradicts others.

    :ivar repairable: whether :meth:`RepairCatalog.mend` puts it right.
    """

    kind: str
    name: str
    text: str
    repairable: bool


# What was lost of the store: rows that stay, so that it is known what to push or fetch again.

_ACTOR = "fsck"

# By turns, so that neither those who can push it again nor those who can fetch it are cut off.
_HOLDERS = (
    "SELECT repository, name, is_manifest, is_remote FROM ("
    "SELECT *, row_number() OVER ("
    "PARTITION BY is_remote ORDER BY repository, name, is_manifest) AS turn FROM ("
    "SELECT repository, name, 0 AS is_manifest, used_at IS NOT NULL AS is_remote"
    " FROM blob CROSS JOIN blob_link ON blob_id = blob.id CROSS JOIN image ON image.id = image_id"
    " WHERE digest = ?1"
    " UNION ALL "
    "SELECT repository, name, 1, used_at IS NOT NULL"
    " FROM manifest CROSS JOIN image ON image.id = image_id WHERE digest = ?1"
    ")) ORDER BY turn, is_remote LIMIT ?2"
)


def lose(db: Connection, digest: Digest, is_so: Callable[[], bool], at: float) -> bool:
    """``RepairCatalog.lose_blob``."""
    if not is_so():
        return False
    db.execute(
        "UPDATE blob SET lost_at = ? WHERE digest = ? AND lost_at IS NULL", (at, str(digest))
    )
    return True


def take_out(db: Connection, digest: Digest, move: Callable[[], bool]) -> bool:
    """``RepairCatalog.take_out``."""
    listed = db.execute(
        "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NULL", (str(digest),)
    ).fetchone()
    return listed is None and move()


def is_lost(db: Connection, digest: Digest) -> bool:
    """``RepairCatalog.is_lost``."""
    lost = "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NOT NULL"
    return db.execute(lost, (str(digest),)).fetchone() is not None


def restore(db: Connection, digest: Digest, confirm: Callable[[], None]) -> None:
    """``RepairCatalog.restore_blob``."""
    confirm()
    db.execute("UPDATE blob SET lost_at = NULL WHERE digest = ?", (str(digest),))


def holders(db: Connection, digest: Digest, limit: int) -> list[Holder]:
    """``RepairCatalog.holders``."""
    return [
        Holder(ImageName(repository, name), bool(is_manifest), bool(is_remote))
        for repository, name, is_manifest, is_remote in db.execute(_HOLDERS, (str(digest), limit))
    ]


def drop_lost(db: Connection, digest: Digest, at: float) -> int:
    """``RepairCatalog.drop_lost``."""
    lost = db.execute(
        "SELECT id FROM blob WHERE digest = ? AND lost_at IS NOT NULL", (str(digest),)
    ).fetchone()
    if lost is None:
        return 0
    dropped = db.execute(
        "DELETE FROM blob_link WHERE used_at IS NOT NULL AND blob_id = ?", lost
    ).rowcount
    rows = db.execute(
        "SELECT image_id, id FROM manifest WHERE used_at IS NOT NULL AND digest = ?",
        (str(digest),),
    ).fetchall()
    for image_id, manifest_id in rows:
        manifests.remove(db, image_id, manifest_id, digest, actor=_ACTOR, at=at)
    if dropped or rows:
        blobs.unlist(db, [digest])
        loosen(db, [str(digest)], at)
    return dropped + len(rows)


def listed_quarantine(db: Connection, after: str, limit: int) -> list[ListedBlob]:
    """``RepairCatalog.listed_blobs``."""
    rows = db.execute(
        "SELECT digest, size, lost_at FROM blob WHERE digest > ? ORDER BY digest LIMIT ?",
        (after, limit),
    )
    return [ListedBlob(Digest.parse(digest), size, lost_at) for digest, size, lost_at in rows]


def is_absent(db: Connection, digest: Digest, is_there: Callable[[], bool]) -> bool:
    """``RepairCatalog.is_absent``."""
    listed = db.execute(
        "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NULL", (str(digest),)
    ).fetchone()
    return listed is not None and not is_there()


# Whether rows agree with one another and with the bytes of manifests.

_MANIFESTS = (
    "SELECT manifest.id, repository, name, used_at IS NOT NULL, lost_at IS NOT NULL,"
    " manifest.digest, size, media_type, artifact_type, subject, annotations, free_since"
    " FROM manifest CROSS JOIN image ON image.id = image_id"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    " WHERE manifest.id > ? ORDER BY manifest.id LIMIT ?"
)
# What an index lists as a blob may be a manifest that we know nothing of.
_ENTRIES = (
    "SELECT digest, kind, (kind = 'blob' AND EXISTS ("
    "SELECT 1 FROM blob CROSS JOIN blob_link ON blob_link.blob_id = blob.id"
    " WHERE blob.digest = entry.digest AND lost_at IS NULL"
    " AND blob_link.image_id = entry.image_id)) OR EXISTS ("
    "SELECT 1 FROM manifest CROSS JOIN blob USING (digest)"
    " WHERE manifest.image_id = entry.image_id AND digest = entry.digest AND lost_at IS NULL)"
    " FROM manifest_entry AS entry WHERE manifest_id = ?"
)
_UNNEEDED = (
    "NOT EXISTS (SELECT 1 FROM blob_link WHERE blob_link.blob_id = blob.id)"
    " AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_manifest WHERE deleted_manifest.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_entry"
    " WHERE deleted_entry.digest = blob.digest AND linked = 1)"
    " AND NOT EXISTS (SELECT 1 FROM deleted_blob WHERE deleted_blob.digest = blob.digest)"
    " AND NOT EXISTS (SELECT 1 FROM loose_blob WHERE loose_blob.blob_id = blob.id)"
)
_IMAGE = "repository || '/' || image.name"


@frozen
class _Check:
    kind: str
    text: str
    query: str  # the name of each that is wrong
    mended: str = ""  # ?1 is now


_CHECKS = (
    _Check(
        "entry",
        "what it holds is noted for another image",
        f"SELECT {_IMAGE} || '@' || manifest.digest FROM manifest_entry AS entry"
        " CROSS JOIN manifest ON manifest.id = manifest_id"
        " CROSS JOIN image ON image.id = manifest.image_id"
        " WHERE entry.image_id <> manifest.image_id",
        "UPDATE OR REPLACE manifest_entry SET image_id ="
        " (SELECT image_id FROM manifest WHERE id = manifest_id)"
        " WHERE ?1 AND image_id <> (SELECT image_id FROM manifest WHERE id = manifest_id)",
    ),
    _Check(
        "tag",
        "it points at a manifest of another image: push it again, or delete it",
        f"SELECT {_IMAGE} || ':' || tag.name FROM tag CROSS JOIN image ON image.id = tag.image_id"
        " CROSS JOIN manifest ON manifest.id = manifest_id"
        " WHERE manifest.image_id <> tag.image_id",
    ),
    _Check(
        "lease",
        "whether a manifest holds it is not as its row says, so that it stays or goes wrongly",
        f"SELECT {_IMAGE} || '@' || digest FROM blob_link"
        " CROSS JOIN image ON image.id = image_id CROSS JOIN blob ON blob.id = blob_id"
        f" WHERE used_at IS NULL AND (unheld_since IS NULL) <> {HELD}",
        "UPDATE blob_link SET unheld_since = CASE WHEN unheld_since IS NULL THEN ?1 END"
        f" WHERE used_at IS NULL AND (unheld_since IS NULL) <> {HELD}",
    ),
    _Check(
        "lease",
        "whether anything keeps it is not as its row says, so that it stays or goes wrongly",
        f"SELECT {_IMAGE} || '@' || digest FROM manifest CROSS JOIN image ON image.id = image_id"
        f" WHERE used_at IS NULL AND (free_since IS NULL) <> {KEPT}",
        "UPDATE manifest SET free_since = CASE WHEN free_since IS NULL THEN ?1 END"
        f" WHERE used_at IS NULL AND (free_since IS NULL) <> {KEPT}",
    ),
    _Check(
        "unneeded",
        "nothing needs these bytes, and they do not wait for collection",
        f"SELECT digest FROM blob WHERE {_UNNEEDED}",
        f"INSERT INTO loose_blob (blob_id, since) SELECT id, ?1 FROM blob WHERE {_UNNEEDED}",
    ),
)


def integrity(db: Connection) -> list[str]:
    """``RepairCatalog.integrity``."""
    wrong = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
        wrong.append(f"row {row} of {table} refers to a row of {parent} that is not there")
    return wrong


def slips(db: Connection, limit: int) -> list[Slip]:
    """``RepairCatalog.slips``."""
    return [
        Slip(check.kind, name, check.text, bool(check.mended))
        for check in _CHECKS
        for (name,) in db.execute(f"{check.query} LIMIT ?", (limit,))
    ]


def mend(db: Connection, at: float) -> None:
    """``RepairCatalog.mend``."""
    for check in _CHECKS:
        if check.mended:
            db.execute(check.mended, (at,))


def listed(db: Connection, after: int, limit: int) -> Sequence[ListedManifest]:
    """``RepairCatalog.listed_manifests``."""
    return [
        _listed(db, position, ImageName(repository, name), bool(remote), bool(lost), row)
        for position, repository, name, remote, lost, *row in db.execute(_MANIFESTS, (after, limit))
    ]


def _listed(
    db: Connection, position: int, image: ImageName, remote: bool, lost: bool, row: list[object]
) -> ListedManifest:
    entries, absent = set(), set()
    for text, kind, here in db.execute(_ENTRIES, (position,)):
        digest = Digest.parse(text)
        entries.add((digest, kind == "manifest"))
        if not here:
            absent.add(digest)
    record: ManifestRecord = manifests.record_of(row)
    return ListedManifest(
        position, image, remote, record, frozenset(entries), frozenset(absent), lost
    )


def rebuild(db: Connection, image: ImageName, manifest: Manifest, at: float) -> bool:
    """``RepairCatalog.rebuild_manifest``."""
    return manifests.rebuild(db, image, manifest, at)


class RepairCatalog:
    """
    The part of the catalog that only the scrubber and ``artifactd fsck`` use.

    :param database: that of a :class:`artifactd.catalog.catalog.Catalog`, which closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lose_blob(self, digest: Digest, is_so: Callable[[], bool]) -> bool:
        """
        Inside a write transaction, in which nobody publishes or removes: if ``is_so``, note that
        the bytes of ``digest`` are lost; whether it was.  To every reader they are not here then,
        until they are published again.
        """
        at = self._database.now()
        return await self._database.write(lambda db: lose(db, digest, is_so, at))

    async def take_out(self, digest: Digest, move: Callable[[], bool]) -> bool:
        """
        Inside a write transaction: ``move`` the bytes of ``digest`` if no row says that they are
        here; what ``move`` said.
        """
        return await self._database.write(lambda db: take_out(db, digest, move))

    async def is_lost(self, digest: Digest) -> bool:
        """Whether ``digest`` is listed, and its bytes are noted as lost."""
        return await self._database.read(lambda db: is_lost(db, digest))

    async def restore_blob(
        self, digest: Digest, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> None:
        """Bytes that were lost are published again; as ``Catalog.add_blob``, for who had them."""
        await self._database.write(lambda db: restore(db, digest, confirm), release)

    async def holders(self, digest: Digest, limit: int) -> Sequence[Holder]:
        """
        Who has ``digest``, lost or not; at most ``limit``: by turns one who pushed it, the first,
        and one from an upstream, as long as there are both.
        """
        return await self._database.read(lambda db: holders(db, digest, limit))

    async def drop_lost(self, digest: Digest) -> int:
        """
        Take a lost blob or manifest out of the images of upstreams, so that it is fetched again
        when it is wanted; from how many.
        """
        at = self._database.now()
        return await self._database.write(lambda db: drop_lost(db, digest, at), last=True)

    async def integrity(self) -> Sequence[str]:
        """What is wrong with the database itself; each a line."""
        return await self._database.read(integrity)

    async def listed_blobs(self, after: str, limit: int) -> Sequence[ListedBlob]:
        """In the order of their digests' text, those behind ``after``, at most ``limit``."""
        return await self._database.read(lambda db: listed_quarantine(db, after, limit))

    async def is_absent(self, digest: Digest, is_there: Callable[[], bool]) -> bool:
        """
        Whether ``digest`` is listed, not known as lost, and not there: seen inside a write
        transaction, in which nobody publishes or removes.
        """
        return await self._database.write(lambda db: is_absent(db, digest, is_there))

    async def listed_manifests(self, after: int, limit: int) -> Sequence[ListedManifest]:
        """Those behind the position ``after``, at most ``limit``."""
        return await self._database.read(lambda db: listed(db, after, limit))

    async def rebuild_manifest(self, image: ImageName, manifest: Manifest) -> bool:
        """Make the rows of a manifest of ``image`` anew; whether it still has it."""
        at = self._database.now()
        return await self._database.write(lambda db: rebuild(db, image, manifest, at))

    async def correct_size(self, digest: Digest, size: int) -> None:
        """Bytes that have their digest are ``size`` of them, whatever the row says."""

        def write(db: Connection) -> None:
            db.execute("UPDATE blob SET size = ? WHERE digest = ?", (size, str(digest)))

        await self._database.write(write)

    async def slips(self, limit: int) -> Sequence[Slip]:
        """Rows that contradict others; at most ``limit`` of each kind."""
        return await self._database.read(lambda db: slips(db, limit))

    async def mend(self) -> None:
        """Put right what can be: leases, and what waits for collection."""
        at = self._database.now()
        await self._database.write(lambda db: mend(db, at))
