"""Fills for a test: their directory, and those whose threads begin when told to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred

from artifactd.store.extents import Extents
from artifactd.store.files import Directory, FileOperations
from artifactd.store.fills import FillDirectory, FillFiles, FillSession
from tests.contracts.storage_fills import DIGEST, INFO, FillTestCase
from tests.store.fixture import FilesystemTestCase, RecordedFiles, SlowThreads

_T = TypeVar("_T")

CHUNK = b"x" * (256 * 1024)
NAME = f"sha256-{DIGEST.encoded}"


def fill_directory(
    directory: Directory, pause: Callable[[float], None] = lambda seconds: None
) -> FillDirectory:
    """The fills in ``directory``."""
    files = FileOperations()
    extents = Extents(directory, files)
    return FillDirectory(directory, FillFiles(directory, extents, files), files, pause)


class FillFilesTestCase(FilesystemTestCase, FillTestCase):
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


class SlowFillTestCase(FilesystemTestCase):
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
