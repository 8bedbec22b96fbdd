"""From the name in a request to the canonical name of an image, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
            raise NameUnknown(
                "no repository of that name: begin with one of "
                + ", ".join(sorted(self.repositories)),
                {"name": name.text},
            )
        return ImageName(self.default, name.text)

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
