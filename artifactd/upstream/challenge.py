"""Challenges: what a 401 says about how to log in (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from attrs import frozen

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Characters of a field that are read.
_FIELD = 8192
_SCHEME = re.compile(_TOKEN)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
# A value without quotes is a token by the grammar; some registries leave a URL's quotes away.
_PARAMETER = re.compile(
    rf'({_TOKEN})[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s",]+))[ \t]*+(?=,|$)', re.DOTALL
)
_SEPARATORS = re.compile(r"[ \t,]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@frozen
class Challenge:
    """
    One way to log in.

    :ivar scheme: in lower case: ``bearer``, ``basic``.
    :ivar parameters: by their names in lower case; empty where a token68 stands instead.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """
    The challenges of the ``WWW-Authenticate`` fields ``values``, each of which may hold several.

    What comes after something malformed in a field is left out.
    """
    return [challenge for value in values for challenge in _parse(value[:_FIELD])]


def _parse(value: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while True:
        at = _end(_SEPARATORS, value, at)
        if parameter := _PARAMETER.match(value, at):
            at = parameter.end()
            if found:
                name, quoted, plain = parameter.groups()
                text = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
                found[-1][1].setdefault(name.lower(), text)
        elif scheme := _SCHEME.match(value, at):
            found.append((scheme[0].lower(), {}))
            at = _end(_TOKEN68, value, scheme.end())
        else:
            return [Challenge(name, parameters) for name, parameters in found]


def _end(pattern: re.Pattern[str], value: str, at: int) -> int:
    """Where what ``pattern`` matches at ``at`` ends; ``at`` if it doesn't match."""
    match = pattern.match(value, at)
    return match.end() if match else at
