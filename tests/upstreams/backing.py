"""What a test's upstream serves: the interface between how it answers and what it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import field, frozen

from artifactd.oci.names import Digest, Reference


class Content(Protocol):
    """Bytes to serve."""

    @property
    def size(self) -> int:
        """How many."""

    async def read(self, first: int, count: int) -> bytes:
        """``count`` bytes, at least one, from offset ``first``; never beyond the end."""


class Backing(Protocol):
    """The images of a registry; names are those that it is asked for, ``library/alpine``."""

    async def knows(self, name: str) -> bool:
        """Whether there is an image of that name."""

    async def manifest(self, name: str, reference: Reference) -> StoredManifest | None:
        """end-3."""

    async def blob(self, name: str, digest: Digest) -> Content | None:
        """end-2; ``None`` if the image does not hold it."""

    async def tags(self, name: str) -> Sequence[str]:
        """end-8: all of them, in order."""

    async def referrers(self, name: str, subject: Digest) -> Sequence[Mapping[str, Any]] | None:
        """end-12: their descriptors; ``None`` where the registry doesn't know this endpoint."""


@frozen
class Bytes:
    """Content in memory."""

    content: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.content)

    async def read(self, first: int, count: int) -> bytes:
        return self.content[first : first + count]


@frozen
class StoredManifest:
    """A manifest as a registry has it."""

    content: bytes = field(repr=False)
    media_type: str

    @property
    def digest(self) -> Digest:
        return Digest.of(self.content)
