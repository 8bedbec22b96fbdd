"""
How much a JSON document may ask of its readers, and that they all read the same.

RFC 8259, 9: "An implementation may set limits on the size of texts that it accepts [...] on the
maximum depth of nesting"; 4: "When the names within an object are not unique, the behavior of
software that receives such an object is unpredictable."
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from attrs import frozen

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")

# The fields that a registry and its clients go by.  Go matches them in any case, and its programs
# are most of these clients.
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


@frozen
class ManifestBounds:
    """
    What a manifest may have; 0: any number of ``entries`` or ``annotations``.

    :ivar nesting: of arrays and objects, one inside the other.
    :ivar entries: config, layers and manifests together.
    :ivar annotations: of the document, and of each of its descriptors.
    """

    nesting: int = 100
    entries: int = 10_000
    annotations: int = 1000

    def document_problem(self, content: bytes) -> str | None:
        """Why a document, before it is decoded, is not accepted; ``None`` if it is."""
        if nests_deeper(content, self.nesting):
            return f"its JSON is nested deeper than {self.nesting}"
        return None

    def entries_problem(self, entries: int) -> str | None:
        """Why so many entries are not accepted."""
        if self.entries and entries > self.entries:
            return f"it has {entries} entries: at most {self.entries} are accepted here"
        return None

    def annotations_problem(self, annotations: Iterable[Mapping[str, str] | None]) -> str | None:
        """Why one of ``annotations`` is not accepted."""
        most = max((len(each) for each in annotations if each), default=0)
        if self.annotations and most > self.annotations:
            return f"it has {most} annotations: at most {self.annotations} are accepted here"
        return None


BOUNDS = ManifestBounds()
"""Where nothing else is said."""


def nests_deeper(content: bytes, nesting: int) -> bool:
    """
    Whether arrays and objects in ``content``, JSON or not, are nested deeper than ``nesting``.

    Without recursion, in time that grows with the size alone.
    """
    if content.count(b"[") + content.count(b"{") <= nesting:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", content)):
        if bracket in b"[{":
            depth += 1
            if depth > nesting:
                return True
        else:
            depth -= 1
    return False


def doubled_name(content: bytes) -> str | None:
    """
    A name that stands twice in one object of ``content``, or once more in another case where it is
    a field of the spec's; ``None`` if there is none.

    :param content: JSON, not nested too deep.
    :raises ValueError: if it is none after all.
    """
    # Numbers stay text: nothing is computed of them, whatever their size.
    try:
        json.loads(content.decode(), object_pairs_hook=_unique, parse_int=str, parse_float=str)
    except _DoubledError as doubled:
        return doubled.name
    return None


class _DoubledError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _unique(pairs: list[tuple[str, object]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DoubledError(name)
            seen.add(name)
    for name in names - _SPELT:
        meant = _FIELDS.get(name.casefold(), name)
        if meant in names and meant != name:
            raise _DoubledError(meant)
