"""The one scrubber of a data folder: a lock, and in its file how far it has come."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec
from attrs import asdict

from artifactd.storage.examining import ScrubPosition
from artifactd.storage.files import Directory, FileOperations, write_all

_FILE = "scrub.lock"
_MOST = 4096  # bytes of a position


class _Written(msgspec.Struct):
    shelf: int
    after: str
    ended: float


class FolderScrubLock:
    """A :class:`artifactd.storage.examining.ScrubLock` of the data folder at ``path``."""

    def __init__(self, path: Path, files: FileOperations | None = None) -> None:
        self._path = path
        self._files = files or FileOperations()
        self._fd = -1

    def claim(self) -> bool:
        """Be the one who scrubs; whether nobody does already.  Blocks."""
        with Directory.open(self._path) as folder:
            fd = folder.ensure_file(_FILE, self._files)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self) -> None:
        """Let others scrub."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def read(self) -> ScrubPosition:
        """Where to go on.  Blocks."""
        try:
            written = msgspec.json.decode(os.pread(self._fd, _MOST, 0), type=_Written)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ScrubPosition()  # new; or torn by a crash
        return ScrubPosition(written.shelf, written.after, written.ended)

    def write(self, position: ScrubPosition) -> None:
        """Remember it.  Blocks."""
        # Not synced: what a power loss takes of it is read once more.
        text = msgspec.json.encode(asdict(position))
        self._files.truncate(self._fd, 0)
        write_all(self._files, self._fd, [text], 0)
