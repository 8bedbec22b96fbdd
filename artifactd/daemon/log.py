"""The daemon's own log, where twistd would write it to the terminal, a pipe or the journal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from threading import Lock, get_ident
from typing import Any, TextIO

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatTime,
    textFileLogObserver,
)
from twisted.python.failure import Failure
from twisted.python.usage import Options
from zope.interface import implementer

from artifactd.kit.lines import OwnLog, moment
from artifactd.kit.printable import printable
from artifactd.oci.names import Digest, ImageName, Tag
from artifactd.settings.settings import Settings

LOCKED_BYTE = 1 << 62
"""The byte that is locked in the file of ``StreamLog``: others of it are free for other uses."""

# Characters of a line in JSON up to the end of its time.
_TIME = len('{"time":"1970-01-01T00:00:00.000Z"')

_LONGEST = 2000  # characters of a field
_SHOWN = (str, int, float, Digest, ImageName, Tag, Exception)
_RENAMED = {"request_id": "request"}
# What twisted.logger and twisted.python.log put into each event, and what the line has anyhow.
_NOT_FIELDS = {"format", "isError", "message", "system", "time", "why", "level", "logger"}


def as_json(event: LogEvent) -> str:
    """
    Return an event of the log as a line in JSON: time, level, logger and message, the traceback if
    there is one, and the values that the message is made of, by their names.
    """
    message, _, traceback = formatEvent(event).partition("\n")
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        traceback = failure.getTraceback()
    level = event.get("log_level", LogLevel.info)
    document = {
        "time": moment(event.get("log_time", time.time())),
        "level": level.name,
        "logger": event.get("log_namespace", "-"),
        "message": message,
    }
    if traceback:
        document["traceback"] = traceback
    for key, value in event.items():
        if key.startswith(("log_", "artifactd_")) or key in _NOT_FIELDS:
            continue
        if isinstance(value, _SHOWN) and value not in ("", None):
            plain = value if type(value) in (bool, int, float) else str(value)[:_LONGEST]
            if plain != message:
                document.setdefault(_RENAMED.get(key, key), plain)
    return f"{printable(json.dumps(document))}\n"


@implementer(ILogObserver)
class StreamLog:
    """
    Writes the log to a stream, in the same form as twistd does.

    A line of the access log or the audit log is ready before it comes here.  Such lines are written
    together, once in a turn of the reactor, and so before the answers leave that they tell of:
    to make an event of each, and to format and flush it by itself, costs more than a small request.

    As long as :meth:`configure` says nothing else, all events are written, as text.

    :param stream: the text file to write to.
    :param reactor: calls back when its turn has ended; it runs in the thread that makes the log.
    :param now: seconds since the epoch.
    :param lock: the descriptor of a file that all processes lock that write to the stream: no line
        is then broken by another one.
    """

    def __init__(
        self,
        stream: TextIO,
        reactor: Any,
        now: Callable[[], float] = time.time,
        lock: int | None = None,
    ) -> None:
        self._stream, self._reactor, self._now, self._lock = stream, reactor, now, lock
        self._format = textFileLogObserver(stream)
        self._lines: list[str] = []
        self._thread = get_ident()  # the reactor's
        self._threads = Lock()
        self._second, self._time = -1, ""
        self._is_json, self._least = False, LogLevel.debug

    def configure(self, settings: Settings) -> None:
        """Write the lines that the settings want, in the form that they want."""
        self._least = LogLevel.levelWithName(settings.log_level)
        self._is_json = settings.log_format == "json"
        if self._is_json:
            self._format = FileLogObserver(self._stream, as_json)

    @classmethod
    def replacing(cls, options: Options, reactor: Any, lock: int | None = None) -> StreamLog | None:
        """
        Make the log that replaces twistd's, or return ``None`` where twistd is to write it: to a
        file that it rotates, to syslog, or to an observer that its options name.

        :param options: those of twistd.
        """
        elsewhere = options["syslog"] or options.get("logger") or not options["nodaemon"]
        if elsewhere or options["logfile"] not in (None, "", "-"):
            return None
        return cls.on_stdout(reactor, lock)

    @classmethod
    def on_stdout(cls, reactor: Any, lock: int | None = None) -> StreamLog:
        """Make the log that writes to the standard output."""
        if isinstance(sys.stdout, TextIOWrapper):
            # A character that its encoding lacks must not cost the line, nor those beside it.
            sys.stdout.reconfigure(errors="backslashreplace")
        return cls(sys.stdout, reactor, lock=lock)

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) < self._least:
            return
        if get_ident() == self._thread:
            self.flush()
        with self._alone():
            self._format(event)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from writing meanwhile, which takes microseconds."""
        if self._lock is None:
            yield
            return
        with self._threads:  # the lock of the file is the process's
            fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, LOCKED_BYTE)
            try:
                yield
            finally:
                fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, LOCKED_BYTE)

    def lines_of(self, namespace: str, *, always: bool = False) -> OwnLog:
        """
        Return what writes lines of ``namespace``; call it in the reactor's thread alone.

        Where the log is JSON, each line has to be an object that begins with its ``time``, in
        RFC 3339 with milliseconds.

        :param always: whether they are written whatever the level.
        """
        info = always or self._least <= LogLevel.info
        info_head, error_head = f"[{namespace}#info]", f"[{namespace}#error]"
        if self._is_json:
            info_head, error_head = (
                f',"level":"{level}","logger":"{namespace}","message":'
                for level in ("info", "error")
            )

        def write(line: str, message: str = "", *, is_error: bool = False) -> None:
            if not (is_error or info):
                return
            head = error_head if is_error else info_head
            if self._is_json:
                self._put(f"{line[:_TIME]}{head}{json.dumps(message)}{line[_TIME:]}\n")
            else:
                self._add(head, line)

        return write

    def _add(self, system: str, line: str) -> None:
        now = self._now()
        if int(now) != self._second:
            self._second, self._time = int(now), formatTime(now)
        self._put(f"{self._time} {system} {line}\n")

    def _put(self, line: str) -> None:
        if not self._lines:
            self._reactor.callLater(0, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write the lines that wait.  Lines that can't be written are lost."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        # A full disk must not stop the serving, and there is no other place to tell it.
        with contextlib.suppress(OSError), self._alone():
            self._stream.write("".join(lines))
            self._stream.flush()
