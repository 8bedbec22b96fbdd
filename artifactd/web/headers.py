"""Header fields: those of a request as text, and those that several answers have in common."""

from __future__ import annotations

from twisted.web.server import Request

from artifactd.oci.digest import Digest
from artifactd.registry.registry import Target

# "immutable": what a digest names never changes (RFC 8246).
_FOR_EVER = "max-age=31536000, immutable"


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
        "X-Artifact-Source": "local",
    }


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
