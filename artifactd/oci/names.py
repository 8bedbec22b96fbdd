"""What things are called: digests, names, tags and references (distribution-spec, pulling)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase, translate
from typing import Self

from attrs import frozen

from artifactd.oci.errors import DigestInvalid, ManifestInvalid, NameInvalid


class Algorithm(StrEnum):
    """The registered algorithms that artifactd stores under."""

    SHA256 = "sha256"
    SHA512 = "sha512"

    @classmethod
    def parse(cls, text: str) -> Algorithm:
        """:raises DigestInvalid: if ``text`` names no algorithm that artifactd supports."""
        try:
            return cls(text)
        except ValueError:
            raise DigestInvalid(
                "digest algorithm not supported: use sha256 or sha512", {"algorithm": text}
            ) from None


# algorithm ::= component (separator component)*;  encoded ::= [a-zA-Z0-9=_-]+
_GRAMMAR = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_ENCODED = {
    Algorithm.SHA256: re.compile(r"[a-f0-9]{64}"),
    Algorithm.SHA512: re.compile(r"[a-f0-9]{128}"),
}


@frozen
class Digest:
    """
    The address of some bytes: ``algorithm ":" encoded``, the encoded part in lower-case hex.

    ``encoded`` is 64 characters for sha256 and 128 for sha512; nothing else can be made by
    :meth:`parse`, so a digest is safe in a file name.
    """

    algorithm: Algorithm
    encoded: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises DigestInvalid: if ``text`` is no digest, or of an unsupported algorithm."""
        if not _GRAMMAR.fullmatch(text):
            raise DigestInvalid("not a digest: expected <algorithm>:<hex>", {"digest": text[:200]})
        name, encoded = text.split(":", 1)
        algorithm = Algorithm.parse(name)
        if not _ENCODED[algorithm].fullmatch(encoded):
            raise DigestInvalid(
                f"not a {algorithm} digest: wrong length or not lower-case hex",
                {"digest": text[:200]},
            )
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, content: bytes, algorithm: Algorithm = Algorithm.SHA256) -> Self:
        """The digest of ``content``."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


NAME_LENGTH = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


@frozen
class RepositoryName:
    """
    The ``<name>`` of a request: lower-case path components, at most 255 characters in all.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises NameInvalid: if ``text`` breaks the spec's grammar or is too long."""
        if len(text) > NAME_LENGTH:
            raise NameInvalid(f"repository name is longer than {NAME_LENGTH} characters")
        if not _NAME.fullmatch(text):
            raise NameInvalid(
                "invalid repository name: use lower-case letters, digits and single separators"
                " (. _ __ -) in components divided by /",
                {"name": text},
            )
        return cls(text)

    def __str__(self) -> str:
        return self.text


@frozen
class ImageName:
    """
    The canonical name of an image: a configured repository, and the image's name inside it.

    Rows, logs, mounts and rules use this name and no other.
    """

    repository: str
    image: str

    @classmethod
    def of(cls, text: str) -> Self:
        """The name whose text is ``text``: a repository, a slash, and the name inside it."""
        return cls(*text.split("/", 1))

    def __str__(self) -> str:
        return f"{self.repository}/{self.image}"


@frozen
class Tag:
    """A human-readable pointer to a manifest, 1 to 128 characters."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ManifestInvalid: if ``text`` breaks the spec's grammar for tags."""
        if not _TAG.fullmatch(text):
            raise ManifestInvalid(
                "invalid tag: use 1 to 128 letters, digits, '.', '_' or '-',"
                " not beginning with '.' or '-'",
                {"tag": text[:200]},
            )
        return cls(text)

    def __str__(self) -> str:
        return self.text


Reference = Tag | Digest


def parse_reference(text: str) -> Reference:
    """
    The ``<tag-or-digest>`` of a request.

    :raises ManifestInvalid: if it is neither.
    """
    if ":" not in text:
        return Tag.parse(text)
    try:
        return Digest.parse(text)
    except DigestInvalid as error:
        raise ManifestInvalid(f"invalid reference: {error.message}", error.detail) from None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """
    Whether one of ``patterns`` matches the whole ``name``: ``*`` matches any characters, slashes
    too, ``?`` matches one character, ``[…]`` one of those in it.
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def literal_prefix(pattern: str) -> str:
    """Return what the names begin with that ``pattern`` matches; may be empty."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


class Patterns:
    """Patterns compiled once, for many names; :func:`matches` may compile them each time."""

    __slots__ = ("_match", "prefixes", "wide")

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = tuple(patterns)
        self.prefixes = tuple(map(literal_prefix, patterns))
        """What the names that a pattern matches begin with, by pattern; may be empty."""
        self.wide = tuple(
            pattern if "[" not in pattern else pattern.partition("[")[0] + "*"
            for pattern in patterns
        )
        """By pattern, one without brackets that matches the same names, and perhaps more."""
        # No alternative at all would match everything.
        alternatives = [translate(pattern) for pattern in patterns] or [r"(?!)"]
        self._match = re.compile("|".join(alternatives)).match

    def match(self, name: str) -> bool:
        """Whether one of the patterns matches the whole ``name``; see :func:`matches`."""
        return self._match(name) is not None
