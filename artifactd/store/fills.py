"""
Fills: blobs that are still coming from an upstream, in the files of one folder.

Everything that a second process needs to follow a fill, or to take it over, lies in the store
(docs/architecture.md, "Pull-through: the fill").  Its bytes are not verified, so each remote
repository has fills of its own.
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
from hashlib import sha256
from uuid import uuid4

import msgspec
from attrs import define, field, frozen
from twisted.internet.interfaces import IProducer, IReactorTime
from twisted.logger import Logger

from artifactd.kit.budget import BufferBudget
from artifactd.kit.deferreds import RunInThread, Serial, offer_nobody, uncancelled
from artifactd.oci.names import Algorithm, Digest, ImageName
from artifactd.oci.ranges import ByteRange
from artifactd.store import procfs
from artifactd.store.blobs import BlobStore
from artifactd.store.extents import ExtentFile, Extents, map_name
from artifactd.store.files import Directory, FileOperations, OpenFile, is_sealed, split, write_all
from artifactd.store.folder import DataFolder
from artifactd.store.intake import (
    AppendedFile,
    FileConsumer,
    HashedFile,
    Offer,
    RunningDigest,
    hashed,
)
from artifactd.store.publication import StagedBlob, Staging


class Contradicted(Exception):
    """An upstream sent a blob's bytes again, and they differ from those it sent before."""


@frozen
class FillInfo:
    """
    The size and entity tag that an upstream stated for a blob, kept beside its bytes.

    :ivar size: in bytes; ``None`` if the upstream stated none.
    :ivar validator: the strong entity tag for ``If-Range``, or ``None``.
    """

    size: int | None
    validator: str | None = None


class FillState(Enum):
    """The state of a fill, which its file tells every process that has it open."""

    GROWING = "growing"  # or left alone: a process that claims it goes on
    VERIFIED = "verified"  # the file is the blob
    FAILED = "failed"  # the file is unlinked


# Files in ``fills``, of which ``<blob>`` stands for ``<repository>@<algorithm>-<encoded>``, where
# ``_<hash>`` instead of the repository stands for one image of it:
# ``<blob>``         the bytes, one after the other; locked (flock) by the process that appends
# ``<blob>.info``    a FillInfo as JSON
# ``<blob>.map``, ``<blob>.<uuid>.extents``   see extents.py
# ``<blob>.<uuid>.new``   a file that is renamed to one of these when it is written
_UNIQUE = r"\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(?:extents|new)"
# A fill of an earlier release names no repository: it is swept, and never continued.
_NAME = re.compile(
    r"(?P<blob>(?:[a-z0-9._-]+@)?(?:sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128}))"
    rf"(?:\.info|\.map|(?P<unique>{_UNIQUE}))?"
)

_decoder = msgspec.json.Decoder(FillInfo)
_INFO_SIZE = 64 * 1024  # bytes read of a FillInfo


def blob_name(repository: str, digest: Digest) -> str:
    """
    The name of the fill of a blob for a remote repository; the names of all its files begin so.

    :param repository: at most 64 characters, so that the longest name is one that a file may have;
        or what :func:`fill_owner` returns.
    """
    return f"{repository}@{digest.algorithm}-{digest.encoded}"


def fill_owner(image: ImageName) -> str:
    """What stands for one image, instead of a repository, in the names of its own fills."""
    # No repository's name begins with an underscore, or has more than 64 characters.
    return f"_{sha256(str(image).encode()).hexdigest()[:40]}"


def _info_name(blob: str) -> str:
    return f"{blob}.info"


@frozen
class FillFiles:
    """
    Reads, writes and removes the files of a blob that is being fetched.

    Methods take the name that :func:`blob_name` returns.  They look at no lock, block, and raise
    OSError.
    """

    directory: Directory
    extents: Extents
    _files: FileOperations

    def info(self, blob: str) -> FillInfo | None:
        """Read the info of a blob; ``None`` if none is kept, or if the file can't be parsed."""
        try:
            fd, _ = self.directory.open_file(_info_name(blob))
        except FileNotFoundError:
            return None
        try:
            info = _decoder.decode(self._files.read(fd, _INFO_SIZE, 0))
        except ValueError:
            return None
        finally:
            os.close(fd)
        return info if info.size is None or info.size >= 0 else None

    def describe(self, blob: str, info: FillInfo) -> None:
        """
        Replace the info of a blob.  If that fails, the old one stays.

        The file is not synced, since clients wait for the blob: a power cut may make it unreadable.
        """
        directory, written = self.directory.fd, f"{blob}.{uuid4()}.new"
        fd = self._files.create(directory, written)
        try:
            write_all(self._files, fd, [msgspec.json.encode(info)], 0)
            self._files.rename(directory, written, directory, _info_name(blob))
        except BaseException:
            self._files.unlink(directory, written)
            raise
        finally:
            os.close(fd)

    def forget(self, blob: str) -> str | None:
        """
        Remove the info of a blob and the map of its extents.

        Returns the name of the file with the extents, which stays; ``None`` if there was no map.
        """
        found = self.extents.map(blob)
        self._files.unlink(self.directory.fd, map_name(blob))
        self._files.unlink(self.directory.fd, _info_name(blob))
        return found.name if found is not None else None

    def drop(self, blob: str, names: Iterable[str] = (), *, fill: bool = True) -> None:
        """
        Remove all files of a blob.

        :param names: names of its files, also of those that no map names any more.
        :param fill: whether to remove the fill too; the caller has locked it then.
        """
        extents = self.forget(blob)
        if fill:
            self.unlink(blob)
        # From here on another process may begin the blob anew, so only files with unique names may
        # be removed; these are the large ones.
        for name in (extents, *names):
            if name and (match := _NAME.fullmatch(name)) and match["unique"]:
                self.unlink(name)

    def exist(self, blob: str) -> bool:
        """Whether a blob has a fill, an info or extents."""
        for name in (blob, _info_name(blob), map_name(blob)):
            with suppress(FileNotFoundError):
                self.directory.status(name)
                return True
        return False

    def unlink(self, name: str | None) -> None:
        """Remove the file ``name``, if there is one; ``None``: do nothing."""
        if name is not None:
            self._files.unlink(self.directory.fd, name)


@define(eq=False)
class FillFile(HashedFile):
    """
    The file of a claimed fill.

    All methods block, except those whose docstrings say otherwise; one call at a time.
    """

    _fills: FillFiles
    # The offset of the next byte that comes again, if any does.
    _again: int | None = field(default=None, init=False)

    @property
    def compared(self) -> bool:
        """Whether no comparison begun by :meth:`restart` is under way.  Does not block."""
        return self._again is None

    def restart(self) -> None:
        """Compare the bytes appended next with the file, from its start on.  Does not block."""
        self._again = 0 if self.size else None

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """
        Compare ``pieces`` with the file, as far as they are bytes that came again; append the rest.

        :raises Contradicted: at the first difference; nothing is appended then.
        :raises OSError: if not all could be written.  What was written is hashed, and stays.
        """
        super().append(self._compare(pieces))

    def take_extents(self, until: int | None) -> int:
        """
        Append the extents that follow the end of the file without a gap, and end a comparison.

        :param until: the offset to stop at, in bytes; ``None``: no such limit.
        :returns: how many bytes were appended, at most 16 MiB.
        """
        self._again = None
        return self._fills.extents.copy(self.name, self, until)

    def next_extent(self, least: int) -> int | None:
        """
        Return the offset of the first extent behind the end of the file that has at least ``least``
        bytes; ``None`` if there is none.
        """
        found = self._fills.extents.map(self.name)
        spans = found.spans if found is not None else ()
        return next((s.first for s in spans if s.first > self.size and s.length >= least), None)

    def describe(self, info: FillInfo) -> None:
        """Replace the info of the blob; if that fails, the old one stays."""
        self._fills.describe(self.name, info)

    def stage(self, staging: Staging, digest: Digest) -> StagedBlob:
        """
        Sync the file, move it to the staged files, and remove the info and extents beside it.

        :raises OSError: if the file can't be synced or moved.  A file that can't be synced is
            removed.
        """
        # Synced before it moves, so that other processes find it here until then, and a crash
        # leaves it whole.  A sync that failed must not be tried again: the second one would
        # succeed, although the first has lost the bytes.
        try:
            self._files.sync_data(self.fd)
        except OSError:
            self.discard()
            raise
        extents = self._fills.forget(self.name)
        try:
            return self.move(staging, digest)
        finally:
            with suppress(OSError):  # left to the sweep
                self._fills.unlink(extents)

    def discard(self) -> None:
        """Remove the file, and the info and extents beside it."""
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
    """A fill open for reading, which any process may be writing.  No method blocks."""

    _directory: Directory
    _name: str
    _file: os.stat_result

    def look(self) -> tuple[FillState, int]:
        """Return the state of the fill, and the size of its file in bytes just after."""
        # First the name, then the links: a file that is unlinked in between has failed, and one
        # that has another name instead of this one has been staged.
        is_named = self._directory.holds(self._name, self._file)
        status = os.fstat(self.fileno())
        if not status.st_nlink:
            return FillState.FAILED, status.st_size
        return FillState.GROWING if is_named else FillState.VERIFIED, status.st_size


# Seconds for which a claim waits, once, for a process that has locked the fill to remove it.
_INSTANT = 0.001


@frozen
class FillDirectory:
    """
    Claims, opens and removes the fills of all repositories; methods take the name that
    :func:`blob_name` returns.  All of them block and raise OSError.

    :param pause: waits the given number of seconds, in the thread.
    :param booted: when the machine started, in seconds since the epoch.
    :param offer: see :class:`artifactd.store.intake.HashedFile`.
    """

    directory: Directory
    files: FillFiles
    _operations: FileOperations
    _pause: Callable[[float], None] = time.sleep
    _booted: float = 0.0
    _offer: Offer = offer_nobody

    def claim(
        self, blob: str, algorithm: Algorithm, create: bool
    ) -> tuple[FillFile, FillInfo | None] | None:
        """
        Lock a fill, and return its file and info.

        ``None`` if the fill is locked already, or, without ``create``, if there is none.
        """
        fd = self._claim(blob, create)
        if fd is None:
            return None
        try:
            info, running = self.files.info(blob), RunningDigest(algorithm)
            size = self._trusted_size(fd)
        except BaseException:
            os.close(fd)
            raise
        directory, operations = self.directory, self._operations
        file = FillFile(
            blob, fd, size, operations, running, directory, self.files, offer=self._offer
        )
        return file, info

    def _trusted_size(self, fd: int) -> int:
        """
        Return how many bytes of a locked fill can be kept.

        A fill that was last written to before the machine started is emptied: its bytes are not
        verified, and a power cut may have spoilt them.
        """
        status = os.fstat(fd)
        if status.st_size and status.st_mtime < self._booted:
            self._operations.truncate(fd, 0)
            return 0
        return status.st_size

    def view(self, blob: str) -> tuple[FillView, FillInfo | None] | None:
        """Open a fill for reading; returns it and its info, or ``None`` if there is no fill."""
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

    def find_extent(self, blob: str, span: ByteRange, size: int | None) -> OpenFile | None:
        """Open the extents of a blob if they have the bytes ``span`` and fit ``size``."""
        file = self.files.extents.find(blob, span)
        if file is None or size is None:
            return file
        info = self.files.info(blob)
        if info is None or info.size in (None, size):
            return file
        file.close()
        return None

    def add_extent(self, blob: str, first: int, info: FillInfo) -> ExtentFile:
        """Begin an extent, and keep ``info`` unless the blob's size is known already."""
        known = self.files.info(blob)
        if known is None or known.size is None:
            self.files.describe(blob, info)
        return self.files.extents.begin(blob, first)

    def stale(self, before: float) -> dict[str, list[str]]:
        """
        Return the names of the files of each blob that is not claimed, and none of whose files was
        written to after ``before``, in seconds since the epoch.
        """
        groups: dict[str, list[str]] = {}
        for name in self.directory.names():
            if match := _NAME.fullmatch(name):
                groups.setdefault(match["blob"], []).append(name)
        return {
            blob: names
            for blob, names in groups.items()
            if self._is_stale(names, before) and not self._is_claimed(blob)
        }

    def _is_claimed(self, blob: str) -> bool:
        try:
            return self.directory.is_locked(blob)
        except OSError:
            return False  # it has no file, or :meth:`remove_stale` meets the same error

    def left(self, owner: str, before: float) -> list[tuple[float, int, str, list[str]]]:
        """
        Return what :meth:`stale` returns of one owner, the longest unwritten first: when it was
        written to, the bytes that it takes on the disk, the blob and the names of its files.
        """
        left = []
        for blob, names in self.stale(before).items():
            if blob.startswith(f"{owner}@"):
                written = max(map(self._written, names))
                left.append((written, sum(map(self._taken, names)), blob, names))
        return sorted(left)

    def _taken(self, name: str) -> int:
        with suppress(FileNotFoundError):
            return self.directory.status(name).st_blocks * 512  # extents have holes
        return 0

    def remove_stale(self, blob: str, names: list[str], before: float) -> bool:
        """Remove a blob that is still stale and not claimed.  Returns whether it was removed."""
        return self._remove(blob, lambda: self._is_stale(names, before), names)

    def discard(self, blob: str) -> bool:
        """
        Remove all files of a blob, unless its fill is claimed.  Returns whether there were any.
        """
        return self._remove(blob, lambda: self.files.exist(blob))

    def _claim(self, blob: str, create: bool) -> int | None:
        for attempt in range(3):
            try:
                sealed = is_sealed(self.directory.status(blob))
                if sealed and not self._remove(blob, lambda: True):
                    raise BlockingIOError(errno.EAGAIN, "another process has it locked", blob)
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
            return 0.0  # it was removed in this moment
        except OSError:
            return float("inf")  # artifactd did not make it: left alone


GATHER = 512 * 1024
"""Bytes that are gathered before a thread writes them; followers wait for them."""

EXTENT = 1024 * 1024
"""
Bytes that an extent needs for the fill to request only the bytes before it, and then take it over.
"""


@define(eq=False)
class FillSession(FileConsumer[FillFile]):
    """
    A claimed fill: no other session, in any process, appends to it until :meth:`close`.  The bytes
    stay for the next claim.

    Bytes never change once they are in the file: other readers may have sent them to clients.

    :ivar info: the blob's info when the fill was claimed, or as last given to :meth:`describe`;
        ``None`` if there was none.
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
        """``IConsumer``.  Until new bytes come, a thread hashes those found at the claim."""
        super().registerProducer(producer, streaming)
        self._pump()

    def reader(self) -> OpenFile:
        """Open the file once more, for reading."""
        return _reader(self._directory, self._file)

    async def describe(self, info: FillInfo) -> None:
        """Store ``info`` for processes that follow the fill or take it over."""
        await self._threads.run(partial(self._file.describe, info))
        self.info = info

    def restart(self) -> None:
        """
        Let the producer send the blob from its first byte again: bytes before :attr:`offset` (which
        stays as it is) are compared with the file, later ones appended.  At the first difference
        :meth:`flush` raises :class:`Contradicted`, and the producer is stopped.

        Call it only when nothing is in flight (after :meth:`flush`).  :meth:`take_extents` ends a
        comparison early.
        """
        self._file.restart()
        self._position = 0

    @property
    def compared(self) -> bool:
        """Whether no comparison begun by :meth:`restart` is under way."""
        return self._file.compared

    async def take_extents(self, until: int | None) -> int:
        """
        Append the extents of the blob that follow :attr:`offset` without a gap.

        :param until: the offset to stop at, in bytes; ``None``: no such limit.
        :returns: how many bytes were appended, at most 16 MiB.  Call it again until it returns 0.
        """
        await self.flush()
        try:
            return await self._threads.run(
                partial(self._file.take_extents, until), lambda _: self._took()
            )
        finally:
            self._took()

    async def next_extent(self) -> int | None:
        """Return where the first extent of at least 1 MiB behind :attr:`offset` begins, or None."""
        return await self._threads.run(partial(self._file.next_extent, EXTENT))

    async def computed(self) -> Digest:
        """Return the digest of all bytes; reads back only bytes not hashed as they arrived."""
        await self.flush()
        return await hashed(self._file, self._file.running, self._threads)

    async def stage(self) -> StagedBlob:
        """
        Sync and stage the bytes, which the caller has verified, and remove the info and extents.
        From then on every process that follows the fill sees :attr:`FillState.VERIFIED`.

        :raises OSError: if the bytes can't be synced or staged; bytes that can't be synced are
            removed.
        """
        await self.flush()
        return await self._threads.run(
            partial(self._file.stage, self._staging, self._digest), StagedBlob.abandon
        )

    async def discard(self) -> None:
        """Remove the bytes, info and extents; followers see :attr:`FillState.FAILED`."""
        await self._threads.run(self._file.discard)

    def _took(self) -> None:
        self.offset = self._position = self._file.size
        self._tell_growth(self._file.size)

    def _pump(self) -> None:
        super()._pump()
        if self._catching_up or self._in_thread or self._closed or self._producer is None:
            return
        if self._file.running.length < self._file.size:
            self._catching_up = True
            turn = self._threads.compute(partial(self._file.catch_up, self._file.running))
            # If it fails, computed() reads once more, and raises.
            turn.addCallbacks(self._caught_up, lambda _: None)

    def _caught_up(self, _: None) -> None:
        self._catching_up = False
        self._pump()


@define(eq=False)
class ExtentSession(FileConsumer[ExtentFile]):
    """Writes a part of a blob into the file of its extents."""

    _directory: Directory

    def reader(self) -> OpenFile:
        """Open the file of the extents once more, for reading."""
        return _reader(self._directory, self._file)

    async def record(self) -> None:
        """Flush and sync the bytes, and record in the map those up to :attr:`written`."""
        await self.flush()
        await self._threads.run(self._file.record)


def _reader(directory: Directory, file: AppendedFile) -> OpenFile:
    """Open ``file`` once more; a duplicate of its descriptor would share, and keep, its lock."""
    fd, status = directory.open_file(file.name)
    if not os.path.samestat(status, os.fstat(file.fd)):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no longer there", file.name)
    return OpenFile(fd)


class FillStore:
    """
    The fills of one remote repository, by digest; their bytes survive the process.

    No method sees the files of another repository: until a digest is verified, nothing but the
    word of one upstream says that its bytes are the blob.

    :ivar require_room: see :meth:`artifactd.store.blobs.BlobStore.require_room`.
    """

    def __init__(
        self,
        repository: str,
        fills: FillDirectory,
        blobs: BlobStore,
        run: RunInThread,
        budget: BufferBudget,
        clock: IReactorTime | None,
        compute: RunInThread | None = None,
    ) -> None:
        self.require_room = blobs.require_room
        self._repository = repository
        self._fills = fills
        self._staging = blobs.staging
        self._run, self._compute = run, compute
        self._budget = budget
        self._clock = clock
        self._gather = GATHER if clock is not None else 1

    async def claim(self, digest: Digest, *, create: bool = True) -> FillSession | None:
        """
        Claim the fill of ``digest``, with the bytes it has so far; begin it if there is none.

        ``None`` if this process or another one has claimed it already; without ``create`` also if
        there is none.
        """
        claiming = self._run(self._fills.claim, self._name(digest), digest.algorithm, create)
        claimed = await uncancelled(claiming, _close_first)
        if claimed is None:
            return None
        file, info = claimed
        return FillSession(
            file,
            self._budget,
            Serial(self._run, self._compute),
            self._gather,
            digest,
            self._fills.directory,
            self._staging,
            info,
            clock=self._clock,
        )

    async def view(self, digest: Digest) -> tuple[FillView, FillInfo | None] | None:
        """Open the fill of ``digest`` for reading; returns it and its info, or ``None``."""
        viewing = self._run(self._fills.view, self._name(digest))
        return await uncancelled(viewing, _close_first)

    async def info(self, digest: Digest) -> FillInfo | None:
        """Read the info of a blob that has a fill or extents; ``None`` if there is none."""
        return await self._run(self._fills.files.info, self._name(digest))

    async def is_staged(self, digest: Digest) -> bool:
        """
        Whether any process has staged ``digest``, from a fill of any repository or an upload, and
        has neither committed its row yet nor given up.
        """
        return await self._run(self._staging.is_held, digest)

    async def find_extent(
        self, digest: Digest, span: ByteRange, size: int | None = None
    ) -> OpenFile | None:
        """
        Open the file of the extents, where bytes lie at their offsets in the blob; ``None`` if
        some of the bytes ``span`` are not in it, or it is known to be of a blob of another size.

        :param size: of the blob, in bytes; ``None``: any.
        """
        finding = self._run(self._fills.find_extent, self._name(digest), span, size)
        return await uncancelled(finding, _close)

    async def add_extent(self, digest: Digest, first: int, info: FillInfo) -> ExtentSession:
        """Begin an extent: a part of a blob, from the offset ``first`` on."""
        adding = self._run(self._fills.add_extent, self._name(digest), first, info)
        file = await uncancelled(adding, ExtentFile.close)
        threads = Serial(self._run, self._compute)
        return ExtentSession(
            file, self._budget, threads, self._gather, self._fills.directory, clock=self._clock
        )

    async def discard(self, digest: Digest) -> bool:
        """
        Remove all files of a blob, unless its fill is claimed.  Returns whether there were any.
        """
        return await self._run(self._fills.discard, self._name(digest))

    async def trim(self, most: int, before: float) -> list[int]:
        """
        Of the blobs that are not claimed, and not written to after ``before`` (in seconds since the
        epoch), remove those that were longest not, until the others take ``most`` bytes on the disk
        at most.  Returns the bytes of each that was removed.
        """
        left = await self._run(self._fills.left, self._repository, before)
        excess = sum(size for _, size, _, _ in left) - most
        removed: list[int] = []
        for _, size, blob, names in left:
            if excess <= 0:
                break
            if await self._run(self._fills.remove_stale, blob, names, before):
                removed.append(size)
                excess -= size
        return removed

    def _name(self, digest: Digest) -> str:
        return blob_name(self._repository, digest)


class FillStores:
    """
    The fills of all remote repositories of a data folder.

    :param blobs: the store of the same folder, in which the fills become blobs.
    :param clock: limits how long bytes are gathered before they are written; without one each piece
        is written at once.
    :param now: the time in seconds since the epoch.
    :param pause: waits the given number of seconds, in a thread.
    :param offer: see :class:`artifactd.store.intake.HashedFile`.
    :param compute: see :class:`artifactd.kit.deferreds.Serial`.
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
        offer: Offer = offer_nobody,
        compute: RunInThread | None = None,
    ) -> None:
        files = files or FileOperations()
        self._run, self._compute = run, compute
        self._blobs = blobs
        self._budget = budget
        self._now = now
        self._clock = clock
        extents = Extents(folder.fills, files)
        filling = FillFiles(folder.fills, extents, files)
        booted = procfs.boot_time()
        self._fills = FillDirectory(folder.fills, filling, files, pause, booted, offer)

    def of(self, repository: str) -> FillStore:
        """The fills of one remote repository."""
        return FillStore(
            repository,
            self._fills,
            self._blobs,
            self._run,
            self._budget,
            self._clock,
            self._compute,
        )

    def of_image(self, image: ImageName) -> FillStore:
        """The fills that belong to one image alone: of its foreign layers."""
        return self.of(fill_owner(image))

    async def stale(self, seconds: float) -> Sequence[str]:
        """The names of what :meth:`sweep` would remove."""
        return list(await self._run(self._fills.stale, self._now() - seconds))

    async def sweep(self, seconds: float) -> Sequence[str]:
        """
        Remove unclaimed fills not written to for ``seconds``, also those of repositories that are
        no longer configured.  Returns their names.
        """
        swept, before = [], self._now() - seconds
        for blob, names in (await self._run(self._fills.stale, before)).items():
            try:
                if await self._run(self._fills.remove_stale, blob, names, before):
                    swept.append(blob)
            except OSError as error:
                self._log.warn("fill {blob} left alone: {error}", blob=blob, error=error)
        return swept


def _close(file: OpenFile | None) -> None:
    if file is not None:
        file.close()


def _close_first(found: tuple[OpenFile | FillFile, object] | None) -> None:
    if found is not None:
        found[0].close()
