"""What is in the registry, as values that commands print, the API encodes and pages render."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import msgspec
from attrs import asdict, define, evolve, field, frozen
from cachetools import LRUCache

from artifactd.catalog.overview import (
    Deleted,
    DeletedAfter,
    Entry,
    ImageSeen,
    ManifestSeen,
    Overview,
    RepositoryUsage,
    TagAfter,
    TagOrder,
    TagSeen,
)
from artifactd.catalog.records import TagMovement
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.janitor import batches
from artifactd.oci.errors import DigestInvalid, NameUnknown, QueryInvalid
from artifactd.oci.foreign import decode_foreign, field_of
from artifactd.oci.names import Digest, ImageName, Patterns, Reference, Tag, literal_prefix
from artifactd.registry.mirror.stale import StaleTag
from artifactd.registry.model import NOBODY, Asker
from artifactd.registry.registry import Names, Registry, Shown, listed_images
from artifactd.registry.warming import Platform, entries_of, fields_of
from artifactd.settings.settings import Settings
from artifactd.store.blobs import BlobStore

PAGE = 100
"""How many entries a page has, unless the caller says otherwise."""

_LARGEST = 1 << 20  # bytes of a document that is looked into
_TEXTS = 256 << 10  # characters of annotations, below which no list of referrers breaks off
_PLATFORMS = 100  # of a manifest that are told, and the characters of each of them
_NESTED = 100  # manifests that are told of an index
_TOLD = 1 << 20  # bytes of the documents that are told of an index
_SEARCHED = 512  # characters of what is searched for
_VALUES = 20_000  # of a config: decoding them holds up everything else for some 10 ms
_REMEMBERED = 10_000  # manifests whose platforms are known
_NO_PLATFORM = ("", "unknown/unknown")  # attestations have the latter

_T = TypeVar("_T")
_Place = TypeVar("_Place", bound=tuple[Any, ...])


@frozen
class Page(Generic[_T]):
    """
    Some entries of a list.

    :ivar after: to be given for the page behind it; ``None``: this is the last.
    """

    entries: Sequence[_T]
    after: str | None


@frozen
class TagShown(TagSeen):
    """A tag; ``platforms`` are those of its manifest, such as ``linux/arm64``."""

    platforms: Sequence[str]


class Config(msgspec.Struct):
    """What the config of an image tells of it: image-spec, "Image Configuration"."""

    created: str | None = None
    author: str | None = None
    user: str | None = None
    working_dir: str | None = None
    entrypoint: Sequence[str] | None = None
    command: Sequence[str] | None = None
    environment: Sequence[str] | None = None
    ports: Sequence[str] = ()
    volumes: Sequence[str] = ()
    labels: Mapping[str, str] = {}


@frozen
class EntryShown(Entry):
    """
    A blob or manifest that a manifest holds.

    :ivar role: what it is there.
    :ivar media_type: as the manifest says; ``None``: it does not.
    :ivar platform: of a manifest of an index.
    :ivar created_by: the command that made a layer.
    :ivar manifest: itself, if it is one and is here; there are at most 100 in all.
    """

    role: Literal["config", "layer", "manifest", "other"]
    media_type: str | None = None
    platform: str | None = None
    created_by: str | None = None
    annotations: Mapping[str, str] = field(factory=dict)
    manifest: ManifestShown | None = None


@frozen
class ManifestShown(ManifestSeen):
    """
    A manifest with what its document and its config say, as far as they can be read.

    :ivar entries: in the order of the document.
    :ivar platforms: of the image, or of all images of an index.
    """

    entries: Sequence[EntryShown]
    platforms: Sequence[str]
    annotations: Mapping[str, str]
    config: Config | None


@frozen
class MovementShown:
    """
    A movement of a tag.

    :ivar actor: the user, or the part of artifactd, that moved it.
    :ivar at: in seconds since the epoch.
    :ivar before: the digest that it pointed at before; ``None``: there was no such tag.
    :ivar after: the digest that it points at since; ``None``: it was deleted.
    """

    tag: str
    actor: str
    at: float
    before: str | None
    after: str | None


@frozen
class ReferrerShown:
    """A manifest that refers to another one, such as a signature; ``size`` is in bytes."""

    digest: str
    media_type: str
    artifact_type: str | None
    size: int
    annotations: Mapping[str, str]


@frozen
class DeletedShown(Deleted):
    """What was deleted and can be brought back, ``until`` then: in seconds since the epoch."""

    until: float


@frozen
class UsageShown(RepositoryUsage):
    """What a repository holds; ``quota`` is in bytes, 0: there is none."""

    quota: int


@define
class _Left:
    """How many more manifests of an index may be told, and bytes of their documents."""

    manifests: int
    bytes: int

    def takes_one(self) -> bool:
        """Whether one more manifest may be told; counts it."""
        self.manifests -= 1
        return self.manifests >= 0 and self.bytes > 0


@frozen
class Seeing:
    """
    Describes images, tags and manifests.  Lists come in pages; ``after`` is what the page before
    told, and :class:`QueryInvalid` is raised if it is nothing of the kind.  What takes long with
    many entries is done in threads.
    """

    registry: Registry
    overview: Overview
    blobs: BlobStore
    run: RunInThread
    settings: Settings
    _canonical: Names = field(init=False)
    _platforms: LRUCache[tuple[ImageName, str], Sequence[str]] = field(
        factory=lambda: LRUCache(_REMEMBERED), init=False, eq=False
    )

    @_canonical.default
    def _without_default(self) -> Names:
        return Names(self.registry.names.repositories, None)

    async def images(
        self,
        after: str | None = None,
        limit: int = PAGE,
        *,
        pattern: str = "*",
        prefix: str = "",
        shown: Shown | None = None,
        asker: Asker = NOBODY,
        sees_all: bool = True,
    ) -> Page[ImageSeen]:
        """
        Images by their canonical names, in ASCII order.

        :param pattern: for canonical names, as of a shell (:mod:`fnmatch`); ``*`` matches slashes
            too.
        :param prefix: what the canonical names begin with.
        :param shown: tells which images to list; ``None``: all.
        :param asker: images that want a proof of access are listed only if the client has it.
        :param sees_all: see :meth:`image`.
        """
        (behind,) = ("",) if after is None else _place(after, tuple[str])
        registry = self.registry
        # Not by Patterns: it would compile what a client has sent, and take milliseconds for that.
        literal = literal_prefix(pattern)
        names = await listed_images(
            registry.catalog,
            self._canonical,
            behind,
            limit + 1,
            shown,
            None if shown is None else partial(registry.listable, asker=asker),
            None if shown is None and pattern == "*" else registry.turn,
            pattern,
            literal if literal.startswith(prefix) else prefix,
        )
        wanted = names[:limit]
        found = [ImageName.of(name) for name in wanted]
        # All lists of images together take one of the catalog's readers at most.
        async with registry.turn:
            seen = await self.overview.images(found, with_own=sees_all)
        return Page(seen, _after((wanted[-1],)) if wanted and len(names) > limit else None)

    async def image(self, image: ImageName, *, sees_all: bool = True) -> ImageSeen | None:
        """
        One image; ``None``: it is unknown.

        :param sees_all: whether the caller may know of every image.  Others are not told what
            images have in common: it would tell whether one that they can't see holds a blob.
        """
        seen = await self.overview.images([image], with_own=sees_all)
        return seen[0] if seen else None

    async def tags(
        self,
        image: ImageName,
        after: str | None = None,
        limit: int = PAGE,
        *,
        pattern: str = "*",
        order: TagOrder = TagOrder.NAME,
    ) -> Page[TagShown]:
        """
        Tags of an image.

        :param pattern: as of a shell.
        :raises NameUnknown: if the image is unknown.
        """
        behind = None if after is None else _place(after, TagAfter)
        # Sizes of tags at long indexes take seconds: such lists take one of the catalog's readers
        # at most.
        async with self.registry.turn:
            found = await self.overview.tags(image, behind, limit + 1, pattern, order)
        shown = await self._with_platforms(image, found[:limit])
        is_last = len(found) <= limit or not shown
        last = None if is_last else _after(TagAfter(shown[-1].moved, shown[-1].tag))
        return Page(shown, last)

    async def tag(self, image: ImageName, tag: Tag) -> TagShown:
        """
        One tag of an image.

        :raises NameUnknown, ManifestUnknown: if there is no such image, or no such tag.
        """
        (shown,) = await self._with_platforms(image, [await self.overview.tag(image, tag)])
        return shown

    async def _with_platforms(self, image: ImageName, tags: Sequence[TagSeen]) -> list[TagShown]:
        known = self._platforms
        there = {each.digest: known.get((image, each.digest)) for each in tags}
        for some in batches([digest for digest, told in there.items() if told is None]):
            for digest, platforms in (await self._platforms_of(image, some)).items():
                there[digest] = platforms
                if platforms is not None:
                    known[image, digest] = platforms
        return await self.run(
            lambda: [
                TagShown(**asdict(each, recurse=False), platforms=there[each.digest] or ())
                for each in tags
            ]
        )

    async def _platforms_of(
        self, image: ImageName, digests: Sequence[str]
    ) -> dict[str, Sequence[str] | None]:
        """
        The platforms of manifests, without keeping their documents in memory; ``None`` where one,
        or its config, is not here now or can't be read.
        """

        def look() -> tuple[dict[str, Sequence[str] | None], dict[str, str]]:
            platforms: dict[str, Sequence[str] | None] = {}
            configs: dict[str, str] = {}
            for digest in digests:
                platforms[digest], config = _looked_through(self._read(digest))
                if config is not None:
                    configs[digest] = config
            return platforms, configs

        platforms, configs = await self.run(look)
        held = await self.overview.held(image, configs.values())

        def look_into_configs() -> None:
            said = {config: _platforms_in(self._read(config)) for config in held}
            platforms.update((digest, said.get(config)) for digest, config in configs.items())

        if configs:
            await self.run(look_into_configs)
        return platforms

    async def manifest(
        self,
        image: ImageName,
        reference: Reference,
        most: int = _NESTED,
        *,
        sees_all: bool = True,
    ) -> ManifestShown:
        """
        A manifest with what it holds, and the manifests that it lists with what they hold.

        :param most: how many of these.  There are fewer if their documents have more than 1 MiB.
        :param sees_all: see :meth:`image`.
        :raises NameUnknown: if the image is unknown.
        :raises ManifestUnknown: if the image does not have the manifest.
        """
        seen = await self.overview.manifest(image, reference)
        return await self._shown(image, seen, _Left(most, _TOLD), sees_all)

    async def _shown(
        self, image: ImageName, seen: ManifestSeen, left: _Left, sees_all: bool
    ) -> ManifestShown:
        document = await self._document(image, seen.digest)
        left.bytes -= max(document.size, seen.size)
        entries = await self.run(_entries, seen, document, sees_all)
        for place, entry in enumerate(entries):
            if entry.kind == "manifest" and entry.size is not None and left.takes_one():
                below = await self.overview.manifest(image, Digest.parse(entry.digest))
                child = await self._shown(image, below, left, sees_all)
                entries[place] = evolve(entry, manifest=child)
        return ManifestShown(
            **{**asdict(seen, recurse=False), "entries": entries},
            platforms=document.platforms,
            annotations=document.annotations,
            config=document.config,
        )

    async def _document(self, image: ImageName, digest: str) -> _Document:
        """
        What a manifest of an image and its config say.  A config that the image does not have is
        not looked into, whatever the manifest says: it may be that of another image.
        """
        document = await self.run(lambda: _Document.of(self._read(digest)))
        configs = [each.digest for each in document.parts.get("config", ())]
        if not await self.overview.held(image, configs):
            return document
        return await self.run(lambda: _with_config(document, self._read(configs[0])))

    def _read(self, digest: str) -> bytes:
        """A document; empty if it is not here, is damaged or is too large."""
        try:
            content = self.blobs.read_now(Digest.parse(digest), _LARGEST)
        except (OSError, DigestInvalid):
            return b""
        return content or b""

    async def history(
        self,
        image: ImageName,
        tag: Tag | None = None,
        after: str | None = None,
        limit: int = PAGE,
        *,
        newest_first: bool = True,
    ) -> Page[MovementShown]:
        """
        The movements of a tag, or (``None``) of all tags of an image.

        :raises NameUnknown: if the image is unknown.
        """
        behind = None if after is None else _place(after, tuple[int])[0]
        found = await self.registry.catalog.tag_movements(
            image, tag, behind, limit + 1, newest_first=newest_first
        )
        if (
            not found
            and behind is None
            and await self.registry.catalog.tags(image, None, 1) is None
        ):
            raise NameUnknown("no image of that name has been pushed here", {"name": str(image)})
        moved = found[:limit]
        shown = await self.run(lambda: [_movement(each) for each in moved])
        return Page(shown, _after((moved[-1].number,)) if len(found) > limit and moved else None)

    async def referrers(
        self,
        image: ImageName,
        subject: Digest,
        artifact_type: str | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> Page[ReferrerShown]:
        """
        The manifests of an image that refer to ``subject``, in the order of their digests.  A page
        is shorter if their annotations are long.

        :param artifact_type: only those of this type.
        """
        behind = None if after is None else _place(after, tuple[str])[0]
        found = await self.registry.catalog.referrers(
            image, subject, artifact_type, behind, limit + 1
        )
        # A list of long annotations breaks off with one more than fits.
        texts = sum(len(name) + len(text) for r in found for name, text in r.annotations.items())
        is_cut = len(found) > limit or (texts > _TEXTS and len(found) > 1)
        told = found[: min(limit, len(found) - 1)] if is_cut else found
        shown = [
            ReferrerShown(
                str(each.digest), each.media_type, each.artifact_type, each.size, each.annotations
            )
            for each in told
        ]
        return Page(shown, _after((shown[-1].digest,)) if is_cut and shown else None)

    async def deleted(
        self,
        image: ImageName | None = None,
        after: str | None = None,
        limit: int = PAGE,
        shown: Shown | None = None,
    ) -> Page[DeletedShown]:
        """
        What was deleted from an image, or (``None``) from all, and can be brought back; the newest
        first.

        :param shown: tells the images of which to list something; ``None``: all.
        """
        behind = None if after is None else _place(after, DeletedAfter)
        found: list[Deleted] = []
        while True:
            wanted, among = limit - len(found), None if shown is None else shown.patterns
            more, behind = await self.overview.deleted(image, behind, wanted, shown, among)
            found += more
            if behind is None or len(found) >= limit:
                break
        grace = float(self.settings.grace)
        entries = await self.run(
            lambda: [
                DeletedShown(**asdict(each, recurse=False), until=each.at + grace) for each in found
            ]
        )
        return Page(entries, None if behind is None else _after(behind))

    async def stale(
        self,
        tags: Iterable[StaleTag],
        after: str | None = None,
        limit: int = PAGE,
        *,
        pattern: str = "*",
        shown: Shown | None = None,
        asker: Asker = NOBODY,
    ) -> Page[StaleTag]:
        """
        Stale tags, in the order of their images and names.

        :param tags: all that there are.
        :param pattern: see :meth:`images`, as for the rest.
        """
        behind = ("", "") if after is None else _place(after, tuple[str, str])
        matching = await self.run(Patterns, (pattern,))  # some 10 ms at the most
        rest = sorted((each for each in tags if matching.match(each.image)), key=_place_of)
        found: list[StaleTag] = []
        for batch in batches([each for each in rest if _place_of(each) > behind]):
            chosen: Collection[ImageName] = {ImageName.of(each.image) for each in batch}
            if shown is not None:
                allowed = [image for image in chosen if shown(image)]
                chosen = await self.registry.listable(allowed, asker)
            found += [each for each in batch if ImageName.of(each.image) in chosen]
            if len(found) > limit:
                break
        told = found[:limit]
        return Page(told, _after(_place_of(told[-1])) if len(found) > limit else None)

    async def usage(self) -> list[UsageShown]:
        """What each repository holds."""
        shown = []
        for each in await self.overview.usage():
            configured = self.settings.repository.get(each.repository)
            quota = 0 if configured is None else int(configured.most_bytes)
            shown.append(UsageShown(**asdict(each, recurse=False), quota=quota))
        return shown


def _movement(moved: TagMovement) -> MovementShown:
    before, after = (None if d is None else str(d) for d in (moved.before, moved.after))
    return MovementShown(moved.tag, moved.actor, moved.at, before, after)


def instant(text: str) -> float:
    """
    A time as people write it, in seconds since the epoch; without a zone it is in UTC.

    :raises ValueError: if it is none.
    """
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"expected a time such as 2026-11-05T14:00:00Z, got {text[:100]!r}"
        ) from None


def found_in(text: str) -> str:
    """
    A pattern for names that hold ``text``, or that it matches as a pattern itself.

    :raises QueryInvalid: if it is much longer than names are: each name is compared with it.
    """
    if len(text) > _SEARCHED:
        raise QueryInvalid(f"what is searched for may have at most {_SEARCHED} characters")
    return text if any(each in text for each in "*?[") else f"*{text}*"


# -- continuations


def _place_of(stale: StaleTag) -> tuple[str, str]:
    return stale.image, stale.tag


def _after(place: tuple[Any, ...]) -> str:
    """A place in a list, as text for URLs that clients don't look into."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _place(after: str, kind: type[_Place]) -> _Place:
    """The place in a list that :func:`_after` wrote.  :raises QueryInvalid: if it did not."""
    try:
        content = base64.urlsafe_b64decode(after.encode() + b"=" * (-len(after) % 4))
        place: _Place = msgspec.json.decode(content, type=kind)
        if any(isinstance(each, int) and each.bit_length() > 63 for each in place):
            raise ValueError("no number that the catalog has")
        return place
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise QueryInvalid(
            "after must be what the page before told: leave it out to begin at the beginning"
        ) from None


# -- documents, which are what clients and upstreams have written


@frozen
class _Part:
    """A descriptor of a manifest."""

    digest: str
    media_type: str | None
    platform: str | None
    annotations: Mapping[str, str]


@frozen
class _Document:
    """
    What a manifest says.

    :ivar size: bytes of it and its config.
    :ivar parts: its descriptors, by their role.
    :ivar commands: those that made the layers, in their order.
    """

    size: int = 0
    parts: Mapping[str, Sequence[_Part]] = field(factory=dict)
    platforms: Sequence[str] = ()
    annotations: Mapping[str, str] = field(factory=dict)
    config: Config | None = None
    commands: Sequence[str] = ()

    @classmethod
    def of(cls, content: bytes) -> _Document:
        """Read it; empty if it can't be read."""
        try:
            fields = fields_of(content)
        except ValueError:
            return cls()
        platforms = [platform for _, platform in entries_of(fields)]
        parts = {
            "config": _parts([field_of(fields, "config")], []),
            "layer": _parts(field_of(fields, "layers"), []),
            "manifest": _parts(field_of(fields, "manifests"), platforms),
        }
        named, annotations = _named(platforms), _texts(field_of(fields, "annotations"))
        return cls(len(content), parts, named, annotations)


def _parts(descriptors: object, platforms: Sequence[Platform | None]) -> list[_Part]:
    found: list[_Part] = []
    for each in descriptors if isinstance(descriptors, list) else ():
        digest = field_of(each, "digest") if isinstance(each, dict) else None
        if isinstance(digest, str):
            media_type = field_of(each, "mediaType")
            platform = platforms[len(found)] if len(found) < len(platforms) else None
            found.append(
                _Part(
                    digest,
                    media_type if isinstance(media_type, str) else None,
                    None if platform is None else str(platform) or None,
                    _texts(field_of(each, "annotations")),
                )
            )
    return found


def _named(platforms: Iterable[Platform | None]) -> list[str]:
    named = dict.fromkeys(str(each)[:_PLATFORMS] for each in platforms if each is not None)
    return [each for each in named if each not in _NO_PLATFORM][:_PLATFORMS]


def _texts(value: object) -> dict[str, str]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


class _Executed(msgspec.Struct):
    """The execution parameters of an image's config."""

    User: str | None = None
    WorkingDir: str | None = None
    Entrypoint: list[str] | None = None
    Cmd: list[str] | None = None
    Env: list[str] | None = None
    ExposedPorts: dict[str, Any] | None = None
    Volumes: dict[str, Any] | None = None
    Labels: dict[str, str] | None = None


class _Step(msgspec.Struct):
    """A step of an image's history."""

    created_by: str = ""
    empty_layer: bool = False


class _ImageConfig(msgspec.Struct):
    """The config of an image."""

    created: str | None = None
    author: str | None = None
    config: _Executed | None = None
    history: list[_Step] | None = None


_platform = msgspec.json.Decoder(Platform)
_image_config = msgspec.json.Decoder(_ImageConfig)


def _looked_through(content: bytes) -> tuple[Sequence[str] | None, str | None]:
    """The platforms that an index names, or the digest of the config that tells an image's."""
    try:
        fields = fields_of(content)
    except ValueError:
        return None, None
    named, config = _named(each for _, each in entries_of(fields)), field_of(fields, "config")
    digest = field_of(config, "digest") if isinstance(config, dict) and not named else None
    return named, digest if isinstance(digest, str) else None


def _platforms_in(config: bytes) -> Sequence[str] | None:
    """The platform that a config tells; ``None`` if it can't be read: an artifact's is anything."""
    try:
        return _named([decode_foreign(_platform, config, values=_VALUES)])
    except ValueError:
        return None


def _with_config(document: _Document, content: bytes) -> _Document:
    """``document`` with what its config says."""
    platforms = _platforms_in(content)
    if platforms is None:
        return document
    try:
        told = decode_foreign(_image_config, content, values=_VALUES)
    except ValueError:
        told = _ImageConfig()
    run = told.config or _Executed()
    config = Config(
        created=told.created,
        author=told.author,
        user=run.User,
        working_dir=run.WorkingDir,
        entrypoint=run.Entrypoint,
        command=run.Cmd,
        environment=run.Env,
        ports=list(run.ExposedPorts or ()),
        volumes=list(run.Volumes or ()),
        labels=run.Labels or {},
    )
    commands = [step.created_by for step in told.history or () if not step.empty_layer]
    size = document.size + len(content)
    platforms = [*document.platforms, *platforms]
    return evolve(document, size=size, platforms=platforms, config=config, commands=commands)


def _entries(seen: ManifestSeen, document: _Document, sees_all: bool) -> list[EntryShown]:
    """What a manifest holds, in the order of its document, and then what that does not describe."""
    left = {each.digest: each if sees_all else evolve(each, shared=None) for each in seen.entries}
    entries: list[EntryShown] = []
    roles: Sequence[Literal["config", "layer", "manifest"]] = ("config", "layer", "manifest")
    for role in roles:
        for number, part in enumerate(document.parts.get(role, ())):
            entry = left.pop(part.digest, None)
            if entry is None:
                continue  # it stands there twice
            command = None
            if role == "layer" and number < len(document.commands):
                command = document.commands[number] or None
            entries.append(
                EntryShown(
                    **asdict(entry),
                    role=role,
                    media_type=part.media_type,
                    platform=part.platform,
                    created_by=command,
                    annotations=part.annotations,
                )
            )
    for entry in left.values():
        role_left: Literal["manifest", "other"] = (
            "manifest" if entry.kind == "manifest" else "other"
        )
        entries.append(EntryShown(**asdict(entry), role=role_left))
    return entries
