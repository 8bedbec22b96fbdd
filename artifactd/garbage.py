"""Commands that collect garbage, and bring back what was deleted."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from attrs import define, field

from artifactd.catalog.catalog import SQLiteCatalog
from artifactd.catalog.garbage import Collected, Garbage, Restored, SQLiteGarbageCatalog
from artifactd.catalog.migrations import copy_catalog
from artifactd.daemon.assemble import Assembly, collection_rules
from artifactd.maintenance import used, with_parts
from artifactd.oci.names import RepositoryName
from artifactd.options import SettingsOptions
from artifactd.registry.metrics import Counters
from artifactd.registry.upkeep.collector import Collector, NotNow, Sweep
from artifactd.registry.warming import ImageReference
from artifactd.settings.settings import Settings

_WHY = {
    Garbage.UNTAGGED: "neither a tag nor an index nor a subject keeps it",
    Garbage.LEASE: "no manifest of the image holds it, and its lease is over",
    Garbage.DELETED: "it was deleted, and the time to bring it back is over",
    Garbage.BYTES: "nothing needs these bytes any more",
    Garbage.STRAY: "the catalog does not list this file",
}


@define
class _Listing:
    """Prints what goes, and adds it up."""

    _counts: Counter[Garbage] = field(factory=Counter)
    _bytes: int = 0

    def add(self, collected: Collected) -> None:
        self._counts[collected.why] += 1
        if collected.why in (Garbage.BYTES, Garbage.STRAY):
            self._bytes += collected.size
        since = datetime.fromtimestamp(collected.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = collected.name
        if collected.image is not None:
            name = f"{collected.image}{'@' if ':' in name else ':'}{name}"
        print(
            f"{collected.why}: {name}, {collected.size} bytes, since {since}: {_WHY[collected.why]}"
        )

    def __str__(self) -> str:
        counts = ", ".join(f"{self._counts[why]} {why}" for why in Garbage)
        return f"{counts}; {self._bytes} bytes of the store"


class _Copy:
    """The :class:`artifactd.store.interfaces.CollectionLock` of what nobody else knows."""

    def claim(self) -> bool:
        return True

    def release(self) -> None:
        pass

    @contextmanager
    def step(self) -> Iterator[bool]:
        yield True


class CollectGarbage(SettingsOptions):
    """``artifactd gc``: collect garbage now."""

    longdesc = (
        "Take away what is of no use any more, beside a running daemon or without one, and list it:"
        " what the daemon does by itself every gc_interval.  A dry run works on a copy of the"
        " catalog, made where temporary files go (TMPDIR)."
    )
    optFlags: ClassVar = [["dry-run", "n", "Only list what would go, and why."]]

    def run(self) -> int:
        settings = used(self.load())
        if self["dry-run"]:
            return with_parts(settings, lambda parts: _try(parts, settings))
        return with_parts(settings, lambda parts: _collect(parts, settings))


async def _collect(parts: Assembly, settings: Settings) -> int:
    if _is_read_only(parts):
        return 1
    listing = _Listing()
    parts.collector.report = listing.add
    swept = await Sweep(
        parts.catalog, parts.blobs, parts.uploads, parts.fills.store, settings.upload_timeout
    ).run()
    try:
        await parts.collector.run()
    except NotNow as error:
        print(f"artifactd: {error}: try again later", file=sys.stderr)
        return 1
    finally:
        print(f"collected: {listing}; {swept} uploads, fills and staged files")
    return 0


async def _try(parts: Assembly, settings: Settings) -> int:
    listing = _Listing()
    for upload in await parts.uploads.idle(settings.upload_timeout):
        print(f"upload: {upload}: nobody has written to it for {settings.upload_timeout}")
    with TemporaryDirectory(prefix="artifactd-gc-") as folder:
        copy = Path(folder, "catalog.sqlite3")
        await parts.run(copy_catalog, parts.folder.catalog, copy)
        catalog = SQLiteCatalog(copy, parts.reactor, lease=settings.lease)
        collector = Collector(
            catalog,
            SQLiteGarbageCatalog(catalog.database),
            parts.blobs,
            _Copy(),
            collection_rules(settings),
            parts.run,
            parts.reactor,
            Counters().collection,
            removes=False,
            report=listing.add,
        )
        try:
            await collector.run()
        finally:
            await catalog.close()
    print(f"would be collected: {listing}")
    return 0


class Undelete(SettingsOptions):
    """``artifactd undelete``: bring back what was deleted."""

    longdesc = (
        "Bring back IMAGE:TAG, IMAGE@DIGEST (a manifest or a blob), or all that was deleted from"
        " IMAGE, as it was, within the grace period after it was deleted."
    )
    synopsis = "[options] IMAGE"

    # Options calls this with the arguments left over.
    def parseArgs(self, image: str) -> None:  # type: ignore[override]
        self.image = image

    def run(self) -> int:
        return with_parts(used(self.load()), self._undelete)

    async def _undelete(self, parts: Assembly) -> int:
        if _is_read_only(parts):
            return 1
        name, reference = self.image, None
        if "@" in name or ":" in name:
            asked = ImageReference.parse(name)
            name, reference = asked.name, asked.reference
        image = parts.registry.names.resolve(RepositoryName.parse(name))
        restored = await parts.garbage.undelete(image, reference, "undelete")
        print(f"brought back of {image}: {_told(restored)}")
        for tag in restored.occupied:
            print(
                f"artifactd: the tag {tag} points at something else by now and stays so",
                file=sys.stderr,
            )
        return 0


def _is_read_only(parts: Assembly) -> bool:
    if parts.read_only.on():
        print("artifactd: read-only mode is on: end it first", file=sys.stderr)
    return parts.read_only.on()


def _told(restored: Restored) -> str:
    return (
        f"{len(restored.manifests)} manifests, {len(restored.tags)} tags"
        f" ({', '.join(restored.tags) or 'none'}), {len(restored.blobs)} blobs"
    )
