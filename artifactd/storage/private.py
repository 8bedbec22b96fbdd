"""Small files that nobody else may read, such as the keys that tokens are signed with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from artifactd.storage.files import Directory, FileOperations, write_all

FOLDER = "keys"
"""Where they are in the data folder.  Not part of a backup."""

# Bytes that such a file has at most.
_LIMIT = 1 << 20


@frozen
class Version:
    """Which content a file has: another one whenever it has been replaced."""

    inode: int
    modified: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Version:
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


@define(eq=False)
class PrivateFile:
    """
    One file, replaced as a whole: whoever reads it finds all of the old content or all of the new,
    after a crash too, and what has been written when :meth:`update` returns stays.

    Several processes may use it at once.  All but :meth:`version` block.

    :param folder: the data folder.
    """

    folder: Path
    name: str
    files: FileOperations = field(factory=FileOperations)

    @property
    def path(self) -> Path:
        """Where it is, for messages."""
        return self.folder / FOLDER / self.name

    def version(self) -> Version | None:
        """
        Which content it has now; ``None``: there is no such file.  Takes microseconds.

        :raises OSError: if it can't be told.
        """
        try:
            return Version.of(os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return None

    def update(self, change: Callable[[bytes | None], bytes | None]) -> tuple[bytes, Version]:
        """
        Let ``change`` say what the content is to be, given what it is (``None``: there is none);
        ``None`` leaves it.  Nobody else changes it meanwhile.

        :returns: the content, and its version.
        :raises OSError: if it can't be read or written, or is not this user's alone; then it is
            as it was, but for a disk that fails once the name has changed.
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
        """The content and its version, or ``None``; errors as of :meth:`update`."""
        try:
            with Directory.open(self.folder) as above, above.subdirectory(FOLDER) as folder:
                return self._read(folder)
        except FileNotFoundError:
            return None

    def _lock(self, folder: Directory) -> int:
        """Exclusively, until it is closed.  The file itself is replaced, so it is another one."""
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
        self.files.unlink(folder.fd, new)  # of somebody who died at it
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
