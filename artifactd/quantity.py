"""Durations and sizes as an operator writes them: a whole number and a unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self

# From the smallest; each unit is a multiple of the one before.
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _read_quantity(text: str, units: Mapping[str, int]) -> int:
    """``text`` in the smallest of ``units``.  :raises ValueError: if it is no such quantity."""
    if text == "0":
        return 0
    match = re.fullmatch(r"([0-9]{1,12})([A-Za-z]+)", text)
    if match is None or match[2] not in units:
        raise ValueError(f"not a number and a unit of {', '.join(units)}: {text!r}")
    return int(match[1]) * units[match[2]]


def _write_quantity(quantity: int, units: Mapping[str, int]) -> str:
    if quantity == 0:
        return "0"
    unit = max((u for u in units if quantity % units[u] == 0), key=units.__getitem__)
    return f"{quantity // units[unit]}{unit}"


class Duration(float):
    """Seconds, written with a unit: ``250ms``, ``60s``, ``15m``, ``24h``, ``7d``; or ``0``."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is no duration."""
        return cls(_read_quantity(text, _MILLISECONDS) / 1000)

    def __str__(self) -> str:
        return _write_quantity(round(self * 1000), _MILLISECONDS)


class Size(int):
    """Bytes, written with a unit: ``512B``, ``64KiB``, ``4MiB``, ``1GiB``, ``2TiB``; or ``0``."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is no size."""
        return cls(_read_quantity(text, _BYTES))

    def __str__(self) -> str:
        return _write_quantity(int(self), _BYTES)
