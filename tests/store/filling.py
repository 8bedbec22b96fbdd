"""Fills for a test: their directory, and those whose threads begin when told to."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred

from artifactd.oci.names import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store.extents import Extents
from artifactd.store.files import Directory, FileOperations, OpenFile
from artifactd.store.fills import (
    ExtentSession,
    FillDirectory,
    FillFiles,
    FillInfo,
    FillSession,
    FillState,
    FillView,
    blob_name,
)
from tests.store.fixture import (
    MEBIBYTE,
    RecordedFiles,
    SlowThreads,
    Stores,
    StoreTestCase,
)

CONTENT = b"hello world"


DIGEST = Digest.of(CONTENT)


INFO = FillInfo(len(CONTENT), '"validator"')


def read(file: OpenFile, size: int = 64 * MEBIBYTE, offset: int = 0) -> bytes:
    """What can be read of an open file."""
    return os.pread(file.fileno(), size, offset)


class FillTestCase(StoreTestCase):
    """Fills and extents in the stores of a test."""

    async def claimed(self, digest: Digest = DIGEST, stores: Stores | None = None) -> FillSession:
        session = await (stores or self.stores).fills.claim(digest)
        assert session is not None
        self.addCleanup(lambda: ensureDeferred(session.close()))
        return session

    async def filled(self, *pieces: bytes, digest: Digest = DIGEST) -> FillSession:
        """A claimed fill of ``pieces``."""
        session = await self.claimed(digest)
        for piece in pieces:
            session.write(piece)
        await session.flush()
        return session

    async def left(self, *pieces: bytes, digest: Digest = DIGEST) -> None:
        """A fill that has got as far as ``pieces``, and that nobody has claimed."""
        await (await self.filled(*pieces, digest=digest)).close()

    async def viewed(self, digest: Digest = DIGEST, stores: Stores | None = None) -> FillView:
        found = await (stores or self.stores).fills.view(digest)
        assert found is not None
        self.addCleanup(found[0].close)
        return found[0]

    async def extent(
        self,
        first: int,
        content: bytes,
        *,
        digest: Digest = DIGEST,
        info: FillInfo = INFO,
        stores: Stores | None = None,
    ) -> ExtentSession:
        """A part that has been written, and is neither recorded nor closed."""
        session = await (stores or self.stores).fills.add_extent(digest, first, info)
        self.addCleanup(lambda: ensureDeferred(session.close()))
        session.write(content)
        return session

    async def recorded(
        self, first: int, content: bytes, *, digest: Digest = DIGEST, stores: Stores | None = None
    ) -> None:
        """A part that is here."""
        session = await self.extent(first, content, digest=digest, stores=stores)
        await session.record()
        await session.close()

    def assert_looks(self, view: FillView, state: FillState, size: int) -> None:
        self.assertEqual((state, size), view.look())


class ExtentTestCase(FillTestCase):
    async def found(
        self, first: int, last: int, digest: Digest = DIGEST, stores: Stores | None = None
    ) -> bytes | None:
        """The bytes ``first`` to ``last``, or ``None`` if the extents don't have them all."""
        span = ByteRange(first, last)
        file = await (stores or self.stores).fills.find_extent(digest, span)
        if file is None:
            return None
        try:
            return read(file, span.length, first)
        finally:
            file.close()


_T = TypeVar("_T")


CHUNK = b"x" * (256 * 1024)


NAME = blob_name("docker.io", DIGEST)


def fill_directory(
    directory: Directory,
    pause: Callable[[float], None] = lambda seconds: None,
    booted: float = 0.0,
) -> FillDirectory:
    """The fills in ``directory``."""
    files = FileOperations()
    extents = Extents(directory, files)
    return FillDirectory(directory, FillFiles(directory, extents, files), files, pause, booted)


class FillFilesTestCase(FillTestCase):
    """:ivar fills: the directory."""

    def setUp(self) -> None:
        super().setUp()
        self.fills = self.path / "fills"

    async def kept(self) -> None:
        """A fill with all that may be kept beside it, claimed by nobody."""
        session = await self.filled(b"hello ")
        await session.describe(INFO)
        await session.close()
        await self.recorded(6, b"wor")


class SlowFillTestCase(StoreTestCase):
    """
    :ivar slow_threads: those of ``slow``, stores whose threads begin when told to.
    :ivar session: of theirs.
    """

    def setUp(self) -> None:
        super().setUp()
        self.slow_threads = SlowThreads()
        self.files = RecordedFiles()
        self.slow = self.open_stores(self.files, self.slow_threads)
        self.session = self.claimed()

    def ended(self, coroutine: Coroutine[Deferred[Any], Any, _T]) -> _T:
        """What comes of ``coroutine`` when all threads have run."""
        running = ensureDeferred(coroutine)
        self.slow_threads.run_all()
        return self.successResultOf(running)

    def claimed(self) -> FillSession:
        session = self.ended(self.slow.fills.claim(DIGEST))
        assert isinstance(session, FillSession)
        return session

    def write(self, size: int) -> None:
        for _ in range(size // len(CHUNK)):
            self.session.write(CHUNK)

    def elsewhere(self, content: bytes) -> None:
        """Let another process have appended ``content``, and claim it again."""
        self.ended(self.session.close())
        session = self.ended(self.open_stores().fills.claim(DIGEST))
        assert session is not None
        session.write(content)
        self.ended(session.close())
        self.session = self.claimed()

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return (self.path / "fills" / NAME).stat().st_size
