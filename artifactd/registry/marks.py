"""Keyed hashes under which proofs of access are remembered."""

from __future__ import annotations

from hashlib import sha256
from hmac import digest

from attrs import field, frozen

from artifactd.presented import Presented


@frozen
class Marks:
    """
    Those of one repository.  They change with its upstream, and tell nothing without the key.

    :param key: of the data folder, secret.
    :param upstream: its URL.
    """

    key: bytes = field(repr=False)
    repository: str
    upstream: str

    def present(self, user: str, password: str) -> Presented:
        """What somebody shows."""
        mark = self._hash("credential", user, password)
        return Presented(self.repository, user, mark, password)

    def login(self, presented: Presented) -> bytes:
        """That the credential is right."""
        return self._hash("login", presented.mark.hex())

    def image(self, image: str, presented: Presented | None) -> bytes:
        """That the credential, or (``None``) nobody's, is good for ``image``."""
        if presented is None:
            return self._hash("anybody", image)
        return self._hash("image", presented.mark.hex(), image)

    def _hash(self, *parts: str) -> bytes:
        """HMAC-SHA256; each part hashed first, so that no two lists of parts are one text."""
        whole = (self.repository, self.upstream, *parts)
        hashed = (sha256(part.encode(errors="surrogatepass")).digest() for part in whole)
        return digest(self.key, b"".join(hashed), "sha256")
