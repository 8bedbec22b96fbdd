"""The narrow seam through which everything goes that changes files of the data folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

PRIVATE = 0o600
DIRECTORY = 0o700

# O_NONBLOCK: opening a FIFO that somebody put there would wait for ever.
FILE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK
# The most buffers that one writev(2) takes on any Linux.
_IOV_MAX = 1024
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class FileOperations:
    """
    Every system call that changes the data folder, and those that read bytes back; but for
    the files of the catalog, which SQLite writes.

    One small class, so that a test can record them, make one fail, or replay them up to a crash
    (docs/durability.md).
    Directories are given by descriptor, files in them by name.  All block, and raise OSError.
    """

    def make_directory(self, directory: int, name: str) -> None:
        """mkdir(2), for us alone.  :raises FileExistsError:"""
        os.mkdir(name, DIRECTORY, dir_fd=directory)

    def create(self, directory: int, name: str) -> int:
        """A new, empty file for reading and writing.  :raises FileExistsError:"""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | FILE_FLAGS
        return os.open(name, flags, PRIVATE, dir_fd=directory)

    def write(self, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        """pwritev(2): how many bytes went, which may be fewer than there are."""
        return os.pwritev(fd, pieces[:_IOV_MAX], offset)

    def append(self, fd: int, piece: bytes) -> int:
        """write(2), to a file opened with ``O_APPEND``: how many bytes went."""
        return os.write(fd, piece)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        return os.pread(fd, size, offset)

    def read_cached(self, fd: int, size: int, offset: int) -> bytes | None:
        """The bytes that memory has from ``offset`` on; ``None`` if that can't be told."""
        if not _NOWAIT:
            return None
        buffer = bytearray(size)
        try:
            return bytes(buffer[: os.preadv(fd, [buffer], offset, _NOWAIT)])
        except OSError:  # none; or the filesystem does not tell
            return None

    def expect_no_reading_on(self, fd: int) -> None:
        """posix_fadvise(2): what is read is all that is wanted of the file for now."""
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def drop_cached(self, fd: int, offset: int, size: int) -> None:
        """posix_fadvise(2): memory need not keep these bytes."""
        with suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, size: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(fd, size)

    def set_mode(self, fd: int, mode: int) -> None:
        """fchmod(2)."""
        os.fchmod(fd, mode)

    def open_unreadable(self, handle: int) -> int:
        """
        A descriptor to read a file of ours whose mode forbids that, and forbids it again after.

        :param handle: of it, opened with ``O_PATH``.
        :raises PermissionError: if there is no ``/proc``, which it takes.
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
        """unlink(2), which finding nothing does not trouble."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
