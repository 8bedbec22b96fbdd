"""The daemon's own log, where twistd would write it to the terminal, a pipe or the journal."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import TextIOWrapper
from threading import Lock, get_ident
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, formatTime, textFileLogObserver
from twisted.python.usage import Options
from zope.interface import implementer

LOCKED_BYTE = 1 << 62
"""The byte that is locked in the file of ``StreamLog``: others of it are free for other uses."""


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
        with contextlib.suppress(OSError), self._alone():
            self._stream.write("".join(lines))
            self._stream.flush()
