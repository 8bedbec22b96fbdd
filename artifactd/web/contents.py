"""The bytes of a manifest or a blob as an answer."""

from __future__ import annotations

from artifactd.oci.ranges import ByteRange
from artifactd.registry.model import BlobFound
from artifactd.store.interfaces import OpenBlob
from artifactd.web.answer import Answer


def body_answer(body: OpenBlob | bytes, size: int | None, headers: dict[str, str]) -> Answer:
    """All of ``body``; ``size`` in bytes, ``None`` as long as nobody knows."""
    if isinstance(body, bytes):
        return Answer(200, headers, body)
    span = None if size is None else ByteRange(0, size - 1)
    return Answer(200, headers, blob=body, span=span)


def blob_answer(found: BlobFound, headers: dict[str, str]) -> Answer:
    """What was found of a blob: all of it, or (206) the part that was asked for."""
    if found.body is None:
        return Answer(200, headers, length=found.size)
    span = found.span
    if span is None:
        return body_answer(found.body, found.size, headers)
    headers["Content-Range"] = f"bytes {span.first}-{span.last}/{found.size}"
    if isinstance(found.body, bytes):
        return Answer(206, headers, found.body)
    return Answer(206, headers, blob=found.body, span=span)
