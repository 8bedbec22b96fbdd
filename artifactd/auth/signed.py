"""JSON Web Tokens: RFC 7519, signed as RFC 7515 says, by PyJWT."""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import msgspec
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from artifactd.oci.errors import Unauthorized

LIMIT = 12 << 10
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
    if len(token) > LIMIT:
        raise invalid(f"it has more than {LIMIT} characters")
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
