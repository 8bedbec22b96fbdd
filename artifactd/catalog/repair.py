"""Damage: lost blobs, and checks that the catalog agrees with itself and with the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sqlite3 import SQLITE_INTERRUPT, Connection, OperationalError

from attrs import frozen
from msgspec.structs import replace

from artifactd.catalog import images, manifests
from artifactd.catalog.checks import CHECKS, Check
from artifactd.catalog.database import Database, OnDatabase, read, write, write_last
from artifactd.catalog.events import event_of
from artifactd.catalog.images import loosen, settle
from artifactd.catalog.records import ManifestRecord, nothing
from artifactd.kit.deferreds import Stopped
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import Digest, ImageName
from artifactd.settings.webhooks import EventKind

_TOLD = 10  # images that are told of a lost blob
_STEPS = 10_000  # of a check, after which it looks whether it is to stop: a tenth of a second


@frozen
class Holder:
    """
    An image that has a digest.

    :ivar is_manifest: whether it has the digest as a manifest, or else as a blob.
    :ivar is_remote: whether it came from an upstream, from which it can be fetched again, or else
        was pushed here.
    """

    image: ImageName
    is_manifest: bool
    is_remote: bool


@frozen
class ListedBlob:
    """
    A row of ``blob``: bytes that the store should have.

    :ivar size: in bytes.
    :ivar lost_at: since when they are known to be lost, in seconds since the epoch, or ``None``.
    """

    digest: Digest
    size: int
    lost_at: float | None


@frozen
class LostBlob:
    """
    A blob or manifest whose bytes are lost.

    :ivar size: in bytes.
    :ivar since: when that was found, in seconds since the epoch.
    :ivar images: canonical names of images that hold it: at most ten.
    """

    digest: str
    size: int
    since: float
    images: Sequence[str]


@frozen
class ListedManifest:
    """
    A manifest of an image as the catalog has it.

    :ivar position: the next page starts behind this.
    :ivar entries: the digests that it holds, each with whether it is held as a manifest.
    :ivar absent: those of them that the image does not have, or that are lost.
    :ivar is_lost: whether the manifest's own bytes are lost.
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

    :ivar kind: one word.
    :ivar text: the problem.
    :ivar repairable: whether :meth:`RepairCatalog.mend` corrects it.
    """

    kind: str
    name: str
    text: str
    repairable: bool


_ACTOR = "fsck"  # in the journal of tags
_TOLD = 20  # images whose damage by one digest webhooks are told of

# Pushed and remote images by turns, so that a limit cuts off neither the images whose owners can
# push the bytes again nor those that can fetch them.
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


def note_lost(db: Connection, digest: Digest, at: float) -> None:
    """
    Note that the bytes of ``digest`` are lost.  All rows stay, so that it is known which images
    have lost them, but to every reader the blob is absent.
    """
    db.execute(
        "UPDATE blob SET lost_at = ? WHERE digest = ? AND lost_at IS NULL", (at, str(digest))
    )


def holders(db: Connection, digest: Digest, limit: int) -> list[Holder]:
    """List at most ``limit`` images that have ``digest``, pushed and remote ones by turns."""
    return [
        Holder(ImageName(repository, name), bool(is_manifest), bool(is_remote))
        for repository, name, is_manifest, is_remote in db.execute(_HOLDERS, (str(digest), limit))
    ]


def drop_lost(db: Connection, digest: Digest, at: float) -> int:
    """
    Take a lost blob or manifest out of the images that have it from an upstream.

    Returns how many images those were.
    """
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
        images.unlist(db, [digest])
        loosen(db, [str(digest)], at)
    return dropped + len(rows)


# -- manifests whose rows are compared with their bytes

_MANIFESTS = (
    "SELECT manifest.id, repository, name, used_at IS NOT NULL, lost_at IS NOT NULL,"
    " manifest.digest, size, media_type, artifact_type, subject, annotations, free_since,"
    " orphaned FROM manifest CROSS JOIN image ON image.id = image_id"
    " CROSS JOIN blob ON blob.digest = manifest.digest"
    " WHERE manifest.id > ? ORDER BY manifest.id LIMIT ?"
)
# An index may list manifests as blobs, under a media type that artifactd does not know.
_ENTRIES = (
    "SELECT digest, kind, (kind = 'blob' AND EXISTS ("
    "SELECT 1 FROM blob CROSS JOIN blob_link ON blob_link.blob_id = blob.id"
    " WHERE blob.digest = entry.digest AND lost_at IS NULL"
    " AND blob_link.image_id = entry.image_id)) OR EXISTS ("
    "SELECT 1 FROM manifest CROSS JOIN blob USING (digest)"
    " WHERE manifest.image_id = entry.image_id AND digest = entry.digest AND lost_at IS NULL)"
    " FROM manifest_entry AS entry WHERE manifest_id = ?"
)


class RepairCatalog(OnDatabase):
    """The part of the catalog that only scrubbing, collection and ``artifactd fsck`` use."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._is_stopped = False

    # -- damage

    @write
    def lose_blob(
        self, db: Connection, digest: Digest, is_so: Callable[[], bool], flaw: str = ""
    ) -> bool:
        """
        Note that the bytes of ``digest`` are lost, if ``is_so`` returns true.

        Webhooks are told of at most 20 images that have lost them.

        ``is_so`` is called inside the write transaction, while no process publishes or removes
        bytes.  To every reader the blob is absent from the commit on, until its bytes are published
        again.

        :param flaw: what is wrong with them, for webhooks.
        :return: the answer of ``is_so``.
        """
        if not is_so():
            return False
        at = self.database.now()
        note_lost(db, digest, at)
        outbox = self.database.outbox
        if EventKind.DAMAGE in outbox.kinds:
            held = dict.fromkeys(each.image for each in holders(db, digest, _TOLD))
            outbox.write(
                db,
                at,
                (
                    replace(event_of(EventKind.DAMAGE, image, "", digest=str(digest)), reason=flaw)
                    for image in held
                ),
            )
        return True

    @write
    def take_out(self, db: Connection, digest: Digest, move: Callable[[], bool]) -> bool:
        """
        If no row says that the bytes of ``digest`` are here, call ``move`` inside the write
        transaction.

        :return: the answer of ``move``; ``False`` if it was not called.
        """
        listed = db.execute(
            "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NULL", (str(digest),)
        ).fetchone()
        return listed is None and move()

    @read
    def is_lost(self, db: Connection, digest: Digest) -> bool:
        """Whether ``digest`` is listed and noted as lost."""
        lost = "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NOT NULL"
        return db.execute(lost, (str(digest),)).fetchone() is not None

    async def restore_blob(
        self, digest: Digest, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> None:
        """
        Note that lost bytes are published again, for all images that had them.  ``confirm`` and
        ``release`` work as in ``Catalog.add_blob``.
        """

        def restore(db: Connection) -> None:
            confirm()
            db.execute("UPDATE blob SET lost_at = NULL WHERE digest = ?", (str(digest),))

        await self.database.write(restore, release)

    @read
    def holders(self, db: Connection, digest: Digest, limit: int) -> Sequence[Holder]:
        """
        At most ``limit`` images that have ``digest``, lost or not.  Images to which it was pushed
        and images that have it from an upstream come by turns, as long as there are both.
        """
        return holders(db, digest, limit)

    @write_last
    def drop_lost(self, db: Connection, digest: Digest) -> int:
        """
        Take a lost blob or manifest out of the images that have it from an upstream, so that the
        next pull fetches it again.  Returns how many images that were.
        """
        return drop_lost(db, digest, self.database.now())

    # -- checks

    @read
    def lost(self, db: Connection, limit: int) -> Sequence[LostBlob]:
        """Blobs and manifests whose bytes are lost, at most ``limit``."""
        rows = db.execute(
            "SELECT digest, size, lost_at FROM blob WHERE lost_at IS NOT NULL"
            " ORDER BY digest LIMIT ?",
            (limit,),
        ).fetchall()
        return [
            LostBlob(
                digest,
                size,
                since,
                [str(each.image) for each in holders(db, Digest.parse(digest), _TOLD)],
            )
            for digest, size, since in rows
        ]

    @read
    def integrity(self, db: Connection) -> Sequence[str]:
        """A line for each thing that SQLite finds wrong with the database itself."""
        wrong = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
        for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
            which = "a row" if row is None else f"row {row}"  # some tables have no rowids
            wrong.append(f"{which} of {table} refers to a row of {parent} that is not there")
        return wrong

    @read
    def tables(self, db: Connection) -> Sequence[str]:
        """The names of all tables, in their order."""
        rows = db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            " ORDER BY name"
        )
        return [name for (name,) in rows]

    @read
    def integrity_of(self, db: Connection, table: str) -> str:
        """
        What SQLite first finds wrong with a table and its indexes; empty if it finds nothing.

        It takes minutes for tens of millions of rows.

        :raises Stopped: after :meth:`stop`, also in the middle.
        """
        db.set_progress_handler(lambda: self._is_stopped, _STEPS)
        try:
            (told,) = db.execute(f"PRAGMA integrity_check({table})").fetchone()
        except OperationalError as error:
            if error.sqlite_errorcode == SQLITE_INTERRUPT:
                raise Stopped("left for later") from None
            raise
        finally:
            db.set_progress_handler(None, 0)
        # A row may have many lines, below one that names the database.
        first = next((line for line in told.splitlines() if not line.startswith("***")), told)
        return "" if first == "ok" else first

    def stop(self) -> None:
        """End the checks of tables that are under way, and all later ones."""
        self._is_stopped = True

    @read
    def listed_blobs(self, db: Connection, after: str, limit: int) -> Sequence[ListedBlob]:
        """At most ``limit`` listed blobs behind ``after``, in the order of their digests' text."""
        rows = db.execute(
            "SELECT digest, size, lost_at FROM blob WHERE digest > ? ORDER BY digest LIMIT ?",
            (after, limit),
        )
        return [ListedBlob(Digest.parse(digest), size, lost_at) for digest, size, lost_at in rows]

    @read
    def listed_bytes(self, db: Connection) -> int:
        """The bytes of all listed blobs together."""
        (size,) = db.execute("SELECT coalesce(sum(size), 0) FROM blob").fetchone()
        return int(size)

    @write
    def is_absent(self, db: Connection, digest: Digest, is_there: Callable[[], bool]) -> bool:
        """
        Whether ``digest`` is listed, not known as lost, and not in the store.

        ``is_there`` is called inside the write transaction, while no process publishes or removes
        bytes.
        """
        listed = db.execute(
            "SELECT 1 FROM blob WHERE digest = ? AND lost_at IS NULL", (str(digest),)
        ).fetchone()
        return listed is not None and not is_there()

    @read
    def listed_manifests(self, db: Connection, after: int, limit: int) -> Sequence[ListedManifest]:
        """At most ``limit`` manifests behind the position ``after``."""
        return [
            _listed(db, position, ImageName(repository, name), bool(remote), bool(lost), row)
            for position, repository, name, remote, lost, *row in db.execute(
                _MANIFESTS, (after, limit)
            )
        ]

    @write
    def rebuild_manifest(self, db: Connection, image: ImageName, manifest: Manifest) -> bool:
        """
        Correct the rows of a manifest of ``image`` from its bytes.

        :return: whether the image still has the manifest.
        """
        image_id = images.find(db, image)
        manifest_id = None if image_id is None else manifests.row_of(db, image_id, manifest.digest)
        if image_id is None or manifest_id is None:
            return False
        touched = [str(manifest.digest), *manifests.entries_of(db, manifest_id)]
        db.execute(
            "UPDATE manifest SET media_type = ?, artifact_type = ?, subject = ?, annotations = ?"
            " WHERE id = ?",
            (*manifests.columns_of(manifest), manifest_id),
        )
        manifests.replace_entries(db, image_id, manifest_id, manifest)
        touched += manifests.entries_of(db, manifest_id)
        settle(db, image_id, touched, self.database.now())
        return True

    @write
    def correct_size(self, db: Connection, digest: Digest, size: int) -> None:
        """Set the listed size of bytes that have the digest they should have."""
        db.execute("UPDATE blob SET size = ? WHERE digest = ?", (size, str(digest)))

    @read
    def slips(self, db: Connection, limit: int) -> Sequence[Slip]:
        """Rows that contradict others, at most ``limit`` of each kind."""
        return [
            Slip(check.kind, name, check.text.format(*values), bool(check.mended))
            for check in CHECKS
            for name, *values in db.execute(f"{check.query} LIMIT ?", (limit,))
        ]

    async def mend(self) -> None:
        """
        Correct the repairable slips: what each check finds in a transaction of its own, so that
        others write in between.
        """
        for check in CHECKS:
            if check.mended:
                await self._mend(check)

    @write
    def _mend(self, db: Connection, check: Check) -> None:
        for statement in check.mended:
            db.execute(statement, {"now": self.database.now()})


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
