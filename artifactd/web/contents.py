"""The bytes of a manifest or a blob as an answer."""

from __future__ import annotations

from artifactd.oci.digest import Digest
from artifactd.oci.ranges import ByteRange
from artifactd.registry.local import SMALL
from artifactd.registry.registry import Target
from artifactd.web.answer import Answer


async def content_answer(
    target: Target,
    digest: Digest,
    size: int,
    span: ByteRange,
    status: int,
    headers: dict[str, str],
) -> Answer:
    """``span`` of something that the image holds."""
    if size <= SMALL:
        content = await target.repository.content(target.image, digest)
        return Answer(status, headers, content[span.first : span.last + 1])
    blob = await target.repository.open_blob(target.image, digest, size)
    return Answer(status, headers, blob=blob, span=span)
