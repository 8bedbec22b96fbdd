"""The commands that work on the data folder, beside a running daemon or without one."""

from __future__ import annotations

import re
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

from attrs import asdict, define, evolve, field
from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater, react
from twisted.python import usage

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.garbage import Collected, Garbage, GarbageCatalog
from artifactd.catalog.migrations import copy_catalog
from artifactd.catalog.repair import RepairCatalog
from artifactd.catalog.retention import RetentionCatalog
from artifactd.commands.options import ERRORS, SettingsOptions
from artifactd.commands.table import JSON, Table, print_json, progress, utc
from artifactd.daemon.assemble import Assembly, assemble
from artifactd.kit.start import StartError
from artifactd.oci.errors import NameUnknown, RegistryError
from artifactd.oci.names import Digest, ImageName, RepositoryName, Tag
from artifactd.registry.metrics import Counters
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.seeing import DeletedShown, Page
from artifactd.registry.upkeep.collector import Busy, Collector, NotNow
from artifactd.registry.upkeep.fsck import Check, Report, State
from artifactd.registry.upkeep.sweep import Remains, Sweep
from artifactd.registry.warming import ImageReference, Warming
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import Settings
from artifactd.settings.values import Duration
from artifactd.store.folder import MARKER

_PAGE = 500  # entries of a list that are read at a time

# How long a command waits for another process that collects, and how often it looks, in seconds.
_WAIT, _LOOK_EVERY = 60.0, 0.1

_T = TypeVar("_T")


class DataCommand(SettingsOptions):
    """
    A command that works on the data folder.

    :cvar makes_folder: whether it makes a data folder where there is none.
    """

    makes_folder = False

    def __init__(self) -> None:
        super().__init__()
        self._working: Deferred[int] | None = None

    @abstractmethod
    async def work(self, parts: Assembly, settings: Settings) -> int:
        """
        Do the work of the command.  Returns the exit status.

        :raises RegistryError, UsageError, OSError: if it can't be done.
        """

    async def carry_out(self, reactor: Any, settings: Settings) -> int:
        """
        Open the data folder, do the work and close everything.  Returns the exit status.

        :raises UsageError, StartError, OSError: if the data folder can't be used, or the work can't
            be done.
        """
        if not self.makes_folder and not (settings.data / MARKER).exists():
            raise StartError(f"{settings.data}: there is no data folder: see data in the settings")
        with ExitStack() as opened:
            parts = assemble(settings, reactor, opened)
            opened.pop_all()
        parts.threads.start()
        try:
            self._working = Deferred.fromCoroutine(self.work(parts, settings))
            return await self._working
        except RegistryError as error:
            print(f"artifactd: {_explained(error)}", file=sys.stderr)
        except NotNow as error:
            print(f"artifactd: {error}", file=sys.stderr)
        except CancelledError:
            print("artifactd: interrupted", file=sys.stderr)
        finally:
            await parts.close()
        return 1

    def run(self) -> int:
        settings = self.load()
        status = 1
        problem: Exception | None = None
        ended: Deferred[None] = Deferred()

        def interrupt() -> Deferred[None]:
            """On a signal: cancel the work, and let the reactor wait until all is closed."""
            if self._working is not None:
                self._working.cancel()
            return ended

        async def main(reactor: Any) -> None:
            nonlocal status, problem
            reactor.addSystemEventTrigger("before", "shutdown", interrupt)
            try:
                status = await self.carry_out(reactor, settings)
            except ERRORS as error:
                problem = error
            finally:
                ended.callback(None)

        try:
            react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
        except SystemExit as end:
            status = status or int(bool(end.code))
        if problem is not None:
            raise problem
        return status


class ImageCommand(DataCommand):
    """A command on the data of one image."""

    synopsis = "[options] IMAGE"

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, image: str) -> None:  # type: ignore[override]
        self.image = image

    def reference(self) -> tuple[str, Tag | Digest | None]:
        """The name that the command was given, and the tag or digest behind it."""
        if "@" not in self.image and ":" not in self.image:
            return self.image, None
        asked = ImageReference.parse(self.image)
        return asked.name, asked.reference


def _explained(error: RegistryError) -> str:
    reason = error.detail.get("reason") if isinstance(error.detail, dict) else None
    return f"{error.message}: {reason}" if reason else error.message


def is_read_only(parts: Assembly) -> bool:
    """Whether read-only mode is on.  Prints to standard error that it is."""
    if parts.read_only.on():
        print("artifactd: read-only mode is on: end it first", file=sys.stderr)
    return parts.read_only.on()


class Purge(ImageCommand):
    """``artifactd purge``: drop cached images."""

    longdesc = (
        "Drop IMAGE (name, name:tag or name@digest, such as docker.io/library/alpine:3) from the"
        " cache, so that the upstream is asked for it anew."
    )

    async def work(self, parts: Assembly, settings: Settings) -> int:
        name, reference = self.reference()
        image = await _remote_image(parts, name)
        purged = await parts.purge(image, reference)
        if purged is None:
            print(f"artifactd: {self.image}: not in the cache", file=sys.stderr)
            return 1
        gone, begun = purged
        told = f"{gone} blobs and manifests that nothing else needs"
        if begun:
            told += f", and {begun} blobs that had come in part"
        print(f"purged {self.image}: {told}")
        return 0


def resolved(parts: Assembly, name: str) -> ImageName:
    """The image that a client means by ``name``.  :raises NameInvalid: if it is no name."""
    return parts.registry.names.resolve(RepositoryName.parse(name))


async def pages(read: Callable[[str | None, int], Awaitable[Page[_T]]]) -> AsyncIterator[Page[_T]]:
    """
    The pages of a list.

    :param read: reads a page; is given the place that it begins behind (``None``: the beginning),
        and how many entries it has at most.
    """
    after = None
    while True:
        page = await read(after, _PAGE)
        yield page
        after = page.after
        if after is None:
            return


async def print_list(
    table: Table,
    read: Callable[[str | None, int], Awaitable[Page[_T]]],
    cells: Callable[[_T], Sequence[str]],
) -> int:
    """
    Print a list a page at a time.  Returns the exit status: 1 if the list is empty.

    :param read: see :func:`pages`.
    :param cells: returns an entry's row of ``table``.
    """
    status = 1
    async for page in pages(read):
        status = 0 if page.entries else status
        table.add([(each, cells(each)) for each in page.entries])
    return status


def is_remote(parts: Assembly, image: ImageName) -> bool:
    """Whether ``image`` comes from an upstream."""
    return isinstance(parts.registry.repositories[image.repository], RemoteRepository)


async def _remote_image(parts: Assembly, name: str) -> ImageName:
    """:raises NameUnknown: if ``name`` is not that of an upstream's image."""
    parsed = RepositoryName.parse(name)
    image = parts.registry.names.prefixed(parsed)
    if image is None:
        origin = await parts.remote.origin(name)
        if origin is not None:
            image = parts.registry.names.within(origin, name)
    if image is None or not is_remote(parts, image):
        raise NameUnknown(f"{name}: not an image of an upstream: begin with its repository's name")
    return image


class Release(ImageCommand):
    """``artifactd release``: let an emptied local name be pulled from an upstream again."""

    longdesc = (
        "Release the local image IMAGE, whose manifests are all deleted: from then on its name may"
        " be answered by an upstream again."
    )

    async def work(self, parts: Assembly, settings: Settings) -> int:
        await parts.remote.release_image(resolved(parts, self.image))
        print(f"released {self.image}")
        return 0


class Warm(DataCommand):
    """``artifactd warm``: fill the cache before clients pull."""

    longdesc = (
        "Copy images, with all that belongs to them, into the cache.  What is there already is not"
        " fetched again; broken off, it goes on where it was."
    )
    synopsis = "[options] [IMAGE...]"
    optParameters: ClassVar = [
        ["file", "f", None, 'A file that lists images, one a line; "-" is standard input.'],
    ]

    makes_folder = True

    def __init__(self) -> None:
        super().__init__()
        self.platforms: list[str] = []
        self.images: list[str] = []

    def opt_platform(self, platform: str) -> None:
        """Only this platform, such as linux/amd64; may be given more than once."""
        if not re.fullmatch(r"[^/]+/[^/]+(/[^/]+)?", platform):
            raise usage.UsageError(
                f"--platform: expected one such as linux/amd64 or linux/arm/v7, got {platform}"
            )
        self.platforms.append(platform)

    opt_p = opt_platform

    # Options calls this with the arguments left over.
    def parseArgs(self, *images: str) -> None:
        self.images = list(images)

    def _listed(self) -> list[str]:
        if self["file"] is None:
            return []
        try:
            with (
                sys.stdin if self["file"] == "-" else open(self["file"], encoding="utf-8") as lines
            ):
                texts = [line.partition("#")[0].strip() for line in lines]
        except UnicodeError:
            raise StartError(f"--file: {self['file']}: not UTF-8") from None
        return [text for text in texts if text]

    async def carry_out(self, reactor: Any, settings: Settings) -> int:
        self.images += self._listed()
        if not self.images:
            raise StartError("warm: say which images, or --file with a list of them")
        # It waits for a slow upstream: a stale tag would bring what is here already.
        remotes = {
            name: replace(each, stale_after=Duration(0))
            for name, each in settings.repository.items()
            if isinstance(each, RemoteSettings)
        }
        settings = replace(settings, repository={**settings.repository, **remotes})
        return await super().carry_out(reactor, settings)

    async def work(self, parts: Assembly, settings: Settings) -> int:
        def bar(
            digest: Digest, size: int | None
        ) -> AbstractContextManager[Callable[[float], object]]:
            return progress(digest.encoded[:12], size)

        warming = Warming(parts.registry.for_operator(), parts.remotes.fills, self.platforms, bar)
        failed = 0
        for image in self.images:
            try:
                blobs = await warming.warm(ImageReference.parse(image))
                print(f"{image}: {blobs} blobs are here")
            except (RegistryError, OSError) as error:
                told = _explained(error) if isinstance(error, RegistryError) else error
                print(f"artifactd: {image}: {told}", file=sys.stderr)
                failed += 1
        return 1 if failed else 0


_WHY = {
    Garbage.RETENTION: "no rule of the retention keeps it",
    Garbage.UNTAGGED: "neither a tag nor an index nor a subject keeps it",
    Garbage.ORPHANED: "only an index kept it, which was deleted, and its lease is over",
    Garbage.LEASE: "no manifest of the image holds it, and its lease is over",
    Garbage.DELETED: "it was deleted, and the time to bring it back is over",
    Garbage.BYTES: "nothing needs these bytes any more",
    Garbage.STRAY: "the catalog does not list this file",
}


_SWEPT = {
    Remains.UPLOAD: "nobody has written to it for {}",
    Remains.BLOB: "its row is gone",
    Remains.STAGED: "the process that wrote it has died",
    Remains.FILL: "nobody has fetched more of it for {}",
}


@define
class _GarbageReport:
    """Prints each thing that is swept or collected, and counts them."""

    _settings: Settings
    _as_json: bool = False
    _counts: Counter[Garbage] = field(factory=Counter)
    _bytes: int = 0
    _swept: Counter[str] = field(factory=Counter)

    def swept(self, kind: Remains, name: str) -> None:
        self._swept[name] += 1
        if self._as_json:
            print_json({"why": kind, "name": name})
            return
        print(f"{kind}: {name}: {_SWEPT[kind].format(self._settings.upload_timeout)}")

    def collected(self, collected: Collected) -> None:
        if collected.why is Garbage.STRAY and collected.name in self._swept:
            return  # in a dry run, its file is still there
        self._counts[collected.why] += 1
        if collected.why in (Garbage.BYTES, Garbage.STRAY):
            self._bytes += collected.size
        if self._as_json:
            image = None if collected.image is None else str(collected.image)
            print_json({**asdict(collected, recurse=False), "image": image})
            return
        since = utc(collected.since)
        name = collected.name
        if collected.image is not None:
            name = f"{collected.image}{'@' if ':' in name else ':'}{name}"
        print(
            f"{collected.why}: {name}, {collected.size} bytes, since {since}: {_WHY[collected.why]}"
        )

    def end(self, told: str) -> None:
        """Print the counts, behind ``told``."""
        if self._as_json:
            counts = {str(why): self._counts[why] for why in Garbage}
            print_json({**counts, "bytes_of_the_store": self._bytes, "swept": self._swept.total()})
            return
        counts_told = ", ".join(f"{self._counts[why]} {why}" for why in Garbage)
        print(
            f"{told}: {counts_told}; {self._bytes} bytes of the store;"
            f" {self._swept.total()} uploads, fills and staged files"
        )


class _NoLock:
    """The :class:`CollectionLock` of a copy that no other process knows."""

    def claim(self) -> bool:
        return True

    def release(self) -> None:
        pass

    @contextmanager
    def step(self) -> Iterator[bool]:
        yield True


class CollectGarbage(DataCommand):
    """``artifactd gc``: collect garbage now."""

    longdesc = (
        "Take away what is of no use any more, beside a running daemon or without one, and list it:"
        " what the daemon does by itself every gc_interval.  With --now, what was deleted goes"
        " before its time; of IMAGE alone, if that is given.  A dry run works on a copy of the"
        " catalog, made where temporary files go (TMPDIR)."
    )
    synopsis = "[options] [IMAGE]"
    optFlags: ClassVar = [
        ["dry-run", "n", "Only list what would go, and why."],
        ["now", None, "Free what was deleted at once: it can't be brought back any more."],
        JSON,
    ]

    # Options calls this with the arguments left over.
    def parseArgs(self, image: str | None = None) -> None:
        if image is not None and not self["now"]:
            raise usage.UsageError(f"gc: say --now with an image: {image}")
        self.image = image

    async def work(self, parts: Assembly, settings: Settings) -> int:
        of: Sequence[ImageName | None] = [None]
        if self.image is not None:
            image = resolved(parts, self.image)
            if is_remote(parts, image):
                raise NameUnknown(f"{image}: artifactd purge frees an image of an upstream")
            of = [image]
        if not self["dry-run"] and is_read_only(parts):
            return 1
        work = list_garbage if self["dry-run"] else collect
        return await work(
            parts, settings, of, at_once=bool(self["now"]), as_json=bool(self["json"])
        )


async def collect(
    parts: Assembly,
    settings: Settings,
    of: Sequence[ImageName | None],
    *,
    at_once: bool,
    as_json: bool = False,
) -> int:
    """
    Collect garbage and print what goes.  Returns the exit status.

    :param of: the images of which to collect what was deleted; ``None``: sweep, and collect all.
    :param at_once: free what was deleted before its time.
    :param as_json: print JSON.
    """
    listing = _GarbageReport(settings, as_json)
    parts.sweep.report = listing.swept
    parts.collector.report = listing.collected
    parts.collector.at_once = at_once
    try:
        await _sweep_and_collect(parts.sweep, parts.collector, of)
    finally:
        listing.end("collected")
    return 0


async def _sweep_and_collect(
    sweep: Sweep, collector: Collector, of: Sequence[ImageName | None]
) -> None:
    for only in of:
        if only is None:
            await sweep.run()
        collector.only = only
        await once_free(collector.run, collector.clock)


async def once_free(work: Callable[[], Awaitable[None]], clock: IReactorTime) -> None:
    """
    Do ``work`` of a collector; while another process collects, say so and wait up to a minute.

    :raises NotNow: if it can't be done now.
    """
    until, is_told = clock.seconds() + _WAIT, False
    while True:
        try:
            return await work()
        except Busy:
            if clock.seconds() >= until:
                raise
            if not is_told:
                print(
                    "artifactd: another process collects garbage: waiting for up to a minute",
                    file=sys.stderr,
                )
                is_told = True
        await deferLater(clock, _LOOK_EVERY)


async def list_garbage(
    parts: Assembly,
    settings: Settings,
    of: Sequence[ImageName | None],
    *,
    at_once: bool,
    as_json: bool = False,
    before: Callable[[Catalog], Awaitable[object]] | None = None,
) -> int:
    """
    Do what :func:`collect` would on a copy of the catalog, and leave the files alone.  Returns the
    exit status.

    :param before: is called with the copy at first; may change it.
    """
    listing = _GarbageReport(settings, as_json)
    with TemporaryDirectory(prefix="artifactd-gc-") as folder:
        copy = Path(folder, "catalog.sqlite3")
        await parts.run(copy_catalog, parts.folder.catalog, copy)
        now = parts.catalog.database.now
        catalog = Catalog(Database(copy, parts.reactor, now=now), lease=settings.lease)
        sweep = evolve(parts.sweep, catalog=catalog, removes=False, report=listing.swept)
        collector = evolve(
            parts.collector,
            catalog=catalog,
            garbage=GarbageCatalog(catalog.database),
            repairs=RepairCatalog(catalog.database),
            retention=evolve(parts.collector.retention, catalog=RetentionCatalog(catalog.database)),
            lock=_NoLock(),
            counters=Counters().collection,
            removes=False,
            report=listing.collected,
            at_once=at_once,
        )
        try:
            if before is not None:
                await before(catalog)
            await _sweep_and_collect(sweep, collector, of)
        finally:
            await catalog.database.close()
    listing.end("would be collected")
    return 0


class Undelete(ImageCommand):
    """``artifactd undelete``: bring deleted tags, manifests and blobs back."""

    longdesc = (
        "Bring back IMAGE:TAG, IMAGE@DIGEST (a manifest or a blob), or all that was deleted from"
        " IMAGE, as it was, within the grace period after it was deleted."
    )
    synopsis = "[options] IMAGE, or --list [IMAGE]"
    optFlags: ClassVar = [
        ["list", "l", "Only list what was deleted, from IMAGE or from all, and by whom."],
        JSON,
    ]

    # Options calls this with the arguments left over.
    def parseArgs(self, image: str = "") -> None:
        if not image and not self["list"]:
            raise usage.UsageError(f"undelete: say which image; {self._usage}")
        self.image = image

    async def work(self, parts: Assembly, settings: Settings) -> int:
        name, reference = self.reference()
        if self["list"]:
            wanted = resolved(parts, name) if name else None
            columns = ("DELETED", "IMAGE", "KIND", "TAG", "DIGEST", "BY", "UNTIL")
            table = Table(*columns, as_json=self["json"])
            return await print_list(table, partial(parts.seeing.deleted, wanted), _deleted_cells)
        image = resolved(parts, name)
        if is_read_only(parts):
            return 1
        restored = await parts.garbage.undelete(image, reference, "undelete")
        if self["json"]:
            digests = {
                "manifests": list(map(str, restored.manifests)),
                "blobs": list(map(str, restored.blobs)),
            }
            tags = {"tags": restored.tags, "occupied": restored.occupied}
            print_json({"image": str(image), **digests, **tags})
            return 0
        print(
            f"brought back of {image}: {len(restored.manifests)} manifests,"
            f" {len(restored.tags)} tags ({', '.join(restored.tags) or 'none'}),"
            f" {len(restored.blobs)} blobs"
        )
        for tag in restored.occupied:
            print(
                f"artifactd: the tag {tag} points at another manifest now and is left as it is",
                file=sys.stderr,
            )
        return 0


def _deleted_cells(deleted: DeletedShown) -> list[str]:
    tag = deleted.name if deleted.kind == "tag" else "-"
    what = [deleted.image, deleted.kind, tag, deleted.digest]
    return [utc(deleted.at), *what, deleted.actor, utc(deleted.until)]


@define
class _Reports:
    """Prints fsck's reports and counts them."""

    counts: Counter[State] = field(factory=Counter)

    def add(self, report: Report) -> None:
        self.counts[report.state] += 1
        print(f"{report.state}: {report.kind}: {report.name}: {report.text}", flush=True)


class CheckData(DataCommand):
    """``artifactd fsck``: check the catalog against the store, both ways."""

    longdesc = (
        "Check that all that the catalog lists is in the store, and the other way round, beside a"
        " running daemon or without one.  A line for each problem says what to do; the exit status"
        " is 1 if any is left."
    )
    optFlags: ClassVar = [
        ["repair", "r", "Mend what can be proven; nothing that was pushed is dropped."],
        ["no-hash", None, "Don't read all bytes: see that files are there, in their size."],
    ]

    async def work(self, parts: Assembly, settings: Settings) -> int:
        parts.damage.heals = False  # the daemon or a later pull does that
        listing = _Reports()
        check = Check(
            parts.catalog,
            parts.repairs,
            parts.garbage,
            parts.blobs,
            parts.uploads,
            parts.damage,
            settings.repository,
            parts.run,
            listing.add,
            repair=bool(self["repair"]),
            hashes=not self["no-hash"],
        )
        if self["repair"]:
            await parts.sweep.run()
        with progress("blobs", await parts.repairs.listed_bytes()) as check.examined:
            await check.run()
        counts = listing.counts
        print(
            f"checked {check.blobs_checked} blobs and {check.manifests_checked} manifests:"
            f" {counts[State.LEFT]} problems left, {counts[State.MENDED]} repaired,"
            f" {counts[State.NOTE]} notes"
        )
        return 1 if counts[State.LEFT] else 0
