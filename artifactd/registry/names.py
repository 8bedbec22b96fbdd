"""From the name in a request to the canonical name of an image, and back."""

from __future__ import annotations

from collections.abc import Collection

from artifactd.oci.errors import NameUnknown
from artifactd.oci.name import ImageName, RepositoryName


class Names:
    """
    The naming rule: the first component picks a configured repository, anything else belongs to
    the default one.

    :param repositories: the names of the configured repositories.
    :param default: the repository of names without a prefix, or ``None``.
    """

    def __init__(self, repositories: Collection[str], default: str | None) -> None:
        self.repositories = frozenset(repositories)
        self.default = default

    def resolve(self, name: RepositoryName) -> ImageName:
        """
        The image that ``name`` means.

        :raises NameUnknown: if it begins with no configured repository and there is no default.
        """
        first, slash, rest = name.text.partition("/")
        if slash and first in self.repositories:
            return ImageName(first, rest)
        if self.default is None:
            raise NameUnknown(
                "no repository of that name: begin with one of "
                + ", ".join(sorted(self.repositories)),
                {"name": name.text},
            )
        return ImageName(self.default, name.text)

    def listed(self, image: ImageName) -> str:
        """The name to show for ``image``: without prefix where that resolves back to it."""
        first, slash, _ = image.image.partition("/")
        if image.repository == self.default and not (slash and first in self.repositories):
            return image.image
        return str(image)
