"""The daemon's own log, where twistd would write it to the terminal, a pipe or the journal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from threading import get_ident
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, formatTime, textFileLogObserver
from twisted.python.usage import Options
from zope.interface import implementer


@implementer(ILogObserver)
class StreamLog:
    """
    Writes the log to a stream, in the same form as twistd does.

    A line of the access log or the audit log is ready before it comes here.  Such lines are written
    together, once in a turn of the reactor, and so before the answers leave that they tell of:
    to make an event of each, and to format and flush it by itself, costs more than a small request.

    :param stream: the text file to write to.
    :param reactor: calls back when its turn has ended; it runs in the thread that makes the log.
    :param now: seconds since the epoch.
    """

    def __init__(self, stream: TextIO, reactor: Any, now: Callable[[], float] = time.time) -> None:
        self._stream, self._reactor, self._now = stream, reactor, now
        self._format = textFileLogObserver(stream)
        self._lines: list[str] = []
        self._thread = get_ident()  # the reactor's
        self._second, self._time = -1, ""

    @classmethod
    def replacing(cls, options: Options, reactor: Any) -> StreamLog | None:
        """
        Make the log that replaces twistd's, or return ``None`` where twistd is to write it: to a
        file that it rotates, to syslog, or to an observer that its options name.

        :param options: those of twistd.
        """
        elsewhere = options["syslog"] or options.get("logger") or not options["nodaemon"]
        if elsewhere or options["logfile"] not in (None, "", "-"):
            return None
        if isinstance(sys.stdout, TextIOWrapper):
            # A character that its encoding lacks must not cost the line, nor those beside it.
            sys.stdout.reconfigure(errors="backslashreplace")
        return cls(sys.stdout, reactor)

    def __call__(self, event: LogEvent) -> None:
        if get_ident() == self._thread:
            self.flush()
        self._format(event)

    def lines_of(self, namespace: str) -> Callable[[str], None]:
        """Return what writes a line of ``namespace``; call it in the reactor's thread alone."""
        return partial(self._add, f"[{namespace}#info]")

    def _add(self, system: str, line: str) -> None:
        now = self._now()
        if int(now) != self._second:
            self._second, self._time = int(now), formatTime(now)
        if not self._lines:
            self._reactor.callLater(0, self.flush)
        self._lines.append(f"{self._time} {system} {line}\n")

    def flush(self) -> None:
        """Write the lines that wait.  Lines that can't be written are lost."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        # A full disk must not stop the serving, and there is no other place to tell it.
        with contextlib.suppress(OSError):
            self._stream.write("".join(lines))
            self._stream.flush()
