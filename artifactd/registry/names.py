"""From the name in a request to the canonical name of an image, and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from attrs import frozen

from artifactd.catalog.catalog import Catalog
from artifactd.oci.errors import NameUnknown
from artifactd.oci.names import ImageName, RepositoryName


class Names:
    """
    The naming rule: a name whose first component is a configured repository belongs to that one,
    any other name to the default repository.

    :param repositories: the names of the configured repositories.
    :param default: the repository that takes pushes of names without a prefix, or ``None``.
    :param libraries: by remote repository, the prefix of image names of one component
        (``library/``).
    :param hosts: by host, as in ``ns=`` of a mirror's request, the remote repository that answers.
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
        """The image that ``name`` stands for if it begins with a configured repository, or None."""
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
        The image that a push under ``name`` goes to.

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
        The image that ``name`` stands for in a mirror's request with ``ns=namespace``.

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
        """The name that lists show: without the prefix if that resolves to the same image."""
        first, slash, _ = image.image.partition("/")
        if image.repository == self.default and not (slash and first in self.repositories):
            return image.image
        return str(image)


# Names read at a time from the catalog, if only some of them are listed.
_BATCH = 1000

_AFTER_ALL = "\x7f"  # sorts after every character that a name may have


@frozen
class _Segment:
    """The images of ``repository`` between two names (both excluded), listed with ``prefix``."""

    repository: str
    prefix: str
    start: str = ""
    end: str = _AFTER_ALL


def _segments(names: Names) -> list[_Segment]:
    # Each segment is contiguous both in the catalog and in the list of /v2/_catalog.
    segments = [_Segment(r, f"{r}/") for r in names.repositories if r != names.default]
    if names.default is None:
        return segments
    start = ""
    # "a-b/" comes before "a/": a name may have characters that sort before the slash.
    for below in sorted(f"{repository}/" for repository in names.repositories):
        # An image of the default repository needs the prefix if its own name begins with the name
        # of another repository.
        segments.append(_Segment(names.default, "", start, below))
        segments.append(_Segment(names.default, f"{names.default}/", below, below + _AFTER_ALL))
        start = below + _AFTER_ALL
    segments.append(_Segment(names.default, "", start))
    return segments


async def listed_images(catalog: Catalog, names: Names, after: str, limit: int) -> list[str]:
    """List at most ``limit`` names of images after ``after``, in ASCII order, each once."""
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
    List names as :func:`listed_images` does, but only of the images that ``choose`` returns.

    Reads on until there are ``limit`` of them.
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
