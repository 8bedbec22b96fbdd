"""Patterns of names, as the settings have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase, translate


def matches(name: str, patterns: Iterable[str]) -> bool:
    """
    Whether one of ``patterns`` is all of ``name``: ``*`` stands for any characters, slashes
    included, ``?`` for one, ``[…]`` for one of these.
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Patterns:
    """Patterns that many names are compared with; compiled once, where :func:`matches` may not."""

    __slots__ = ("_match",)

    def __init__(self, patterns: Iterable[str]) -> None:
        # No alternative at all would match everything.
        alternatives = [translate(pattern) for pattern in patterns] or [r"(?!)"]
        self._match = re.compile("|".join(alternatives)).match

    def match(self, name: str) -> bool:
        """As :func:`matches`."""
        return self._match(name) is not None
