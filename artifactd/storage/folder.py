"""The data folder: what must be true of it before the daemon starts, and who else uses it."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from attrs import define, field

from artifactd.kit.start import StartError
from artifactd.storage import procfs
from artifactd.storage.files import Directory, FileOperations, write_all

MARKER = "artifactd.lock"
FORMAT = "artifactd data folder, format 1\n"

# What a folder may hold and still count as empty: the root of a filesystem of its own.
_BENIGN = {"lost+found"}
_PATIENCE = 10.0
_PAUSE = 0.05


@define(eq=False)
class DataFolder:
    """
    The folder that holds everything, locked: shared by every process that uses it, exclusively
    by one that migrates it.

    :ivar path: absolute.
    :ivar catalog: the catalog's file; may not exist yet.
    :ivar blobs, uploads, staging, fills, quarantine: the store's directories, open.
    :ivar in_memory: whether its files are never on a disk, so that reading waits for nothing.
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
        """Where the catalog is."""
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

        Whoever comes first holds the lock exclusively until :meth:`settle`; who comes meanwhile
        waits for that.

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
        try:
            fcntl.flock(self._marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Trying has given up the shared lock.
            with suppress(BlockingIOError):
                fcntl.flock(self._marker, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raise StartError(
                f"the data folder {self.path} is needed alone, for a migration or a backup into it,"
                f" but is in use by {_holders(self._marker, self._locks)}: stop it first"
            ) from None
        self._is_exclusive = True
        try:
            yield
        finally:
            self.settle()

    def settle(self) -> None:
        """Let other processes in."""
        if self._is_exclusive:
            fcntl.flock(self._marker, fcntl.LOCK_SH)
            self._is_exclusive = False

    def close(self) -> None:
        """Let go of the folder.  Further calls do nothing."""
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
        return None  # no /proc: nothing to tell by
    return procfs.filesystem_type(path.resolve(), mounts)


def _open_marker(folder: Directory, files: FileOperations) -> int:
    names = set(folder.names()) - _BENIGN
    if names and MARKER not in names:
        raise StartError(
            f"the data folder {folder.path} holds other things ({min(names)!r}) and was not made"
            " by artifactd: choose an empty or a new one"
        )
    # Two processes may be here at once, and both find nothing.
    with suppress(FileExistsError):
        os.close(files.create(folder.fd, MARKER))
    marker, _ = folder.open_file(MARKER, os.O_RDWR)
    return marker


def _lock(
    marker: int, path: Path, locks: Path, patience: float, sleep: Callable[[float], None]
) -> bool:
    """Lock the folder; whether exclusively."""
    with suppress(BlockingIOError):
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    waited = 0.0
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(marker, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
        # New; or the process that was first has failed here, or the power has before the line was
        # on the disk, of which a part may be there, or its length.
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
        pids = procfs.lock_holders(os.fstat(marker), locks.read_text()) - {os.getpid()}
    except OSError:
        pids = set()
    if not pids:
        return "another process"
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, sorted(pids)))}"
