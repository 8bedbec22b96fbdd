"""JSON Web Key Sets: RFC 7517, of the keys that others sign their tokens with."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurve,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

LIMIT = 1 << 20
"""Bytes of a key set at most."""

# Bits of an RSA key: NIST SP 800-131A wants that many; more than that many take long to verify.
_RSA_BITS = range(2048, 8193)
_RSA_EXPONENT = range(3, 1 << 33)
_CURVES: dict[str, tuple[EllipticCurve, str]] = {
    "P-256": (SECP256R1(), "ES256"),
    "P-384": (SECP384R1(), "ES384"),
}
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})


class _Jwk(msgspec.Struct, frozen=True):
    """RFC 7517, 4, and RFC 7518, 6."""

    kty: str
    use: str = "sig"
    alg: str = ""
    kid: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""
    n: str = ""
    e: str = ""


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


@frozen
class VerificationKey:
    """
    :ivar kid: its id; empty if it has none.
    :ivar algorithms: of the signatures that it can verify.
    """

    kid: str
    algorithms: frozenset[str]
    public: Any = field(repr=False)


def parse_key_set(content: bytes) -> Sequence[VerificationKey]:
    """
    The keys in ``content`` that signatures can be verified with; what is of another kind, or
    broken, is left out: RFC 7517, 5.

    :raises ValueError: if it is no key set, or there is none such key in it.
    """
    try:
        listed = msgspec.json.decode(content, type=_KeySet).keys
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no JSON Web Key Set: {error}") from None
    keys = [key for each in listed if (key := _read(each)) is not None]
    if not keys:
        raise ValueError("no key in the set that a signature can be verified with")
    return keys


def _read(raw: msgspec.Raw) -> VerificationKey | None:
    try:
        jwk = msgspec.json.decode(raw, type=_Jwk)
        public, algorithms = _public(jwk)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    if jwk.alg:
        algorithms &= {jwk.alg}
    return VerificationKey(jwk.kid, algorithms, public) if algorithms and jwk.use == "sig" else None


def _public(jwk: _Jwk) -> tuple[Any, frozenset[str]]:
    """:raises ValueError: if it is of another kind, or broken."""
    if jwk.kty == "RSA":
        modulus, exponent = _integer(jwk.n), _integer(jwk.e)
        if modulus.bit_length() in _RSA_BITS and exponent in _RSA_EXPONENT:
            return RSAPublicNumbers(exponent, modulus).public_key(), _RSA
    elif jwk.kty == "EC" and jwk.crv in _CURVES:
        curve, algorithm = _CURVES[jwk.crv]
        numbers = EllipticCurvePublicNumbers(_integer(jwk.x), _integer(jwk.y), curve)
        return numbers.public_key(), frozenset({algorithm})
    elif jwk.kty == "OKP" and jwk.crv == "Ed25519":
        return Ed25519PublicKey.from_public_bytes(_bytes(jwk.x)), frozenset({"EdDSA"})
    raise ValueError("not a key that is known here")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None


def _integer(text: str) -> int:
    return int.from_bytes(_bytes(text), "big")
