"""
Fills: blobs that are still coming from an upstream, in the files of one folder.

Everything that a second process needs to follow a fill, or to take it over, lies in the store
(docs/architecture.md, "Pull-through: the fill").
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from uuid import uuid4

import msgspec
from attrs import define, field, frozen
from twisted.internet.interfaces import IProducer, IReactorTime
from twisted.logger import Logger

from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import RunInThread, Serial, uncancelled
from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.store import procfs
from artifactd.store.blobs import BlobStore
from artifactd.store.extents import ExtentFile, Extents, map_name
from artifactd.store.files import Directory, FileOperations, OpenFile, is_sealed, split, write_all
from artifactd.store.folder import DataFolder
from artifactd.store.intake import AppendedFile, FileConsumer, HashedFile, RunningDigest, hashed
from artifactd.store.publication import StagedBlob, Staging


class Contradicted(Exception):
    """Bytes that came again are not those that came before."""


@frozen
class FillInfo:
    """
    What an upstream has told of a blob, kept beside its bytes.

    :ivar size: in bytes; ``None`` where it didn't say.
    :ivar validator: the strong entity tag for ``If-Range``, or ``None``.
    """

    size: int | None
    validator: str | None = None


class FillState(Enum):
    """What has become of a fill, as its file tells anybody who has it open."""

    GROWING = "growing"  # or left alone: whoever can claim it goes on
    VERIFIED = "verified"  # the file is the blob
    FAILED = "failed"  # the file is unlinked


# ``<blob>.info``: what an upstream has told of a blob that is coming, as JSON.

_decoder = msgspec.json.Decoder(FillInfo)
_MOST = 64 * 1024


def info_name(blob: str) -> str:
    """The name of what is known of the blob whose files' names begin with ``blob``."""
    return f"{blob}.info"


def read_info(directory: Directory, files: FileOperations, blob: str) -> FillInfo | None:
    """
    What is known, or ``None``; what can't be understood counts as nothing.  Blocks.

    :raises OSError: if it can't be read.
    """
    try:
        fd, _ = directory.open_file(info_name(blob))
    except FileNotFoundError:
        return None
    try:
        info = _decoder.decode(files.read(fd, _MOST, 0))
    except ValueError:
        return None
    finally:
        os.close(fd)
    return info if info.size is None or info.size >= 0 else None


def write_info(directory: Directory, files: FileOperations, blob: str, info: FillInfo) -> None:
    """
    Keep ``info`` in place of what was known before.  Blocks.

    Not synced, for somebody waits for the blob: after a power cut it may be as good as absent.

    :raises OSError: if it can't be written; what was known before is then still there.
    """
    written = f"{blob}.{uuid4()}.new"
    fd = files.create(directory.fd, written)
    try:
        write_all(files, fd, [msgspec.json.encode(info)], 0)
        files.rename(directory.fd, written, directory.fd, info_name(blob))
    except BaseException:
        files.unlink(directory.fd, written)
        raise
    finally:
        os.close(fd)


# The files of a blob that is coming, by their names in ``fills``.

_UNIQUE = r"\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(?:extents|new)"
_NAME = re.compile(
    r"(?P<blob>sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})"
    rf"(?:\.info|\.map|(?P<unique>{_UNIQUE}))?"
)


def blob_name(digest: Digest) -> str:
    """What the names of the files of a blob begin with, and the name of its fill."""
    return f"{digest.algorithm}-{digest.encoded}"


def blob_of(name: str) -> str | None:
    """The :func:`blob_name` that a file's name begins with; ``None`` for a file that isn't ours."""
    match = _NAME.fullmatch(name)
    return None if match is None else match["blob"]


@frozen
class FillFiles:
    """
    What can be done with the files of a blob, by its :func:`blob_name`, whoever has locked it.

    All methods block and raise OSError.
    """

    directory: Directory
    extents: Extents
    _files: FileOperations

    def info(self, blob: str) -> FillInfo | None:
        """What is known of a blob."""
        return read_info(self.directory, self._files, blob)

    def describe(self, blob: str, info: FillInfo) -> None:
        """Keep ``info``."""
        write_info(self.directory, self._files, blob, info)

    def forget(self, blob: str) -> str | None:
        """Drop what is known, and put the extents out of reach; the name of their file."""
        found = self.extents.map(blob)
        self._files.unlink(self.directory.fd, map_name(blob))
        self._files.unlink(self.directory.fd, info_name(blob))
        return found.name if found is not None else None

    def drop(self, blob: str, names: Iterable[str] = (), *, fill: bool = True) -> None:
        """
        Remove all that there is of a blob.

        :param names: of its files, some of which may have no part in it any more.
        :param fill: the fill, too, which the caller has locked.
        """
        extents = self.forget(blob)
        if fill:
            self.unlink(blob)
        # From here on others may begin anew: only what has a name of its own may go.  That is the
        # long work.
        for name in (extents, *names):
            if name and (match := _NAME.fullmatch(name)) and match["unique"]:
                self.unlink(name)

    def unlink(self, name: str | None) -> None:
        """Remove the file ``name``, if that is one."""
        if name is not None:
            self._files.unlink(self.directory.fd, name)


# A fill, open: by who has claimed it (``fills/<algorithm>-<encoded>``), or who looks from
# outside.


@define(eq=False)
class FillFile(HashedFile):
    """A claimed fill.  All methods block, unless they say not; one call at a time."""

    _fills: FillFiles
    # The offset of the next byte that comes again, if any does.
    _again: int | None = field(default=None, init=False)

    @property
    def compared(self) -> bool:
        """Whether all bytes that were here have come again since :meth:`restart`.  Doesn't block"""
        return self._again is None

    def restart(self) -> None:
        """What is appended next is compared from the first byte on.  Does not block."""
        self._again = 0 if self.size else None

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """
        Compare ``pieces`` with what is here, as far as they have come again; append the rest.

        :raises Contradicted: at the first difference; nothing is changed then.
        :raises OSError: if not all could be written.  What was written is hashed, and stays.
        """
        super().append(self._compare(pieces))

    def take_extents(self, until: int | None) -> int:
        """As :meth:`FillSession.take_extents`."""
        self._again = None
        return self._fills.extents.copy(self.name, self, until)

    def next_extent(self, least: int) -> int | None:
        """Where the first extent of ``least`` bytes behind the end begins, or ``None``."""
        found = self._fills.extents.map(self.name)
        spans = found.spans if found is not None else ()
        return next((s.first for s in spans if s.first > self.size and s.length >= least), None)

    def describe(self, info: FillInfo) -> None:
        """Keep ``info`` beside the bytes."""
        self._fills.describe(self.name, info)

    def stage(self, staging: Staging, digest: Digest) -> StagedBlob:
        """
        Sync it, move it to the staged files, and drop what was kept beside it.

        :raises OSError: if that fails.  If it can't be synced it is removed.
        """
        # Before it moves, so that until then others find it here, and a crash leaves it whole.
        # What can't be synced must not be tried again: the bytes are lost, and fsync forgets it.
        try:
            self._files.sync_data(self.fd)
        except OSError:
            self.discard()
            raise
        extents = self._fills.forget(self.name)
        try:
            return self.move(staging, digest, str(uuid4()))
        finally:
            with suppress(OSError):  # the sweep's, then
                self._fills.unlink(extents)

    def discard(self) -> None:
        """Remove it, and what is kept beside it."""
        if self.is_there():
            self._fills.drop(self.name)
        self.ended = True

    def _compare(self, pieces: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
        while pieces and self._again is not None:
            here = self._read(len(pieces[0]), self._again)  # up to the end of the file
            again, pieces = memoryview(pieces[0])[: len(here)], split(pieces, len(here))[1]
            if here != again:
                at = next(n for n, (a, b) in enumerate(zip(here, again, strict=True)) if a != b)
                raise Contradicted(f"byte {self._again + at} is not what it was")
            self._again += len(here)
            if self._again == self.size:
                self._again = None
        return pieces


@define(eq=False)
class FillView(OpenFile):
    """The fill of some process, seen from outside.  Looking never blocks."""

    _directory: Directory
    _name: str
    _file: os.stat_result

    def look(self) -> tuple[FillState, int]:
        """Its state, and then the bytes in its file."""
        # First the name, then the links: what is unlinked in between has failed, while a file that
        # has lost its name here and has another has been staged.
        is_named = self._directory.holds(self._name, self._file)
        status = os.fstat(self.fileno())
        if not status.st_nlink:
            return FillState.FAILED, status.st_size
        return FillState.GROWING if is_named else FillState.VERIFIED, status.st_size


# ``fills``: blobs that are coming.
#
# ``<algorithm>-<encoded>`` has the bytes, one after the other; beside it lie what the upstream
# has
# told (``fillinfo.py``) and the extents (``extents.py``).  The file is claimed by locking it
# (flock);
# who removes what nobody has claimed has it locked, too, for an instant.

# How long somebody who claims waits, once, for somebody who is removing.
_INSTANT = 0.001


@frozen
class FillDirectory:
    """
    The fills.  All methods block and raise OSError.

    :param pause: waits so many seconds, in the thread.
    :param booted: when the machine has started, in seconds since the epoch.
    """

    directory: Directory
    files: FillFiles
    _operations: FileOperations
    _pause: Callable[[float], None] = time.sleep
    _booted: float = 0.0

    def claim(self, digest: Digest, create: bool) -> tuple[FillFile, FillInfo | None] | None:
        """A fill, locked, and what is known of it; ``None`` as ``FillStore.claim`` says."""
        blob = blob_name(digest)
        fd = self._claim(blob, create)
        if fd is None:
            return None
        try:
            info, running = self.files.info(blob), RunningDigest(digest.algorithm)
            size = self._trusted_size(fd)
        except BaseException:
            os.close(fd)
            raise
        file = FillFile(blob, fd, size, self._operations, running, self.directory, self.files)
        return file, info

    def _trusted_size(self, fd: int) -> int:
        """
        Bytes of a locked fill.  One that was last written to before the machine started is emptied:
        the power may have failed, and its bytes, which nobody has verified, have been spoilt.
        """
        status = os.fstat(fd)
        if status.st_size and status.st_mtime < self._booted:
            self._operations.truncate(fd, 0)
            return 0
        return status.st_size

    def view(self, digest: Digest) -> tuple[FillView, FillInfo | None] | None:
        """A fill to look at, and what is known of it; ``None`` if there is none."""
        blob = blob_name(digest)
        try:
            fd, status = self.directory.open_file(blob)
        except FileNotFoundError:
            return None
        view = FillView(fd, self.directory, blob, status)
        try:
            if not is_sealed(status):
                return view, self.files.info(blob)
        except BaseException:
            view.close()
            raise
        view.close()  # published, as _claim() says; or just removed
        return None

    def add_extent(self, digest: Digest, first: int, info: FillInfo) -> ExtentFile:
        """Begin a part; ``info`` is kept unless more is known."""
        blob = blob_name(digest)
        known = self.files.info(blob)
        if known is None or known.size is None:
            self.files.describe(blob, info)
        return self.files.extents.begin(blob, first)

    def stale(self, before: float) -> dict[str, list[str]]:
        """The blobs of which no file was written to after ``before``, and their files' names."""
        groups: dict[str, list[str]] = {}
        for name in self.directory.names():
            if blob := blob_of(name):
                groups.setdefault(blob, []).append(name)
        return {blob: names for blob, names in groups.items() if self._is_stale(names, before)}

    def remove_stale(self, blob: str, names: list[str], before: float) -> bool:
        """Remove one of those, if it still is and nobody has claimed it; whether it went."""
        return self._remove(blob, lambda: self._is_stale(names, before), names)

    def discard(self, digest: Digest) -> None:
        """Remove what there is of a blob, unless somebody has claimed its fill."""
        self._remove(blob_name(digest), lambda: True)

    def _claim(self, blob: str, create: bool) -> int | None:
        for attempt in range(3):
            try:
                if is_sealed(self.directory.status(blob)):
                    self._remove(blob, lambda: True)
                return self.directory.open_locked(blob, os.O_RDWR)[0]
            except FileNotFoundError:
                if not create:
                    return None
                with suppress(FileExistsError):
                    os.close(self._operations.create(self.directory.fd, blob))
            except BlockingIOError:
                if attempt:
                    return None
                self._pause(_INSTANT)
        return None

    def _remove(self, blob: str, condition: Callable[[], bool], names: Iterable[str] = ()) -> bool:
        fd = None
        try:
            with suppress(FileNotFoundError):
                fd, _ = self.directory.open_locked(blob)
            is_wanted = condition()
            if is_wanted:
                self.files.drop(blob, names, fill=fd is not None)
            return is_wanted
        except BlockingIOError:
            return False
        finally:
            if fd is not None:
                os.close(fd)

    def _is_stale(self, names: Iterable[str], before: float) -> bool:
        return all(self._written(name) <= before for name in names)

    def _written(self, name: str) -> float:
        try:
            return self.directory.status(name).st_mtime
        except FileNotFoundError:
            return 0.0  # it went in this moment
        except OSError:
            return float("inf")  # not ours: left alone


# Fills and extents in the reactor's world, while bytes arrive for them.

GATHER = 512 * 1024
"""Bytes before a thread is worth its while; somebody waits for them, so not for long."""

EXTENT = 1024 * 1024
"""Bytes of an extent from which on it is worth asking the upstream only for what comes before."""


@define(eq=False)
class FillSession(FileConsumer[FillFile]):
    """
    A claimed fill: nobody else, in any process, appends to it until :meth:`close`, after which its
    bytes stay for the next claim.

    Bytes never change once they are in the file: others may have read them, and sent them on.

    :ivar info: as last described, by this process or another; ``None``: never.
    """

    # A turn to a thread and back takes about as long as writing a MiB: one stream has to be fast.
    high_water = 8 * 1024 * 1024
    low_water = 4 * 1024 * 1024

    _digest: Digest
    _directory: Directory
    _staging: Staging
    info: FillInfo | None
    _catching_up: bool = field(default=False, init=False)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """``IConsumer``; until its first bytes come, those found at the claim are hashed."""
        super().registerProducer(producer, streaming)
        self._pump()

    def reader(self) -> OpenFile:
        """The file, open for reading once more."""
        return _reader(self._directory, self._file)

    async def describe(self, info: FillInfo) -> None:
        """Keep ``info`` for whoever follows the fill, or takes it over."""
        await self._threads.run(partial(self._file.describe, info))
        self.info = info

    def restart(self) -> None:
        """
        Compare what is written next with the blob from its first byte on, up to :attr:`offset`
        (which stays as it is), and append from there.  At the first difference :meth:`flush` raises
        :class:`Contradicted`, and the producer is stopped.

        To be called when nothing is in flight (after :meth:`flush`).  :meth:`take_extents` gives up
        a comparison that has not come to its end.
        """
        self._file.restart()
        self._position = 0

    @property
    def compared(self) -> bool:
        """Whether, since the last :meth:`restart`, all bytes have come that were here before."""
        return self._file.compared

    async def take_extents(self, until: int | None) -> int:
        """
        Append what lies at :attr:`offset` in the extents of the blob without a gap, at most up to
        the offset ``until``; how many bytes that was, at most 16 MiB: to be called until it is 0.
        """
        await self.flush()
        try:
            return await self._threads.run(
                partial(self._file.take_extents, until), lambda _: self._took()
            )
        finally:
            self._took()

    async def next_extent(self) -> int | None:
        """Where the first extent of some length (1 MiB) behind :attr:`offset` begins, or None."""
        return await self._threads.run(partial(self._file.next_extent, EXTENT))

    async def computed(self) -> Digest:
        """The digest of all bytes; reads back only those not hashed as they came."""
        await self.flush()
        return await hashed(self._file, self._file.running, self._threads)

    async def stage(self) -> StagedBlob:
        """
        Sync and stage the bytes, which are verified; drop what was kept beside them.  From then on
        every process that follows sees :attr:`FillState.VERIFIED`.

        :raises OSError: if that fails; bytes that can't be synced are removed.
        """
        await self.flush()
        return await self._threads.run(
            partial(self._file.stage, self._staging, self._digest), StagedBlob.abandon
        )

    async def discard(self) -> None:
        """Remove the bytes and all that is kept beside them; followers see ``FAILED``."""
        await self._threads.run(self._file.discard)

    # -- threads

    def _took(self) -> None:
        self.offset = self._position = self._file.size
        self._tell_growth(self._file.size)

    def _pump(self) -> None:
        super()._pump()
        if self._catching_up or self._in_thread or self._closed or self._producer is None:
            return
        if self._file.running.length < self._file.size:
            self._catching_up = True
            turn = self._threads.run(partial(self._file.catch_up, self._file.running))
            # What can't be read now is tried once more by computed(), which says so.
            turn.addCallbacks(self._caught_up, lambda _: None)

    def _caught_up(self, _: None) -> None:
        self._catching_up = False
        self._pump()


@define(eq=False)
class ExtentSession(FileConsumer[ExtentFile]):
    """A part of a blob on its way into the extents."""

    _directory: Directory

    def reader(self) -> OpenFile:
        """The extents, open for reading once more."""
        return _reader(self._directory, self._file)

    async def record(self) -> None:
        """:meth:`flush`, sync, and record that the bytes up to :attr:`written` are here."""
        await self.flush()
        await self._threads.run(self._file.record)


def _reader(directory: Directory, file: AppendedFile) -> OpenFile:
    """Another description of ``file``: one that shared its own would keep its lock, too."""
    fd, status = directory.open_file(file.name)
    if not os.path.samestat(status, os.fstat(file.fd)):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no longer there", file.name)
    return OpenFile(fd)


class FillStore:
    """
    Blobs that are coming, by digest; what has come survives the process.

    :param blobs: where the fills become blobs; of the same folder.
    :param clock: limits how long bytes may lie before they are written; without one each piece is
        written at once.
    :param now: the time in seconds since the epoch.
    :param pause: waits so many seconds, in a thread.
    """

    _log = Logger()

    def __init__(
        self,
        folder: DataFolder,
        run: RunInThread,
        blobs: BlobStore,
        budget: BufferBudget,
        files: FileOperations | None = None,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        files = files or FileOperations()
        self._run = run
        self._staging = blobs.staging
        self._budget = budget
        self._now = now
        self._clock = clock
        self._gather = GATHER if clock is not None else 1
        extents = Extents(folder.fills, files)
        self._files = FillFiles(folder.fills, extents, files)
        self._fills = FillDirectory(folder.fills, self._files, files, pause, procfs.boot_time())

    async def claim(self, digest: Digest, *, create: bool = True) -> FillSession | None:
        """
        Take the fill of ``digest``, as far as it has come; begin it if there is none.

        ``None`` if another process, or another claim of this one, has it; without ``create`` also
        if there is none.
        """
        claiming = self._run(self._fills.claim, digest, create)
        claimed = await uncancelled(claiming, _close_first)
        if claimed is None:
            return None
        file, info = claimed
        return FillSession(
            file,
            self._budget,
            Serial(self._run),
            self._gather,
            digest,
            self._fills.directory,
            self._staging,
            info,
            clock=self._clock,
        )

    async def view(self, digest: Digest) -> tuple[FillView, FillInfo | None] | None:
        """The fill of ``digest`` and what is known of it, or ``None`` if there is none."""
        viewing = self._run(self._fills.view, digest)
        return await uncancelled(viewing, _close_first)

    async def info(self, digest: Digest) -> FillInfo | None:
        """What is known of a blob that is coming, or of which there are extents."""
        return await self._run(self._files.info, blob_name(digest))

    async def is_staged(self, digest: Digest) -> bool:
        """
        Whether some process, this one included, has staged ``digest``, from a fill or an upload,
        and has neither committed its row yet nor given up.
        """
        return await self._run(self._staging.is_held, digest)

    async def find_extent(self, digest: Digest, span: ByteRange) -> OpenFile | None:
        """A file that has the bytes ``span`` at their offsets, if the extents have all of them."""
        finding = self._run(self._files.extents.find, blob_name(digest), span)
        return await uncancelled(finding, _close)

    async def add_extent(self, digest: Digest, first: int, info: FillInfo) -> ExtentSession:
        """Begin to keep a part of a blob, from the offset ``first`` on."""
        adding = self._run(self._fills.add_extent, digest, first, info)
        file = await uncancelled(adding, ExtentFile.close)
        threads = Serial(self._run)
        return ExtentSession(
            file, self._budget, threads, self._gather, self._fills.directory, clock=self._clock
        )

    async def discard(self, digest: Digest) -> None:
        """Remove what there is of a blob, unless somebody has claimed its fill."""
        await self._run(self._fills.discard, digest)

    async def sweep(self, seconds: float) -> int:
        """Remove what nobody has written to for ``seconds`` and nobody holds; how many blobs'."""
        swept, before = 0, self._now() - seconds
        for blob, names in (await self._run(self._fills.stale, before)).items():
            try:
                swept += await self._run(self._fills.remove_stale, blob, names, before)
            except OSError as error:
                self._log.warn("fill {blob} left alone: {error}", blob=blob, error=error)
        return swept


def _close(file: OpenFile | None) -> None:
    if file is not None:
        file.close()


def _close_first(found: tuple[OpenFile | FillFile, object] | None) -> None:
    if found is not None:
        found[0].close()
