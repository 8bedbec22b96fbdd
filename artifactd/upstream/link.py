"""``Link``: where a list goes on (RFC 8288; distribution-spec, "Listing Tags")."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlsplit

# Characters of a field that are read.  No part of a pattern ever gives back what it has taken: a
# field made for that would keep it busy.
_FIELD = 8192
_LINK = re.compile(
    r'<([^<>]*+)>((?:[ \t]*+;[ \t]*+[^\s=;,"]++[ \t]*+(?:=[ \t]*+'
    r'(?:"(?:[^"\\]|\\.)*+"|[^\s;,"]*+))?+)*+)'
)
_PARAMETER = re.compile(
    r';[ \t]*+([^\s=;,"]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;,"]*+))'
)


def next_page(fields: Iterable[str], query: Mapping[str, str]) -> Mapping[str, str] | None:
    """
    The query parameters of the ``Link`` to the next page; nothing else of it is followed.

    :param fields: the ``Link`` fields of an answer.
    :param query: what this page was asked for with: a next page that is the same is none.
    """
    for value in fields:
        for target, parameters in _LINK.findall(value[:_FIELD]):
            if "next" in _relations(parameters):
                found = _query(target)
                return found if found and found != query else None
    return None


def _relations(parameters: str) -> list[str]:
    """What the first ``rel`` says, in lower case."""
    for name, quoted, plain in _PARAMETER.findall(parameters):
        if name.lower() == "rel":
            return str(quoted or plain).lower().split()
    return []


def _query(target: str) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
    except ValueError:
        return {}
