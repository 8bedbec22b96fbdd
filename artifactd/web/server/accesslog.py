"""The access log, one line per request; and files of lines, which the audit log uses too."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from io import FileIO
from typing import Literal, Protocol

import msgspec
from attrs import define, field
from twisted.logger import Logger, LogLevel

from artifactd.kit.printable import PRINTABLE, printable

_file_log = Logger()


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
                _file_log.failure(
                    "can't write to the {what} {path}", what=self.what, path=self.path
                )


Style = Literal["text", "json", "off"]

ACCESS = "artifactd.access"
"""The namespace of the access log's lines in the daemon's own log."""


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


_own = own_log(ACCESS)


class Access(msgspec.Struct, frozen=True):
    """
    One request, answered or cut off.

    ``client``, ``user``, ``method``, ``path`` (with the query) and ``agent`` may hold any text that
    a client sends.  ``status`` is 0 where no answer was begun; ``sent`` counts the bytes of the
    body handed to the connection; ``seconds`` run from the end of the request's headers to the end
    of the answer.
    """

    client: str
    user: str
    method: str
    path: str
    status: int
    sent: int
    seconds: float
    agent: str
    request: str


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", "surrogateescape"))


# Makes any text printable ASCII without quotes and backslashes.
_safe = partial(re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]").sub, _escaped)


_SHORT = 1024  # characters: what is remembered of clients has a bound


@lru_cache(512)
def _quoted(client: str, user: str, method: str, path: str, agent: str) -> tuple[str, str]:
    """The beginning of a line behind its time, and the program, both with nothing of theirs."""
    name = _safe(user).replace(" ", "\\x20") or "-"
    return f'{_safe(client)} {name} "{_safe(method)} {_safe(path)}"', f'"{_safe(agent)}"'


@define
class AccessLog:
    """
    Writes a line per request.

    :param style: ``text``, ``json`` (an object per line) or ``off``.
    :param path: the file to append to, or ``""`` for the daemon's own log, where the lines have the
        namespace ``artifactd.access``.
    :param now: seconds since the epoch.
    :param own: writes to the daemon's own log.
    :param omitted: paths, and beginnings of names of programs: their requests get no line if they
        are answered well.
    :ivar wanted: whether a line would be written anywhere.
    """

    style: Style = "text"
    path: str = ""
    now: Callable[[], float] = time.time
    own: OwnLog = _own
    omitted: Sequence[str] = ()
    wanted: bool = field(init=False)
    _file: LineFile = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._file = LineFile(self.path, "access log")
        self.wanted = self.style != "off" and not self.path

    def open(self) -> None:
        """
        Open the file, or open it again after it has been renamed.

        :raises OSError: if it can't be opened.
        """
        self.close()
        if self.style != "off" and self.path:
            self._file.open()
            self.wanted = True

    def close(self) -> None:
        """Close the file; lines are dropped until it is opened again."""
        self._file.close()
        self.wanted = self.style != "off" and not self.path

    def write(self, access: Access) -> None:
        """Write the line of ``access``.  Never raises: a full disk must not stop the serving."""
        if self.omitted and self._is_omitted(access):
            return
        at = moment(self.now())
        if self.style == "json":
            document = {"time": at, **msgspec.structs.asdict(access)}
            line = printable(msgspec.json.encode(document).decode())
        else:
            short = len(access.path) + len(access.agent) < _SHORT
            who, agent = (_quoted if short else _quoted.__wrapped__)(
                access.client, access.user, access.method, access.path, access.agent
            )
            line = (
                f"{at} {who} {access.status} {access.sent} {access.seconds:.3f} {agent}"
                f" {access.request}"
            )
        if self.path:
            self._file.write(line)
        else:
            message = f"{access.method} {access.path} {access.status}"
            self.own(line, message, is_error=access.status >= 500)

    def _is_omitted(self, access: Access) -> bool:
        if not 200 <= access.status < 400:
            return False
        path = access.path.partition("?")[0]
        return any(
            path == each if each.startswith("/") else access.agent.startswith(each)
            for each in self.omitted
        )
