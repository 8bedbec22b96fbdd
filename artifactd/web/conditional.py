"""Conditional requests: RFC 9110, 13."""

from __future__ import annotations

import re
from functools import partial

from twisted.web.server import Request

from artifactd.catalog.records import Precondition
from artifactd.oci.ranges import is_bounded, parse_range
from artifactd.registry.model import BlobWanted
from artifactd.web.headers import header, header_values

_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"|\*')


def _entity_tags(request: Request, name: str) -> tuple[str, ...] | None:
    values = header_values(request, name)
    return tuple(_ETAG.findall(", ".join(values))) if values else None


def precondition(request: Request) -> Precondition:
    """``If-Match`` and ``If-None-Match`` of a write."""
    return Precondition(
        if_match=_entity_tags(request, "If-Match"),
        if_none_match=_entity_tags(request, "If-None-Match"),
    )


def not_modified(request: Request, current: str) -> bool:
    """Whether a read may be answered 304: ``If-None-Match`` has ``current`` (weak comparison)."""
    tags = _entity_tags(request, "If-None-Match")
    return bool(tags) and any(tag == "*" or tag.removeprefix("W/") == current for tag in tags or ())


def blob_wanted(request: Request, current: str, *, head: bool) -> BlobWanted:
    """
    What a GET or HEAD wants of the blob with the entity tag ``current``.

    :param head: nothing of it, whatever the method.
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
    """Whether a ``Range`` header counts: no ``If-Range``, or one that is ``current`` (13.1.5)."""
    value = header(request, "If-Range")
    return value is None or value == current
