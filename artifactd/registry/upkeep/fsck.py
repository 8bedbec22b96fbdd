"""Checking the catalog against the store, both ways; docs/operating.md, "fsck"."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from errno import ENOENT
from functools import partial

from attrs import define, field, frozen

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.records import session_key
from artifactd.catalog.repair import ListedBlob, ListedManifest, RepairCatalog
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.janitor import batches, pages
from artifactd.oci.errors import ManifestInvalid
from artifactd.oci.manifest import Manifest, may_lack, read_manifest
from artifactd.oci.names import Digest
from artifactd.registry.content import KEPT, parsed
from artifactd.registry.upkeep.damage import GONE, HOLDERS, Damage
from artifactd.registry.upkeep.sweep import NEWBORN
from artifactd.settings.settings import LocalSettings, RepositorySettings
from artifactd.store.blobs import SHELVES, BlobStore
from artifactd.store.examine import Examination
from artifactd.store.uploads import UploadMissing, UploadStore


class State(StrEnum):
    """The outcome of a report: the problem is left, was repaired, or needs nothing done."""

    LEFT = "problem"
    MENDED = "repaired"
    NOTE = "note"


@frozen
class Report:
    """
    One line of fsck's output.

    :ivar kind: one word, to filter the output by.
    :ivar name: the digest, image or row concerned.
    :ivar text: the problem, and the remedy.
    """

    state: State
    kind: str
    name: str
    text: str


_KNOWN = "it was found damaged or gone before"
_SLIPS = 1000  # inconsistent rows reported of each kind


@define(eq=False)
class Check:
    """
    Checks all data once, beside running daemons.

    :param repositories: the configured ones, by name.
    :param report: called with each report.
    :param repair: whether to repair what the digests prove; a local manifest is never dropped.
    :param hashes: whether to read all bytes; otherwise only files of the wrong size are read.
    :ivar examined: called with the size of each listed blob that was examined.
    :ivar blobs_checked, manifests_checked: how many were checked.
    """

    catalog: Catalog
    repairs: RepairCatalog
    garbage: GarbageCatalog
    blobs: BlobStore
    uploads: UploadStore
    damage: Damage
    repositories: Mapping[str, RepositorySettings]
    run_in_thread: RunInThread
    report: Callable[[Report], None]
    repair: bool = False
    hashes: bool = True
    now: Callable[[], float] = time.time
    examined: Callable[[int], object] = field(default=lambda _: None, init=False)
    blobs_checked: int = field(default=0, init=False)
    manifests_checked: int = field(default=0, init=False)
    _lost: set[Digest] = field(factory=set, init=False)

    async def run(self) -> None:
        """
        Check everything.

        :raises OSError, Unavailable: if the catalog cannot be read.
        """
        for wrong in await self.repairs.integrity():
            text = f"{wrong}: restore a backup; nothing is repaired before that"
            self._tell(State.LEFT, "database", "catalog", text)
            self.repair = False  # right files would go as strays, for want of their rows
        await self._blobs()
        for shelf in range(SHELVES):
            try:
                await self._strays(shelf)
            except OSError as error:
                self._tell(State.LEFT, "file", f"blobs/*/{shelf:02x}", f"can't be listed: {error}")
        await self._manifests()
        await self._slips()
        await self._uploads()

    def _tell(self, state: State, kind: str, name: object, text: str) -> None:
        self.report(Report(state, kind, str(name), text))

    # -- rows and their bytes

    async def _blobs(self) -> None:
        async for rows in pages(self.repairs.listed_blobs, "", lambda row: str(row.digest)):
            self.blobs_checked += len(rows)
            for row in rows:
                try:
                    await self._blob(row)
                except OSError as error:
                    self._tell(State.LEFT, "file", row.digest, f"can't be looked at: {error}")
                self.examined(row.size)

    async def _blob(self, row: ListedBlob) -> None:
        flaw = await self._examine(row)
        if flaw is not None:
            self._lost.add(row.digest)
            await self._report_lost(row.digest, flaw)

    async def _examine(self, row: ListedBlob) -> str | None:
        """Return what is wrong with a blob that is listed as here or as lost; ``None``: nothing."""
        known = row.lost_at is not None
        examination = await self.blobs.examine(row.digest)
        if examination is None:
            return _KNOWN if known else GONE if await self._is_absent(row.digest) else None
        try:
            # If the row and the file disagree, the digest decides.
            if self.hashes or known or examination.size != row.size:
                while await examination.step():
                    pass
            if examination.flaw is not None:
                # Perhaps it has been pushed again meanwhile.
                if not await self.run_in_thread(examination.is_published):
                    return None
                if self.repair:
                    await self.damage.quarantine(examination)
                return examination.flaw
            if known:
                await self._found_again(row.digest, examination)
            if examination.size != row.size:
                await self._wrong_size(row, examination.size)
            return None
        finally:
            examination.close()

    async def _is_absent(self, digest: Digest) -> bool:
        if self.repair:
            return await self.damage.missing(digest)
        return await self.repairs.is_absent(digest, lambda: self.blobs.is_there(digest))

    async def _found_again(self, digest: Digest, examination: Examination) -> None:
        """
        Report a blob that its row calls lost although the right file is in the store.

        With :attr:`repair` the row is corrected first.
        """

        def confirm() -> None:
            if not examination.is_published():
                raise FileNotFoundError(ENOENT, "it was taken away meanwhile", str(digest))

        if self.repair:
            await self.blobs.make_durable(digest)
            await self.repairs.restore_blob(digest, confirm)
        else:
            self._lost.add(digest)
        text = f"its right file is here, and its row says that it is lost{self._how()}"
        self._tell(self._mended(), "lost", digest, text)

    async def _wrong_size(self, row: ListedBlob, size: int) -> None:
        if self.repair:
            await self.repairs.correct_size(row.digest, size)
        text = f"its row says {row.size} bytes, its right file has {size}{self._how()}"
        self._tell(self._mended(), "size", row.digest, text)

    async def _report_lost(self, digest: Digest, flaw: str) -> None:
        holders = await self.repairs.holders(digest, HOLDERS)
        pushed = sorted({str(holder.image) for holder in holders if not holder.is_remote})
        if pushed:
            again = ", ".join(pushed)
            self._tell(State.LEFT, "lost", digest, f"{flaw}: push it again: {again}")
        elif holders:
            images = ", ".join(sorted({str(holder.image) for holder in holders}))
            if self.repair:
                await self.repairs.drop_lost(digest)
            text = f"{flaw}: it is fetched again when it is wanted: {images}"
            self._tell(self._mended(), "lost", digest, f"{text}{self._how()}")
        else:
            self._tell(State.NOTE, "lost", digest, f"{flaw}: no image has it; it is collected")

    def _mended(self) -> State:
        return State.MENDED if self.repair else State.LEFT

    def _how(self) -> str:
        return "" if self.repair else "; fsck --repair sees to it"

    # -- files without rows

    async def _strays(self, shelf: int) -> None:
        for batch in batches(await self.blobs.published(shelf, math.inf)):
            sizes = dict(batch)
            for digest in await self.garbage.unlisted(list(sizes)):
                if not await self.blobs.is_staged(digest):
                    await self._stray(digest, sizes[digest])

    async def _stray(self, digest: Digest, size: int) -> None:
        text = f"a file of {size} bytes that the catalog does not list"
        if self.repair:
            try:
                if await self.catalog.forget_blob(digest, lambda: self.blobs.remove(digest)):
                    self._tell(State.MENDED, "stray", digest, f"{text}: removed")
                return
            except OSError as error:
                text += f", and that can't be removed now: {error}"
        self._tell(State.NOTE, "stray", digest, f"{text}: it goes with garbage collection")

    # -- manifests

    async def _manifests(self) -> None:
        async for page in pages(self.repairs.listed_manifests, 0, lambda each: each.position):
            self.manifests_checked += len(page)
            for listed in page:
                if not listed.is_lost and listed.record.digest not in self._lost:
                    await self._manifest(listed)

    async def _manifest(self, listed: ListedManifest) -> None:
        name = f"{listed.image}@{listed.record.digest}"
        try:
            content = await self.blobs.read(listed.record.digest)
        except OSError as error:
            return self._tell(State.LEFT, "file", name, f"can't be read: {error}")
        if content is None:  # deleted meanwhile
            return None
        try:
            manifest = await self._parse(content, listed)
        except ManifestInvalid as error:
            text = f"its bytes are no manifest ({error.message}): delete it"
            return self._tell(State.LEFT, "manifest", name, text)
        differing = _differing(listed, manifest)
        if differing:
            if self.repair:
                await self.repairs.rebuild_manifest(listed.image, manifest)
            text = f"its rows do not agree with its bytes: {', '.join(differing)}{self._how()}"
            self._tell(self._mended(), "manifest", name, text)
            # The wrong rows said what the manifest lacks: read them again.
            again = await self.repairs.listed_manifests(listed.position - 1, 1)
            if not self.repair or not again or again[0].position != listed.position:
                return None
            listed = again[0]
        if not listed.is_remote:
            self._incomplete(listed, manifest, name)
        return None

    async def _parse(self, content: bytes, listed: ListedManifest) -> Manifest:
        record = listed.record  # its media type may be wrong: the document's own counts more
        read = partial(read_manifest, content, record.media_type, record.digest, bounds=KEPT)
        return await parsed(self.run_in_thread, content, read)

    def _incomplete(self, listed: ListedManifest, manifest: Manifest, name: str) -> None:
        settings = self.repositories.get(listed.image.repository)
        if not isinstance(settings, LocalSettings):
            settings = LocalSettings()  # a repository that is configured no more
        if may_lack(settings.sparse, manifest.media_type):
            return
        optional = {d.digest for d in manifest.blobs if d.optional} | set(manifest.others)
        # A lost blob was reported already, with all images that have it.
        if lacking := sorted(str(d) for d in listed.absent - optional - self._lost):
            state = State.NOTE if settings.delete_held else State.LEFT
            text = f"the image lacks what it refers to: push it again, with {', '.join(lacking)}"
            self._tell(state, "incomplete", name, text)

    # -- rows and rows, uploads, fills

    async def _slips(self) -> None:
        slips = await self.repairs.slips(_SLIPS)
        if self.repair and any(slip.repairable for slip in slips):
            await self.repairs.mend()
        for slip in slips:
            state, how = (self._mended(), self._how()) if slip.repairable else (State.LEFT, "")
            self._tell(state, slip.kind, slip.name, f"{slip.text}{how}")

    async def _uploads(self) -> None:
        known = set()
        async for records in pages(self.catalog.uploads, "", lambda record: record.id):
            for record in records:
                known.add(record.id)
                if record.started < self.now() - NEWBORN:
                    await self._upload(record.id)
        for upload_id in await self.uploads.idle(NEWBORN):
            if session_key(upload_id) is not None or upload_id in known:
                continue
            if await self.catalog.upload(upload_id) is None:
                if self.repair:
                    await self.uploads.discard(upload_id)
                self._swept("upload", upload_id, "bytes of a session that there is not")

    async def _upload(self, upload_id: str) -> None:
        try:
            await self.uploads.offset(upload_id)
        except UploadMissing:
            if self.repair:
                await self.catalog.end_upload(upload_id)
            self._swept("upload", upload_id, "a session without bytes")

    def _swept(self, kind: str, name: str, text: str) -> None:
        state, how = (State.MENDED, "removed") if self.repair else (State.NOTE, "it is swept")
        self._tell(state, kind, name, f"{text}: {how}")


def _differing(listed: ListedManifest, manifest: Manifest) -> Sequence[str]:
    record = listed.record
    entries = {
        (digest, False) for digest in (*(d.digest for d in manifest.blobs), *manifest.others)
    }
    entries |= {(d.digest, True) for d in manifest.children}
    agreeing = {
        "media type": record.media_type == manifest.media_type,
        "artifact type": record.artifact_type == manifest.artifact_type,
        "subject": record.subject == manifest.subject,
        "annotations": dict(record.annotations) == dict(manifest.annotations),
        "size": record.size == len(manifest.content),
        "what it holds": listed.entries == entries,
    }
    return [name for name, agrees in agreeing.items() if not agrees]
