"""
JSON that clients and upstreams send: bounded before it is decoded, and names in it that two parsers
would read differently.

RFC 8259, 9: "An implementation may set limits on the size of texts that it accepts [...] on the
maximum depth of nesting"; 4: "When the names within an object are not unique, the behavior of
software that receives such an object is unpredictable."
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

import msgspec

VALUES = 200_000
"""
The most values of a document, unless its caller names another number.

Decoding so many takes about 0.1 s.  An index of 10,000 manifests, each with a platform and some
annotations, has 150,000.
"""

NESTING = 100
"""The deepest nesting of a document, unless its caller names another."""

_T = TypeVar("_T")

# An array or object takes several times as long as another value, and an entry of an index with a
# platform and annotations has three among a dozen of values.
_PER_CONTAINER = 4

_STRUCTURE = b'"[]{},'
_OTHERS = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_PIECE = 64 << 10

# To the signed bytes 1 and -1.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def decode_foreign(
    decoder: msgspec.json.Decoder[_T],
    content: bytes | msgspec.Raw,
    *,
    nesting: int = NESTING,
    values: int = VALUES,
) -> _T:
    """
    Decode JSON that a client or an upstream has sent.

    A megabyte of ``[],`` would take half a second without the bounds, and nothing else would run
    meanwhile.  Above 64 KiB or so it may take over a millisecond: call it in a thread.

    :param nesting: how deep arrays and objects may be nested.
    :param values: how many elements and members they may have together; 0: any number.
    :raises ValueError: if ``content`` exceeds the bounds, is not JSON, or is not of the decoder's
        type; its text is a sentence for the sender.
    """
    content = bytes(content)
    problem = excess(content, nesting, values)
    if problem is not None:
        raise ValueError(problem)
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None


# It never backtracks: a place to go back to takes 120 bytes, and there may be one for each escape.
# Escapes are an atomic group, since before Python 3.11.5 a group with a possessive quantifier may
# match too much.  No tag has so many; from a string that has, the array is decoded at once.
_STRING = rb'[ \t\n\r]*+"[^"\\]*+(?>(?:\\[\x00-\xff][^"\\]*+){0,128})"[ \t\n\r]*+'
# So many strings of an array, each with the comma behind it.
_SOME_STRINGS = re.compile(rb"(?:%b,){1,5000}" % _STRING)
_strings = msgspec.json.Decoder(list[str])


def strings_of(array: bytes | msgspec.Raw) -> Iterator[list[str]]:
    """
    Decode a long array of strings in pieces of some thousands, so that other threads run meanwhile.

    :param array: JSON of any type.
    :raises ValueError: if it is no array of strings.
    """
    content = bytes(array).lstrip(b" \t\n\r")
    at = 1 if content.startswith(b"[") and len(content) > _PIECE else 0
    try:
        while at and (found := _SOME_STRINGS.match(content, at)) is not None:
            yield _strings.decode(b"[%b]" % content[at : found.end() - 1])
            at = found.end()
        yield _strings.decode(b"[%b" % content[at:] if at else content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None


def excess(content: bytes, nesting: int, values: int) -> str | None:
    """
    Return the reason not to decode ``content``, JSON or not; ``None``: there is none.

    Of what is not JSON, the part before the first error counts, which is all that a decoder reads.
    The time is linear in the size of ``content``, some 20 ms for 4 MiB, and about a microsecond for
    a small manifest; there is no recursion.

    :param nesting: how deep arrays and objects may be nested.
    :param values: how many elements and members they may have together, and four times as many as
        there may be arrays and objects; 0: any number.
    """
    many = 0 < values < len(content)  # each value is followed or preceded by a byte of structure
    deep = content.count(b"[") + content.count(b"{") > nesting
    if not (many or deep):
        return None
    structure = _structure(content)
    opened = structure.count(b"[") + structure.count(b"{")
    if values and 1 + opened + structure.count(b",") > values:
        return f"its JSON has more than {values} values"
    # What is closed was opened before, up to the first error.
    brackets = structure.translate(_STEPS, b",")[: 2 * opened]
    if max(accumulate(memoryview(brackets).cast("b")), default=0) > nesting:
        return f"its JSON is nested deeper than {nesting}"
    containers = max(values // _PER_CONTAINER, 1000)
    if values and opened > containers:
        return f"its JSON has more than {containers} arrays and objects"
    return None


def _structure(content: bytes) -> bytes:
    """Return the brackets and commas of ``content`` that stand outside of strings."""
    if b"\\" in content:  # only strings have one
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = content.translate(None, _OTHERS).replace(b'""', b"")
    found = []
    inside = 0  # whether a string has begun: 0 or 1
    # In pieces, so that splitting takes little memory, and other threads run in between.
    for start in range(0, len(marks), _PIECE):
        parts = marks[start : start + _PIECE].split(b'"')
        found.append(b"".join(parts[inside::2]))
        inside ^= (len(parts) - 1) & 1
    return b"".join(found)


# The fields that registries and clients read.  Most clients are written in Go, which matches the
# names of fields in any case.
_FIELDS = {
    name.casefold(): name
    for name in (
        "schemaVersion",
        "mediaType",
        "artifactType",
        "config",
        "layers",
        "manifests",
        "subject",
        "annotations",
        "digest",
        "size",
        "urls",
        "platform",
        "data",
    )
}

_SPELT = frozenset(_FIELDS.values())


def spelt(name: str) -> str:
    """Return ``name``, or a field of a manifest in the spelling of the spec."""
    return _FIELDS.get(name.casefold(), name)


def each_object(content: bytes, look: Callable[[Mapping[str, object]], object]) -> None:
    """
    Call ``look`` with the fields of each object of ``content``, from the inside outwards.  Names of
    a manifest's fields are spelt as the spec does; a value that is an object itself is ``None``.

    :param content: JSON within the bounds of :func:`excess`.
    :raises ValueError: if it is not JSON, or an object has a name twice.  A field of a manifest
        counts as twice also if its second name differs in case; annotations are no fields.
    """
    # Objects that have a field in two cases, and are not the value of "annotations".
    doubled: dict[_InTwoCases, str] = {}

    def hook(pairs: list[tuple[str, object]]) -> _InTwoCases | None:
        if doubled:
            for name, value in pairs:
                if isinstance(value, _InTwoCases) and name.casefold() == "annotations":
                    doubled.pop(value, None)
        fields, twice = _unique(pairs)
        look(fields)
        if twice is None:
            return None
        found = _InTwoCases()
        doubled[found] = twice
        return found

    # Numbers stay text: a number of a million digits costs nothing to parse.
    json.loads(content.decode(), object_pairs_hook=hook, parse_int=str, parse_float=str)
    if doubled:
        raise _doubled(next(iter(doubled.values())))


def read_loosely(
    content: bytes,
    look: Callable[[Mapping[str, object]], object],
    *,
    nesting: int = NESTING,
    values: int = VALUES,
) -> object:
    """
    Read JSON that nobody here may refuse for its style: the document of an upstream.

    A byte order mark is ignored (RFC 8259, 8.1), bytes that are no UTF-8 and halves of surrogate
    pairs (8.2) count as U+FFFD, so that every string can be encoded, and ``1e3`` is the integer
    1000.

    :param look: called with the fields of each object, from the inside outwards.
    :param nesting: see :func:`decode_foreign`, as for ``values``.
    :returns: dicts, lists, strings, integers, booleans and ``None``, which also stands for any
        other number.
    :raises ValueError: if ``content`` exceeds the bounds, or is not JSON, or two readers could read
        it differently: a name stands twice, or a field of a manifest in two cases where the values
        are not all strings.
    """
    problem = excess(content, nesting, values)
    if problem is not None:
        raise ValueError(problem)

    def hook(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        names: Collection[str] = fields
        if not all(isinstance(value, str) for value in fields.values()):  # else annotations
            names = {spelt(name) for name in fields}
        if len(names) < len(pairs):
            raise ValueError("a field stands twice in one object")
        look(fields)
        return fields

    text = content.decode("utf-8-sig", "replace")
    if "\\ud" in text or "\\uD" in text:
        text = _paired(text)
    return json.loads(
        text,
        object_pairs_hook=hook,
        parse_int=_integer,
        parse_float=_integer,
        parse_constant=_integer,
    )


_HALF = re.compile(
    r"\\u[Dd][89ABab][0-9A-Fa-f]{2}(?!\\u[Dd][C-Fc-f][0-9A-Fa-f]{2})"
    r"|(?<!\\u[Dd][89ABab][0-9A-Fa-f]{2})\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}"
)


def _paired(text: str) -> str:
    """JSON without the escapes of halves of surrogate pairs."""
    if "\0" in text:
        return text  # it is no JSON
    halves = text.replace("\\\\", "\0")  # of an escaped backslash, what follows is no escape
    return _HALF.sub(r"\\ufffd", halves).replace("\0", "\\\\")


def field_of(fields: Mapping[str, object], name: str) -> object:
    """The value of a field whose name may be spelt in another case; ``None`` without one."""
    if name in fields:
        return fields[name]
    folded = name.casefold()
    return next((value for each, value in fields.items() if each.casefold() == folded), None)


_DIGITS = 20  # of the largest size, and one more


def _integer(text: str) -> int | None:
    if len(text) > _DIGITS:
        return None  # a number of a million digits costs nothing
    try:
        return int(text)
    except ValueError:
        number = float(text)
    return int(number) if number.is_integer() else None


class _InTwoCases:
    """Stands for an object that has a field in two cases."""


def _unique(pairs: list[tuple[str, object]]) -> tuple[Mapping[str, object], str | None]:
    """Return the fields of an object, and the first one that it has in two cases."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _doubled(name)
            seen.add(name)
    doubled = None
    for name in fields.keys() - _SPELT:
        meant = spelt(name)
        if meant != name:
            if meant in fields:
                doubled = meant
            fields[meant] = fields[name]
    return fields, doubled


def _doubled(name: str) -> ValueError:
    return ValueError(f"{name[:100]!r} stands twice in one object")
