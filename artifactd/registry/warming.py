"""Warming: whole images copied into the cache before anybody pulls them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress

import msgspec
from attrs import define, frozen

from artifactd.oci.errors import ManifestUnknown
from artifactd.oci.foreign import decode_foreign, field_of, read_loosely
from artifactd.oci.manifest import INDEX_TYPES, Manifest, read_manifest
from artifactd.oci.names import Digest, ImageName, Reference, parse_reference
from artifactd.registry.content import KEPT
from artifactd.registry.mirror.fill import Fills
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.model import BlobWanted
from artifactd.registry.registry import Registry, Target

Progress = Callable[[float], object]

_object = msgspec.json.Decoder(dict[str, object])


class Platform(msgspec.Struct):
    """The platform of an image, in an index or in the image's config."""

    os: str | None = None
    architecture: str | None = None
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def fields_of(content: bytes) -> Mapping[str, object]:
    """The fields of a manifest that is here.  :raises ValueError: if it is no JSON object."""
    bounds = {"nesting": KEPT.nesting, "values": KEPT.values}
    try:
        # A fifth of the time.  No name stands twice: such a document is neither pushed nor cached.
        return decode_foreign(_object, content, **bounds)
    except ValueError:
        document = read_loosely(content, lambda _: None, **bounds)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    return document


def entries_of(fields: Mapping[str, object]) -> list[tuple[object, Platform | None]]:
    """
    The digest and platform of each entry of an index, given its fields; ``None`` for a platform
    that is absent or can't be read.  Empty if it is no index.
    """
    entries = field_of(fields, "manifests")
    found: list[tuple[object, Platform | None]] = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            platform: Platform | None = None
            with suppress(msgspec.ValidationError):
                platform = msgspec.convert(field_of(entry, "platform"), Platform | None)
            found.append((field_of(entry, "digest"), platform))
    return found


@frozen
class ImageReference:
    """An image's name with a tag or a digest; by default the tag ``latest``."""

    name: str
    reference: Reference

    @classmethod
    def parse(cls, text: str) -> ImageReference:
        """Parse ``name:tag`` or ``name@digest``.  :raises ManifestInvalid: if it is neither."""
        name, at, digest = text.partition("@")
        if at:
            return cls(name.partition(":")[0], parse_reference(digest))
        name, _, tag = text.partition(":")
        return cls(name, parse_reference(tag or "latest"))


@define(eq=False)
class Warming:
    """
    Pulls images as a client does: cached blobs are not fetched again, and broken-off fills resume.

    :param fills: by the names of the remote repositories.
    :param platforms: ``os/architecture`` or ``os/architecture/variant``; empty: all.
    :param bar: shows the progress of one blob, given its digest and size: a context manager whose
        value is called with the number of bytes that have come.
    """

    registry: Registry
    fills: Mapping[str, Fills]
    platforms: Collection[str]
    bar: Callable[[Digest, int | None], AbstractContextManager[Progress]]

    async def warm(self, image: ImageReference) -> int:
        """
        Pull one image with all its manifests and blobs.  Returns the number of blobs.

        :raises RegistryError: if the upstream lacks any of them, or has none for the platforms.
        """
        target = self.registry.target(image.name)
        return await self._manifest(target, image.reference)

    async def _manifest(self, target: Target, reference: Reference) -> int:
        found = await target.readable.manifest(target.image, reference)
        record = found.record
        content = await self.registry.stored.contents.of(record.digest)
        manifest = read_manifest(content, record.media_type, record.digest, bounds=KEPT)
        if manifest.media_type in INDEX_TYPES:
            return await self._children(target, manifest)
        repository = self.registry.repositories.get(found.image.repository)
        foreign = isinstance(repository, RemoteRepository) and repository.settings.foreign_layers
        needed = [each for each in manifest.blobs if foreign or not each.optional]
        for descriptor in needed:
            await self._blob(target, found.image, descriptor.digest)
        return len(needed)

    async def _children(self, target: Target, manifest: Manifest) -> int:
        entries = entries_of(fields_of(manifest.content))
        wanted = {digest for digest, each in entries if self._wanted(each)}
        children = [each.digest for each in manifest.children if str(each.digest) in wanted]
        if manifest.children and not children:
            raise ManifestUnknown(f"it has nothing for {' or '.join(self.platforms)}")
        count = 0
        for digest in children:
            count += await self._manifest(target, digest)
        return count

    def _wanted(self, platform: Platform | None) -> bool:
        if not self.platforms or platform is None:
            return True
        name = f"{platform.os}/{platform.architecture}"
        return name in self.platforms or f"{name}/{platform.variant}" in self.platforms

    async def _blob(self, target: Target, image: ImageName, digest: Digest) -> None:
        found = await target.readable.blob(target.image, digest, BlobWanted())
        body, shown = found.body, 0
        assert body is not None
        try:
            with self.bar(digest, found.size) as progress:
                while body.size is None or shown < body.size:
                    await body.wait(shown)
                    progress(body.available - shown)
                    if body.available == shown:
                        break  # nothing more will come
                    shown = body.available
        finally:
            body.close()
        if image.repository in self.fills:
            await self.fills[image.repository].ended(digest)
            await self.fills[image.repository].ended(digest, image)
