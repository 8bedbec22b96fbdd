"""Header fields and query parameters of a request, parsed."""

from __future__ import annotations

import re
from functools import partial
from urllib.parse import parse_qsl, urlsplit

from twisted.web.server import Request

from artifactd.catalog.records import Precondition
from artifactd.oci.errors import DigestInvalid, QueryInvalid
from artifactd.oci.names import Digest
from artifactd.oci.ranges import ByteRange, is_bounded, parse_content_range, parse_range
from artifactd.registry.model import CONTINUATION, BlobWanted, ListWanted
from artifactd.web.server.protocol import RegistryRequest


def header(request: Request, name: str) -> str | None:
    """Return the last value of a header field, or ``None``."""
    values = header_values(request, name)
    return values[-1] if values else None


def header_values(request: Request, name: str) -> list[str]:
    """
    Return all values of a header field.

    Any byte may stand in one (RFC 9110, 5.5), so that decoding them as UTF-8 could fail.
    """
    values = request.requestHeaders.getRawHeaders(name.encode(), ())
    return [value.decode("latin-1").strip() for value in values]


def content_range(request: Request) -> ByteRange | None:
    """
    Return the range of a chunk in its upload session, if the client tells it.

    :raises BlobUploadInvalid: if ``Content-Range`` is malformed.
    """
    value = header(request, "Content-Range")
    return None if value is None else parse_content_range(value)


PAGE_LIMIT = 10_000
"""A list is answered in pages of at most this many entries, with a ``Link`` to the next."""


def parameter(request: Request, name: str) -> str | None:
    """Return the first value of a query parameter, or ``None``."""
    values = parameters(request, name)
    return values[0] if values else None


def parameters(request: Request, name: str) -> list[str]:
    """
    Return all values of a query parameter.

    Bytes that are not UTF-8 become the replacement character, which no name or digest holds.
    """
    args = request.args or {}
    return [value.decode("utf-8", "replace") for value in args.get(name.encode(), [])]


OFFSET = "offset"
"""The parameter of the ``Location`` of an upload session that says where the next chunk belongs."""

_OFFSET = re.compile(r"[0-9]{1,18}")
# Some clients add "?digest=…" to a Location although it has a query already.
_ADDED = "?digest="


def location_offset(request: Request) -> int | None:
    """
    Return the offset in the ``Location`` that the client uses; ``None`` if it made a URL itself.

    :raises QueryInvalid: if it is no number.
    """
    text = parameter(request, OFFSET)
    if text is None:
        return None
    number = text.partition("?")[0]
    if not _OFFSET.fullmatch(number):
        raise QueryInvalid(
            "offset must be a whole number: use the Location of the last answer as it is",
            {OFFSET: text[:200]},
        )
    return int(number)


def required_digest(request: Request) -> Digest:
    """Return the ``digest`` parameter.  :raises DigestInvalid: if it is missing or malformed."""
    text = parameter(request, "digest")
    if text is None:
        text = (parameter(request, OFFSET) or "").partition(_ADDED)[2] or None
    if text is None:
        raise DigestInvalid("the digest of the whole blob is missing: add ?digest=<digest>")
    return Digest.parse(text)


def list_wanted(request: Request, most: int = PAGE_LIMIT) -> ListWanted:
    """
    Return the page that ``n`` and ``last`` ask for, of at most ``most`` entries.

    ``n`` without a value is none.

    :raises QueryInvalid: if ``n`` is not a whole number from 0.
    """
    n = parameter(request, "n") or None
    if n is not None and not (n.isascii() and n.isdigit() and len(n) < 20):
        raise QueryInvalid("n must be a whole number, 0 or more", {"n": n[:200]})
    limit = most if n is None else min(int(n), most)
    sealed = parameter(request, CONTINUATION)
    return ListWanted(limit, parameter(request, "last"), n is not None, sealed)


# Conditional requests: RFC 9110, 13.

_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"|\*')


def entity_tags(request: Request, name: str) -> tuple[str, ...] | None:
    """Return the entity tags of a conditional header field; ``None`` if it is not there."""
    values = header_values(request, name)
    return tuple(_ETAG.findall(", ".join(values))) if values else None


def precondition(request: Request) -> Precondition:
    """Return ``If-Match`` and ``If-None-Match`` of a write."""
    return Precondition(
        if_match=entity_tags(request, "If-Match"),
        if_none_match=entity_tags(request, "If-None-Match"),
    )


def blob_wanted(request: Request, current: str, *, head: bool) -> BlobWanted:
    """
    Return the part of the blob with the entity tag ``current`` that a GET or HEAD asks for.

    :param head: whether no bytes are wanted, whatever the method is.
    """
    wanted = header(request, "Range")
    patient = request.clientproto == b"HTTP/1.0"
    if head or request.method == b"HEAD":
        return BlobWanted(head=True)
    if wanted is None or not range_applies(request, current):
        return BlobWanted(patient=patient)
    span = partial(parse_range, wanted)
    return BlobWanted(span=span, bounded=is_bounded(wanted), patient=patient)


def range_applies(request: Request, current: str) -> bool:
    """Whether ``Range`` applies: there is no ``If-Range``, or it is ``current``."""  # 13.1.5
    value = header(request, "If-Range")
    return value is None or value == current


# ``ns=``: the registry that a mirror is asked for; distribution-spec, "Registry Proxying".


def mirrored_registry(request: Request) -> str | None:
    """Return the host that ``ns`` names; ``None`` if it names none, or this very registry."""
    namespace = parameter(request, "ns")
    if not namespace:
        return None
    host = (header(request, "Host") or "").lower()
    ours = {host, host.rpartition(":")[0]}
    return None if namespace.lower() in ours else namespace


# The page that a browser sends a request for: the Fetch standard, 3.1, and Fetch Metadata Request
# Headers, 2.4.


def sent_by_another_page(request: Request) -> bool:
    """
    Whether a browser sends ``request`` for a page that is none of this registry's.

    ``Sec-Fetch-Site`` says so where the browser trusts the address (HTTPS, loopback); ``Origin``
    says so everywhere.  Programs that are no browsers send neither.
    """
    site, origin = header(request, "Sec-Fetch-Site"), header(request, "Origin")
    if site is not None:
        return site != "same-origin"
    return origin is not None and not is_own_origin(request, origin)


def is_own_origin(request: Request, origin: str) -> bool:
    """Whether ``origin`` is the address under which the client of ``request`` reaches us."""
    hosts = header_values(request, "Host")
    try:
        return len(hosts) == 1 and urlsplit(origin).netloc.lower() == hosts[0].lower() != ""
    except ValueError:
        return False


# What kind of answer is wanted: RFC 9110, 12.5.1.

_HTML = frozenset({"text/html", "application/xhtml+xml"})
_JSON = "application/json"


def wants_html(request: Request) -> bool:
    """
    Whether ``Accept`` asks for HTML by its name, and not less than for JSON.

    Browsers do; programs that take anything (``*/*``) get what they always got.
    """
    weights = {}
    for each in ",".join(header_values(request, "Accept")).split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        weights[kind] = next((_weight(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
    html = max((weight for kind, weight in weights.items() if kind in _HTML), default=0.0)
    return html > 0 and html >= weights.get(_JSON, 0.0)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


# Forms: WHATWG's URL standard, 5.

FORM_LIMIT = 64 << 10
"""Bytes of a form; 413 beyond.  The largest field is a CI system's token as a password."""

_FORM = "application/x-www-form-urlencoded"


async def form_fields(request: RegistryRequest, most: int) -> list[tuple[str, str]]:
    """
    Return the names and values in the form that is the body of ``request``.

    :param most: how many there may be.
    :raises QueryInvalid: if the body is no form, or has more.
    :raises ContentTooLarge: if it has more than :data:`FORM_LIMIT` bytes.
    """
    kind = (header(request, "Content-Type") or "").partition(";")[0].strip().lower()
    if kind != _FORM:
        raise QueryInvalid(f"expected a form: Content-Type: {_FORM}")
    content = b"" if request.body is None else await request.body.read(FORM_LIMIT)
    try:
        return parse_qsl(
            content.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=most
        )
    except ValueError:
        raise QueryInvalid("the form is not encoded as a form is, or has too many fields") from None
