"""
Texts without control characters, and a log observer that makes all lines of the daemon's log so.

Names, paths and error texts come from clients and upstreams.  A newline in one of them would forge
a line of the log; escape sequences and bidirectional controls would change what a terminal shows.
"""

from __future__ import annotations

from twisted.logger import ILogObserver, LogEvent, formatEvent
from twisted.python.failure import Failure
from zope.interface import provider

_DONE = "artifactd_printable"

PRINTABLE = {_DONE: True}
"""Fields of a log event whose text is printable: :func:`make_printable` does not format it too."""


def printable(text: str) -> str:
    r"""
    Return ``text`` with each character escaped (``\u001b``) that Python does not call printable:
    C0, C1, DEL, line and paragraph separators, unusual spaces, bidirectional and other format
    characters, lone surrogates.  In JSON such characters stand only inside strings, where the
    escape means the same.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


@provider(ILogObserver)
def make_printable(event: LogEvent) -> None:
    """
    Change a log event in place, so that observers that get it later write only printable lines.

    An event of one line stays one line.  Of a traceback the lines stay, and the text of its
    exception becomes one line; such an event loses ``log_failure``.
    """
    if _DONE in event:
        return
    text = formatEvent(event)
    failure = event.get("log_failure")
    older = event.get("failure")  # of twisted.python.log, which puts the traceback into the text
    if isinstance(failure, Failure):
        lines = failure.getTraceback()
        shown_lines = _traceback(lines, failure.getErrorMessage())
        if (shown := printable(text)) == text and shown_lines == lines:
            return
        shown = f"{shown}\n{shown_lines}"
        del event["log_failure"]
    elif isinstance(older, Failure):
        shown = _traceback(text, older.getErrorMessage())
    else:
        shown = printable(text)
    if shown != text:
        for key in ("failure", "format"):  # older observers, as that of syslog, look here first
            event.pop(key, None)
        event.update({"log_format": "{log_text}", "log_text": shown, "message": (), _DONE: True})


def _traceback(text: str, message: str) -> str:
    """Escape a traceback line by line, with the text of its exception in one line."""
    lines = text.replace(message, printable(message)).split("\n")
    return "\n".join(map(printable, lines))
