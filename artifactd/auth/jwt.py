"""JSON Web Tokens: RFC 7519, signed as RFC 7515 says, by PyJWT."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, TypeVar

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
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from artifactd.oci.errors import Unauthorized

TOKEN_LIMIT = 12 << 10
"""Characters of a token at most; the line of a header has 16 KiB."""

_jws = PyJWS()
_T = TypeVar("_T")


class Header(msgspec.Struct, frozen=True):
    """
    What a token says of its signature, before that is verified.

    :ivar crit: extensions that have to be understood; none is here.
    """

    alg: str
    kid: str = ""
    typ: str = ""
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    b64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Source(msgspec.Struct, frozen=True):
    """Who a token says that it is from, before that is verified."""

    iss: str


def invalid(reason: str) -> Unauthorized:
    """What a token that isn't valid is answered with."""
    return Unauthorized(f"the token is not valid: {reason}; get a new one")


def is_token(text: str) -> bool:
    """Whether ``text`` looks like a signed token at all; passwords seldom do."""
    return text.startswith("eyJ") and text.count(".") == 2 and text.isascii()


def read_header(token: str) -> Header:
    """:raises Unauthorized: if ``token`` is none, or needs what is not understood here."""
    if len(token) > TOKEN_LIMIT:
        raise invalid(f"it has more than {TOKEN_LIMIT} characters")
    if not is_token(token):
        raise invalid("it is no JSON Web Token with a signature")
    header = _part(token, 0, Header)
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
        raise invalid("its header has an extension that is not understood here")
    return header


def read_source(token: str) -> str:
    """The ``iss`` of a token that :func:`read_header` takes.  :raises Unauthorized: if none."""
    return _part(token, 1, Source).iss


def verify(token: str, key: Any, algorithm: str, kind: type[_T]) -> _T:
    """
    The claims of ``token``, if its signature is of ``key``.

    :param algorithm: which it has to be made with, whatever the token says.
    :raises Unauthorized: if it isn't, or the claims are not of ``kind``.
    """
    try:
        payload = _jws.decode(token, key, algorithms=[algorithm])
    except (PyJWTError, ValueError, TypeError):
        raise invalid("its signature is wrong") from None
    return _decode(payload, kind)


def sign(claims: msgspec.Struct, key: Any, algorithm: str, kid: str, typ: str) -> str:
    """A token of ``claims``; registry-auth-jwt, "Getting a Bearer Token"."""
    headers = {"kid": kid, "typ": typ}
    return _jws.encode(msgspec.json.encode(claims), key, algorithm=algorithm, headers=headers)


def check_times(now: float, leeway: float, exp: float, nbf: float, iat: float) -> None:
    """
    RFC 7519, 4.1.4 to 4.1.6; all in seconds since 1970.

    :raises Unauthorized: if it is too early or too late.
    """
    if now >= exp + leeway:
        raise invalid("it has expired")
    if now + leeway < max(nbf, iat):
        raise invalid("it is for later: the clocks of its issuer and of this registry differ")


def _part(token: str, index: int, kind: type[_T]) -> _T:
    text = token.split(".")[index]
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise invalid("it is not encoded as a token is") from None
    return _decode(content, kind)


def _decode(content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise invalid(f"not the JSON of a token ({error})"[:200]) from None


# JSON Web Key Sets: RFC 7517, of the keys that others sign their tokens with.

KEY_SET_LIMIT = 1 << 20
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
