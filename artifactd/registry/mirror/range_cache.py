"""
A cache of ranges of blobs whose other bytes are not here, as lazy clients read them.

The bytes of a part are unverified, so only a range with an explicit start and end is answered from
it, and only to clients of the same remote repository.  A fill takes over the parts of its blob.
"""

from __future__ import annotations

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.kit.deferreds import Interrupt, SingleFlight, Stopped
from artifactd.kit.streams import Bounded
from artifactd.oci.names import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.registry.mirror.fill import FillSource, pause
from artifactd.registry.mirror.follower import Follower, Progress, Share, SharedFile
from artifactd.store.blobs import OpenBlob
from artifactd.store.files import OpenFile
from artifactd.store.fills import EXTENT, ExtentSession, FillInfo, FillState, FillStore
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from artifactd.upstream.interfaces import BlobBody

_log = Logger()


class NoRanges(Exception):
    """The upstream does not serve ranges."""


@define(eq=False)
class _Part:
    """
    A part that is being fetched; ``progress`` counts in offsets of the blob.

    When its last reader leaves, it is fetched to its end only if at most 1 MiB is missing.
    """

    progress: Progress
    file: SharedFile
    span: ByteRange
    interrupt: Interrupt = field(factory=Interrupt, init=False)
    _readers: int = field(default=1, init=False)  # until all who wait for its beginning are told

    def reader(self, span: ByteRange) -> OpenBlob:
        self._readers += 1
        return Follower(self.progress, Share(self.file.share(), self.leave), span, hold=False)

    def leave(self) -> None:
        self._readers -= 1
        if not self._readers and self.span.last - self.progress.written >= EXTENT:
            self.interrupt.stop()


@frozen
class _Work:
    """The fetching of one part; ``body`` is the upstream's first answer."""

    source: FillSource
    info: FillInfo
    span: ByteRange
    session: ExtentSession
    part: _Part
    body: BlobBody


@define(eq=False)
class Parts:
    """
    The parts that this process is fetching for one remote repository.

    :param resumes: how often in a row a part may be resumed without a byte more.
    :ivar ended: how many have ended.
    """

    store: FillStore
    resumes: int
    clock: IReactorTime
    _parts: dict[tuple[Digest, ByteRange], _Part] = field(factory=dict, init=False)
    _running: dict[Deferred[None], Interrupt] = field(factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)
    ended: int = field(default=0, init=False)
    _beginning: SingleFlight[tuple[FillSource, ByteRange], _Work] = field(
        factory=SingleFlight, init=False
    )

    async def stored(self, digest: Digest, size: int, span: ByteRange) -> OpenBlob | None:
        """
        Open the bytes ``span`` of a blob of ``size`` bytes if an earlier part, or the fill of
        another process, has fetched them.
        """
        file = await self.store.find_extent(digest, span, size)
        file = file or await self._passed(digest, size, span)
        if file is None:
            return None
        return Follower(Progress(size, True, span.last + 1), SharedFile(file), span, hold=False)

    async def _passed(self, digest: Digest, size: int, span: ByteRange) -> OpenFile | None:
        found = await self.store.view(digest)
        if found is None:
            return None
        view, info = found
        try:
            state, written = view.look()
            fits = info is None or info.size in (None, size)
            passed = fits and state is not FillState.FAILED and written > span.last
            # A power cut may have damaged an abandoned fill, and no process is about to verify it.
            if passed and not await self._is_left(digest):
                return view
        except BaseException:
            view.close()
            raise
        view.close()
        return None

    async def _is_left(self, digest: Digest) -> bool:
        session = await self.store.claim(digest, create=False)
        if session is not None:
            await session.close()
        return session is not None

    def under_way(self, digest: Digest, size: int, span: ByteRange) -> OpenBlob | None:
        """
        Return a reader of a part under way, of a blob of ``size`` bytes, that covers ``span``; or
        ``None``.
        """
        for (coming, covered), part in self._parts.items():
            covers = covered.first <= span.first and span.last <= covered.last
            fits = covers and part.progress.size in (None, size)
            if coming == digest and fits and not part.interrupt.stopped:
                return part.reader(span)
        return None

    def is_asked_for(self, source: FillSource, span: ByteRange) -> bool:
        """Whether :meth:`fetch` would join a request that is under way."""
        return self._beginning.under_way((source, span))

    async def fetch(self, source: FillSource, info: FillInfo, span: ByteRange) -> OpenBlob:
        """
        Request ``span`` from the upstream; returns a reader as soon as the answer begins.

        Requests for the same span are a single flight.

        :raises NoRanges: if the upstream answers with the whole blob.
        :raises Stopped: after :meth:`stop`.
        :raises UpstreamError: if the upstream doesn't answer.
        :raises OSError: if there is no room for it.
        """
        begun = await self._beginning.join(
            (source, span), lambda: self._ask(source, info, span), self._start
        )
        return begun.part.reader(span)

    async def _ask(self, source: FillSource, info: FillInfo, span: ByteRange) -> _Work:
        await self.store.require_room()
        body = await source.open(span.first, span.last, info.validator)
        if self._stopping:
            body.abort()
            raise Stopped("the daemon is shutting down")
        if body.first != span.first or (body.size or info.size) != info.size:
            body.abort()
            raise NoRanges(body.host)
        try:
            session, file = await self._begin(source.digest, span, info)
        except BaseException:
            body.abort()
            raise
        part = _Part(Progress(info.size, True, span.first), SharedFile(file), span)
        session.watch(part.progress.grow)
        self._parts[source.digest, span] = part
        return _Work(source, info, span, session, part, body)

    def _start(self, work: _Work) -> None:
        """Begin to fetch, once all waiters of the flight have their readers."""
        if self._stopping:
            work.part.interrupt.stop()
        work.part.leave()
        running = Deferred.fromCoroutine(self._run(work))
        self._running[running] = work.part.interrupt
        running.addBoth(lambda _: self._running.pop(running))

    async def stop(self) -> None:
        """Stop all fetching and wait for its end; nothing begins afterwards."""
        self._stopping = True
        for interrupt in list(self._running.values()):
            interrupt.stop()
        await DeferredList(list(self._running), consumeErrors=True)

    async def _begin(
        self, digest: Digest, span: ByteRange, info: FillInfo
    ) -> tuple[ExtentSession, OpenFile]:
        session = await self.store.add_extent(digest, span.first, info)
        try:
            return session, session.reader()
        except FileNotFoundError:
            await session.close()
            raise NoRanges("a fill has just brought the whole blob") from None
        except BaseException:
            await session.close()
            raise

    async def _run(self, work: _Work) -> None:
        full = False
        try:
            try:
                await self._fetch_all(work)
            except Stopped:
                await work.session.record()
                raise
        except Exception as error:
            if not isinstance(error, UpstreamError | OSError | NoRanges | Stopped):
                _log.failure("a part of {digest} failed", digest=work.source.digest)
            work.part.progress.fail(error)
            full = isinstance(error, OSError)
        finally:
            # Removed first: no new reader may open a file that is about to be closed.
            key = work.source.digest, work.span
            if self._parts.get(key) is work.part:
                del self._parts[key]
            self.ended += 1
            work.part.file.close()
            await work.session.close()
            if full:
                await self.store.discard(work.source.digest)  # a full disk must not be kept full

    async def _fetch_all(self, work: _Work) -> None:
        session, failures, body = work.session, 0, work.body
        coming: BlobBody | None = body
        while True:
            before = session.written
            try:
                body = coming or await self._open(work)
                coming = None
                await self._deliver(work, body)
                if session.written > work.span.last:
                    break
                raise Unreachable(f"{body.host} ends before the range does")
            except Unreachable as error:
                failures = 1 if session.written > before else failures + 1
                if failures > self.resumes:
                    raise
                _log.warn("{host}: {reason}", host=body.host, reason=error.reason)
                await work.part.interrupt.wait(deferLater(self.clock, pause(failures)))
        await session.record()

    async def _open(self, work: _Work) -> BlobBody:
        body = await work.part.interrupt.wait_uncancelled(
            lambda: work.source.open(work.session.written, work.span.last, work.info.validator),
            lambda body: body.abort(),
        )
        if body.first != work.session.written:
            body.abort()
            raise NoRanges(body.host)
        return body

    async def _deliver(self, work: _Work, body: BlobBody) -> None:
        try:
            bounded = Bounded(
                IConsumer(work.session), lambda: work.session.offset, work.span.last + 1
            )
            await work.part.interrupt.wait(body.deliver_to(bounded))
        finally:
            await work.session.flush()
