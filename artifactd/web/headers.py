"""Header fields: those of a request as text, and those that several answers have in common."""

from __future__ import annotations

import re

from twisted.web.server import Request

from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange, parse_content_range
from artifactd.registry.model import LOCAL, Provenance
from artifactd.registry.registry import Target

# "immutable": what a digest names never changes (RFC 8246).
_FOR_EVER = "max-age=31536000, immutable"

_LOCAL = {"X-Artifact-Source": "local", "Cache-Status": "artifactd; hit"}

# What can't stand in a quoted string without being escaped.
_UNQUOTED = re.compile(r"[^ !#-\[\]-~]")


def header(request: Request, name: str) -> str | None:
    """The last value of a header field, or ``None``."""
    values = header_values(request, name)
    return values[-1] if values else None


def header_values(request: Request, name: str) -> list[str]:
    """
    All values of a header field.

    Any byte may stand in one (RFC 9110, 5.5), so they are not decoded as UTF-8, which would fail.
    """
    values = request.requestHeaders.getRawHeaders(name.encode(), ())
    return [value.decode("latin-1").strip() for value in values]


def content_range(request: Request) -> ByteRange | None:
    """Where a chunk belongs, if the client says it.  :raises BlobUploadInvalid: if badly."""
    value = header(request, "Content-Range")
    return None if value is None else parse_content_range(value)


def etag(digest: Digest) -> str:
    """The entity tag of what has ``digest``: strong, since the bytes are the same."""
    return f'"{digest}"'


def content_headers(media_type: str, digest: Digest) -> dict[str, str]:
    """Of what is pulled by its digest."""
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        "ETag": etag(digest),
        "Cache-Control": _FOR_EVER,
    }


def provenance_headers(provenance: Provenance) -> dict[str, str]:
    """
    Where an answer comes from: ``Cache-Status`` (RFC 9211), the upstream's part of
    ``Server-Timing``, and ``Warning: 299`` if it is older than it should be.
    """
    if provenance is LOCAL:
        return _LOCAL
    headers = {
        "X-Artifact-Source": provenance.source,
        "Cache-Status": f"artifactd; {provenance.cache}",
    }
    if "detail=unverified" in provenance.cache:
        headers["Cache-Control"] = "no-store"  # nobody may make a whole of it
    if provenance.waited is not None:
        headers["Server-Timing"] = f"upstream;dur={provenance.waited * 1000:.1f}"
    if provenance.stale is not None:
        reason = _UNQUOTED.sub("", provenance.stale)[:200]
        headers["Warning"] = f'299 - "stale: {reason}"'
    return headers


def blob_headers(target: Target, digest: Digest) -> dict[str, str]:
    """Of a blob that the image has now."""
    return {"Location": f"{target.path}/blobs/{digest}", "Docker-Content-Digest": str(digest)}


def upload_headers(target: Target, upload_id: str, offset: int) -> dict[str, str]:
    """``Range`` has no way to say "nothing": an empty session answers ``0-0``, as Docker does."""
    return {
        "Location": f"{target.path}/blobs/uploads/{upload_id}",
        "Range": f"0-{max(offset - 1, 0)}",
        "Docker-Upload-UUID": upload_id,
    }
