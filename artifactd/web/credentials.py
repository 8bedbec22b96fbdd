"""What a request brings to say who makes it."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from attrs import frozen
from cryptography import x509
from cryptography.x509.oid import NameOID

from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.auth.logins import Logins, TokenCheck, Visitors, caller_of
from artifactd.auth.passwords import fits_basic
from artifactd.oci.errors import Unauthorized, Unsupported
from artifactd.web.server.protocol import RegistryRequest

# Client certificates as identities.  That they are genuine, the TLS handshake has checked.

# What an alternative name is called among the claims.
_ALTERNATIVES: dict[type[Any], str] = {
    x509.DNSName: "dns",
    x509.RFC822Name: "email",
    x509.UniformResourceIdentifier: "uri",
    x509.IPAddress: "ip",
}


def certified(request: RegistryRequest) -> Caller | None:
    """
    Whose certificate the client has shown on this connection; ``None`` if none, or one without any
    name.  A transport that asks for certificates checks them itself and offers what it was shown
    as ``getPeerCertificate``.
    """
    channel = request.channel
    if not channel.identified:
        channel.identified = True
        show = getattr(channel.transport, "getPeerCertificate", None)
        shown = None if show is None else show()
        identity = None if shown is None else identity_of(_parsed(shown))
        channel.certified = None if identity is None else Caller(identity)
    return channel.certified


def _parsed(shown: Any) -> x509.Certificate:
    """Twisted shows pyOpenSSL's."""
    parsed: x509.Certificate = (
        shown if isinstance(shown, x509.Certificate) else (shown.to_cryptography())
    )
    return parsed


def identity_of(certificate: x509.Certificate) -> Identity | None:
    """
    Its subject's common name, or else its first alternative name, with all alternative names as
    the claims ``dns``, ``email``, ``uri`` and ``ip``, several separated by spaces.
    """
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    claims = _alternatives(certificate)
    name = str(names[0].value) if names else next(iter(claims.values()), "").partition(" ")[0]
    if not name:
        return None
    return Identity(Kind.CERTIFICATE, name, claims=claims)


def _alternatives(certificate: x509.Certificate) -> dict[str, str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return {}
    claims: dict[str, list[str]] = {}
    for name in extension.value:
        called = _ALTERNATIVES.get(type(name))
        if called is not None:
            claims.setdefault(called, []).append(str(name.value))
    return {called: " ".join(values) for called, values in claims.items()}


class AmbiguousCredentials(Unsupported):
    """More than one ``Authorization``; the spec has no code for it."""

    status = 400


@frozen
class Credentials:
    """
    Turns them into a :class:`Caller`.

    :ivar tokens: ``None``: Bearer tokens count for nothing here.
    :ivar visitors: who logs in with an upstream's credential; ``None``: nobody does.
    """

    logins: Logins
    tokens: TokenCheck | None = None
    visitors: Visitors | None = None

    async def caller(self, request: RegistryRequest) -> Caller:
        """
        Who makes ``request``: as ``Authorization`` says, else as the client's certificate does,
        else nobody knows.

        :raises AmbiguousCredentials: if it says so twice.
        :raises Unauthorized: if what it says is malformed, or not so.
        :raises TooManyRequests: as ``Logins.log_in``.
        :raises BadGateway: as ``Visitors.log_in``.
        """
        values = request.requestHeaders.getRawHeaders(b"Authorization")
        if not values:
            return _unnamed(request)
        if len(values) > 1:
            raise AmbiguousCredentials("more than one Authorization header: send one")
        scheme, _, rest = values[0].strip().partition(b" ")
        given = rest.strip()
        if scheme.lower() == b"basic":
            name, password = user_and_password(given)
            if not (name or password):
                # podman and skopeo, told of no login and asked for Basic, send it all the same.
                return _unnamed(request)
            request.claimed = name
            caller = await caller_of(self.logins, self.visitors, name, password, request.address)
            request.claimed = ""
            return caller
        if scheme.lower() == b"bearer" and self.tokens is not None:
            return await self.tokens.verify(_token(given))
        raise Unauthorized("unknown kind of credentials: see WWW-Authenticate for those that count")


def _unnamed(request: RegistryRequest) -> Caller:
    """Who makes a request that names nobody."""
    return certified(request) or Caller()


def user_and_password(given: bytes) -> tuple[str, str]:
    """
    What Basic has behind its name: RFC 7617, 2.

    :raises Unauthorized: if it is malformed.
    """
    try:
        text = base64.b64decode(given, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthorized("malformed Basic credentials: expected Base64 of UTF-8") from None
    name, colon, password = text.partition(":")
    if not colon or not fits_basic(name, password):
        raise Unauthorized("malformed Basic credentials: expected <user>:<password>")
    return name, password


def _token(given: bytes) -> str:
    try:
        return given.decode("ascii")
    except UnicodeDecodeError:
        raise Unauthorized("malformed Bearer token: expected ASCII") from None
