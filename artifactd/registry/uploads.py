"""Upload sessions: distribution-spec, "Pushing blobs"."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import uuid4

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer
from zope.interface import implementer

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import UploadRecord
from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.errors import (
    BlobUploadUnknown,
    ChunkOutOfOrder,
    ContentTooLarge,
    DigestInvalid,
    QuotaExceeded,
    RegistryError,
    SizeInvalid,
)
from artifactd.oci.names import ImageName
from artifactd.oci.ranges import ByteRange
from artifactd.registry.content import publish
from artifactd.store.uploads import UploadBusy, UploadMissing, UploadSession, UploadStore

# How much may be pushed, and by how many sessions.


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


_REMEMBERED = 1024  # sessions


class Body(Protocol):
    """The body of a request, while it arrives.  ``length`` in bytes; ``None``: not declared."""

    @property
    def length(self) -> int | None: ...

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """Deliver all of it; fires with the number of bytes, fails if the peer goes away."""


@define
class Uploads:
    """
    Pushing blobs into images, by sessions or at once.

    Nothing of a session is in this object alone: the record is in ``catalog``, the bytes in
    ``store``, so any process can serve any step.

    :param now: the time in seconds since the epoch.
    """

    catalog: Catalog
    store: UploadStore
    now: Callable[[], float] = time.time
    limits: UploadLimits = UNLIMITED
    # Sessions begun here lately.  A record never changes, and a session that has ended anywhere
    # has no bytes in the store, which every step asks.
    _begun: OrderedDict[str, UploadRecord] = field(factory=OrderedDict, init=False)

    async def start(
        self,
        image: ImageName,
        algorithm: Algorithm = Algorithm.SHA256,
        owner: str | None = None,
    ) -> str:
        """
        end-4a, end-4c: open a session; its id, a UUID.

        :param owner: whose sessions are counted; ``None``: they are not.
        :raises TooManyRequests: if he has too many.
        """
        upload_id = str(uuid4())
        record = UploadRecord(upload_id, image, algorithm, self.now(), owner)
        await self.catalog.add_upload(
            record, lambda: self.store.create(upload_id), self.limits.sessions
        )
        self._begun[upload_id] = record
        if len(self._begun) > _REMEMBERED:
            self._begun.popitem(last=False)
        return upload_id

    async def push(self, image: ImageName, digest: Digest, body: Body | None) -> None:
        """
        end-4b: a blob in one request.

        :raises DigestInvalid: if the body does not have ``digest``; nothing is left of it.
        :raises ContentTooLarge, QuotaExceeded: if it is larger than a blob may be, or than the
            quota has room for; also by :meth:`append` and :meth:`close`.
        """
        room = await self.limits.room(self.catalog, image, 0, _declared(body), digest)
        session = await self.store.begin(str(uuid4()), digest.algorithm)
        try:
            await _receive(session, None, body, room)
            await self._close(session, image, digest)
        except BaseException:
            await session.discard()
            raise
        finally:
            await session.close()

    async def append(
        self, image: ImageName, upload_id: str, chunk: ByteRange | None, body: Body | None
    ) -> int:
        """
        end-5: append a chunk; the session's offset after it, in bytes.

        A body cut short leaves the bytes that arrived; any error leaves the old offset.

        :param chunk: where the client says the chunk belongs; ``None``: at the end.
        :raises BlobUploadUnknown: if ``image`` has no such session.
        :raises ChunkOutOfOrder: if ``chunk`` does not begin at the offset, or another request is
            writing to the session.
        :raises SizeInvalid: if the body is not as long as ``chunk`` says.
        """
        record = await self._record(image, upload_id)
        async with self._claimed(upload_id, record.algorithm) as session:
            room = await self.limits.room(self.catalog, image, session.offset, _declared(body))
            await _receive(session, chunk, body, room)
            if not await session.still_there():
                raise _unknown(upload_id)
            return session.offset

    async def close(
        self,
        image: ImageName,
        upload_id: str,
        digest: Digest,
        chunk: ByteRange | None,
        body: Body | None,
    ) -> None:
        """
        end-6: append the last chunk, if any, and turn what is staged into a blob of ``image``.

        :raises DigestInvalid, QuotaExceeded: if the bytes do not have ``digest``, or exceed the
            quota once they are here; ends the session.
        :raises BlobUploadUnknown, ChunkOutOfOrder, SizeInvalid: as for :meth:`append`.
        """
        record = await self._record(image, upload_id)
        async with self._claimed(upload_id, record.algorithm) as session:
            room = await self.limits.room(
                self.catalog, image, session.offset, _declared(body), digest
            )
            await _receive(session, chunk, body, room)
            try:
                await self._close(session, image, digest, upload_id)
            except (DigestInvalid, QuotaExceeded):
                await self.catalog.delete_upload(upload_id)
                await session.discard()
                raise

    async def offset(self, image: ImageName, upload_id: str) -> int:
        """end-13: bytes staged so far.  :raises BlobUploadUnknown: if there is no such session."""
        await self._record(image, upload_id)
        try:
            return await self.store.offset(upload_id)
        except UploadMissing:
            raise _unknown(upload_id) from None

    async def cancel(self, image: ImageName, upload_id: str) -> None:
        """end-14: end a session.  :raises BlobUploadUnknown: if there is no such session."""
        await self._record(image, upload_id)
        if not await self.catalog.delete_upload(upload_id):
            raise _unknown(upload_id)
        await self.store.discard(upload_id)

    async def _record(self, image: ImageName, upload_id: str) -> UploadRecord:
        record = self._begun.get(upload_id) or await self.catalog.upload(upload_id)
        if record is None or record.image != image:
            raise _unknown(upload_id)
        return record

    @asynccontextmanager
    async def _claimed(self, upload_id: str, algorithm: Algorithm) -> AsyncIterator[UploadSession]:
        try:
            session = await self.store.claim(upload_id, algorithm)
        except UploadMissing:
            raise _unknown(upload_id) from None
        except UploadBusy as busy:
            raise ChunkOutOfOrder(
                "another request is writing to this upload: ask for its status and go on there",
                busy.offset,
            ) from None
        try:
            yield session
        finally:
            await session.close()

    async def _close(
        self, session: UploadSession, image: ImageName, digest: Digest, upload_id: str | None = None
    ) -> None:
        actual = await session.digest(digest.algorithm)
        if actual != digest:
            raise DigestInvalid(
                "the uploaded bytes do not have the digest given: push the blob again",
                {"digest": str(digest), "actual": str(actual), "size": session.offset},
            )
        try:
            staged = await session.stage(digest)
        except UploadMissing:
            raise _unknown(session.id) from None
        await publish(
            staged,
            self.catalog,
            lambda: self.catalog.add_blob(
                image,
                digest,
                staged.size,
                staged.confirm,
                staged.release,
                upload_id,
                self.limits.quotas.get(image.repository, 0),
            ),
        )


def _declared(body: Body | None) -> int | None:
    return 0 if body is None else body.length


async def _receive(
    session: UploadSession, chunk: ByteRange | None, body: Body | None, room: Room | None
) -> None:
    start = session.offset
    declared = _declared(body)
    if chunk is not None:
        if chunk.first != start:
            raise ChunkOutOfOrder(
                f"chunk out of order: the next one has to start at byte {start}", start
            )
        if declared is not None and declared != chunk.length:
            raise _wrong_size(chunk, declared)
    if body is not None:
        bounded = None if room is None else Bounded(IConsumer(session), room.size)
        try:
            await body.deliver_to(bounded or IConsumer(session))
        finally:
            await session.flush()
        if room is not None and bounded is not None and bounded.exceeded:
            await session.rollback(start)
            raise room.error
    received = session.offset - start
    if chunk is not None and received != chunk.length:
        await session.rollback(start)
        raise _wrong_size(chunk, received)


def _wrong_size(chunk: ByteRange, actual: int) -> SizeInvalid:
    return SizeInvalid(
        "the body is not as long as Content-Range says",
        {"Content-Range": f"{chunk.first}-{chunk.last}", "expected": chunk.length, "got": actual},
    )


def _unknown(upload_id: str) -> BlobUploadUnknown:
    return BlobUploadUnknown(
        "no such upload session here: it was closed, cancelled or timed out; start a new one",
        {"upload": upload_id},
    )
