"""How much may be pushed, and by how many sessions."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from twisted.internet.interfaces import IConsumer, IProducer
from zope.interface import implementer

from artifactd.catalog.records import Catalog
from artifactd.oci.digest import Digest
from artifactd.oci.errors import ContentTooLarge, QuotaExceeded, RegistryError
from artifactd.oci.names import ImageName


@frozen
class UploadLimits:
    """
    What ``[limits]`` and ``quota`` of the repositories say; 0, or absent: no limit.

    :ivar blob_size: bytes of a blob.
    :ivar sessions: open at the same time, of one owner.
    :ivar quotas: bytes, by the names of repositories.
    """

    blob_size: int = 0
    sessions: int = 0
    quotas: Mapping[str, int] = field(factory=dict)

    async def room(
        self,
        catalog: Catalog,
        image: ImageName,
        staged: int,
        declared: int | None,
        digest: Digest | None = None,
    ) -> Room | None:
        """
        How much may come of a body; ``None``: any amount.  Asked before a byte of it is read.

        :param staged: bytes of the blob that are here already.
        :param declared: bytes that are to come, where that is known.
        :param digest: of the whole blob, if it is known: what ``image`` has costs nothing.  What
            other images of the repository have counts as if it were new until the bytes are here:
            else whoever may push to one could ask which blobs there are in the others.
        :raises ContentTooLarge, QuotaExceeded: if what is declared is too much.
        """
        room = None
        if self.blob_size:
            room = Room(self.blob_size - staged, self._too_large())
        quota = self.quotas.get(image.repository, 0)
        if quota:
            used = await catalog.repository_size(image.repository)
            held = None if digest is None else await catalog.blob_size(image, digest)
            left = max(quota - used, held or 0) - staged
            if room is None or left < room.size:
                error = QuotaExceeded(image.repository, quota, used, staged + (declared or 0))
                room = Room(left, error)
        if room is not None and declared is not None and declared > room.size:
            raise room.error
        return room

    def _too_large(self) -> ContentTooLarge:
        return ContentTooLarge(
            f"the blob is too large: at most {self.blob_size} bytes are accepted here",
            {"limit": self.blob_size},
        )


UNLIMITED = UploadLimits()


@frozen
class Room:
    """
    :ivar size: bytes that may come.
    :ivar error: raised when more do.
    """

    size: int
    error: RegistryError


@implementer(IConsumer)
class Bounded:
    """
    Passes on to ``consumer`` what there is room for; then stops the producer.

    :ivar exceeded: whether more came.
    """

    def __init__(self, consumer: IConsumer, size: int) -> None:
        self.exceeded = False
        self._consumer = consumer
        self._left = size
        self._producer: IProducer | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        self._consumer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._producer = None
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            self._consumer.write(data)
        elif not self.exceeded:
            self.exceeded = True
            if self._producer is not None:
                self._producer.stopProducing()
