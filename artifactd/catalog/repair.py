"""What is asked of a catalog to see whether it and the store agree, and to mend what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import frozen

from artifactd.catalog.interfaces import ManifestRecord, nothing
from artifactd.oci.digest import Digest
from artifactd.oci.manifest import Manifest
from artifactd.oci.names import ImageName


@frozen
class Holder:
    """
    An image that has a digest.

    :ivar is_manifest: as a manifest; else as a blob.
    :ivar is_remote: it came from an upstream, where it can be had again; else it was pushed here.
    """

    image: ImageName
    is_manifest: bool
    is_remote: bool


@frozen
class ListedBlob:
    """
    Bytes that the catalog lists; ``size`` in bytes.

    :ivar lost_at: since when they are known to be lost, in seconds since the epoch, or ``None``.
    """

    digest: Digest
    size: int
    lost_at: float | None


@frozen
class ListedManifest:
    """
    A manifest of an image as the catalog has it.

    :ivar position: where to go on behind it.
    :ivar entries: what it holds: digests, and whether as a manifest.
    :ivar absent: those of them that the image does not have, or that are lost.
    :ivar is_lost: whether its own bytes are.
    """

    position: int
    image: ImageName
    is_remote: bool
    record: ManifestRecord
    entries: frozenset[tuple[Digest, bool]]
    absent: frozenset[Digest]
    is_lost: bool


@frozen
class Slip:
    """
    A row that contradicts others.

    :ivar repairable: whether :meth:`RepairCatalog.mend` puts it right.
    """

    kind: str
    name: str
    text: str
    repairable: bool


class RepairCatalog(Protocol):
    """The part of the catalog that scrubbing and ``artifactd fsck`` use, as ``Catalog`` is."""

    # -- damage

    async def lose_blob(self, digest: Digest, is_so: Callable[[], bool]) -> bool:
        """
        Inside a write transaction, in which nobody publishes or removes: if ``is_so``, note that
        the bytes of ``digest`` are lost; whether it was.  To every reader they are not here then,
        until they are published again.
        """

    async def take_out(self, digest: Digest, move: Callable[[], bool]) -> bool:
        """
        Inside a write transaction: ``move`` the bytes of ``digest`` if no row says that they are
        here; what ``move`` said.
        """

    async def is_lost(self, digest: Digest) -> bool:
        """Whether ``digest`` is listed, and its bytes are noted as lost."""

    async def restore_blob(
        self, digest: Digest, confirm: Callable[[], None], release: Callable[[], None] = nothing
    ) -> None:
        """Bytes that were lost are published again; as ``Catalog.add_blob``, for who had them."""

    async def holders(self, digest: Digest, limit: int) -> Sequence[Holder]:
        """
        Who has ``digest``, lost or not; at most ``limit``: by turns one who pushed it, the first,
        and one from an upstream, as long as there are both.
        """

    async def drop_lost(self, digest: Digest) -> int:
        """
        Take a lost blob or manifest out of the images of upstreams, so that it is fetched again
        when it is wanted; from how many.
        """

    # -- checking

    async def integrity(self) -> Sequence[str]:
        """What is wrong with the database itself; each a line."""

    async def listed_blobs(self, after: str, limit: int) -> Sequence[ListedBlob]:
        """In the order of their digests' text, those behind ``after``, at most ``limit``."""

    async def is_absent(self, digest: Digest, is_there: Callable[[], bool]) -> bool:
        """
        Whether ``digest`` is listed, not known as lost, and not there: seen inside a write
        transaction, in which nobody publishes or removes.
        """

    async def listed_manifests(self, after: int, limit: int) -> Sequence[ListedManifest]:
        """Those behind the position ``after``, at most ``limit``."""

    async def rebuild_manifest(self, image: ImageName, manifest: Manifest) -> bool:
        """Make the rows of a manifest of ``image`` anew; whether it still has it."""

    async def correct_size(self, digest: Digest, size: int) -> None:
        """Bytes that have their digest are ``size`` of them, whatever the row says."""

    async def slips(self, limit: int) -> Sequence[Slip]:
        """Rows that contradict others; at most ``limit`` of each kind."""

    async def mend(self) -> None:
        """Put right what can be: leases, and what waits for collection."""
