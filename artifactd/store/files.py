"""Files and directories of the store: system calls that change them, and strict opening."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from attrs import define, frozen

PRIVATE = 0o600
DIRECTORY = 0o700

# O_NONBLOCK: opening a FIFO that lies there would block for ever.
FILE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK
# The most buffers that one writev(2) takes on any Linux.
_IOV_MAX = 1024
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class FileOperations:
    """
    Every system call that changes the data folder, and those that read bytes back, except for the
    files of the catalog, which SQLite writes.

    They are in one small class so that a test can record them, make one fail, or replay them up to
    a crash (docs/durability.md).  Directories are given by descriptor, files in them by name.  All
    methods block, and raise OSError.
    """

    def make_directory(self, directory: int, name: str) -> None:
        """mkdir(2), for this user alone.  :raises FileExistsError:"""
        os.mkdir(name, DIRECTORY, dir_fd=directory)

    def create(self, directory: int, name: str) -> int:
        """Make an empty file, open for reading and writing.  :raises FileExistsError:"""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | FILE_FLAGS
        return os.open(name, flags, PRIVATE, dir_fd=directory)

    def write(self, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        """pwritev(2): the number of bytes written, which may be fewer than given."""
        return os.pwritev(fd, pieces[:_IOV_MAX], offset)

    def append(self, fd: int, piece: bytes) -> int:
        """write(2), to a file opened with ``O_APPEND``: the number of bytes written."""
        return os.write(fd, piece)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        return os.pread(fd, size, offset)

    def read_cached(self, fd: int, size: int, offset: int) -> bytes | None:
        """The bytes from ``offset`` on that are in the page cache; ``None`` if it can't be told."""
        if not _NOWAIT:
            return None
        buffer = bytearray(size)
        try:
            return bytes(buffer[: os.preadv(fd, [buffer], offset, _NOWAIT)])
        except OSError:  # none; or the filesystem does not tell
            return None

    def expect_no_reading_on(self, fd: int) -> None:
        """posix_fadvise(2): no read-ahead."""
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def drop_cached(self, fd: int, offset: int, size: int) -> None:
        """posix_fadvise(2): the page cache need not keep these bytes."""
        with suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, size: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, size: int) -> None:
        """posix_fallocate(2): give the file ``size`` bytes on the disk."""
        os.posix_fallocate(fd, 0, size)

    def set_mode(self, fd: int, mode: int) -> None:
        """fchmod(2)."""
        os.fchmod(fd, mode)

    def open_unreadable(self, handle: int) -> int:
        """
        A descriptor to read a file of this user whose mode forbids that; the mode is restored.

        :param handle: a descriptor of the file, opened with ``O_PATH``.
        :raises PermissionError: if there is no ``/proc``, which this needs.
        """
        path = f"/proc/self/fd/{handle}"
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        try:
            os.chmod(path, mode | stat.S_IRUSR)
            try:
                return os.open(path, os.O_RDONLY)
            finally:
                os.chmod(path, mode)
        except FileNotFoundError as error:
            raise PermissionError(errno.EACCES, "can't be made readable", path) from error

    def sync(self, fd: int) -> None:
        """fsync(2), of a file or of a directory."""
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """fdatasync(2): the bytes of a file, and as much else as it takes to read them."""
        os.fdatasync(fd)

    def link(self, directory: int, name: str, target: int, target_name: str) -> None:
        """link(2).  :raises FileExistsError:"""
        os.link(name, target_name, src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)

    def rename(self, directory: int, name: str, target: int, target_name: str) -> None:
        """rename(2)."""
        os.rename(name, target_name, src_dir_fd=directory, dst_dir_fd=target)

    def unlink(self, directory: int, name: str) -> None:
        """unlink(2); does nothing if there is no such file."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


__all__ = [
    "PUBLISHED",
    "QUARANTINED",
    "Directory",
    "FileOperations",
    "OpenFile",
    "is_sealed",
    "read_all",
    "split",
    "try_lock",
    "write_all",
]

PUBLISHED = 0o444
QUARANTINED = 0o000
"""The mode of a damaged file: processes that have it open send no more of it."""

_DIRECTORY_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW


@define(eq=False)
class OpenFile:
    """A file open for reading."""

    _fd: int

    def fileno(self) -> int:
        """A descriptor to read with ``os.pread`` and ``os.sendfile``."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; further calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_sealed(status: os.stat_result) -> bool:
    """
    Whether a file has been staged or published, so that it must not be written to any more.

    A power cut may bring the former name of such a file back.
    """
    return status.st_nlink != 1 or not status.st_mode & stat.S_IWUSR


def write_all(
    files: FileOperations, fd: int, pieces: Sequence[bytes | memoryview], offset: int
) -> None:
    """Write ``pieces`` one after the other at ``offset``, however many calls it takes."""
    while pieces:
        written = files.write(fd, pieces, offset)
        offset += written
        _, pieces = split(pieces, written)


def read_all(files: FileOperations, fd: int, size: int) -> bytes:
    """Read the first ``size`` bytes of a file; fewer if the file is shorter."""
    content = b""
    while len(content) < size and (piece := files.read(fd, size - len(content), len(content))):
        content = content + piece if content else piece
    return content


def split(
    pieces: Sequence[bytes | memoryview], size: int
) -> tuple[Sequence[bytes | memoryview], Sequence[bytes | memoryview]]:
    """Cut ``pieces`` in two behind their first ``size`` bytes, without copying."""
    for index, piece in enumerate(pieces):
        if size < len(piece):
            view = memoryview(piece)
            head = [*pieces[:index], view[:size]] if size else pieces[:index]
            return head, [view[size:], *pieces[index + 1 :]]
        size -= len(piece)
    return pieces, []


def try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    """
    Lock an open file (flock), exclusively or shared, without waiting.  Returns whether it is locked
    now.

    The lock belongs to the descriptor: closing that, or the end of the process, ends it.
    """
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Unlock an open file."""
    fcntl.flock(fd, fcntl.LOCK_UN)


@frozen
class Directory:
    """
    A directory of the store, held open: files in it are reached through the descriptor alone.

    :ivar path: for messages; it is never opened again.
    """

    path: str
    fd: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """:raises OSError: if it is no directory, or a symbolic link."""
        return cls(
            str(path), _open_strictly(str(path), os.O_RDONLY | _DIRECTORY_FLAGS, None, str(path))
        )

    def subdirectory(self, name: str, flags: int = os.O_RDONLY) -> Directory:
        """
        Open a subdirectory; ``os.O_PATH`` is enough to reach files by name.

        :raises FileNotFoundError: if there is none.
        :raises OSError: if it is no directory, or a symbolic link.
        """
        path = f"{self.path}/{name}"
        return Directory(path, _open_strictly(name, flags | _DIRECTORY_FLAGS, self.fd, path))

    def ensure(self, name: str, files: FileOperations) -> Directory:
        """
        Open a subdirectory, and make it if there is none.

        It is durable in any case: another process may have made it an instant ago and not synced it
        yet.
        """
        with suppress(FileExistsError):
            files.make_directory(self.fd, name)
        directory = self.subdirectory(name)
        try:
            files.sync(self.fd)
        except OSError:
            directory.close()
            raise
        return directory

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
        """
        Open a file that artifactd made.  Returns its descriptor and status.

        :raises FileNotFoundError: if there is none.
        :raises OSError: if it is not a regular file that belongs to this user.
        """
        path = f"{self.path}/{name}"
        fd = _open_strictly(name, flags | FILE_FLAGS, self.fd, path)
        try:
            status = os.fstat(fd)
            _check_ours(status, path)
        except OSError:
            os.close(fd)
            raise
        return fd, status

    def open_sealed(self, name: str, files: FileOperations) -> tuple[int, os.stat_result]:
        """
        Open a file that artifactd made, even if its mode forbids this user to read it.

        Returns its descriptor and status; errors are those of :meth:`open_file`.

        :raises PermissionError: if the file can't be opened for another reason than its mode.
        """
        try:
            return self.open_file(name)
        except PermissionError as denied:
            if denied.errno != errno.EACCES:
                raise
            refusal = denied
        # The very file, whatever gets its name meanwhile.
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            status = os.fstat(handle)
            _check_ours(status, f"{self.path}/{name}")
            if status.st_mode & stat.S_IRUSR:
                raise refusal
            return files.open_unreadable(handle), status
        finally:
            os.close(handle)

    def open_locked(self, name: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
        """
        Open a file that artifactd made, and lock it exclusively (flock) until it is closed.

        Returns its descriptor and status.

        :raises BlockingIOError: if the file is locked.
        :raises FileNotFoundError: if there is none, or it lost its name while it was being locked.
        :raises OSError: if it is not a regular file that belongs to this user.
        """
        fd, status = self.open_file(name, flags)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self.holds(name, status):
                raise FileNotFoundError(errno.ENOENT, "no longer there", f"{self.path}/{name}")
        except BaseException:
            os.close(fd)
            raise
        return fd, status

    def is_locked(self, name: str) -> bool:
        """
        Whether a living process has locked a file exclusively; errors are those of
        :meth:`open_file`.

        The look is a shared lock for an instant, so that two of them do not see each other.
        """
        fd, _ = self.open_file(name)
        try:
            return not try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def ensure_file(self, name: str, files: FileOperations) -> int:
        """
        Open a file to read and write, and make it if there is none.  Returns the descriptor; errors
        are those of :meth:`open_file`.
        """
        with suppress(FileExistsError):
            os.close(files.create(self.fd, name))
        return self.open_file(name, os.O_RDWR)[0]

    def status(self, name: str) -> os.stat_result:
        """
        Return the status of a file that artifactd made; errors are those of :meth:`open_file`.
        """
        status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        _check_ours(status, f"{self.path}/{name}")
        return status

    def holds(self, name: str, file: os.stat_result) -> bool:
        """Whether ``name`` is a name of ``file``."""
        try:
            return os.path.samestat(os.stat(name, dir_fd=self.fd, follow_symlinks=False), file)
        except FileNotFoundError:
            return False

    def names(self) -> list[str]:
        """The names of all entries."""
        return os.listdir(self.fd)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_strictly(name: str, flags: int, directory: int | None, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        # A link answers ELOOP, or ENOTDIR where a directory was asked for.
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        kind = "directory" if flags & os.O_DIRECTORY else "regular file"
        raise OSError(error.errno, f"not a {kind}: artifactd did not make it", path) from None


def _check_ours(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EPERM, "not a regular file: artifactd did not make it", path)
    if status.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "belongs to another user: artifactd did not make it", path)


def open_lock(path: Path, name: str, files: FileOperations) -> int:
    """
    Open the file ``name`` of the folder ``path`` to lock it; make it if there is none.  Blocks.

    :raises OSError: if it can't be opened.
    """
    with Directory.open(path) as folder:
        return folder.ensure_file(name, files)


class DutyLock:
    """
    Lets one of the processes on the data folder at ``path`` do something at a time.

    :param name: the name of the file that is locked (flock), so that a lock ends with its process.
    """

    def __init__(self, path: Path, name: str, files: FileOperations | None = None) -> None:
        self._path = path
        self._name = name
        self._files = files or FileOperations()
        self._fd = -1

    def claim(self) -> bool:
        """
        Take the lock until :meth:`release` or the end of the process.  Blocks.

        :returns: whether the lock was free.
        :raises OSError: if the file can't be opened.
        """
        fd = open_lock(self._path, self._name, self._files)
        if not try_lock(fd):
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self) -> None:
        """Let another process do it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
