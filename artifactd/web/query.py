"""Query parameters, and the ``Link`` to the next page."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlencode

from twisted.web.server import Request

from artifactd.oci.digest import Digest
from artifactd.oci.errors import DigestInvalid, QueryInvalid
from artifactd.registry.model import PACKED, PAGING, ListWanted

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


def required_digest(request: Request) -> Digest:
    """:raises DigestInvalid: if there is no ``digest`` parameter, or it is none."""
    text = parameter(request, "digest")
    if text is None:
        raise DigestInvalid("the digest of the whole blob is missing: add ?digest=<digest>")
    return Digest.parse(text)


def list_wanted(request: Request, most: int = PAGE_LIMIT) -> ListWanted:
    """
    The page that ``n`` and ``last`` ask for.

    :raises QueryInvalid: if ``n`` is not a whole number from 0.
    """
    n = parameter(request, "n")
    if n is not None and not (n.isascii() and n.isdigit() and len(n) < 20):
        raise QueryInvalid("n must be a whole number, 0 or more", {"n": n[:200]})
    limit = most if n is None else min(int(n), most)
    query = {
        name: values[0].decode("utf-8", "replace")
        for key, values in (request.args or {}).items()
        if (name := key.decode("utf-8", "replace")) in PAGING or name == PACKED
    }
    return ListWanted(limit, parameter(request, "last"), query)


def link_to_next(path: str, query: Mapping[str, str]) -> str:
    """The value of a ``Link`` header: RFC 8288, relation ``next``; always a relative path."""
    return f'<{quote(path, safe="/:@")}?{urlencode(query)}>; rel="next"'
