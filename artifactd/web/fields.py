"""Header fields and query parameters of a request, and header fields that several answers share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import quote, urlencode

from twisted.web.server import Request

from artifactd.catalog.records import Precondition
from artifactd.oci.digest import Digest
from artifactd.oci.errors import DigestInvalid, QueryInvalid
from artifactd.oci.ranges import ByteRange, is_bounded, parse_content_range, parse_range
from artifactd.registry.model import LOCAL, PACKED, PAGING, BlobWanted, ListWanted, Provenance
from artifactd.registry.registry import Target

# "immutable": what a digest names never changes (RFC 8246).
_FOR_EVER = "max-age=31536000, immutable"

_LOCAL = {"X-Artifact-Source": "local", "Cache-Status": "artifactd; hit"}

# The characters that a quoted string can't hold unescaped.
_UNQUOTED = re.compile(r"[^ !#-\[\]-~]")


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


def etag(digest: Digest) -> str:
    """Return the entity tag of content with ``digest``: strong, since the bytes are the same."""
    return f'"{digest}"'


def content_headers(media_type: str, digest: Digest) -> dict[str, str]:
    """Return the header fields of content with ``digest``."""
    text = str(digest)
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": text,
        "ETag": f'"{text}"',
        "Cache-Control": _FOR_EVER,
    }


def provenance_headers(provenance: Provenance) -> dict[str, str]:
    """
    Return the header fields that tell where an answer comes from: ``Cache-Status`` (RFC 9211), the
    upstream's part of ``Server-Timing``, and ``Warning: 299`` if it is older than it should be.
    """
    if provenance is LOCAL:
        return _LOCAL
    headers = {
        "X-Artifact-Source": provenance.source,
        "Cache-Status": f"artifactd; {provenance.cache}",
    }
    if "detail=unverified" in provenance.cache:
        headers["Cache-Control"] = "no-store"  # no cache may make a whole of such parts
    if provenance.waited is not None:
        headers["Server-Timing"] = f"upstream;dur={provenance.waited * 1000:.1f}"
    if provenance.stale is not None:
        reason = _UNQUOTED.sub("", provenance.stale)[:200]
        headers["Warning"] = f'299 - "stale: {reason}"'
    return headers


def blob_headers(target: Target, digest: Digest) -> dict[str, str]:
    """Return the header fields of the answer to a blob's upload or mount."""
    return {"Location": f"{target.path}/blobs/{digest}", "Docker-Content-Digest": str(digest)}


def upload_headers(target: Target, upload_id: str, offset: int) -> dict[str, str]:
    """
    Return the header fields that tell the state of an upload session.

    ``Range`` has no way to say "nothing": an empty session answers ``0-0``, as Docker does.
    """
    return {
        "Location": f"{target.path}/blobs/uploads/{upload_id}",
        "Range": f"0-{max(offset - 1, 0)}",
        "Docker-Upload-UUID": upload_id,
    }


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


def required_digest(request: Request) -> Digest:
    """Return the ``digest`` parameter.  :raises DigestInvalid: if it is missing or malformed."""
    text = parameter(request, "digest")
    if text is None:
        raise DigestInvalid("the digest of the whole blob is missing: add ?digest=<digest>")
    return Digest.parse(text)


def list_wanted(request: Request, most: int = PAGE_LIMIT) -> ListWanted:
    """
    Return the page that ``n`` and ``last`` ask for, of at most ``most`` entries.

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
    """Return the value of a ``Link`` header: RFC 8288, relation ``next``; a relative path."""
    return f'<{quote(path, safe="/:@")}?{urlencode(query)}>; rel="next"'


# Conditional requests: RFC 9110, 13.

_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"|\*')


def _entity_tags(request: Request, name: str) -> tuple[str, ...] | None:
    values = header_values(request, name)
    return tuple(_ETAG.findall(", ".join(values))) if values else None


def precondition(request: Request) -> Precondition:
    """Return ``If-Match`` and ``If-None-Match`` of a write."""
    return Precondition(
        if_match=_entity_tags(request, "If-Match"),
        if_none_match=_entity_tags(request, "If-None-Match"),
    )


def not_modified(request: Request, current: str) -> bool:
    """Whether a read may be answered 304: ``If-None-Match`` has ``current`` (weak comparison)."""
    if not request.requestHeaders.hasHeader(b"If-None-Match"):
        return False
    tags = _entity_tags(request, "If-None-Match")
    return bool(tags) and any(tag == "*" or tag.removeprefix("W/") == current for tag in tags or ())


def blob_wanted(request: Request, current: str, *, head: bool) -> BlobWanted:
    """
    Return what a GET or HEAD wants of the blob with the entity tag ``current``.

    :param head: whether it wants no bytes, whatever its method is.
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
    """Whether a ``Range`` header applies: no ``If-Range``, or one that is ``current`` (13.1.5)."""
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
