"""Stores on files for a test, their threads, and what is recorded of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

from attrs import Factory, define, field, frozen
from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import RunInThread, Threads, offer_nobody
from artifactd.kit.shared import Notes
from artifactd.oci.names import Algorithm, Digest
from artifactd.store.blobs import BlobStore
from artifactd.store.files import FileOperations
from artifactd.store.fills import FillStore, FillStores
from artifactd.store.folder import DataFolder
from artifactd.store.intake import Offer
from artifactd.store.publication import StagedBlob
from artifactd.store.uploads import UploadSession, UploadStore
from tests.programs import reactor

_P = ParamSpec("_P")


_T = TypeVar("_T")


def at_once(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
    """A thread that has ended before anybody could look."""
    try:
        return succeed(function(*args, **kwargs))
    except BaseException:
        return fail(Failure())


@define
class SlowThreads:
    """Threads that begin when the test says so; ``waiting`` are those that have not."""

    waiting: list[Callable[[], None]] = field(factory=list)

    def __call__(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """As ``Threads.run``."""
        outcome: Deferred[_T] = Deferred()

        def work() -> None:
            at_once(function, *args, **kwargs).chainDeferred(outcome)

        self.waiting.append(work)
        return outcome

    def run_one(self) -> None:
        """Let the first one run to its end."""
        self.waiting.pop(0)()

    def run_all(self) -> None:
        """Let all run, those too that begin meanwhile."""
        while self.waiting:
            self.run_one()


_E = TypeVar("_E", bound=BaseException)


@frozen
class Stores:
    """
    The stores of one process.

    :ivar fills: those of the repository ``docker.io``.
    """

    blobs: BlobStore
    uploads: UploadStore
    all_fills: FillStores
    fills: FillStore = field(
        default=Factory(lambda self: self.all_fills.of("docker.io"), takes_self=True), init=False
    )


@define
class Rows:
    """What a catalog says when a store asks whether bytes are needed."""

    needed: set[Digest] = field(factory=set)
    asked: list[Digest] = field(factory=list)

    async def forget(self, digest: Digest, unlink: Callable[[], None]) -> bool:
        """As ``Catalog.forget_blob``."""
        self.asked.append(digest)
        if digest in self.needed:
            return False
        unlink()
        return True


class StoreTestCase(TestCase):
    """
    Stores on files in one data folder.

    :ivar stores: empty ones.
    :ivar rows: the catalog's; none at first.
    :ivar path: of the data folder.
    :ivar budget: of all the test's stores.
    """

    run_in_thread: RunInThread

    def setUp(self) -> None:
        self.run_in_thread = self.threads()
        self.path = Path(self.mktemp())
        self.budget = BufferBudget(64 * 1024 * 1024)
        self.stores = self.open_stores()
        self.rows = Rows()

    def new_upload(self, upload_id: str = "") -> str:
        """Leave an empty file of an upload, as sessions of older releases have; its id."""
        upload_id = upload_id or str(uuid4())
        (self.path / "uploads" / upload_id).touch(0o600, exist_ok=False)
        return upload_id

    def threads(self) -> RunInThread:
        """What runs things in threads."""
        return at_once

    def open_stores(
        self,
        files: FileOperations | None = None,
        run: RunInThread | None = None,
        offer: Offer = offer_nobody,
        notes: Notes | None = None,
    ) -> Stores:
        """Open the test's stores once more, as another process would; closed after the test."""
        run = run or self.run_in_thread
        folder = DataFolder.open(self.path)
        self.addCleanup(folder.close)
        folder.settle()
        blobs = BlobStore(folder, run, files)
        self.addCleanup(blobs.close)
        uploads = UploadStore(folder, run, blobs, self.budget, files, offer=offer, notes=notes)
        fills = FillStores(folder, run, blobs, self.budget, files, offer=offer)
        return Stores(blobs, uploads, fills)

    def below(self, name: str) -> list[str]:
        """The paths of all files below the directory ``name`` of the data folder."""
        root = self.path / name
        return sorted(str(f.relative_to(root)) for f in root.rglob("*") if not f.is_dir())

    async def assert_raises(self, error: type[_E], call: Awaitable[object]) -> _E:
        try:
            await call
        except error as raised:
            return raised
        self.fail(f"{error.__name__} was not raised")

    async def published(self, content: bytes, stores: Stores | None = None) -> StagedBlob:
        """Stage and publish a blob that has no row yet."""
        staged = await (stores or self.stores).blobs.stage(Digest.of(content), content)
        await staged.publish()
        return staged

    async def assert_blob(self, content: bytes, digest: Digest | None = None) -> None:
        """``content`` is what the store has under its digest."""
        digest = digest or Digest.of(content)
        self.assertEqual(content, await self.stores.blobs.read(digest))

    async def assert_no_blob(self, digest: Digest) -> None:
        self.assertIsNone(await self.stores.blobs.read(digest))


class ThreadedTestCase(StoreTestCase):
    """The stores work in real threads."""

    def threads(self) -> RunInThread:
        threads = Threads(reactor, 8, "test")
        threads.start()
        self.addCleanup(threads.stop)
        return threads.run


MEBIBYTE = 1024 * 1024


@implementer(IPushProducer)
@define
class RecordedProducer:
    """A sender that does nothing but remember what it was told."""

    told: list[str] = field(factory=list)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class UploadTestCase(StoreTestCase):
    """Uploads in the stores of a test."""

    async def created(self) -> str:
        return self.new_upload()

    async def claimed(
        self,
        upload_id: str,
        algorithm: Algorithm = Algorithm.SHA256,
        stores: Stores | None = None,
    ) -> UploadSession:
        session = await (stores or self.stores).uploads.claim(upload_id, algorithm)
        self.addCleanup(lambda: ensureDeferred(session.close()))
        return session

    async def appended(self, upload_id: str, *pieces: bytes, stores: Stores | None = None) -> None:
        """One request that appends ``pieces``."""
        session = await self.claimed(upload_id, stores=stores)
        for piece in pieces:
            session.write(piece)
        await session.flush()
        await session.close()

    async def content(self, upload_id: str) -> bytes | None:
        """All that is staged, by turning it into a blob."""
        session = await self.claimed(upload_id)
        digest = await session.digest(Algorithm.SHA256)
        staged = await session.stage(digest)
        await session.close()
        await staged.publish()
        staged.release()
        return await self.stores.blobs.read(digest)


@define(eq=False)
class RecordedFiles(FileOperations):
    """
    Remembers every call that changes something, and how many bytes were read back.

    A file is told by its path in the data folder, with ``…`` for digests and ids.
    """

    calls: list[str] = field(factory=list)
    read_back: int = 0

    def make_directory(self, directory: int, name: str) -> None:
        super().make_directory(directory, name)
        self.calls.append(f"mkdir {_name(directory, name)}")

    def create(self, directory: int, name: str) -> int:
        self.calls.append(f"create {_name(directory, name)}")
        return super().create(directory, name)

    def write(self, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        self.calls.append(f"write {_name(fd)}")
        return super().write(fd, pieces, offset)

    def append(self, fd: int, piece: bytes) -> int:
        self.calls.append(f"append {_name(fd)}")
        return super().append(fd, piece)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        piece = super().read(fd, size, offset)
        self.read_back += len(piece)
        return piece

    def truncate(self, fd: int, size: int) -> None:
        self.calls.append(f"truncate {_name(fd)}")
        super().truncate(fd, size)

    def set_mode(self, fd: int, mode: int) -> None:
        self.calls.append(f"chmod {mode:o} {_name(fd)}")
        super().set_mode(fd, mode)

    def sync(self, fd: int) -> None:
        self.calls.append(f"sync {_name(fd)}")
        super().sync(fd)

    def sync_data(self, fd: int) -> None:
        self.calls.append(f"sync data {_name(fd)}")
        super().sync_data(fd)

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        self.calls.append(f"link {_name(directory, name)} {_name(target, target_name)}")
        super().link(directory, name, target, target_name)

    def rename(self, directory: int, name: str, target: int, target_name: str) -> None:
        self.calls.append(f"rename {_name(directory, name)} {_name(target, target_name)}")
        super().rename(directory, name, target, target_name)

    def unlink(self, directory: int, name: str) -> None:
        self.calls.append(f"unlink {_name(directory, name)}")
        super().unlink(directory, name)


def _name(fd: int, name: str = "") -> str:
    path = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), name).rstrip("/")
    inside = re.search(r"/((?:blobs|uploads|staging|fills|keys)(?:/.*)?)$", path)
    return re.sub(r"[0-9a-f]{8}[0-9a-f-]{24,}", "…", inside[1] if inside else "data folder")


@define(eq=False)
class WatchedFiles(FileOperations):
    """Calls ``look`` after every call that changes a name or syncs something."""

    look: Callable[[], object] = lambda: None

    def create(self, directory: int, name: str) -> int:
        fd = super().create(directory, name)
        self.look()
        return fd

    def sync_data(self, fd: int) -> None:
        super().sync_data(fd)
        self.look()

    def set_mode(self, fd: int, mode: int) -> None:
        super().set_mode(fd, mode)
        self.look()

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.look()

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        super().link(directory, name, target, target_name)
        self.look()

    def rename(self, directory: int, name: str, target: int, target_name: str) -> None:
        super().rename(directory, name, target, target_name)
        self.look()

    def unlink(self, directory: int, name: str) -> None:
        super().unlink(directory, name)
        self.look()


@define(eq=False)
class FullDisk(FileOperations):
    """
    Takes ``room`` bytes, and fails with ``error`` from then on.

    :ivar failing: names of other operations that fail.
    """

    room: int
    error: OSError
    failing: set[str] = field(factory=set)

    def write(self, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        if self.room <= 0:
            raise self.error
        taken = b"".join(pieces)[: self.room]
        self.room -= len(taken)
        return super().write(fd, [taken], offset)

    def append(self, fd: int, piece: bytes) -> int:
        taken = piece[: max(self.room, 0)]
        if not taken:
            raise self.error
        self.room -= len(taken)
        return super().append(fd, taken)

    def sync(self, fd: int) -> None:
        self._fail_if_told("sync")
        super().sync(fd)

    def sync_data(self, fd: int) -> None:
        self._fail_if_told("sync")
        super().sync_data(fd)

    def allocate(self, fd: int, size: int) -> None:
        self._fail_if_told("allocate")
        super().allocate(fd, size)

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        self._fail_if_told("link")
        super().link(directory, name, target, target_name)

    def unlink(self, directory: int, name: str) -> None:
        self._fail_if_told("unlink")
        super().unlink(directory, name)

    def _fail_if_told(self, operation: str) -> None:
        if operation in self.failing:
            raise self.error
