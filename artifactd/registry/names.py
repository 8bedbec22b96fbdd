"""From the name in a request to the canonical name of an image, and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from attrs import frozen

from artifactd.catalog.catalog import Catalog
from artifactd.oci.errors import NameUnknown
from artifactd.oci.names import ImageName, RepositoryName


class Names:
    """
    The naming rule: the first component picks a configured repository, anything else belongs to
    the default one.

    :param repositories: the names of the configured repositories.
    :param default: the repository that names without a prefix are pushed to, or ``None``.
    :param libraries: of remote repositories, what comes before an image's name of one component.
    :param hosts: the remote repository that answers for each ``ns=`` of a mirror's request.
    """

    def __init__(
        self,
        repositories: Collection[str],
        default: str | None,
        libraries: Mapping[str, str] | None = None,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        self.repositories = frozenset(repositories)
        self.default = default
        self._libraries = libraries or {}
        self._hosts = hosts or {}

    def prefixed(self, name: RepositoryName) -> ImageName | None:
        """The image that ``name`` means if it begins with a configured repository."""
        first, slash, rest = name.text.partition("/")
        if slash and first in self.repositories:
            return self.within(first, rest)
        return None

    def within(self, repository: str, image: str) -> ImageName:
        """The image named ``image`` of ``repository``."""
        prefix = "" if "/" in image else self._libraries.get(repository, "")
        return ImageName(repository, f"{prefix}{image}")

    def resolve(self, name: RepositoryName) -> ImageName:
        """
        The image that ``name`` means to whoever pushes it.

        :raises NameUnknown: if it begins with no configured repository and there is no default.
        """
        image = self.prefixed(name)
        if image is not None:
            return image
        if self.default is None:
            raise self.unknown(name)
        return ImageName(self.default, name.text)

    def unknown(self, name: RepositoryName) -> NameUnknown:
        """The error for a name that belongs to no repository."""
        known = ", ".join(sorted(self.repositories))
        return NameUnknown(
            f"no repository of that name: begin with one of {known}", {"name": name.text}
        )

    def mirrored(self, name: RepositoryName, namespace: str) -> ImageName:
        """
        The image that ``name`` means in a mirror's request with ``ns=namespace``.

        :raises NameUnknown: if no remote repository answers for ``namespace``.
        """
        repository = self._hosts.get(namespace.lower())
        if repository is None:
            raise NameUnknown(
                "no repository here answers for that registry: see hosts in the settings",
                {"ns": namespace[:255]},
            )
        return self.within(repository, name.text)

    def listed(self, image: ImageName) -> str:
        """The name to show for ``image``: without prefix where that resolves back to it."""
        first, slash, _ = image.image.partition("/")
        if image.repository == self.default and not (slash and first in self.repositories):
            return image.image
        return str(image)


# The list of all images, as ``/v2/_catalog`` shows it.

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
