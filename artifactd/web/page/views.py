"""What templates show, made of what the registry tells: groups, sorted tags, commands, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from attrs import field, frozen

from artifactd.catalog.overview import ImageSeen, TagOrder
from artifactd.registry.seeing import EntryShown, ManifestShown, TagShown

_WIDTH = 1000.0  # of a picture, in its own units
_LEAST = 3.0  # the width that can still be seen
_COLORS = 8


def grouped(images: Iterable[ImageSeen]) -> list[tuple[str, list[ImageSeen]]]:
    """Images under the paths that they have in common: ``local/team`` of ``local/team/a``."""
    return [
        (path, list(each))
        for path, each in groupby(images, lambda seen: seen.image.rpartition("/")[0])
    ]


@frozen
class Column:
    """
    A column of a table that can be sorted by it.

    :ivar wide: whether it is left out where there is little room.
    """

    key: str
    title: str
    of: Callable[[TagShown], Any]
    number: bool = False
    wide: bool = False


COLUMNS = (
    Column("name", "Tag", lambda tag: tag.tag),
    Column("digest", "Digest", lambda tag: tag.digest, wide=True),
    Column("kind", "Kind", lambda tag: tag.kind, wide=True),
    Column("platforms", "Platforms", lambda tag: list(tag.platforms), wide=True),
    Column("size", "Size", lambda tag: tag.size, number=True),
    Column("moved", "Pushed", lambda tag: tag.moved),
    Column("actor", "By", lambda tag: tag.actor, wide=True),
    Column("pulled", "Pulled", lambda tag: tag.pulled or 0.0, wide=True),
)
"""Of the table of tags."""

SORTED_AT_ONCE = 1000
"""Up to so many tags can be sorted by any column; more by their names and times alone."""


@frozen
class Sorting:
    """
    The order that a reader wants tags in.

    :ivar column: one of :data:`COLUMNS`.
    :ivar down: whether the greatest comes first.
    """

    column: Column
    down: bool

    @classmethod
    def parse(cls, text: str) -> Sorting:
        """Parse ``size`` or ``-size``; anything else is by name."""
        key = text.removeprefix("-")
        column = next((each for each in COLUMNS if each.key == key), COLUMNS[0])
        return cls(column, text.startswith("-"))

    @property
    def order(self) -> TagOrder | None:
        """The same order as one of the catalog's, which lists any number; else ``None``."""
        text = str(self)
        return TagOrder(text) if text in tuple(TagOrder) else None

    def __str__(self) -> str:
        return f"{'-' if self.down else ''}{self.column.key}"

    def link(self, column: Column) -> str:
        """What a click on the title of ``column`` sorts by."""
        if column is self.column:
            return column.key if self.down else f"-{column.key}"
        # Of sizes and times the greatest are the ones that are looked for.
        return f"-{column.key}" if column.key in ("size", "moved", "pulled") else column.key

    def sort(self, tags: Iterable[TagShown]) -> list[TagShown]:
        """``tags`` in this order; equal ones by their names."""
        by_name = sorted(tags, key=lambda tag: tag.tag)
        return sorted(by_name, key=self.column.of, reverse=self.down)


@frozen
class Command:
    """A command that pulls an image, for one program."""

    program: str
    text: str


def pull_commands(origin: str, name: str, reference: str) -> list[Command]:
    """
    How to pull an image.

    :param origin: the URL under which the reader reaches the registry.
    :param reference: ``:tag`` or ``@digest``.
    """
    scheme, _, host = origin.partition("://")
    plain = scheme == "http"
    if plain and ":" not in host.rpartition("]")[2]:
        host += ":80"  # without a port, clients take the one of TLS
    image = f"{host}/{name}{reference}"
    return [
        Command("Docker", f"docker pull {image}"),
        Command("podman", f"podman pull {'--tls-verify=false ' if plain else ''}{image}"),
        Command("nerdctl", f"nerdctl {'--insecure-registry ' if plain else ''}pull {image}"),
        Command("containerd", f"ctr images pull {'--plain-http ' if plain else ''}{image}"),
    ]


@frozen
class Segment:
    """A part of a picture: from ``x``, ``width`` wide, in the ``color`` of that number."""

    x: float
    width: float
    color: int
    label: str


def strip(parts: Iterable[tuple[int, str]]) -> list[Segment]:
    """
    The parts of a whole side by side, each as wide as its share, and wide enough to be seen.

    :param parts: sizes and labels.
    """
    sized = [(max(size, 0), label) for size, label in parts]
    whole = sum(size for size, _ in sized)
    shares = [max(_LEAST, _WIDTH * size / whole) if whole else _LEAST for size, _ in sized]
    scale = _WIDTH / sum(shares) if shares and (whole or len(shares) * _LEAST > _WIDTH) else 1.0
    segments, x = [], 0.0
    for number, (share, (_, label)) in enumerate(zip(shares, sized, strict=True)):
        width = share * scale
        segments.append(Segment(round(x, 2), round(width, 2), number % _COLORS, label))
        x += width
    return segments


def share(part: float, whole: float) -> float:
    """The width of a bar for ``part`` of ``whole``."""
    return round(_WIDTH * min(max(part / whole, 0.0), 1.0), 2) if whole else 0.0


@frozen
class Picture:
    """
    A manifest that is one image: its layers, with their sizes as a strip.

    :ivar title: its platform, or what it is.
    """

    title: str
    manifest: ManifestShown
    layers: Sequence[EntryShown]
    others: Sequence[EntryShown]
    strip: Sequence[Segment] = field(init=False)
    size: int = field(init=False)

    @strip.default
    def _strip(self) -> Sequence[Segment]:
        return strip((each.size or 0, f"layer {n}") for n, each in enumerate(self.layers, 1))

    @size.default
    def _size(self) -> int:
        return sum(each.size or 0 for each in self.layers)


def pictures(manifest: ManifestShown, title: str = "") -> Iterator[Picture]:
    """The images in ``manifest``: itself, or those of an index."""
    layers = [each for each in manifest.entries if each.role == "layer"]
    others = [each for each in manifest.entries if each.role not in ("layer", "manifest")]
    if layers or others:
        yield Picture(title or ", ".join(manifest.platforms) or "Content", manifest, layers, others)
    for each in manifest.entries:
        if each.manifest is not None:
            yield from pictures(each.manifest, each.platform or _short(each))


def _short(entry: EntryShown) -> str:
    return entry.digest[:19]
