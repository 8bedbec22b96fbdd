"""The list of all images, as ``/v2/_catalog`` shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

from attrs import frozen

from artifactd.catalog.records import Catalog
from artifactd.oci.names import ImageName, RepositoryName
from artifactd.registry.names import Names

# Names looked at in one go, where not all are shown.
_BATCH = 1000

_BEHIND_ALL = "\x7f"  # sorts behind every character a name may have


@frozen
class _Segment:
    """Images of ``repository`` named between two bounds (both excluded), shown with ``prefix``."""

    repository: str
    prefix: str
    start: str = ""
    end: str = _BEHIND_ALL


def _segments(names: Names) -> list[_Segment]:
    """The listed names as runs that are contiguous both in the catalog and in the list."""
    segments = [_Segment(r, f"{r}/") for r in names.repositories if r != names.default]
    if names.default is None:
        return segments
    start = ""
    # In the order of "a-b/", "a/": a name may have characters that sort before the slash.
    for below in sorted(f"{repository}/" for repository in names.repositories):
        # Images of the default repository whose own names begin like another's need the prefix.
        segments.append(_Segment(names.default, "", start, below))
        segments.append(_Segment(names.default, f"{names.default}/", below, below + _BEHIND_ALL))
        start = below + _BEHIND_ALL
    segments.append(_Segment(names.default, "", start))
    return segments


async def listed_images(catalog: Catalog, names: Names, after: str, limit: int) -> list[str]:
    """At most ``limit`` images' listed names behind ``after``, in ASCII order, each once."""
    found: list[str] = []
    for segment in _segments(names):
        start = segment.start
        if after.startswith(segment.prefix):
            start = max(start, after.removeprefix(segment.prefix))
        elif after > segment.prefix:
            continue
        for image in await catalog.images(segment.repository, start, limit):
            if image >= segment.end:
                break
            found.append(segment.prefix + image)
    return sorted(found)[:limit]


async def listed_where(
    catalog: Catalog,
    names: Names,
    after: str,
    limit: int,
    choose: Callable[[Sequence[ImageName]], Awaitable[Collection[ImageName]]],
) -> list[str]:
    """
    As :func:`listed_images`, of those only that ``choose`` leaves of any images; goes on until
    there are enough.
    """
    found: list[str] = []
    while len(found) < limit:
        batch = await listed_images(catalog, names, after, _BATCH)
        images = [names.resolve(RepositoryName(name)) for name in batch]
        chosen = await choose(images)
        found += [name for name, image in zip(batch, images, strict=True) if image in chosen]
        if len(batch) < _BATCH:
            break
        after = batch[-1]
    return found[:limit]
