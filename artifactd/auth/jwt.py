"""JSON Web Tokens (RFC 7519) and JSON Web Key Sets (RFC 7517), on top of PyJWT."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any, TypeVar

import msgspec
from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK, PyJWS
from jwt.exceptions import PyJWTError
from msgspec import Meta

from artifactd.oci.errors import Unauthorized
from artifactd.oci.foreign import decode_foreign

TOKEN_LIMIT = 12 << 10
"""The length of a token in characters, at most; the line of a header may have 16 KiB."""

_jws = PyJWS()
_T = TypeVar("_T")


class Header(msgspec.Struct, frozen=True):
    """
    The header of a token, which nothing has verified yet.

    :ivar crit: extensions that a verifier has to understand; this one understands none.
    """

    alg: str
    kid: str = ""
    typ: str = ""
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    b64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Source(msgspec.Struct, frozen=True):
    """The issuer that a token claims, which nothing has verified yet."""

    iss: str


def invalid(reason: str) -> Unauthorized:
    """The error for a token that isn't valid."""
    return Unauthorized(f"the token is not valid: {reason}; get a new one")


def is_token(text: str) -> bool:
    """Whether ``text`` looks like a signed token; passwords seldom do."""
    return text.startswith("eyJ") and text.count(".") == 2 and text.isascii()


def read_header(token: str) -> Header:
    """:raises Unauthorized: if ``token`` is no token, or has extensions or is too long."""
    if len(token) > TOKEN_LIMIT:
        raise invalid(f"it has more than {TOKEN_LIMIT} characters")
    if not is_token(token):
        raise invalid("it is no JSON Web Token with a signature")
    header = _part(token, 0, Header)
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
        raise invalid("its header has an extension that is not understood here")
    return header


def read_source(token: str) -> str:
    """
    The ``iss`` of a token that :func:`read_header` accepts, which nothing has verified yet.

    :raises Unauthorized: if it has none.
    """
    return _part(token, 1, Source).iss


def verify(token: str, key: Any, algorithm: str, kind: type[_T]) -> _T:
    """
    Verify the signature of ``token``, and return its claims.

    :param algorithm: the only algorithm accepted, whatever the header of the token says.
    :raises Unauthorized: if ``key`` did not sign it, or the claims are not of ``kind``.
    """
    try:
        payload = _jws.decode(token, key, algorithms=[algorithm])
    except (PyJWTError, ValueError, TypeError):
        raise invalid("its signature is wrong") from None
    return _decode(payload, kind)


def sign(claims: msgspec.Struct, key: Any, algorithm: str, kid: str, typ: str) -> str:
    """A signed token with ``claims``: registry-auth-jwt, "Getting a Bearer Token"."""
    headers = {"kid": kid, "typ": typ}
    return _jws.encode(msgspec.json.encode(claims), key, algorithm=algorithm, headers=headers)


def check_times(now: float, leeway: float, exp: float, nbf: float, iat: float) -> None:
    """
    Check the time claims of a token (RFC 7519, 4.1.4 to 4.1.6), all in seconds since 1970.

    :param leeway: seconds by which the issuer's clock may differ.
    :raises Unauthorized: if the token has expired, or is not valid yet.
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
        return decode_foreign(msgspec.json.Decoder(kind), content)
    except ValueError as error:
        raise invalid(f"not the JSON of a token ({error})"[:200]) from None


KEY_SET_LIMIT = 1 << 20
"""The size of a key set in bytes, at most."""

# NIST SP 800-131A demands at least that many bits; larger keys take long to verify.
_RSA_BITS = range(2048, 8193)
_RSA_EXPONENT = range(3, 1 << 33)
# The algorithms of the keys that are taken, by their "kty" and "crv".
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_ALGORITHMS = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
}

# Base64url of the largest RSA modulus.
_Number = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]*={0,2}$", max_length=1400)]


class _Jwk(msgspec.Struct, frozen=True):
    """A JSON Web Key without its private part: RFC 7517, 4, and RFC 7518, 6."""

    kty: str
    use: str = "sig"
    alg: str = ""
    kid: str = ""
    crv: str = ""
    x: _Number = ""
    y: _Number = ""
    n: _Number = ""
    e: _Number = ""


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


_jwk = msgspec.json.Decoder(_Jwk)
_key_set = msgspec.json.Decoder(_KeySet)
_KEY_SET_VALUES = 20_000  # keys have some ten each


@frozen
class VerificationKey:
    """
    A public key of an issuer.

    :ivar kid: its id; empty if it has none.
    :ivar algorithms: the algorithms of the signatures that it can verify.
    :ivar mark: tells it from all others, also from those that have its id before or after it.
    """

    kid: str
    algorithms: frozenset[str]
    public: Any = field(repr=False)
    mark: str


def parse_key_set(content: bytes) -> Sequence[VerificationKey]:
    """
    Parse a JSON Web Key Set, and return the keys that can verify signatures.

    Other keys, and malformed ones, are left out (RFC 7517, 5).

    :raises ValueError: if ``content`` is no key set, or has no such key.
    """
    try:
        listed = decode_foreign(_key_set, content, values=_KEY_SET_VALUES).keys
    except ValueError as error:
        raise ValueError(f"no JSON Web Key Set: {error}") from None
    keys = [key for each in listed if (key := _read(each)) is not None]
    if not keys:
        raise ValueError("no key in the set that a signature can be verified with")
    return keys


def _read(raw: msgspec.Raw) -> VerificationKey | None:
    try:
        jwk = decode_foreign(_jwk, raw)
    except ValueError:
        return None
    algorithms = _ALGORITHMS.get((jwk.kty, "" if jwk.kty == "RSA" else jwk.crv), frozenset())
    if jwk.alg:
        algorithms &= {jwk.alg}
    if not algorithms or jwk.use != "sig":
        return None
    members = {"kty": jwk.kty, "crv": jwk.crv, "x": jwk.x, "y": jwk.y, "n": jwk.n, "e": jwk.e}
    try:
        public = PyJWK({name: value for name, value in members.items() if value}).key
    except (PyJWTError, ValueError):
        return None
    if isinstance(public, RSAPublicKey) and not (
        public.key_size in _RSA_BITS and public.public_numbers().e in _RSA_EXPONENT
    ):
        return None
    encoded = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return VerificationKey(jwk.kid, algorithms, public, sha256(encoded).hexdigest())
