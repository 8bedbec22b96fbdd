"""How commands print what they list: for people, for pipes, and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import msgspec

from artifactd.kit.printable import printable

JSON: Sequence[Any] = ["json", "j", "Print JSON: one object a line."]
"""The flag of commands that list something."""


class Color(Enum):
    """How a terminal shows a text (ECMA-48, SGR)."""

    BOLD = 1
    RED = 31
    GREEN = 32

    def paint(self, text: str) -> str:
        """``text`` in this color if standard output is a terminal, or else as it is."""
        return f"\x1b[{self.value}m{text}\x1b[0m" if sys.stdout.isatty() else text


def utc(at: float) -> str:
    """``at``, in seconds since the epoch, as text: 2026-11-05T14:00:00Z."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown_time(at: float | None) -> str:
    """``at``, in seconds since the epoch, as :func:`utc` says it; ``-``: there is none."""
    return "-" if at is None else utc(at)


def print_json(value: object) -> None:
    """Print ``value`` as JSON in one line; what JSON has no type for as text."""
    print(msgspec.json.encode(value, enc_hook=str).decode())


@contextmanager
def progress(name: str, size: int | None) -> Iterator[Callable[[float], object]]:
    """
    Show a bar on standard error, if that is a terminal.

    :param name: what is being done, or to what.
    :param size: bytes in all; ``None``: not known.
    :returns: what is called with the bytes that were done since the last call.
    """
    from tqdm import tqdm  # noqa: PLC0415 - most commands do without

    with tqdm(
        total=size, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None
    ) as shown:
        yield shown.update


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each of ``rows``, whose cells stand in columns; without control characters."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]


class Table:
    """
    Prints rows: aligned columns under a heading on a terminal, tab-separated cells without one in a
    pipe, or an object of JSON a line.

    A terminal gets a page of rows at a time, each page aligned by itself, so that a long list takes
    little memory.
    """

    def __init__(self, *columns: str, as_json: bool) -> None:
        self._columns = columns
        self._as_json = as_json
        self._is_headed = False

    def add(self, rows: Sequence[tuple[object, Sequence[str]]]) -> None:
        """Print rows: each an attrs object for JSON, and its cells as text."""
        if self._as_json:
            for each, _ in rows:
                print_json(each)
        elif sys.stdout.isatty():
            head, *lines = aligned([self._columns, *(cells for _, cells in rows)])
            if not self._is_headed:
                print(Color.BOLD.paint(head))
                self._is_headed = True
            for line in lines:
                print(line)
        else:
            for _, cells in rows:
                print("\t".join(map(printable, cells)))
