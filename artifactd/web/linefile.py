"""Files that lines are appended to, which may fail without anything else failing."""

from __future__ import annotations

from io import FileIO

from attrs import define, field
from twisted.logger import Logger

_log = Logger()


@define
class LineFile:
    """
    A file of lines.

    :param path: the file to append to.
    :param what: is written there, for messages.
    """

    path: str
    what: str
    _file: FileIO | None = field(default=None, init=False)
    _failing: bool = field(default=False, init=False)

    @property
    def is_open(self) -> bool:
        """Whether lines go anywhere."""
        return self._file is not None

    def open(self) -> None:
        """
        Open the file, or open it again after it has been renamed.

        :raises OSError: if it can't be.
        """
        self.close()
        # Unbuffered: a line is one write, and what a full disk refuses is not kept.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - until close()

    def close(self) -> None:
        """Close the file; lines are dropped until it is opened again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, line: str) -> None:
        """Write ``line``.  Never raises; what keeps it from being written is logged once."""
        if self._file is None:
            return
        try:
            self._file.write(f"{line}\n".encode())
            self._failing = False
        except OSError:
            if not self._failing:
                self._failing = True
                _log.failure("can't write to the {what} {path}", what=self.what, path=self.path)
