"""Sealed text: bytes that a client keeps for us, and can neither read nor make nor change."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV


def seal(key: bytes, content: bytes, *bound: bytes) -> str:
    """
    Seal ``content``, of at least one byte, as characters that a URL or a cookie may have: those of
    base64url without padding, for the content and 16 bytes more.

    The same content is sealed the same way each time (AES-SIV, RFC 5297), by every process with the
    key.

    :param key: 32 bytes.
    :param bound: what the seal is for; :func:`unseal` needs the same.
    """
    return _text(_cipher(key).encrypt(content, list(bound)))


def unseal(key: bytes, sealed: str, *bound: bytes) -> bytes | None:
    """Return what :func:`seal` has sealed; ``None`` if it has not sealed this for ``bound``."""
    try:
        content = urlsafe_b64decode(sealed.encode("ascii") + b"==")
        # The decoder skips what it does not know: other texts would mean the same.
        return _cipher(key).decrypt(content, list(bound)) if _text(content) == sealed else None
    except (InvalidTag, ValueError):  # UnicodeError and binascii.Error are such
        return None


# To make one takes longer than to use it.  A process has few keys.
_cipher = lru_cache(16)(AESSIV)


def _text(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()
