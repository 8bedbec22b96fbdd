"""
The fill: a blob on its way from an upstream into the store, for all who want it.

It belongs to nobody.  architecture.md, "Pull-through: the fill", tells the whole.
"""

from __future__ import annotations

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from artifactd.catalog.records import Catalog
from artifactd.catalog.remote import RemoteCatalog
from artifactd.kit.deferreds import AlreadyHere, Interrupt, Stopped
from artifactd.oci.errors import BadGateway, RegistryError
from artifactd.oci.names import ImageName
from artifactd.oci.ranges import ByteRange
from artifactd.registry.content import publish
from artifactd.registry.fetching import Corrupt, Fetching
from artifactd.registry.metrics import RepositoryCounters
from artifactd.registry.progress import Follower, Progress, Share, SharedFile
from artifactd.registry.source import BlobSource
from artifactd.store.fills import Contradicted, FillSession, FillState, FillStore, FillView
from artifactd.upstream.errors import RangeRefused, UpstreamError

# Seconds between two looks at a fill of another process; and every so many of them, whether that
# process still holds it.
_LOOK = 0.02
_LOOKS_PER_CLAIM = 10
# Looks for which the row of a verified blob is waited for: its bytes are synced before.
_LOOKS_FOR_ROW = 1500

_log = Logger()


@frozen
class FillRules:
    """
    :ivar resumes: how often in a row it goes on after a failure without having got further.
    :ivar finish: whether it goes on when all who wanted it have left.
    """

    resumes: int = 5
    finish: bool = True


@define(eq=False)
class Fill:
    """
    One fill, as one process sees it: done here, or followed while another process does it.

    :ivar lost: there is a row of it already, whose bytes are not here.
    :ivar images: those it is fetched for; each holds the blob afterwards.
    :ivar progress: what the followers see.
    """

    source: BlobSource
    store: FillStore
    catalog: Catalog
    remote: RemoteCatalog
    counters: RepositoryCounters
    rules: FillRules
    clock: IReactorTime
    lost: bool = False
    images: set[ImageName] = field(init=False)
    progress: Progress = field(factory=Progress, init=False)
    _interrupt: Interrupt = field(factory=Interrupt, init=False)
    _file: SharedFile | None = field(default=None, init=False)
    _interested: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.images = {self.source.image}

    # -- for those who want the blob

    async def ready(self) -> None:
        """
        Wait until the upstream has said that the blob is coming, and perhaps of what size.

        :raises Exception: what it has failed with.
        """
        while not (self.progress.answered or self.progress.ended):
            await self.progress.change()
        if self.progress.failure is not None:
            raise self.progress.failure

    async def larger(self, size: int) -> None:
        """
        Wait until it is known to have more than ``size`` bytes, or all of it is here and verified.

        :raises Exception: as :meth:`ready`.
        """
        while not (self.progress.ended or self.progress.written > size):
            await self.progress.change()
        if self.progress.failure is not None:
            raise self.progress.failure

    async def verified(self) -> None:
        """Wait until all of it is here and verified.  :raises Exception: as :meth:`ready`."""
        while not self.progress.ended:
            await self.progress.change()
        if self.progress.failure is not None:
            raise self.progress.failure

    def follower(self, span: ByteRange | None, *, hold: bool) -> Follower:
        """A reader of what comes, as in :class:`Follower`; :meth:`ready` has been waited for."""
        assert self._file is not None
        self.join()
        return Follower(self.progress, Share(self._file.share(), self.leave), span, hold)

    def join(self) -> None:
        """Somebody wants the blob, until :meth:`leave`; a follower does that by itself."""
        self._interested += 1

    def leave(self) -> None:
        """One less does; it may be that it need not go on then."""
        self._interested -= 1
        if not (self._interested or self.rules.finish or self.progress.ended):
            self.stop()

    @property
    def stopped(self) -> bool:
        """Whether it ends before it is done: who comes now has to begin anew, after it."""
        return self._interrupt.stopped

    def stop(self) -> None:
        """Give up for now: what has come stays in the store, for whoever goes on."""
        self._interrupt.stop()

    # -- doing it

    async def run(self) -> None:
        """To the end, be it good or bad; raises nothing."""
        try:
            session = await self.store.claim(self.source.digest)
            while session is None:
                session = await self._follow()
                if session is None and self.progress.verified:
                    return
            await self._fill(session)
        except Exception as error:
            self._failed(error)
        finally:
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
            self.rules.resumes,
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
                    await session.discard()  # nothing has come, nor is anything known
                raise
            except OSError:
                await session.discard()  # a full disk must not be kept full
                raise
        finally:
            await session.close()

    async def _await_row(self, session: FillSession) -> None:
        """:raises AlreadyHere: if it was being published, and has a row now."""
        digest, looks = self.source.digest, 0
        while looks < _LOOKS_FOR_ROW and await self.store.is_staged(digest):
            looks += 1
            await self._interrupt.wait(deferLater(self.clock, _LOOK))
        if looks and await self.remote.stored_size(digest) is not None:
            await session.discard()
            raise AlreadyHere("it is in the store")

    async def _verify(self, session: FillSession) -> None:
        computed = await session.computed()
        if computed != self.source.digest:
            raise Corrupt(f"{session.written} bytes have the digest {computed}")
        # Whoever waits for the last piece may have it: it need not be durable for that.
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
        """Let those of our images hold the blob that do not yet: more may have joined us."""
        while joined := self.images - linked:
            for image in sorted(joined, key=str):
                await self.remote.link_blob(image, self.source.digest)
            linked |= joined

    # -- following

    async def _follow(self) -> FillSession | None:
        """
        Follow the fill of another process to its end; or the claim on it, once that is left.

        ``None``: it is verified; or it is gone, and has to be begun anew.
        """
        found = await self.store.view(self.source.digest)
        if found is None:
            return await self.store.claim(self.source.digest)  # it went in this moment
        view, _ = found
        try:
            # Another process's fill says nothing about what this image may have.
            await self._interrupt.outlived(self.source.check)
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
                    # It was told that it can't have it, which says nothing about us.
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
        """Let our images hold the blob, once the other process has committed its row."""
        for _ in range(_LOOKS_FOR_ROW):
            if await self.remote.stored_size(self.source.digest) is not None:
                await self._link(set())
                return
            if view.look()[0] is FillState.FAILED:
                return
            await self._interrupt.wait(deferLater(self.clock, _LOOK))

    def _attach(self, file: SharedFile) -> None:
        if self._file is not None:
            self._file.close()  # of the same file; those who have it keep it open
        self._file = file
