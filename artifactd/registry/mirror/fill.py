"""
The fill: one download of a blob into the store, which all clients of the blob follow.

A fill does not depend on any one client: architecture.md, "Pull-through: the fill".
"""

from __future__ import annotations

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.kit.deferreds import Interrupt, Stopped
from artifactd.kit.streams import Bounded
from artifactd.oci.errors import BadGateway, RegistryError
from artifactd.oci.names import Digest, ImageName
from artifactd.oci.ranges import ByteRange
from artifactd.registry.content import publish
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.mirror.follower import HELD, Follower, Progress, Share, SharedFile
from artifactd.registry.model import BlobFound, BlobWanted, Provenance
from artifactd.settings.remote import RemoteSettings
from artifactd.store.fills import (
    Contradicted,
    FillInfo,
    FillSession,
    FillState,
    FillStore,
    FillView,
)
from artifactd.upstream.errors import LoginRefused, RangeRefused, Throttled
from artifactd.upstream.http.errors import EndedByClosing, Unreachable, UpstreamError
from artifactd.upstream.interfaces import BlobBody, Upstream

# Seconds before the first resumption, and the factor for each further one without a byte more.
# Five resumptions outlast the pause of the circuit breaker.
_BACKOFF = 0.1
_SLOWER = 4.0
_LONGEST_WAIT = 30.0
# Errors that may pass by themselves; a token service may be down for a moment, too.
_PASSING = (Unreachable, Throttled, LoginRefused)


class AlreadyHere(Stopped):
    """The fill is not needed: another process has done it, or a client has pushed the blob."""


@frozen
class FillSource:
    """
    The source of a fill's bytes: a blob under the name of one upstream image.

    :ivar store: the store of the fill, if the bytes belong to ``image`` alone; ``None``: it is that
        of the repository.
    """

    upstream: Upstream
    image: ImageName
    digest: Digest
    store: FillStore | None = None

    @property
    def owner(self) -> ImageName | None:
        """The image to which the bytes belong alone; ``None``: there is none."""
        return None if self.store is None else self.image

    async def check(self, size: int | None) -> int | None:
        """
        Ask for the blob's size.  Returns it in bytes; ``None`` if the upstream doesn't say it.

        :param size: the bytes that it is known to have, or ``None``.
        :raises UpstreamError: if it is refused under this name.
        """
        return (await self.upstream.blob(self.image.image, self.digest, size)).size

    async def open(
        self, first: int = 0, last: int | None = None, validator: str | None = None
    ) -> BlobBody:
        """
        Request bytes ``first`` to ``last`` (inclusive; ``None``: to the end) of the blob.

        :param validator: sent as ``If-Range``.
        :raises UpstreamError: if the upstream does not give them.
        """
        return await self.upstream.open_blob(self.image.image, self.digest, first, last, validator)


class Corrupt(Exception):
    """The upstream's bytes do not have the digest of the blob, or contradict each other."""


def pause(failures: int) -> float:
    """Seconds to wait after ``failures`` in a row."""
    return min(_BACKOFF * _SLOWER ** (failures - 1), _LONGEST_WAIT)


@define(eq=False)
class Fetching:
    """
    Fetches the bytes of a claimed fill, and resumes whenever the upstream breaks off.

    :param resumes: how often in a row to resume without a byte more.
    :ivar host: the host that has sent the last bytes.
    """

    source: FillSource
    session: FillSession
    progress: Progress
    counters: RepositoryCounters
    interrupt: Interrupt
    clock: IReactorTime
    resumes: int
    host: str = field(init=False)
    _failures: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.host = self.source.upstream.name

    async def run(self) -> None:
        """
        Fetch all bytes of the blob.

        :raises UpstreamError: if the upstream refuses the blob, or fails too often.
        :raises Corrupt: if the upstream contradicts itself.
        :raises Contradicted, OSError: as ``FillSession.flush``.
        :raises Stopped: if it was stopped.
        """
        while True:
            before = self.session.written
            try:
                if await self._go_on():
                    return
                if self.session.written == before:
                    raise Unreachable(f"{self.host} ends before the blob does")
                self._failures = 0
            except UpstreamError as error:
                await self._resume(error, progressed=self.session.written > before)

    @property
    def _size(self) -> int | None:
        return None if self.session.info is None else self.session.info.size

    async def _resume(self, error: UpstreamError, *, progressed: bool) -> None:
        """Wait before the next resumption, or raise ``error`` if there is none."""
        # Clients that still wait for the answer to begin are told the error at once.
        if not (self.progress.answered and isinstance(error, _PASSING)):
            raise error
        self._failures = 1 if progressed else self._failures + 1
        wait = max(pause(self._failures), error.retry_after or 0.0)
        if not isinstance(error, Throttled):
            wait = min(wait, _LONGEST_WAIT)
        if self._failures > self.resumes or wait > _LONGEST_WAIT:
            raise error
        _log.warn(
            "{image}@{digest} goes on at byte {at}: {reason}",
            image=self.source.image,
            digest=self.source.digest,
            at=self.session.written,
            reason=error.reason,
        )
        self.counters.resumed.inc()
        await self.interrupt.wait(deferLater(self.clock, wait))

    async def _go_on(self) -> bool:
        """Fetch some bytes.  Returns whether the blob is complete."""
        session = self.session
        while await session.take_extents(self._size):
            pass  # each a turn of a thread
        if self._size is not None and session.written >= self._size:
            await self._admitted()
            return True
        until = await session.next_extent()
        try:
            body = await self._open(until)
        except RangeRefused:
            if self._size is not None or not session.written:
                raise
            # The size was unknown; there are no more bytes, so this is the size.
            await session.describe(FillInfo(session.written))
            self.progress.answer(session.written)
            return True
        try:
            await self._begin(body)
        except BaseException:
            body.abort()
            raise
        await self._deliver(body)
        if self._size is None and (body.first == 0 or until is None):
            await session.describe(FillInfo(session.written))
        return session.written == self._size

    async def _open(self, until: int | None) -> BlobBody:
        info = self.session.info
        return await self.interrupt.wait_uncancelled(
            lambda: self.source.open(
                self.session.written,
                None if until is None else until - 1,
                None if info is None else info.validator,
            ),
            lambda body: body.abort(),
        )

    async def _admitted(self) -> None:
        """Ask the upstream for permission where all bytes are here before it has answered."""
        if not self.progress.answered:
            told = await self.interrupt.wait_uncancelled(lambda: self.source.check(self._size))
            self._check_size(told)
            self.progress.answer(self._size)

    async def _begin(self, body: BlobBody) -> None:
        """Check and note the upstream's answer."""
        session = self.session
        self.host = body.host
        if body.first not in (0, session.written):
            raise Unreachable(f"{body.host} answers another range than it was asked for")
        self._check_size(body.size)
        info = FillInfo(self._size if body.size is None else body.size, body.validator)
        if info != session.info:
            await session.describe(info)
        if body.first < session.written:
            # No ranges, or another validator: all of it comes again and is compared with the file.
            session.restart()
        self.progress.answer(info.size)

    def _check_size(self, told: int | None) -> None:
        if told is None:
            return
        if self._size is not None and told != self._size:
            raise Corrupt(f"it has {told} bytes now, and had {self._size} before")
        if self.session.written > told:
            raise Corrupt(f"it has {told} bytes, and {self.session.written} have come before")

    async def _deliver(self, body: BlobBody) -> None:
        try:
            bounded = Bounded(IConsumer(self.session), lambda: self.session.offset, self._size)
            await self.interrupt.wait(body.deliver_to(bounded))
        except EndedByClosing:
            if await self.session.computed() != self.source.digest:
                raise
        finally:
            # An error of the disk is raised rather than what it did to the connection.
            await self.session.flush()
        if self._size is not None and self.session.written > self._size:
            raise Corrupt(f"more than {self._size} bytes have come")
        if not self.session.compared:
            raise Unreachable(f"{body.host} ends before the blob does")


# Seconds between two looks at the fill of another process; every tenth look also tries to claim it.
_LOOK = 0.02
_LOOKS_PER_CLAIM = 10
# Looks until the row of a verified blob is given up: its bytes are synced before the row.
_LOOKS_FOR_ROW = 1500

UNATTENDED_FILLS = 8
"""Fills of one repository that go on at the same time without a client."""
UNATTENDED_SHARE = 4
"""Those fills may fetch ``size_cap`` divided by this number in :data:`UNATTENDED_SECONDS`."""
UNATTENDED_SECONDS = 600.0
"""Longer than eviction spares what was just fetched."""

_log = Logger()


@frozen
class FillProgress:
    """
    How far a fill is, in bytes.

    :ivar image: the image that it was begun for.
    :ivar size: of the blob; ``None`` while it is unknown.
    :ivar written: how many bytes are here.
    :ivar clients: how many follow it in this process.
    """

    image: str
    digest: str
    size: int | None
    written: int
    clients: int


@define(eq=False)
class Fill:
    """
    One fill as one process sees it: it runs here, or in another process and is followed.

    :ivar unattended: bounds what fills fetch that no client follows.
    :ivar lost: whether the catalog lists the blob already, though its bytes are not here.
    :ivar images: the images that hold the blob afterwards.
    :ivar progress: the state that the followers see.
    """

    source: FillSource
    store: FillStore
    catalog: Catalog
    remote: RemoteCatalog
    counters: RepositoryCounters
    settings: RemoteSettings
    clock: IReactorTime
    unattended: Unattended
    lost: bool = False
    images: set[ImageName] = field(init=False)
    progress: Progress = field(factory=Progress, init=False)
    _interrupt: Interrupt = field(factory=Interrupt, init=False)
    _file: SharedFile | None = field(default=None, init=False)
    _interested: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.images = {self.source.image}

    # -- for clients

    async def ready(self) -> None:
        """
        Wait until the upstream has begun to answer.

        :raises Exception: the error that the fill has ended with.
        """
        await self.begun()
        if self.progress.failure is not None:
            raise self.progress.failure

    async def begun(self) -> None:
        """Wait until the upstream has begun to answer, or the fill has ended."""
        while not (self.progress.answered or self.progress.ended):
            await self.progress.change()

    async def larger(self, size: int) -> None:
        """
        Wait until the blob is known to have more than ``size`` bytes, or is verified.

        :raises Exception: the error that the fill has ended with.
        """
        while not (self.progress.ended or self.progress.written > size):
            await self.progress.change()
        if self.progress.failure is not None:
            raise self.progress.failure

    async def verified(self) -> None:
        """
        Wait until the blob is verified.  :raises Exception: the error that the fill has ended with.
        """
        while not self.progress.ended:
            await self.progress.change()
        if self.progress.failure is not None:
            raise self.progress.failure

    def follower(self, span: ByteRange | None, *, hold: bool) -> Follower:
        """Return a reader of the blob.  Await :meth:`ready` first."""
        assert self._file is not None
        self.join()
        return Follower(self.progress, Share(self._file.share(), self.leave), span, hold)

    def join(self) -> None:
        """Count one more client, until :meth:`leave`.  Followers are counted without this."""
        self._interested += 1
        self.unattended.discard(self)

    def leave(self) -> None:
        """
        Count one client less.  When the last one leaves, the fill goes on or stops: see
        ``finish_fills`` and :class:`Unattended`.
        """
        self._interested -= 1
        if self._interested or self.progress.ended:
            return
        if not (self.settings.finish_fills and self.unattended.admits(self)):
            self.stop()

    @property
    def stopped(self) -> bool:
        """
        Whether the fill ends unfinished: a new client has to wait for its end and begin another.
        """
        return self._interrupt.stopped

    def stop(self) -> None:
        """
        Stop the fill; the bytes stay in the store, and the next fill of the blob resumes there.
        """
        self._interrupt.stop()

    @property
    def state(self) -> FillProgress:
        """How far the fill is."""
        progress, source = self.progress, self.source
        return FillProgress(
            str(source.image), str(source.digest), progress.size, progress.written, self._interested
        )

    # -- the fill of this process

    async def run(self) -> None:
        """Run until the blob is verified or the fill has failed; raises nothing."""
        try:
            await self.store.require_room()
            session = await self.store.claim(self.source.digest)
            while session is None:
                session = await self._follow()
                if session is None and self.progress.verified:
                    return
            await self._fill(session)
        except Exception as error:
            self._failed(error)
        finally:
            self.unattended.discard(self)
            if self._file is not None:
                self._file.close()

    def _failed(self, error: Exception) -> None:
        blob = f"{self.source.image}@{self.source.digest}"
        if not isinstance(error, UpstreamError | OSError | Corrupt | Stopped | RegistryError):
            _log.failure("the fill of {blob} failed", blob=blob)
        elif isinstance(error, Corrupt) or (
            self.progress.answered and not isinstance(error, Stopped)
        ):
            _log.error("the fill of {blob} failed: {error}", blob=blob, error=error)
        self.progress.fail(error)

    async def _fill(self, session: FillSession) -> None:
        fetching = Fetching(
            self.source,
            session,
            self.progress,
            self.counters,
            self._interrupt,
            self.clock,
            self.settings.resumes,
        )
        try:
            self._attach(SharedFile(session.reader()))
            session.watch(self.progress.grow)
            self.progress.grow(session.written)
            try:
                if not (session.written or self.lost):
                    await self._await_row(session)
                await fetching.run()
                await self._verify(session)
            except (Corrupt, Contradicted, RangeRefused) as error:
                self.counters.corrupt.inc()
                await session.discard()
                raise Corrupt(
                    f"{fetching.host} sent wrong bytes for {self.source.digest}: {error}"
                ) from error
            except (UpstreamError, Stopped):
                if session.info is None and not session.written:
                    await session.discard()  # no byte and no size is worth keeping
                raise
            except OSError:
                await session.discard()  # a full disk must not be kept full
                raise
        finally:
            await session.close()

    async def _await_row(self, session: FillSession) -> None:
        """Wait for a publication under way.  :raises AlreadyHere: if the blob has a row now."""
        digest, looks = self.source.digest, 0
        while looks < _LOOKS_FOR_ROW and await self.store.is_staged(digest):
            looks += 1
            await self._interrupt.wait(deferLater(self.clock, _LOOK))
        if looks and await self._is_listed():
            await session.discard()
            raise AlreadyHere("it is in the store")

    async def _verify(self, session: FillSession) -> None:
        computed = await session.computed()
        if computed != self.source.digest:
            raise Corrupt(f"{session.written} bytes have the digest {computed}")
        # Followers may have the last bytes now: they need not be durable for that.
        self.progress.verify()
        staged = await session.stage()
        linked: set[ImageName] = set()

        async def insert() -> None:
            linked.update(self.images)
            await self.remote.add_blobs(
                sorted(linked, key=str),
                self.source.digest,
                staged.size,
                staged.confirm,
                staged.release,
            )

        await publish(staged, self.catalog, insert)
        await self._link(linked)

    async def _link(self, linked: set[ImageName]) -> None:
        """Link the blob to all images that have joined the fill and do not hold it yet."""
        while joined := self.images - linked:
            for image in sorted(joined, key=str):
                await self.remote.link_blob(image, self.source.digest)
            linked |= joined

    # -- the fill of another process

    async def _follow(self) -> FillSession | None:
        """
        Follow the fill of another process to its end.

        Returns the claim on the fill if that process has abandoned it.  ``None``: it is verified,
        or it is gone and has to be begun again.
        """
        found = await self.store.view(self.source.digest)
        if found is None:
            return await self.store.claim(self.source.digest)  # it ended a moment ago
        view, info = found
        size = None if info is None else info.size
        try:
            # The fill of another process does not say that this image may have the blob.
            told = await self._interrupt.wait_uncancelled(lambda: self.source.check(size))
            if told is not None and size not in (None, told):
                raise Unreachable(f"it has {told} bytes there, and {size} in another process")
        except BaseException:
            view.close()
            raise
        self._attach(SharedFile(view))
        looks = 0
        while True:
            state, written = view.look()
            self.progress.grow(written)
            if state is FillState.FAILED:
                if not (written or self.progress.answered):
                    # The upstream refused it to the other process, not to this one.
                    return await self.store.claim(self.source.digest)
                raise BadGateway(
                    "another process was fetching it and has given it up: try again",
                    {"digest": str(self.source.digest)},
                )
            if state is FillState.VERIFIED:
                self.progress.verify()
                await self._link_when_listed(view)
                return None
            if not self.progress.answered:
                info = await self.store.info(self.source.digest)
                if info is not None:
                    self.progress.answer(info.size)
            looks += 1
            if looks % _LOOKS_PER_CLAIM == 0:
                session = await self.store.claim(self.source.digest, create=False)
                if session is not None:
                    mine = False
                    try:
                        mine = view.look()[0] is FillState.GROWING
                    finally:
                        if not mine:
                            await session.close()  # of another file, which has taken its name
                    if mine:
                        return session
            await self._interrupt.wait(deferLater(self.clock, _LOOK))

    async def _link_when_listed(self, view: FillView) -> None:
        """Link the blob to :attr:`images`, once the other process has committed its row."""
        for _ in range(_LOOKS_FOR_ROW):
            if await self._is_listed():
                await self._link(set())
                return
            if view.look()[0] is FillState.FAILED:
                return
            await self._interrupt.wait(deferLater(self.clock, _LOOK))

    async def _is_listed(self) -> bool:
        """Whether an image of the same repository has the blob."""
        repository = self.source.image.repository
        return await self.remote.stored_size(repository, self.source.digest) is not None

    def _attach(self, file: SharedFile) -> None:
        if self._file is not None:
            self._file.close()  # of the same file; its followers keep it open
        self._file = file


@define(eq=False)
class Unattended:
    """
    Bounds what the fills of one repository fetch once no client follows them: a client that asks
    for blob after blob and leaves has few of them fetched, and no more of ``size_cap`` than a
    share before eviction has had its turn.

    :param clock: the reactor, or a test's clock.
    """

    clock: IReactorTime
    _going_on: set[Fill] = field(factory=set, init=False)
    # When the fill of a blob was admitted last, and the bytes that were missing at first.
    _admitted: dict[Digest, tuple[float, int]] = field(factory=dict, init=False)

    def admits(self, fill: Fill) -> bool:
        """
        Return whether ``fill`` may go on without a client, and note it if so.

        A fill of unknown size may not where there is a ``size_cap``.
        """
        if len(self._going_on) >= UNATTENDED_FILLS:
            return False
        cap, progress = fill.settings.size_cap, fill.progress
        if cap:
            if progress.size is None:
                return False
            now = self.clock.seconds()
            past = now - UNATTENDED_SECONDS
            self._admitted = {d: each for d, each in self._admitted.items() if each[0] > past}
            digest = fill.source.digest
            others = sum(each for d, (_, each) in self._admitted.items() if d != digest)
            # A fill that is left again fetches the same bytes, not as many more.
            _, before = self._admitted.get(digest, (0.0, 0))
            missing = max(progress.size - progress.written, before)
            if others + missing > cap // UNATTENDED_SHARE:
                return False
            self._admitted[digest] = now, missing
        self._going_on.add(fill)
        return True

    def discard(self, fill: Fill) -> None:
        """Note that ``fill`` has ended, or that a client follows it again."""
        self._going_on.discard(fill)


_Key = tuple[Digest, ImageName | None]


@define(eq=False)
class Fills:
    """
    The fills of one remote repository in this process, at most one per digest, and one per image
    where the bytes belong to that alone.

    What an upstream sends belongs to its repository alone until the digest is verified: a client
    of another repository never follows a fill of this one.  Other processes need none of this:
    they find a fill in the store.
    """

    store: FillStore
    catalog: Catalog
    remote: RemoteCatalog
    clock: IReactorTime
    _fills: dict[_Key, Fill] = field(factory=dict, init=False)
    _ended: dict[_Key, Deferred[None]] = field(factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)
    _unattended: Unattended = field(init=False)

    @_unattended.default
    def _none_unattended(self) -> Unattended:
        return Unattended(self.clock)

    def find(self, digest: Digest, owner: ImageName | None = None) -> Fill | None:
        """
        The fill of ``digest`` that is under way in this process, or ``None``.

        :param owner: the image that the bytes belong to alone.
        """
        return self._fills.get((digest, owner))

    @property
    def count(self) -> int:
        """The number of fills that are under way in this process."""
        return len(self._fills)

    def states(self) -> list[FillProgress]:
        """How far the fills are that are under way in this process."""
        return [fill.state for fill in self._fills.values()]

    def begin(
        self,
        source: FillSource,
        counters: RepositoryCounters,
        settings: RemoteSettings,
        *,
        lost: bool = False,
    ) -> Fill:
        """
        Begin the fill of a blob, or return the one under way.

        :param lost: whether the catalog lists the blob, though its bytes are not here.
        """
        key = source.digest, source.owner
        fill = self._fills.get(key)
        if fill is None:
            if self._stopping:
                raise Stopped("the daemon is shutting down")
            fill = Fill(
                source,
                source.store or self.store,
                self.catalog,
                self.remote,
                counters,
                settings,
                self.clock,
                self._unattended,
                lost,
            )
            self._fills[key] = fill
            counters.fills.inc()
            self._ended[key] = ended = Deferred.fromCoroutine(fill.run())
            ended.addBoth(self._gone, key)
        return fill

    def _gone(self, outcome: object, key: _Key) -> object:
        del self._fills[key]
        del self._ended[key]
        return outcome

    async def ended(self, digest: Digest, owner: ImageName | None = None) -> None:
        """
        Wait until no fill of ``digest`` is under way in this process.

        :param owner: see :meth:`find`.
        """
        ended = self._ended.get((digest, owner))
        if ended is not None:
            waiting: Deferred[None] = Deferred()
            ended.addBoth(lambda _: waiting.callback(None))
            await waiting

    async def found(self, fill: Fill, wanted: BlobWanted, provenance: Provenance) -> BlobFound:
        """
        Answer a request from ``fill``, as soon as the answer can begin.

        :raises Exception: the error that the fill ends with.
        :raises RangeNotSatisfiable: if the blob has no such part.
        """
        fill.join()
        try:
            return await self._found(fill, wanted, provenance)
        finally:
            fill.leave()

    async def _found(self, fill: Fill, wanted: BlobWanted, provenance: Provenance) -> BlobFound:
        await fill.ready()
        size = fill.progress.size
        if size is None:
            if wanted.span is not None or wanted.patient:
                await fill.verified()
            else:
                await fill.larger(HELD)  # or it may be a small one
            size = fill.progress.size
        span = None if size is None else wanted.part(size)
        length = size if span is None else span.length
        hold = not (wanted.bounded and span is not None and span.first > 0)
        if hold and length is not None and length <= HELD:
            await fill.verified()
        if not fill.progress.verified:
            # Where the end is held back, the client gets nothing whole that is not verified.
            detail = "" if hold else "; detail=unverified"
            provenance = evolve(provenance, cache=f"{provenance.cache}{detail}", verified=False)
        return BlobFound(size, span, fill.follower(span, hold=hold), provenance)

    async def stop(self) -> None:
        """Stop all fills, to be resumed later, and wait for their end."""
        self._stopping = True
        for fill in list(self._fills.values()):
            fill.stop()
        await DeferredList(list(self._ended.values()), consumeErrors=True)
