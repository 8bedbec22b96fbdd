"""Byte ranges: of reads (RFC 9110, 14) and of upload chunks (distribution-spec, end-5)."""

from __future__ import annotations

import re

from attrs import frozen

from artifactd.oci.errors import BlobUploadInvalid, RangeNotSatisfiable

_CONTENT_RANGE = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.IGNORECASE)


@frozen
class ByteRange:
    """Bytes ``first`` to ``last``, both included, counted from 0; never empty."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def parse_content_range(value: str) -> ByteRange:
    """
    The ``Content-Range`` of a chunk, which "MUST match ``^[0-9]+-[0-9]+$``".

    :raises BlobUploadInvalid: if it does not, or ends before it starts.
    """
    match = _CONTENT_RANGE.fullmatch(value)
    if match is None or int(match[2]) < int(match[1]):
        raise BlobUploadInvalid(
            "invalid Content-Range: expected <first>-<last>, both inclusive",
            {"Content-Range": value[:200]},
        )
    return ByteRange(int(match[1]), int(match[2]))


def parse_range(value: str, size: int) -> ByteRange | None:
    """
    The bytes that a ``Range`` header asks for in a body of ``size`` bytes.

    ``None`` if the header is to be ignored (RFC 9110, 14.2): another unit, several ranges, or not
    well-formed.

    :raises RangeNotSatisfiable: if none of the bytes exist, or the range ends before it starts.
    """
    match = _RANGE.fullmatch(value)
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            first = size  # none of the bytes, as clients expect that send this on purpose
    else:
        first, last = max(size - int(match[2]), 0), size - 1
        if match[2].strip("0") == "":
            first = size
    if first >= size:
        raise RangeNotSatisfiable(
            f"range not satisfiable: the blob has {size} bytes",
            {"size": size},
            {"Content-Range": f"bytes */{size}"},
        )
    return ByteRange(first, last)


def is_bounded(value: str) -> bool:
    """
    Whether a ``Range`` header asks for some bytes from the middle or the end: neither from the
    beginning on, nor on to an end that it does not name.
    """
    match = _RANGE.fullmatch(value)
    if match is None:
        return False
    if not match[1]:
        return True  # the last so many bytes
    return bool(match[2]) and match[1].strip("0") != ""
