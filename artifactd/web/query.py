"""Query parameters, and the ``Link`` to the next page."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from attrs import frozen
from twisted.web.server import Request

from artifactd.oci.errors import QueryInvalid

# A list is answered in pages of at most this many entries, with a Link to the next.
PAGE_LIMIT = 10_000


def parameter(request: Request, name: str) -> str | None:
    """The first value of a query parameter, or ``None``."""
    values = parameters(request, name)
    return values[0] if values else None


def parameters(request: Request, name: str) -> list[str]:
    """All values of a query parameter; what is not UTF-8 can't match anything and stays visible."""
    args = request.args or {}
    return [value.decode("utf-8", "replace") for value in args.get(name.encode(), [])]


@frozen
class Page:
    """``n`` and ``last`` of a list request: at most ``limit`` entries behind ``after``."""

    limit: int
    after: str | None

    @classmethod
    def of(cls, request: Request, most: int = PAGE_LIMIT) -> Page:
        """:raises QueryInvalid: if ``n`` is not a whole number from 0."""
        n = parameter(request, "n")
        if n is not None and not (n.isascii() and n.isdigit() and len(n) < 20):
            raise QueryInvalid("n must be a whole number, 0 or more", {"n": n[:200]})
        limit = most if n is None else min(int(n), most)
        return cls(limit, parameter(request, "last"))


def link_to_next(path: str, **query: str | int | None) -> str:
    """The value of a ``Link`` header: RFC 8288, relation ``next``; always a relative path."""
    given = {key: value for key, value in query.items() if value is not None}
    return f'<{quote(path, safe="/:@")}?{urlencode(given)}>; rel="next"'
