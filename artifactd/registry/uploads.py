"""Upload sessions: distribution-spec, "Pushing blobs"."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol
from uuid import uuid4

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.records import UploadEnded
from artifactd.kit.budget import RECEIVE_SIZE, BufferBudget
from artifactd.kit.timers import Deadline, Timers
from artifactd.oci.errors import (
    BlobUploadUnknown,
    ChunkOutOfOrder,
    ContentTooLarge,
    DigestInvalid,
    QuotaExceeded,
    RegistryError,
    SizeInvalid,
    TooManyRequests,
    Unavailable,
)
from artifactd.oci.names import Algorithm, Digest, ImageName
from artifactd.oci.ranges import ByteRange
from artifactd.registry.content import publish
from artifactd.registry.upload_id import UploadId, UploadIds
from artifactd.settings.settings import LimitsSettings
from artifactd.store.publication import StagedBlob
from artifactd.store.uploads import (
    UploadBusy,
    UploadMisplaced,
    UploadMissing,
    UploadRevoked,
    UploadSession,
    UploadsFull,
    UploadStore,
)

_log = Logger()


@frozen
class Room:
    """
    The number of bytes of a body that are accepted.

    :ivar size: bytes.
    :ivar error: raised when more arrive.
    """

    size: int
    error: RegistryError


@implementer(IConsumer)
class Bounded:
    """
    Passes at most ``size`` bytes on to ``consumer``; then stops the producer.

    :ivar exceeded: whether more arrived.
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


class Body(Protocol):
    """
    The body of a request, while it arrives.

    :ivar length: in bytes; ``None``: not declared.
    :ivar awaits_continue: whether the client sends it only once it is asked to.
    """

    @property
    def length(self) -> int | None: ...

    @property
    def awaits_continue(self) -> bool: ...

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        Write the body to ``consumer`` as it arrives.

        Fires with the number of bytes; fails if the client disconnects before the end.
        """


SMALL = 256 * 1024
"""The most bytes of a body that is gathered in memory and stored in one turn of a thread."""

PROMPT = 0.05
"""Seconds to wait for the whole of a small body; then its session is claimed without it."""


@implementer(IConsumer, IPushProducer)
class EarlyBody:
    """
    A body that is gathered in memory until it is complete, or has turned out too large or too slow.

    A complete one can be stored in one turn of a thread.  Any other is delivered like every
    :class:`Body`, beginning with the bytes that are here.

    :param acquired: bytes acquired from ``budget``, which :meth:`release` returns.
    :ivar pieces: the bytes that have arrived, until they are delivered.
    :ivar size: bytes that have arrived.
    :ivar complete: whether nothing more comes.
    :ivar failure: the reason if the client left before the end.
    """

    awaits_continue = False

    def __init__(self, body: Body | None, budget: BufferBudget, acquired: int) -> None:
        self.length = _declared(body)
        self._budget, self._acquired = budget, acquired
        self.pieces: list[bytes] = []
        self.size = 0
        self.complete = body is None
        self.failure: Failure | None = None
        self._body = body
        self._producer: IPushProducer | None = None
        self._consumer: IConsumer | None = None
        self._gathered: Deferred[None] = Deferred()
        self._delivery: Deferred[None] | None = None
        self._delivered: Deferred[int] | None = None
        self._paused = False

    async def gather(self, clock: IReactorTime) -> None:
        """Gather what arrives within :data:`PROMPT` seconds, about :data:`SMALL` bytes at most."""
        if self._body is None:
            return
        self._delivery = self._body.deliver_to(self).addBoth(self._ended)
        if self._gathered.called:
            return
        too_slow = clock.callLater(PROMPT, self._stop_gathering)
        try:
            await self._gathered
        finally:
            if too_slow.active():
                too_slow.cancel()

    def is_whole(self, chunk: ByteRange | None) -> bool:
        """Whether the body is complete, and as long as ``chunk`` says."""
        cut = self.failure is not None
        return self.complete and (cut or chunk is None or self.size == chunk.length)

    def release(self) -> None:
        """
        Drop what is still here, which is stored or unwanted, and return the bytes to the budget.
        Further calls do nothing.
        """
        self.pieces = []
        acquired, self._acquired = self._acquired, 0
        self._budget.release(acquired)

    def check(self) -> None:
        """:raises Exception: the reason if the client left before the end."""
        if self.failure is not None:
            self.failure.raiseException()

    def deliver_to(self, consumer: IConsumer) -> Deferred[int]:
        """
        Write the gathered bytes to ``consumer``, and the rest of the body as it arrives.

        Call it once :meth:`gather` has ended.  Fires with the number of bytes; fails if the client
        disconnects before the end.
        """
        delivered: Deferred[int] = Deferred(lambda _: self._cancel())
        self._delivered, self._consumer = delivered, consumer
        consumer.registerProducer(self, True)
        pieces, self.pieces = self.pieces, []
        for piece in pieces:
            consumer.write(piece)
        self.release()
        if self.complete:
            self._tell()
        elif not self._paused and self._producer is not None:
            self._producer.resumeProducing()
        return delivered

    # The body's consumer

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = IPushProducer(producer)

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self._consumer is not None:
            self._consumer.write(data)
            return
        self.pieces.append(data)
        if self.size > SMALL:
            self._stop_gathering()

    # The producer of the consumer that it is delivered to

    def pauseProducing(self) -> None:
        self._paused = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        if self._producer is not None:
            self._producer.stopProducing()

    def _stop_gathering(self) -> None:
        if not self._gathered.called:
            if self._producer is not None:
                self._producer.pauseProducing()
            self._gathered.callback(None)

    def _ended(self, outcome: int | Failure) -> None:
        self.complete = True
        if isinstance(outcome, Failure):
            self.failure = outcome
        if not self._gathered.called:
            self._gathered.callback(None)
        if self._delivered is not None:
            self._tell()

    def _tell(self) -> None:
        if self._consumer is not None:
            self._consumer.unregisterProducer()
        if self._delivered is not None and not self._delivered.called:
            self._delivered.callback(self.size if self.failure is None else self.failure)

    def _cancel(self) -> None:
        if self._delivery is not None:
            self._delivery.cancel()


QUIET = 5.0
"""Seconds without a byte that we wait for; then other requests may write to the session."""


@implementer(IConsumer, IPushProducer)
@define(eq=False)
class Writer:
    """
    A request that writes to a session: as a consumer it passes a body on to the session.

    While it has waited for bytes for :data:`QUIET` seconds, other requests of any process may write
    to the session, since its client may be gone without a word.  If bytes come nevertheless, and no
    other request has written anything, it goes on.

    :param writing: the requests of this process that keep others from their sessions.
    """

    upload: UploadId
    _writing: dict[str, Writer]
    _timers: Timers
    _consumer: IConsumer = field(init=False)
    _session: UploadSession = field(init=False)
    _quiet: Deadline = field(init=False)
    _producer: IPushProducer | None = field(default=None, init=False)
    _paused: bool = field(default=False, init=False)
    # While other requests may write: fires when that has begun.
    _away: Deferred[None] | None = field(default=None, init=False)
    # Fires when the session is claimed again, or can't be.
    _back: Deferred[None] | None = field(default=None, init=False)
    _late: list[bytes] = field(factory=list, init=False)
    _failure: Failure | None = field(default=None, init=False)

    async def receive(self, body: Body, session: UploadSession, consumer: IConsumer) -> None:
        """
        Write ``body`` to ``consumer``, which passes it on to ``session``.

        :raises UploadBusy, UploadMissing, UploadMisplaced: if it has lost the session.
        """
        self._session, self._consumer = session, consumer
        self._quiet = self._timers.deadline(self._fell_quiet)
        try:
            await body.deliver_to(self)
        except BaseException:
            under_way = self._back or self._away
            if under_way is not None:
                await under_way.addErrback(lambda _: None)
            raise
        finally:
            self._quiet.cancel()
        if self._away is not None:
            await (self._back or self._go_back())
            if self._failure is not None:
                self._failure.raiseException()

    def keep(self) -> None:
        """Keep other requests of this process from the session."""
        self._writing[self.upload.text] = self

    def leave(self) -> None:
        """Let other requests of this process write to the session."""
        if self._writing.get(self.upload.text) is self:
            del self._writing[self.upload.text]

    def _fell_quiet(self) -> None:
        self._back = None
        self._away = Deferred.fromCoroutine(self._let_go())

    async def _let_go(self) -> None:
        await self._session.release()
        self.leave()

    def _go_back(self) -> Deferred[None]:
        back = self._back = Deferred.fromCoroutine(self._return())
        return back.addErrback(self._lost)

    def _lost(self, failure: Failure) -> None:
        self._failure = failure
        if self._producer is not None:
            self._producer.stopProducing()

    async def _return(self) -> None:
        """Claim the session again, and write to it what came meanwhile."""
        assert self._away is not None
        await self._away
        if self.upload.text in self._writing:
            raise UploadBusy(self._session.offset)
        self.keep()
        await self._session.reclaim()
        self._away = None
        late, self._late = self._late, []
        for data in late:
            self._consumer.write(data)
        if not self._paused:
            self.resumeProducing()

    # The body's consumer

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = IPushProducer(producer)
        self._quiet.start(QUIET)
        self._consumer.registerProducer(self, streaming)

    def unregisterProducer(self) -> None:
        self._producer = None
        self._quiet.stop()
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        if self._away is None:
            if not self._paused:
                self._quiet.start(QUIET)
            self._consumer.write(data)
            return
        self._late.append(data)
        if self._producer is not None:
            self._producer.pauseProducing()
        if self._back is None:
            self._go_back()

    # The session's producer

    def pauseProducing(self) -> None:
        self._paused = True
        self._quiet.stop()
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._producer is None or self._late:
            return
        if self._away is None:
            self._quiet.start(QUIET)
        self._producer.resumeProducing()

    def stopProducing(self) -> None:
        self._quiet.stop()
        if self._producer is not None:
            self._producer.stopProducing()


_RETRY_AFTER = "60"  # seconds: one of the sessions may have ended


@define
class Uploads:
    """
    Pushes blobs into images, by sessions or in one request.

    No state of a session is in this object alone, so any process can serve any step.  A session
    without bytes is nothing but its id.  Those that have bytes have a file in ``store``, whose
    length is their offset.  That a session has ended is noted in ``catalog``, where it is found if
    its id is used again.

    :param ids: makes the ids of sessions.
    :param now: the time in seconds since the epoch.
    :param clock: limits how long a small body is waited for.
    :param quotas: bytes, by the names of repositories.
    """

    catalog: Catalog
    store: UploadStore
    ids: UploadIds
    now: Callable[[], float]
    clock: IReactorTime
    limits: LimitsSettings
    quotas: Mapping[str, int]
    # The requests of this process that write to sessions: some have not claimed them yet.
    _writing: dict[str, Writer] = field(factory=dict, init=False)
    _timers: Timers = field(init=False)

    @_timers.default
    def _shared(self) -> Timers:
        return Timers(self.clock)

    async def start(
        self,
        image: ImageName,
        algorithm: Algorithm = Algorithm.SHA256,
        owner: str | None = None,
    ) -> str:
        """
        Open a session.  Returns its id, and stores nothing.

        :param owner: the client whose sessions are counted; ``None``: they are not.
        :raises TooManyRequests: if that client has too many that have bytes.
        """  # end-4a, end-4c
        await self.store.require_room()
        upload = self.ids.make(image, algorithm, owner, self.now())
        try:
            await self.store.require_owners_room(upload.text)
        except UploadsFull:
            raise self._too_many() from None
        self.catalog.upload_opened(upload.text)
        return upload.text

    async def push(self, image: ImageName, digest: Digest, body: Body | None) -> None:
        """
        Push a blob in one request.

        :raises DigestInvalid: if the body does not have ``digest``; nothing is left of it.
        :raises ContentTooLarge, QuotaExceeded: if it is larger than a blob may be, or than the
            quota has room for; also by :meth:`append` and :meth:`close`.
        """  # end-4b
        await self.store.require_room()
        room = await self._room(image, 0, _declared(body), digest)
        upload_id = str(uuid4())
        undeclared = room is not None and body is not None and body.length is None
        async with self._early(body, None, limited=undeclared) as early:
            session: UploadSession | None = None
            staged: StagedBlob | None = None
            whole = early is not None and early.is_whole(None)
            if early is not None and whole:
                early.check()
                session, staged = await self.store.close(
                    upload_id, digest.algorithm, early.pieces, None, digest, create=True
                )
                early.release()  # the catalog may be locked for long
            else:
                session = await self.store.claim(upload_id, digest.algorithm, create=True)
            try:
                if session is not None and not whole:
                    await _receive(None, session, None, early or body, room)
                await self._close(session, staged, image, digest)
            except BaseException:
                if session is not None:
                    await session.discard()
                raise
            finally:
                if session is not None:
                    await session.close()

    async def append(
        self,
        image: ImageName,
        upload_id: str,
        chunk: ByteRange | None,
        body: Body | None,
        at: int | None = None,
    ) -> int:
        """
        Append a chunk.  Returns the session's offset after it, in bytes.

        A body cut short leaves the bytes that arrived; any error leaves the old offset.

        :param chunk: where the client says the chunk belongs; ``None``: at ``at``.
        :param at: the offset at which the client was told to go on; ``None``: at the end.  A
            request without bytes may name any: nothing is appended.
        :raises BlobUploadUnknown: if ``image`` has no such session.
        :raises ChunkOutOfOrder: if the chunk does not begin at the offset, or another request is
            writing to the session.
        :raises SizeInvalid: if the body is not as long as ``chunk`` says.
        :raises TooManyRequests: if the session has no bytes yet, and its owner has too many that
            have some.
        """  # end-5
        async with (
            self._only_writer(image, upload_id) as writer,
            self._early(body, chunk, limited=self._is_limited(image)) as early,
        ):
            if early is not None and early.is_whole(chunk):
                return await self._append(writer.upload, early, _first(chunk, at, early.size))
            session = await self._claim(writer.upload, _first(chunk, at, _declared(body)))
            try:
                room = await self._room(image, session.offset, _declared(body))
                await _receive(writer, session, chunk, early or body, room, at)
                if not await session.still_there():
                    raise _unknown(upload_id)
                return session.offset
            finally:
                await session.close()

    async def close(
        self,
        image: ImageName,
        upload_id: str,
        digest: Digest,
        chunk: ByteRange | None,
        body: Body | None,
        at: int | None = None,
    ) -> None:
        """
        Append the last chunk, if any, and turn the staged bytes into a blob of ``image``.

        A session that is not there is no error if ``image`` has the blob: the client sends the
        request again because its answer was lost.

        :param chunk, at: as for :meth:`append`.
        :raises DigestInvalid, QuotaExceeded: if the bytes do not have ``digest``, or exceed the
            quota once they are here; ends the session.
        :raises BlobUploadUnknown, ChunkOutOfOrder, SizeInvalid, TooManyRequests: as for
            :meth:`append`.
        """  # end-6
        async with (
            self._unless_closed(image, digest),
            self._only_writer(image, upload_id) as writer,
            self._early(body, chunk, limited=self._is_limited(image)) as early,
        ):
            session: UploadSession | None = None
            staged: StagedBlob | None = None
            whole = early is not None and early.is_whole(chunk)
            if early is not None and whole:
                first = _first(chunk, at, early.size)
                if early.failure is not None:
                    await self._append(writer.upload, early, first)
                async with self._begun(writer.upload, first) as begins:
                    session, staged = await self.store.close(
                        *(upload_id, writer.upload.algorithm, early.pieces, first, digest),
                        create=begins,
                    )
                early.release()  # the catalog may be locked for long
            else:
                session = await self._claim(writer.upload, _first(chunk, at, _declared(body)))
            try:
                if session is not None and not whole:
                    room = await self._room(image, session.offset, _declared(body), digest)
                    await _receive(writer, session, chunk, early or body, room, at)
                try:
                    await self._close(session, staged, image, digest, upload_id)
                except (DigestInvalid, QuotaExceeded):
                    # The bytes first, which needs no room on the disk.
                    if session is not None:
                        await session.revoke()
                    if not await self._end(upload_id):
                        raise _unknown(upload_id) from None
                    raise
            finally:
                if session is not None:
                    await session.close()

    async def offset(self, image: ImageName, upload_id: str) -> int:
        """
        The number of bytes staged so far.  :raises BlobUploadUnknown: if there is no such session.
        """
        return await self._offset(await self._upload(image, upload_id))  # end-13

    async def cancel(self, image: ImageName, upload_id: str) -> None:
        """End a session.  :raises BlobUploadUnknown: if there is no such session."""
        upload = await self._upload(image, upload_id)  # end-14
        if not self._may_begin(upload):
            await self._offset(upload)  # it has bytes, or has expired
        # The bytes first, which needs no room on the disk.
        await self.store.revoke(upload_id)
        try:
            ended = await self._end(upload_id)
        except Unavailable as error:
            _log.warn(
                "the end of a cancelled upload is not noted, so that it may be begun anew if it had"
                " no bytes: {error}",
                error=error.message,
            )
            ended = True
        if not ended:
            raise _unknown(upload_id)

    async def _end(self, upload_id: str) -> bool:
        """Note that a session has ended, so that it is not begun anew; ``False``: it was noted."""
        # A request that has found it open before that may have begun it again.
        return await self.catalog.end_upload(upload_id, partial(self.store.discard_now, upload_id))

    def _release(self, staged: StagedBlob, upload_id: str) -> None:
        """Drop what the end of a session leaves; its end is noted."""
        try:
            staged.release()
        finally:
            # A late request may have begun the session again, see _end().
            self.store.discard_now(upload_id)

    def _too_many(self) -> TooManyRequests:
        return TooManyRequests(
            "this account or address has too many upload sessions open: finish some, or cancel"
            " them",
            {"limit": self.limits.user_uploads},
            {"Retry-After": _RETRY_AFTER},
        )

    async def _upload(self, image: ImageName, upload_id: str) -> UploadId:
        """:raises BlobUploadUnknown: if no session of ``image`` has had that id."""
        upload = self.ids.open(upload_id, image)
        if upload is not None:
            return upload
        record = None if "." in upload_id else await self.catalog.upload(upload_id)
        if record is None or record.image != image:
            raise _unknown(upload_id)
        return UploadId(upload_id, record.algorithm, 0.0)

    def _may_begin(self, upload: UploadId) -> bool:
        """Whether the session may get its first byte, unless it has ended."""
        return self.now() < upload.until

    async def _offset(self, upload: UploadId) -> int:
        try:
            return await self.store.offset(upload.text)
        except UploadRevoked:
            raise _unknown(upload.text) from None
        except UploadMissing:
            await self._require_unused(upload)
            return 0

    async def _require_unused(self, upload: UploadId) -> None:
        """
        Check that a session that has no file is one that was never written to.

        :raises BlobUploadUnknown: if it has ended.
        """
        if not self._may_begin(upload) or await self.catalog.is_upload_ended(upload.text):
            raise _unknown(upload.text)

    @asynccontextmanager
    async def _begun(self, upload: UploadId, first: int | None) -> AsyncIterator[bool]:
        """
        The context in which the store is asked for a session that may have no file yet.

        :param first: the offset of the bytes to come; ``None``: the end of the session.
        :returns: whether the store is to make the file if there is none.
        """
        begins = not first and self._may_begin(upload)
        try:
            yield begins
        except UploadRevoked:
            raise
        except UploadMissing:
            if begins:
                raise
            await self._require_unused(upload)
            raise _out_of_order(0) from None

    async def _require_open(self, upload: UploadId) -> None:
        """
        Check that a session whose file was just made has not ended; otherwise, remove the file.

        A session that ends after this check takes the file with it: see :meth:`_end`.
        """
        try:
            if await self.catalog.is_upload_ended(upload.text):
                raise _unknown(upload.text)
        except BaseException:
            await self.store.discard(upload.text)
            raise

    async def _claim(self, upload: UploadId, first: int | None) -> UploadSession:
        async with self._begun(upload, first) as begins:
            session = await self.store.claim(upload.text, upload.algorithm, create=begins)
        if session.begun:
            try:
                await self._require_open(upload)
            except BaseException:
                await session.close()
                raise
        return session

    def _is_limited(self, image: ImageName) -> bool:
        return bool(self.limits.blob_size or self.quotas.get(image.repository, 0))

    async def _room(
        self,
        image: ImageName,
        staged: int,
        declared: int | None,
        digest: Digest | None = None,
    ) -> Room | None:
        """
        Return how many bytes of a body are accepted; ``None``: any number.

        Called before the body is read.

        :param staged: bytes of the blob that are staged already.
        :param declared: bytes of the body, if that is known.
        :param digest: the digest of the whole blob, if it is known: a blob that ``image`` has costs
            nothing.  A blob that only other images of the repository have counts as a new one until
            its bytes are here; otherwise a client that may push to one image could find out which
            blobs the others have.
        :raises ContentTooLarge, QuotaExceeded: if the declared length is too much.
        """
        room = None
        limit = int(self.limits.blob_size)
        if limit:
            error: RegistryError = ContentTooLarge(
                f"the blob is too large: at most {limit} bytes are accepted here", {"limit": limit}
            )
            room = Room(limit - staged, error)
        quota = self.quotas.get(image.repository, 0)
        if quota:
            used = await self.catalog.repository_size(image.repository)
            held = None if digest is None else await self.catalog.blob_size(image, digest)
            left = max(quota - used, held or 0) - staged
            if room is None or left < room.size:
                more = max(left, 0) + 1 if declared is None else declared  # what it stops at
                error = QuotaExceeded(image.repository, quota, used, staged + more)
                room = Room(left, error)
        if room is not None and declared is not None and declared > room.size:
            raise room.error
        return room

    @asynccontextmanager
    async def _unless_closed(self, image: ImageName, digest: Digest) -> AsyncIterator[None]:
        """Accept that there is no such session, if ``image`` has the blob already."""
        try:
            yield
        except BlobUploadUnknown:
            if await self.catalog.promise_blob(image, digest) is None:
                raise

    @asynccontextmanager
    async def _only_writer(self, image: ImageName, upload_id: str) -> AsyncIterator[Writer]:
        """
        Keep other requests of this process from writing to the session during the context, as long
        as its client is not quiet: see :class:`Writer`.

        The claim keeps out those of other processes.
        """
        upload = await self._upload(image, upload_id)
        await self.store.require_room()
        if upload_id in self._writing:
            raise _busy(await self._offset(upload))
        writer = Writer(upload, self._writing, self._timers)
        writer.keep()
        try:
            yield writer
        except (UploadMissing, UploadEnded):
            raise _unknown(upload_id) from None
        except UploadsFull:
            raise self._too_many() from None
        except UploadBusy as busy:
            raise _busy(busy.offset) from None
        except UploadMisplaced as misplaced:
            raise _out_of_order(misplaced.offset) from None
        finally:
            writer.leave()

    @asynccontextmanager
    async def _early(
        self, body: Body | None, chunk: ByteRange | None, *, limited: bool
    ) -> AsyncIterator[EarlyBody | None]:
        """
        Gather the body in memory, if it is small and arrives at once.

        :param limited: whether the session's offset decides how much of the body may come.
        :returns: ``None`` if the session is to be claimed before the body is asked for.
        """
        length = _declared(body)
        wrong = chunk is not None and length is not None and length != chunk.length
        large = length is not None and length > SMALL
        waits = body is not None and body.awaits_continue
        # A body of unknown length may exceed SMALL by one read of the transport.
        size = SMALL + RECEIVE_SIZE if length is None else length
        if limited or wrong or waits or large or not self.store.budget.acquire_at_once(size):
            yield None
            return
        early = EarlyBody(body, self.store.budget, size)
        try:
            await early.gather(self.clock)
            yield early
        finally:
            early.release()

    async def _append(self, upload: UploadId, early: EarlyBody, first: int | None) -> int:
        if early.size:
            async with self._begun(upload, first) as begins:
                offset, begun = await self.store.append(
                    upload.text, upload.algorithm, early.pieces, first, create=begins
                )
            if begun:
                await self._require_open(upload)
        else:
            offset = await self._offset(upload)
        early.check()
        return offset

    async def _close(
        self,
        session: UploadSession | None,
        staged: StagedBlob | None,
        image: ImageName,
        digest: Digest,
        upload_id: str | None = None,
    ) -> None:
        if staged is None:
            assert session is not None  # only bytes that are staged have none
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
        size, confirm, release = staged.size, staged.confirm, staged.release
        if upload_id is not None:
            release = partial(self._release, staged, upload_id)
        quota = self.quotas.get(image.repository, 0)
        await publish(
            staged,
            self.catalog,
            lambda: self.catalog.add_blob(image, digest, size, confirm, release, upload_id, quota),
        )


def _first(chunk: ByteRange | None, at: int | None, size: int | None) -> int | None:
    """
    The offset at which a body of ``size`` bytes belongs; ``None``: at the end.

    :param size: ``None``: not known yet; the offset is where its first byte belongs, if it has one.
    """
    if chunk is not None:
        return chunk.first
    return None if size == 0 else at


def _declared(body: Body | None) -> int | None:
    return 0 if body is None else body.length


async def _receive(
    writer: Writer | None,
    session: UploadSession,
    chunk: ByteRange | None,
    body: Body | None,
    room: Room | None,
    at: int | None = None,
) -> None:
    start = session.offset
    declared = _declared(body)
    if _first(chunk, at, declared) not in (None, start):
        if chunk is not None or body is None or declared is not None or body.awaits_continue:
            raise _out_of_order(start)
        # It may turn out to have no bytes, which belong anywhere.  A client that waits for
        # 100-continue has some (RFC 9110, 10.1.1).
        room = Room(0, _out_of_order(start))
    if chunk is not None and declared is not None and declared != chunk.length:
        raise _wrong_size(chunk, declared)
    if body is not None:
        bounded = None if room is None else Bounded(IConsumer(session), room.size)
        try:
            consumer = bounded or IConsumer(session)
            if writer is None:
                await body.deliver_to(consumer)
            else:
                await writer.receive(body, session, consumer)
        finally:
            try:
                await session.flush()
            except OSError:
                # What was written of the chunk would keep the disk full.
                await session.rollback(start)
                raise
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


def _out_of_order(offset: int) -> ChunkOutOfOrder:
    return ChunkOutOfOrder(
        f"chunk out of order: the next one has to start at byte {offset}", offset
    )


def _busy(offset: int) -> ChunkOutOfOrder:
    return ChunkOutOfOrder(
        "another request is writing to this upload: ask for its status and go on there", offset
    )


def _unknown(upload_id: str) -> BlobUploadUnknown:
    return BlobUploadUnknown(
        "no such upload session here: it was closed, cancelled or timed out; start a new one",
        {"upload": upload_id},
    )
