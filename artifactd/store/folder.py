"""The data folder: checks at the start, locks between processes, and small files of its own."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, Self

from attrs import define, field, frozen
from twisted.logger import Logger

from artifactd.kit.start import StartError
from artifactd.store import procfs
from artifactd.store.files import (
    DIRECTORY,
    Directory,
    DutyLock,
    FileOperations,
    open_lock,
    try_lock,
    write_all,
)

MARKER = "artifactd.lock"
FORMAT = "artifactd data folder, format 1\n"

# Names that a folder may hold and still count as empty: the root of a filesystem has this one.
_BENIGN = {"lost+found"}
_PATIENCE = 10.0
_PAUSE = 0.05

_log = Logger()


@define(eq=False)
class DataFolder:
    """
    The folder that holds all data, locked: shared by the processes that use it, or exclusively by
    one that migrates it.

    :ivar path: absolute.
    :ivar catalog: the catalog's file; may not exist yet.
    :ivar blobs, uploads, staging, fills, quarantine: the store's directories, open.
    :ivar in_memory: whether the filesystem is in memory (tmpfs), so that reads never block.
    """

    path: Path
    blobs: Directory
    uploads: Directory
    staging: Directory
    fills: Directory
    quarantine: Directory
    in_memory: bool
    _marker: int
    _locks: Path
    _is_exclusive: bool
    _closed: bool = field(default=False, init=False)

    @property
    def catalog(self) -> Path:
        """The catalog's file."""
        return self.path / "catalog.sqlite3"

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        files: FileOperations | None = None,
        mountinfo: Path = procfs.MOUNTINFO,
        locks: Path = procfs.LOCKS,
        patience: float = _PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """
        Check the folder, make it if it is missing, and lock it.  Blocks; for the start.

        The first process holds the lock exclusively until :meth:`settle`; others wait for that.
        Where the disk is full the reserve goes, so that the catalog can be opened.

        :param patience: seconds to wait for a process that holds the folder exclusively.
        :raises StartError: if the folder can't be used.
        """
        files = files or FileOperations()
        path = Path(os.path.abspath(path))
        try:
            _make(path, files)
            _check_folder(path, mountinfo)
            with Directory.open(path) as folder:
                marker = _open_marker(folder, files)
                try:
                    _close_to_others(folder, files)
                    exclusive = _lock(marker, path, locks, patience, sleep)
                    _check_format(marker, folder, files)
                    blobs = folder.ensure("blobs", files)
                    uploads = folder.ensure("uploads", files)
                    staging = folder.ensure("staging", files)
                    fills = folder.ensure("fills", files)
                    quarantine = folder.ensure("quarantine", files)
                except BaseException:
                    os.close(marker)
                    raise
        except OSError as error:
            raise StartError(f"the data folder {path} can't be used: {error}") from error
        with suppress(OSError):  # opening the catalog tells more
            Reserve(path, files).let_open()
        in_memory = _filesystem(path, mountinfo) in procfs.MEMORY_FILESYSTEMS
        return cls(
            path, blobs, uploads, staging, fills, quarantine, in_memory, marker, locks, exclusive
        )

    def has_blobs(self) -> bool:
        """Whether anything is published in it.  Blocks."""
        return any(Path(self.blobs.path).glob("*/*/*"))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """
        Be the only process that uses the folder, for a migration or a backup into it.

        :raises StartError: if others use it; the message names their ids.
        """
        if self._is_exclusive:
            yield
            return
        if not try_lock(self._marker):
            try_lock(self._marker, fcntl.LOCK_SH)  # trying has given it up
            raise StartError(
                f"the data folder {self.path} is needed alone, for a migration or a backup into it,"
                f" but is in use by {_holders(self._marker, self._locks)}: stop it first"
            )
        self._is_exclusive = True
        try:
            yield
        finally:
            self.settle()

    def settle(self) -> None:
        """Share the lock, so that other processes can use the folder."""
        if self._is_exclusive:
            fcntl.flock(self._marker, fcntl.LOCK_SH)
            self._is_exclusive = False

    def close(self) -> None:
        """Close the directories and unlock the folder.  Further calls do nothing."""
        if not self._closed:
            self._closed = True
            for directory in (
                self.blobs,
                self.uploads,
                self.staging,
                self.fills,
                self.quarantine,
            ):
                directory.close()
            os.close(self._marker)


def _make(path: Path, files: FileOperations) -> None:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(FileExistsError):
            files.make_directory(parent, path.name)
        files.sync(parent)
    finally:
        os.close(parent)


def _check_folder(path: Path, mountinfo: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise StartError(f"the data folder {path} is a symbolic link: name the folder itself")
    if not stat.S_ISDIR(status.st_mode):
        raise StartError(f"the data folder {path} is not a folder")
    if status.st_uid != os.geteuid():
        raise StartError(
            f"the data folder {path} belongs to user {status.st_uid}, and artifactd runs as user"
            f" {os.geteuid()}: change one of them"
        )
    _check_filesystem(path, mountinfo)
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        raise StartError(f"the data folder {path} is not writable")


def _close_to_others(folder: Directory, files: FileOperations) -> None:
    """Keep group and others out of the folder, which holds nothing but what artifactd stores."""
    mode = stat.S_IMODE(os.fstat(folder.fd).st_mode)
    if mode & 0o077 == 0:
        return
    with suppress(PermissionError):
        files.set_mode(folder.fd, DIRECTORY)
    if os.fstat(folder.fd).st_mode & 0o077:
        raise StartError(
            f"the data folder {folder.path} can be entered by others (mode {mode:04o}), and its"
            " filesystem does not let that be changed: chmod 700, or choose another filesystem"
        )
    _log.warn(
        "the data folder {path} could be entered by others (mode {before:04o}): closed, by mode"
        " {mode:04o}",
        path=folder.path,
        before=mode,
        mode=DIRECTORY,
    )


def _check_filesystem(path: Path, mountinfo: Path) -> None:
    kind = _filesystem(path, mountinfo)
    if kind in procfs.NETWORK_FILESYSTEMS:
        raise StartError(
            f"the data folder {path} is on a network filesystem ({kind}), where locks can't be"
            " relied on: choose a local disk"
        )


def _filesystem(path: Path, mountinfo: Path) -> str | None:
    try:
        mounts = mountinfo.read_text(errors="surrogateescape")
    except OSError:
        return None  # there is no /proc
    return procfs.filesystem_type(path.resolve(), mounts)


def _open_marker(folder: Directory, files: FileOperations) -> int:
    names = set(folder.names()) - _BENIGN
    if names and MARKER not in names:
        raise StartError(
            f"the data folder {folder.path} holds other things ({min(names)!r}) and was not made"
            " by artifactd: choose an empty or a new one"
        )
    # Two processes may come here at once, and both find nothing.
    with suppress(FileExistsError):
        os.close(files.create(folder.fd, MARKER))
    marker, _ = folder.open_file(MARKER, os.O_RDWR)
    return marker


def _lock(
    marker: int, path: Path, locks: Path, patience: float, sleep: Callable[[float], None]
) -> bool:
    """Lock the folder.  Returns whether the lock is exclusive."""
    if try_lock(marker):
        return True
    waited = 0.0
    while True:
        if try_lock(marker, fcntl.LOCK_SH):
            return False
        if waited >= patience:
            raise StartError(
                f"the data folder {path} is being migrated by {_holders(marker, locks)}:"
                " start again when it has ended"
            )
        sleep(_PAUSE)
        waited += _PAUSE


def _check_format(marker: int, folder: Directory, files: FileOperations) -> None:
    text = files.read(marker, 4096, 0).decode(errors="replace")
    if FORMAT.startswith(text) or not text.strip("\0"):
        # The folder is new; or an earlier start failed here; or a power cut has left only a part of
        # the line, or its length.
        write_all(files, marker, [FORMAT.encode()], 0)
        files.sync(marker)
        files.sync(folder.fd)
    elif text != FORMAT:
        raise StartError(
            f"the data folder {folder.path} has another format than this artifactd's"
            f" ({text[:80].strip()!r}): run the version that made it, or a newer one"
        )


def _holders(marker: int, locks: Path) -> str:
    try:
        holders = procfs.lock_holders(os.fstat(marker), locks.read_text()) - {os.getpid()}
        pids = set(map(procfs.daemon_of, holders))
    except OSError:
        pids = set()
    if not pids:
        return "another process"
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, sorted(pids)))}"


MARK = "read-only"


@frozen
class ReadOnlyMode:
    """
    An empty file in the data folder forbids changes to all processes, also after a restart.

    Each process looks for the file at every request.

    :param folder: the data folder.
    :ivar always: on even without the file.
    """

    folder: Path
    always: bool = False
    files: FileOperations = field(factory=FileOperations)
    _mark: str = field(init=False)

    @_mark.default
    def _where(self) -> str:
        return str(self.folder / MARK)

    def on(self) -> bool:
        """
        Whether the mode is on; also if the folder can't be read.

        Takes a microsecond or two: the kernel caches that a file does not exist.
        """
        if self.always:
            return True
        try:
            os.stat(self._mark)
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def turn_on(self) -> None:
        """Turn it on for all processes on the folder, durably.  Blocks.  :raises OSError:"""
        with Directory.open(self.folder) as folder:
            with suppress(FileExistsError):
                os.close(self.files.create(folder.fd, MARK))
            self.files.sync(folder.fd)

    def turn_off(self) -> None:
        """Turn it off for all processes on the folder, durably.  Blocks.  :raises OSError:"""
        with Directory.open(self.folder) as folder:
            self.files.unlink(folder.fd, MARK)
            self.files.sync(folder.fd)


RESERVE = "reserve"
_RESERVED = 4 << 20  # bytes: a few hundred deletions
_TO_OPEN = 2 << 20  # bytes that the files take which opening a catalog makes, and a first write
# What posix_fallocate says where the filesystem (or the C library for it) has no such call.
_CANNOT_ALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@frozen
class Reserve:
    """
    A file of 4 MiB in the data folder.  When the disk is full it is removed, so that the catalog
    has room to record deletions.

    Pushes and fills are refused until it is made again.  That takes twice its size of free space:
    they must not use up the room that was made for deletions.

    :param folder: the data folder.
    """

    folder: Path
    files: FileOperations = field(factory=FileOperations)
    _file: str = field(init=False)

    @_file.default
    def _where(self) -> str:
        return str(self.folder / RESERVE)

    def is_held(self) -> bool:
        """Whether the file is there in full.  Takes a microsecond or two."""
        try:
            return os.stat(self._file).st_size >= _RESERVED
        except OSError:
            return False

    def refill(self) -> None:
        """
        Make the file, if it is not there.  Blocks.

        :raises OSError: if the disk has no room for it.
        """
        if self.is_held():
            return
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < 2 * _RESERVED:
            raise OSError(errno.ENOSPC, "no room for the reserve that deleting needs", self._file)
        with Directory.open(self.folder) as folder:
            fd = folder.ensure_file(RESERVE, self.files)
            try:
                self._fill(fd)
            except OSError:
                self.files.unlink(folder.fd, RESERVE)
                raise
            finally:
                os.close(fd)

    def _fill(self, fd: int) -> None:
        try:
            self.files.allocate(fd, _RESERVED)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
            # Random bytes, since the filesystem may compress others to nothing.
            write_all(self.files, fd, [os.urandom(_RESERVED)], 0)

    def let_open(self) -> None:
        """
        Remove the file if the disk is too full for the catalog to be opened.  Blocks.

        :raises OSError: if the file can't be removed.
        """
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < _TO_OPEN and self.is_held():
            self.give_back()

    def give_back(self) -> None:
        """Remove the file, so that a deletion finds room.  Blocks.  :raises OSError:"""
        with Directory.open(self.folder) as folder:
            self.files.unlink(folder.fd, RESERVE)


FOLDER = "keys"
"""The directory of private files in the data folder.  Not part of a backup."""

# The most bytes of a private file.
_LIMIT = 1 << 20


@frozen
class Version:
    """Identifies the content of a file: it differs whenever the file has been replaced."""

    inode: int
    modified: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Version:
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


@define(eq=False)
class PrivateFile:
    """
    A small file that only this user may read, such as the keys that tokens are signed with.

    It is replaced as a whole: readers find all of the old content or all of the new one, also after
    a crash, and the new one is durable when :meth:`update` returns.  Several processes may use it
    at once.  All methods but :meth:`version` block.

    :param folder: the data folder.
    """

    folder: Path
    name: str
    files: FileOperations = field(factory=FileOperations)

    @property
    def path(self) -> Path:
        """The path of the file, for messages."""
        return self.folder / FOLDER / self.name

    def version(self) -> Version | None:
        """
        The version of its present content; ``None`` if there is no such file.  Takes microseconds.

        :raises OSError: if the status of the file can't be read.
        """
        try:
            return Version.of(os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return None

    def update(self, change: Callable[[bytes | None], bytes | None]) -> tuple[bytes, Version]:
        """
        Replace the content by what ``change`` returns, while no other process changes it.

        :param change: is given the present content (``None``: there is no file), and returns the
            new one (``None``: leave it).
        :returns: the content, and its version.
        :raises OSError: if it can't be read or written, or others may read it.  The content is
            unchanged then, unless the disk failed after the file had been renamed.
        """
        with Directory.open(self.folder) as above:
            folder = above.ensure(FOLDER, self.files)
        with folder:
            lock = self._lock(folder)
            try:
                before = self._read(folder)
                content = change(None if before is None else before[0])
                if content is None:
                    if before is None:
                        raise FileNotFoundError(f"{self.path} is not there")
                    return before
                return content, self._replace(folder, content)
            finally:
                os.close(lock)

    def read(self) -> tuple[bytes, Version] | None:
        """
        Read the content and its version; ``None`` if there is no file.  Errors are those of
        :meth:`update`.
        """
        try:
            with Directory.open(self.folder) as above, above.subdirectory(FOLDER) as folder:
                return self._read(folder)
        except FileNotFoundError:
            return None

    def _lock(self, folder: Directory) -> int:
        """Lock another file exclusively, until it is closed, since this one is replaced."""
        name = f"{self.name}.lock"
        with suppress(FileExistsError):
            os.close(self.files.create(folder.fd, name))
        fd, _ = folder.open_file(name, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _read(self, folder: Directory) -> tuple[bytes, Version] | None:
        try:
            fd, status = folder.open_file(self.name)
        except FileNotFoundError:
            return None
        try:
            if status.st_mode & 0o077:
                raise PermissionError(f"{self.path} may be read by others: chmod 600")
            return self.files.read(fd, _LIMIT, 0), Version.of(status)
        finally:
            os.close(fd)

    def _replace(self, folder: Directory, content: bytes) -> Version:
        new = f"{self.name}.new"
        self.files.unlink(folder.fd, new)  # left by a process that was killed
        fd = self.files.create(folder.fd, new)
        try:
            write_all(self.files, fd, [content], 0)
            self.files.sync(fd)
            version = Version.of(os.fstat(fd))
            self.files.rename(folder.fd, new, folder.fd, self.name)
        except BaseException:
            with suppress(OSError):
                self.files.unlink(folder.fd, new)
            raise
        finally:
            os.close(fd)
        self.files.sync(folder.fd)
        return version


_COLLECTOR = "collector.lock"
_HOLD = "hold.lock"
_COPY = "copy.lock"
_DUTIES = "duties.lock"
_SUPERVISOR = "supervisor.lock"
_RELOAD = "reload.sock"


class CollectionLock(Protocol):
    """Lets one of the processes on a store collect garbage in it at a time."""

    def claim(self) -> bool:
        """
        Take the lock until :meth:`release` or the end of the process.  Blocks.

        :returns: whether the lock was free.
        :raises OSError: if the lock can't be used.
        """

    def release(self) -> None:
        """Let another process collect."""

    def step(self) -> AbstractContextManager[bool]:
        """
        Whether collection may go on by one step, during which nothing can hold it off.

        Only for the process that has claimed the lock.  Does not block.
        """


class FolderCollectionLock:
    """
    The :class:`CollectionLock` of the data folder at ``path``.

    Two files there are locked (flock), so that a lock ends with its process: one by the process
    that collects, the other shared by all that hold collection off.
    """

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        self._path = path
        self._files = files or FileOperations()
        self._collector = DutyLock(path, _COLLECTOR, self._files)
        self._hold = -1

    def claim(self) -> bool:
        """Take the lock.  Returns whether it was free.  Blocks."""
        # Two threads may come here at once: the lock, which is a descriptor's, decides.
        if not self._collector.claim():
            return False
        try:
            self._hold = open_lock(self._path, _HOLD, self._files)
        except BaseException:
            self._collector.release()
            raise
        return True

    def release(self) -> None:
        """Let another process collect."""
        hold, self._hold = self._hold, -1
        if hold >= 0:
            os.close(hold)
        self._collector.release()

    @contextmanager
    def step(self) -> Iterator[bool]:
        """Whether collection may go on by one step."""
        assert self._hold >= 0, "not claimed"
        hold = self._hold
        try:
            yield try_lock(hold)
        finally:
            fcntl.flock(hold, fcntl.LOCK_UN)


@contextmanager
def collection_held(path: Path, files: FileOperations | None = None) -> Iterator[None]:
    """
    Hold off garbage collection, and all other removal of bytes, in the data folder at ``path``.

    Blocks until a step that is under way has ended.

    :raises OSError: if the locks can't be taken.
    """
    held: list[int] = []
    files = files or FileOperations()
    try:
        for name in (_HOLD, _COPY):
            held.append(open_lock(path, name, files))
            fcntl.flock(held[-1], fcntl.LOCK_SH)
        yield
    finally:
        for fd in held:
            os.close(fd)


class CopyLock:
    """Keeps bytes from being removed from the data folder at ``path`` while it is copied."""

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        self._path = path
        self._files = files or FileOperations()
        self._fd = -1

    @contextmanager
    def kept_out(self) -> Iterator[None]:
        """
        Keep copies from beginning meanwhile.  Blocks; only in the catalog's thread, inside its
        write transaction, since two removals at once would lock each other out.

        :raises OSError: (EBUSY) if a copy is being made.
        """
        if self._fd < 0:
            self._fd = open_lock(self._path, _COPY, self._files)
        if not try_lock(self._fd):
            raise OSError(errno.EBUSY, "the store is being copied")
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Duties:
    """
    Lets one of the processes on the data folder at ``path`` do what one has to do for all, until it
    ends: sweep, collect garbage, scrub, evict.
    """

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        self._lock = DutyLock(path, _DUTIES, files)
        self._held = self._released = False

    def held(self) -> bool:
        """
        Whether this process has them; it takes them if no process has.  Takes microseconds.
        """
        if not (self._held or self._released):
            self._held = self._lock.claim()
        return self._held

    def release(self) -> None:
        """Leave them to another process for good."""
        self._held, self._released = False, True
        self._lock.release()


class ReloadSocket:
    """
    The Unix socket in the data folder at ``path`` by which a command has the supervisor reload.

    Its folder is named by a descriptor: a path may be too long for a socket's name.
    """

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        self._path = path
        self._files = files or FileOperations()
        self._lock = DutyLock(path, _SUPERVISOR, self._files)
        self._folder: Directory | None = None

    @contextmanager
    def named(self) -> Iterator[str]:
        """Return a name to connect to, for as long as the context lasts."""
        with Directory.open(self._path) as folder:
            yield f"/proc/self/fd/{folder.fd}/{_RELOAD}"

    def claim(self) -> str | None:
        """
        Return a name to listen at until :meth:`release`; ``None`` if another supervisor has it.

        :raises OSError: if that can't be told.
        """
        if not self._lock.claim():
            return None
        self._folder = Directory.open(self._path)
        self._files.unlink(self._folder.fd, _RELOAD)
        return f"/proc/self/fd/{self._folder.fd}/{_RELOAD}"

    def release(self) -> None:
        """Leave the name to others."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.close()
        self._lock.release()
