"""A clock of several processes, which one of them advances."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_TIME = struct.Struct("d")


class SharedClock:
    """In the file at ``path``; :meth:`set` makes it."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _TIME.size)

    @classmethod
    def set(cls, path: Path, now: float) -> SharedClock:
        """A new one that stands at ``now``."""
        path.write_bytes(_TIME.pack(now))
        return cls(path)

    def __call__(self) -> float:
        now: float = _TIME.unpack_from(self._shared)[0]
        return now

    seconds = __call__
    """As reactors have it."""

    def advance(self, seconds: float) -> None:
        """To be called by one process alone."""
        _TIME.pack_into(self._shared, 0, self() + seconds)
