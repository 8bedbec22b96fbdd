"""Lines of logs: their time, and where they are written."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from io import FileIO
from typing import Protocol

from attrs import define, field
from twisted.logger import Logger, LogLevel

from artifactd.kit.printable import PRINTABLE, printable

_log = Logger()


def moment(seconds: float) -> str:
    """Return a time since the epoch as RFC 3339 has it: UTC, with milliseconds, behind them a Z."""
    milliseconds = round(seconds * 1_000_000) // 1000
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(1)  # all lines of one second share it
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@define
class LineFile:
    """
    A file that lines are appended to; nothing else fails if writing to it does.

    :param path: the file to append to.
    :param what: the kind of log, for messages.
    """

    path: str
    what: str
    _file: FileIO | None = field(default=None, init=False)
    _failing: bool = field(default=False, init=False)

    def open(self) -> None:
        """
        Open the file, or open it again after it has been renamed.

        :raises OSError: if it can't be opened.
        """
        self.close()
        # Unbuffered: a line is one write, and a line that a full disk refuses is dropped.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - until close()

    def close(self) -> None:
        """Close the file; lines are dropped until it is opened again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, line: str) -> None:
        """
        Write ``line``, made printable.  Never raises; the first of several failures in a row is
        logged.
        """
        if self._file is None:
            return
        try:
            self._file.write(f"{printable(line)}\n".encode())
            self._failing = False
        except OSError:
            if not self._failing:
                self._failing = True
                _log.failure("can't write to the {what} {path}", what=self.what, path=self.path)


class OwnLog(Protocol):
    """Writes lines to the daemon's own log."""

    def __call__(self, line: str, message: str = "", *, is_error: bool = False) -> None:
        """
        Write a line.

        :param line: printable.
        :param message: what the line says in short, where it is a JSON object.
        :param is_error: whether its level is error, and not info.
        """


def own_log(namespace: str) -> OwnLog:
    """Return what writes to the daemon's own log by events of ``namespace``."""
    log = Logger(namespace=namespace)

    def write(line: str, message: str = "", *, is_error: bool = False) -> None:
        level = LogLevel.error if is_error else LogLevel.info
        log.emit(level, "{line}", line=line, **PRINTABLE)

    return write
