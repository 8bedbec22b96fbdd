"""The commands that show what is in the registry, and those that change tags by hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from heapq import nlargest
from typing import ClassVar

from attrs import frozen
from twisted.python import usage

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.overview import ImageSeen
from artifactd.catalog.records import MOVABLE, ImmutableTags
from artifactd.commands.offline import (
    DataCommand,
    ImageCommand,
    collect,
    is_read_only,
    is_remote,
    list_garbage,
    pages,
    print_list,
    resolved,
)
from artifactd.commands.table import JSON, Color, Table, print_json, shown_time
from artifactd.daemon.assemble import Assembly
from artifactd.kit.printable import printable
from artifactd.oci.errors import ManifestUnknown, TagImmutable
from artifactd.oci.names import Digest, ImageName, Reference, Tag
from artifactd.oci.sizes import shown_bytes
from artifactd.registry.seeing import (
    EntryShown,
    ManifestShown,
    MovementShown,
    Seeing,
    TagShown,
    instant,
)
from artifactd.settings.settings import LocalSettings, Settings

_RM = "rm"  # who did it, in the journal
_IMMUTABLE = "immutable"  # the flag of commands that also change what clients may not
_NESTED = 10_000  # manifests of an index that are shown


class List(DataCommand):
    """``artifactd ls``: the images that are here."""

    longdesc = (
        "List the images whose names match PATTERN (default: all), such as 'local/team/*' or"
        " '*alpine*', with their tags and sizes."
    )
    synopsis = "[options] [PATTERN]"
    optFlags: ClassVar = [JSON]

    # Options calls this with the arguments left over.
    def parseArgs(self, pattern: str = "*") -> None:
        self.pattern = pattern

    async def work(self, parts: Assembly, settings: Settings) -> int:
        table = Table("IMAGE", "TAGS", "SIZE", "OWN", "PUSHED", "PULLED", as_json=self["json"])
        reading = partial(parts.seeing.images, pattern=self.pattern)
        return await print_list(table, reading, _image_cells)


def _image_cells(seen: ImageSeen) -> list[str]:
    sizes = [shown_bytes(seen.size), shown_bytes(seen.own or 0)]
    return [seen.image, str(seen.tags), *sizes, shown_time(seen.pushed), shown_time(seen.pulled)]


class Tags(ImageCommand):
    """``artifactd tags``: the tags of an image."""

    longdesc = "List the tags of IMAGE: digest, kind, platforms, size, when pushed and by whom."
    optFlags: ClassVar = [JSON]

    async def work(self, parts: Assembly, settings: Settings) -> int:
        image = resolved(parts, self.image)
        table = Table(
            *("TAG", "DIGEST", "KIND", "PLATFORMS", "SIZE", "PUSHED", "BY", "PULLED"),
            as_json=self["json"],
        )
        await print_list(table, partial(parts.seeing.tags, image), _tag_cells)
        return 0


def _tag_cells(seen: TagShown) -> list[str]:
    told = ",".join(seen.platforms) or "-"
    when = [shown_time(seen.moved), seen.actor, shown_time(seen.pulled)]
    return [seen.tag, seen.digest, seen.kind, told, shown_bytes(seen.size), *when]


class History(ImageCommand):
    """``artifactd history``: every movement of tags."""

    longdesc = "List each movement of IMAGE's tags, or of IMAGE:TAG: when, who, from and to."
    optFlags: ClassVar = [JSON]

    async def work(self, parts: Assembly, settings: Settings) -> int:
        name, reference = self.reference()
        if isinstance(reference, Digest):
            raise usage.UsageError("history: expected IMAGE or IMAGE:TAG, got a digest")
        image = resolved(parts, name)
        table = Table("WHEN", "TAG", "BY", "FROM", "TO", as_json=self["json"])
        reading = partial(parts.seeing.history, image, reference, newest_first=False)
        return await print_list(table, reading, _movement_cells)


def _movement_cells(moved: MovementShown) -> list[str]:
    before, after = moved.before or "-", moved.after or "-"
    return [shown_time(moved.at), moved.tag, moved.actor, before, after]


class Usage(DataCommand):
    """``artifactd du``: what each repository holds, and which images take most."""

    longdesc = (
        "List the repositories: images, tags, bytes, and how much of the quota is used.  With"
        " PATTERN, such as 'local/*', list the images that match instead, first the one with most"
        " bytes that no other image has."
    )
    synopsis = "[options] [PATTERN]"
    optFlags: ClassVar = [JSON]
    optParameters: ClassVar = [["most", "m", "20", "How many images to list."]]

    # Options calls this with the arguments left over.
    def parseArgs(self, pattern: str | None = None) -> None:
        self.pattern = pattern
        if not re.fullmatch("[1-9][0-9]{0,5}", self["most"]):
            raise usage.UsageError(f"--most: expected a number from 1 on, got {self['most']}")

    async def work(self, parts: Assembly, settings: Settings) -> int:
        if self.pattern is None:
            return await self._repositories(parts.seeing)
        largest: list[ImageSeen] = []
        async for page in pages(partial(parts.seeing.images, pattern=self.pattern)):
            seen = [*largest, *page.entries]
            largest = nlargest(int(self["most"]), seen, lambda each: each.own or 0)
        table = Table("IMAGE", "TAGS", "SIZE", "OWN", as_json=self["json"])
        table.add([(each, _image_cells(each)[:4]) for each in largest])
        return 0 if largest else 1

    async def _repositories(self, seeing: Seeing) -> int:
        rows: list[tuple[object, Sequence[str]]] = []
        for each in await seeing.usage():
            told, quota = ["-", "-"], each.quota
            if quota:
                told = [shown_bytes(quota), f"{100 * each.size / quota:.0f} %"]
            counts = [str(each.images), str(each.tags), shown_bytes(each.size)]
            rows.append((each, [each.repository, *counts, *told]))
        columns = ("REPOSITORY", "IMAGES", "TAGS", "SIZE", "QUOTA", "USED")
        Table(*columns, as_json=self["json"]).add(rows)
        return 0


class Show(ImageCommand):
    """``artifactd show``: a manifest as a tree."""

    longdesc = (
        "Show the manifest IMAGE:TAG or IMAGE@DIGEST as a tree: what it holds, its referrers, and"
        " why it is kept."
    )
    optFlags: ClassVar = [JSON]

    async def work(self, parts: Assembly, settings: Settings) -> int:
        name, reference = self.reference()
        image = resolved(parts, name)
        shown = await parts.seeing.manifest(image, reference or Tag.parse("latest"), _NESTED)
        if self["json"]:
            print_json(shown)
            return 0
        head, *lines = [*_why(shown), *_tree(shown, "  ")]
        print(Color.BOLD.paint(printable(head)))
        for line in lines:
            print(printable(line))
        return 0


def _tree(shown: ManifestShown, indent: str) -> Iterator[str]:
    """A line for each thing that a manifest and its children hold, and for its referrers."""
    for each in shown.entries:
        yield f"{indent}{_entry_line(each)}"
        if each.manifest is not None:
            yield from _tree(each.manifest, f"{indent}  ")
    for referrer in shown.referrers:
        yield f"{indent}referrer {referrer.digest}  {referrer.kind}"
    if shown.is_cut:
        yield f"{indent}and more tags, indexes, referrers or entries than are listed"
    for name, text in (shown.config.labels if shown.config else {}).items():
        yield f"{indent}label {name}={text}"


def _why(seen: ManifestShown) -> list[str]:
    kind = seen.media_type + (f", {seen.artifact_type}" if seen.artifact_type else "")
    lines = [
        f"{seen.image}@{seen.digest}",
        f"  {', '.join([kind, *seen.platforms])}, {shown_bytes(seen.size)},"
        f" {shown_time(seen.pushed)}",
    ]
    kept = [f"the tag {tag}" for tag in seen.tags]
    kept += [f"the index {digest}" for digest in seen.indexes]
    kept += [f"its subject {seen.subject}"] if seen.subject else []
    return [
        *lines,
        f"  kept by {', '.join(kept)}" if kept else "  kept by nothing: no tag, index or subject",
    ]


def _entry_line(entry: EntryShown) -> str:
    platform = f"  {entry.platform}" if entry.platform else ""
    others = f"{entry.shared} image{'' if entry.shared == 1 else 's'}"
    shared = f", shared with {others}" if entry.shared else ""
    size = "absent" if entry.size is None else shown_bytes(entry.size)
    return f"{entry.role} {entry.digest}{platform}  {size}{shared}"


class Remove(DataCommand):
    """``artifactd rm``: delete tags and manifests."""

    longdesc = (
        "Delete tags (IMAGE:TAG, or IMAGE:PATTERN such as local/app:test-*) and manifests"
        " (IMAGE@DIGEST, with all its tags).  undelete brings them back, for as long as the"
        " setting grace says.  What comes from an upstream is evicted from the cache: a pull"
        " fetches it again."
    )
    synopsis = "[options] REFERENCE..."
    optFlags: ClassVar = [
        ["dry-run", "n", "Only list what would be deleted."],
        [
            "now",
            None,
            "Delete the tags' manifests too, if nothing else keeps them, and free at once all that"
            " was deleted from these images, now and before: it can't be brought back any more.",
        ],
        [_IMMUTABLE, None, "Delete what immutable_tags of the settings keeps, too."],
        JSON,
    ]

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, first: str, *more: str) -> None:  # type: ignore[override]
        self.wanted = [first, *more]

    async def work(self, parts: Assembly, settings: Settings) -> int:
        self.is_done = not self["dry-run"]
        if self.is_done and is_read_only(parts):
            return 1
        status = 0
        removed: list[_Removal] = []
        for wanted in self.wanted:
            found = await self._found(parts, settings, wanted)
            if not found:
                print(f"artifactd: {wanted}: nothing here matches", file=sys.stderr)
                status = 1
            for each in found:
                try:
                    if self.is_done:
                        await each.remove(parts.catalog)
                    else:
                        await parts.catalog.check_mutable(
                            each.image, each.reference, each.immutable
                        )
                except TagImmutable as error:
                    _tell_immutable(f"{each.name} is not deleted", error)
                    status = 1
                    continue
                self._tell(each)
                removed.append(each)
        if self["now"]:
            status = await self._free(parts, settings, removed) or status
        return status

    def _tell(self, removal: _Removal) -> None:
        if self["json"]:
            told = {"image": str(removal.image), "reference": str(removal.reference)}
            digest = None if removal.digest is None else str(removal.digest)
            print_json(
                {**told, "digest": digest, "cached": removal.is_cached, "done": self.is_done}
            )
        else:
            print(removal.told(is_done=self.is_done))

    async def _free(self, parts: Assembly, settings: Settings, removed: Sequence[_Removal]) -> int:
        """
        Delete manifests that were tagged and that nothing keeps now, and free what was deleted from
        their images; a dry run does so on a copy of the catalog.  Returns the exit status.
        """
        deleted = [each for each in removed if not each.is_cached]
        images = list(dict.fromkeys(each.image for each in deleted))
        as_json = bool(self["json"])
        if not self.is_done:

            async def remove(catalog: Catalog) -> None:
                for each in deleted:
                    await each.remove(catalog)
                await self._untagged(catalog, deleted)

            return await list_garbage(
                parts, settings, images, at_once=True, as_json=as_json, before=remove
            )
        await self._untagged(parts.catalog, deleted)
        return await collect(parts, settings, images, at_once=True, as_json=as_json)

    async def _untagged(self, catalog: Catalog, deleted: Sequence[_Removal]) -> None:
        for each in deleted:
            if each.digest is None or isinstance(each.reference, Digest):
                continue
            untagged = _Removal(
                each.image,
                each.digest,
                each.digest,
                False,
                partial(_delete_untagged, each.image, each.digest),
            )
            with suppress(ManifestUnknown):  # it had several tags, and is deleted
                if await untagged.remove(catalog):
                    self._tell(untagged)

    async def _found(self, parts: Assembly, settings: Settings, wanted: str) -> list[_Removal]:
        """What a reference names."""
        name, at, digest = wanted.partition("@")
        if at:
            image, parsed = resolved(parts, name), Digest.parse(digest)
            references: list[Reference] = [parsed]
        else:
            name, colon, pattern = wanted.partition(":")
            if not colon:
                raise usage.UsageError(
                    f"{wanted}: say which tags, such as {wanted}:* for all of them"
                )
            image = resolved(parts, name)
            tags = await parts.catalog.tags(image, None, None) or []
            references = [Tag.parse(tag) for tag in tags if fnmatchcase(tag, pattern)]
        immutable = _immutable(settings, image, self)
        removals = [await _removal(parts, image, each, immutable) for each in references]
        return [each for each in removals if each is not None]


@frozen
class _Removal:
    """
    What a reference of ``rm`` names.

    :ivar image: the image.
    :ivar reference: a tag or manifest of it.
    :ivar digest: of the manifest; ``None``: it is damaged.
    :ivar is_cached: whether it comes from an upstream.
    :ivar remove: deletes or evicts it; is given the catalog to delete it from.
    :ivar immutable: the tags that stay, with their content.
    """

    image: ImageName
    reference: Reference
    digest: Digest | None
    is_cached: bool
    remove: Callable[[Catalog], Awaitable[object]]
    immutable: ImmutableTags = MOVABLE

    @property
    def name(self) -> str:
        """The tag or manifest with its image."""
        return f"{self.image}{'@' if isinstance(self.reference, Digest) else ':'}{self.reference}"

    def told(self, *, is_done: bool) -> str:
        """One line that says what was done, or what would be."""
        if self.is_cached:
            verb = "evicted" if is_done else "would evict"
            return f"{verb} {self.name} from the cache: a pull fetches it again"
        return f"{'deleted' if is_done else 'would delete'} {self.name}"


def _immutable(settings: Settings, image: ImageName, options: usage.Options) -> ImmutableTags:
    """The tags of an image that a command leaves as they are, unless it is told otherwise."""
    repository = settings.repository[image.repository]
    if options[_IMMUTABLE] or not isinstance(repository, LocalSettings):
        return MOVABLE
    return ImmutableTags(repository.immutable_tags)


def _tell_immutable(told: str, error: TagImmutable) -> None:
    print(
        f'artifactd: {told}: immutable_tags of the settings has "{error.rule}";'
        " --immutable does it all the same",
        file=sys.stderr,
    )


async def _removal(
    parts: Assembly, image: ImageName, reference: Reference, immutable: ImmutableTags
) -> _Removal | None:
    """How to remove a tag or manifest; ``None`` if there is none."""
    record = await parts.catalog.manifest(image, reference)
    if record is None and isinstance(reference, Digest):
        return None
    remove: Callable[[Catalog], Awaitable[object]]
    if is_remote(parts, image):
        remove = partial(_evict, parts, image, reference)
    elif isinstance(reference, Tag):
        remove = partial(_delete_tag, image, reference, immutable)
    else:
        remove = partial(_delete_manifest, image, reference, immutable)
    digest = None if record is None else record.digest
    return _Removal(image, reference, digest, is_remote(parts, image), remove, immutable)


async def _evict(parts: Assembly, image: ImageName, reference: Reference, _: Catalog) -> None:
    await parts.purge(image, reference)


async def _delete_tag(
    image: ImageName, tag: Tag, immutable: ImmutableTags, catalog: Catalog
) -> None:
    await catalog.delete_tag(image, tag, actor=_RM, immutable=immutable)


async def _delete_manifest(
    image: ImageName, digest: Digest, immutable: ImmutableTags, catalog: Catalog
) -> None:
    await catalog.delete_manifest(image, digest, allow_held=False, actor=_RM, immutable=immutable)


async def _delete_untagged(image: ImageName, digest: Digest, catalog: Catalog) -> bool:
    return await catalog.delete_manifest(
        image, digest, allow_held=False, actor=_RM, unless_kept=True
    )


class Restore(ImageCommand):
    """``artifactd restore``: point a tag at what it pointed at before."""

    longdesc = (
        "Point IMAGE:TAG at DIGEST, or at what it pointed at at a time.  history tells which"
        " digests it had."
    )
    optParameters: ClassVar = [
        ["to", "t", None, "The digest of a manifest of the image."],
        ["at", "a", None, "A time, such as 2026-11-05 or 2026-11-05T14:00:00Z (UTC)."],
    ]
    optFlags: ClassVar = [
        [_IMMUTABLE, None, "Move a tag that immutable_tags of the settings keeps, too."],
        JSON,
    ]

    async def work(self, parts: Assembly, settings: Settings) -> int:
        if is_read_only(parts):
            return 1
        name, tag = self.reference()
        if not isinstance(tag, Tag):
            raise usage.UsageError("restore: say which tag, as IMAGE:TAG")
        image, catalog = resolved(parts, name), parts.catalog
        if is_remote(parts, image):
            raise usage.UsageError(
                f"restore: {image}:{tag} comes from an upstream, which says where it points"
            )
        digest = await self._wanted(catalog, image, tag)
        immutable = _immutable(settings, image, self)
        try:
            before = await catalog.point_tag(
                image, tag, digest, actor="restore", immutable=immutable
            )
        except TagImmutable as error:
            _tell_immutable(f"{image}:{tag} is not moved", error)
            return 1
        if self["json"]:
            told = {"image": str(image), "tag": str(tag), "digest": str(digest)}
            print_json({**told, "before": None if before is None else str(before)})
        else:
            print(f"{image}:{tag} points at {digest} (before: {before or 'nothing'})")
        return 0

    async def _wanted(self, catalog: Catalog, image: ImageName, tag: Tag) -> Digest:
        if self["to"] is not None:
            return Digest.parse(self["to"])
        if self["at"] is None:
            raise usage.UsageError("restore: say --to DIGEST or --at TIME")
        try:
            until = instant(self["at"])
        except ValueError as error:
            raise usage.UsageError(f"--at: {error}") from None
        digest = await catalog.tag_at(image, tag, until)
        if digest is None:
            raise ManifestUnknown(f"{image} had no tag {tag} at {shown_time(until)}")
        return digest
