"""Patterns of names, as the settings have them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """
    Whether one of ``patterns`` is all of ``name``: ``*`` stands for any characters, slashes
    included, ``?`` for one, ``[…]`` for one of these.
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)
