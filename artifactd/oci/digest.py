"""Digests: the addresses of blobs and manifests by their content (image-spec, "Digests")."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Self

from attrs import frozen

from artifactd.oci.errors import DigestInvalid


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
