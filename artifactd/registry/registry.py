"""
The registry: the naming rule, all repositories under their names, and the operations across them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol

from attrs import evolve, field, fields, frozen
from twisted.internet.defer import DeferredLock

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import ImageSpan, Precondition
from artifactd.oci.errors import NameInvalid, NameUnknown, RegistryError
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import Digest, ImageName, Reference, RepositoryName, Tag
from artifactd.registry.content import Stored
from artifactd.registry.local import LocalRepository
from artifactd.registry.model import NOBODY, Asker, Repository
from artifactd.registry.unprefixed import Unprefixed
from artifactd.registry.uploads import Uploads
from artifactd.settings.access import Action


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

        containerd with ``override_path`` asks ``/v2/docker.io/…?ns=docker.io``: a first component
        that is the registry's host, or the repository's name and a host, is none of the image's.

        :raises NameUnknown: if no remote repository answers for ``namespace``.
        """
        repository = self._hosts.get(namespace.lower())
        if repository is None:
            raise NameUnknown(
                "no repository here answers for that registry: see hosts in the settings",
                {"ns": namespace[:255]},
            )
        first, slash, rest = name.text.partition("/")
        if slash and "." in first and first in (repository, namespace.lower()):
            return self.within(repository, rest)
        return self.within(repository, name.text)

    def listed(self, image: ImageName) -> str:
        """The name that lists show: without the prefix if that resolves to the same image."""
        first, slash, _ = image.image.partition("/")
        if image.repository == self.default and not (slash and first in self.repositories):
            return image.image
        return str(image)


_AFTER_ALL = "\x7f"  # sorts after every character that a name may have


@frozen
class _Segment:
    """The images of ``repository`` between two names (both excluded), listed with ``prefix``."""

    repository: str
    prefix: str
    start: str = ""
    end: str = _AFTER_ALL

    def after(self, name: str) -> _Segment:
        """Its part that is listed after ``name``."""
        if name.startswith(self.prefix):
            return evolve(self, start=max(self.start, name.removeprefix(self.prefix)))
        return self if name < self.prefix else evolve(self, start=self.end)

    def under(self, prefix: str) -> _Segment:
        """Its part of images whose canonical names begin with ``prefix``."""
        own = f"{self.repository}/"
        if own.startswith(prefix):
            return self
        if not prefix.startswith(own):
            return evolve(self, start=self.end)
        first = prefix.removeprefix(own)
        if not (first.isascii() and first.isprintable()):
            return evolve(self, start=self.end)  # no name has such characters
        # The greatest text before ``first``, which may be the name of an image itself.
        before = f"{first[:-1]}{chr(ord(first[-1]) - 1)}{_AFTER_ALL}"
        end = first + _AFTER_ALL
        return evolve(self, start=max(self.start, before), end=min(self.end, end))


def _segments(names: Names) -> list[_Segment]:
    """All images, in the order in which they are listed."""
    # Each segment is contiguous both in the catalog and in the list of /v2/_catalog.
    segments = [_Segment(r, f"{r}/") for r in names.repositories if r != names.default]
    if names.default is not None:
        start = ""
        # "a-b/" comes before "a/": a name may have characters that sort before the slash.
        for below in sorted(f"{repository}/" for repository in names.repositories):
            # An image of the default repository needs the prefix if its own name begins with the
            # name of another repository.
            end = below + _AFTER_ALL
            segments.append(_Segment(names.default, "", start, below))
            segments.append(_Segment(names.default, f"{names.default}/", below, end))
            start = end
        segments.append(_Segment(names.default, "", start))
    return sorted(segments, key=lambda segment: segment.prefix + segment.start)


class Shown(Protocol):
    """Tells which images a list shows; it is called in a reader's thread."""

    def __call__(self, image: ImageName) -> bool: ...

    @property
    def prefixes(self) -> Sequence[str]:
        """The prefixes of the canonical names of those images; none begins with another."""

    @property
    def patterns(self) -> Sequence[str]:
        """All those images, and perhaps more, match one of these, which have no brackets."""


async def listed_images(
    catalog: Catalog,
    names: Names,
    after: str,
    limit: int,
    shown: Shown | None = None,
    choose: Callable[[Sequence[ImageName]], Awaitable[Collection[ImageName]]] | None = None,
    turn: DeferredLock | None = None,
    pattern: str = "*",
    prefix: str = "",
) -> list[str]:
    """
    List at most ``limit`` names of images after ``after``, in ASCII order, each once.

    Reads on, a batch of names at a time, until there are ``limit`` of them.

    :param shown: tells which images to list; ``None``: all.
    :param choose: returns those of a batch to list; ``None``: all.
    :param turn: is held while a batch is read, so that lists take turns.
    :param pattern: for canonical names, see ``Catalog.images_between``.
    :param prefix: what the canonical names begin with.
    """
    segments = _segments(names)
    among = None if shown is None else shown.patterns
    if prefix:
        segments = [segment.under(prefix) for segment in segments]
    if shown is not None:
        under = [(each, prefix) for each in segments for prefix in shown.prefixes]
        segments = [segment.under(prefix) for segment, prefix in under]
    found: list[str] = []
    while len(found) < limit:
        rest = [segment.after(after) for segment in segments]
        spans = [ImageSpan(s.repository, s.start, s.end) for s in rest if s.start < s.end]
        if not spans:
            break
        wanted = limit - len(found)
        reading = partial(catalog.images_between, spans, wanted, shown, pattern, among)
        if turn is None:
            images, last = await reading()
        else:
            async with turn:
                images, last = await reading()
        if choose is not None:
            chosen = await choose(images)
            images = [image for image in images if image in chosen]
        found += [names.listed(image) for image in images]
        if last is None:
            break
        after = names.listed(last)
    return found


@frozen
class Target:
    """
    The image and the repository that the ``<name>`` of a request stands for.

    :ivar image: the canonical name; that of the local image if the name has no prefix.
    :ivar readable: the repository that answers pulls.
    :ivar namespace: the registry that a mirror's request named by ``ns``, if it named one.
    """

    name: RepositoryName
    image: ImageName
    readable: Repository
    namespace: str | None = None

    @property
    def path(self) -> str:
        """The path of the image as the client named it; a relative ``Location`` begins with it."""
        return f"/v2/{self.name}"

    def following(self, query: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """The query of a list's next page, with the ``ns`` of this request."""
        if query is None or self.namespace is None:
            return query
        return {**query, "ns": self.namespace}

    def pulled_by(self, asker: Asker, images: Collection[ImageName] | None) -> Target:
        """This target for ``asker``, who may pull only ``images`` of the candidates; None: all."""
        readable = self.readable
        if images is not None:
            readable = readable.limited_to(self.image, images)
        readable = readable.asked_by(asker)
        return self if readable is self.readable else evolve(self, readable=readable)

    @property
    def local(self) -> LocalRepository:
        """The repository that takes pushes.  :raises Unsupported: if none does."""
        return self.readable.pushable(self.name)

    @property
    def pushed(self) -> ImageName:
        """The image that takes pushes.  :raises Unsupported: if none does."""
        self.readable.pushable(self.name)
        return self.image


@frozen
class Registry:
    """
    All repositories, and the uploads under way to them.

    :ivar unprefixed: reads the names that begin with no configured repository.
    :ivar turn: is held while a batch of names is read for a list that leaves some of them out: such
        lists together take one of the catalog's readers at most.
    """

    names: Names
    repositories: Mapping[str, Repository]
    unprefixed: Unprefixed
    uploads: Uploads
    stored: Stored
    catalog: Catalog
    turn: DeferredLock = field(factory=DeferredLock, init=False, eq=False)

    def target(self, name: str, namespace: str | None = None) -> Target:
        """
        Find the image and the repository that ``name`` stands for; the image need not exist.

        :param namespace: the ``ns`` of a mirror's request: the registry that it is meant for.
        :raises NameInvalid: if ``name`` is not a name.
        :raises NameUnknown: if ``name`` belongs to no repository, or no repository answers for
            ``namespace``.
        """
        parsed = RepositoryName.parse(name)
        if namespace is not None:
            image = self.names.mirrored(parsed, namespace)
            return Target(parsed, image, self.repositories[image.repository], namespace)
        prefixed = self.names.prefixed(parsed)
        if prefixed is not None:
            return Target(parsed, prefixed, self.repositories[prefixed.repository])
        default = self.names.default
        if default is None and not self.unprefixed.remotes:
            raise self.names.unknown(parsed)
        return Target(parsed, ImageName(default or "", parsed.text), self.unprefixed)

    def meant(self, name: str, action: Action) -> Sequence[ImageName]:
        """
        The images that a request for ``action`` under ``name`` may be about, one of which has to be
        permitted.

        :raises NameInvalid, NameUnknown: see :meth:`target`.
        """
        target = self.target(name)
        if action is Action.PULL:
            return target.readable.candidates(target.image)
        return [target.image]

    def named(self, name: str, namespace: str | None = None) -> str:
        """The canonical name of an image, for logs; ``name`` itself if it has none."""
        try:
            return str(self.target(name, namespace).image)
        except RegistryError:
            return name

    async def mount(
        self,
        image: ImageName,
        digest: Digest,
        source: str | None,
        permitted: Callable[[ImageName], bool] | None = None,
        asker: Asker = NOBODY,
    ) -> bool:
        """
        Mount a blob: link it to ``image`` if the image ``source`` holds it, or, without a source,
        any image of the same repository.

        :param permitted: tells from which images a blob may be mounted; the source has to be named
            then.  ``None``: from all.
        :param asker: the client; without the proof that ``source`` wants, nothing is mounted.
        :return: whether the blob was mounted.
        """  # end-11
        try:
            holder = self.names.resolve(RepositoryName.parse(source)) if source else None
        except (NameInvalid, NameUnknown):
            return False  # of another registry, perhaps: the client pushes the blob instead
        if permitted is not None and (holder is None or not permitted(holder)):
            return False
        if holder is not None:
            lender = self.repositories[holder.repository].asked_by(asker)
            if not await lender.lends(holder):
                return False
        quota = self.uploads.quotas.get(image.repository, 0)
        return await self.catalog.mount_blob(image, digest, holder, quota) is not None

    async def put_manifest(
        self,
        target: Target,
        reference: Reference,
        tags: list[Tag],
        content: bytes,
        content_type: str | None,
        precondition: Precondition,
        actor: str,
        create_only: str = "",
    ) -> tuple[Manifest, Mapping[Tag, Digest | None]]:
        """
        Parse and store a manifest; errors: see :meth:`LocalRepository.put_manifest`.

        :param create_only: see :class:`ManifestPut`.
        :return: the manifest, and where each of the tags that were pushed pointed before; ``None``:
            there was no such tag.
        """  # end-7
        local = target.local
        manifest = await local.parse(content, content_type, reference)
        put = local.wanted(target.image, reference, tags, manifest, precondition, actor)
        put = evolve(put, create_only=create_only) if create_only else put
        return manifest, await local.put_manifest(await target.readable.adopt(put))

    async def images(
        self,
        after: str,
        limit: int,
        shown: Shown | None = None,
        asker: Asker = NOBODY,
    ) -> list[str]:
        """
        List at most ``limit`` names of images after ``after``, in ASCII order, each once.

        :param shown: tells which images to list; ``None``: all.
        :param asker: the client; images that want a proof are listed only if the client has it.
        """
        if shown is None:
            return await listed_images(self.catalog, self.names, after, limit)
        return await listed_images(
            self.catalog,
            self.names,
            after,
            limit,
            shown,
            lambda images: self.listable(images, asker),
            self.turn,
        )

    async def listable(self, images: Sequence[ImageName], asker: Asker) -> set[ImageName]:
        """Those of ``images`` whose names may be shown to ``asker`` in a list."""
        listable: set[ImageName] = set()
        for name in {image.repository for image in images}:
            its = [image for image in images if image.repository == name]
            listable |= await self.repositories[name].asked_by(asker).listable(its)
        return listable

    def exact(self) -> Registry:
        """
        This registry with one image for each name: without a repository's name before it, that of
        the default repository, whatever an upstream has.
        """
        return _Exact(*(getattr(self, each.name) for each in fields(Registry) if each.init))

    def for_operator(self) -> Registry:
        """This registry without proofs of access: the operator has the upstreams' passwords."""
        repositories = {name: each.for_operator() for name, each in self.repositories.items()}
        return evolve(self, repositories=repositories, unprefixed=self.unprefixed.for_operator())


@frozen
class _Exact(Registry):
    """See :meth:`Registry.exact`."""

    def target(self, name: str, namespace: str | None = None) -> Target:
        parsed = RepositoryName.parse(name)
        image = self.names.resolve(parsed)
        return Target(parsed, image, self.repositories[image.repository])
