"""The credentials of a request: ``Authorization``, or the client's certificate."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from attrs import frozen
from cryptography import x509
from cryptography.x509.oid import NameOID

from artifactd.auth.bearer import BearerTokens
from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.auth.logins import Logins
from artifactd.auth.passwords import fits_basic
from artifactd.oci.errors import Unauthorized, Unsupported
from artifactd.web.server.protocol import RegistryRequest

# The claims that alternative names become.
_ALTERNATIVES: dict[type[Any], str] = {
    x509.DNSName: "dns",
    x509.RFC822Name: "email",
    x509.UniformResourceIdentifier: "uri",
    x509.IPAddress: "ip",
}


def certified(request: RegistryRequest) -> Caller | None:
    """
    Return the caller that the client's certificate names; ``None`` if it has shown none, or one
    without any name.

    The TLS handshake has verified the certificate: a transport that asks for one offers it as
    ``getPeerCertificate``.
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
    """Convert pyOpenSSL's certificate, which Twisted's transports offer."""
    parsed: x509.Certificate = (
        shown if isinstance(shown, x509.Certificate) else (shown.to_cryptography())
    )
    return parsed


def identity_of(certificate: x509.Certificate) -> Identity | None:
    """
    Return the identity in a certificate: its subject's common name, or else its first alternative
    name.  All alternative names are the claims ``dns``, ``email``, ``uri`` and ``ip``, several
    separated by spaces.  ``None`` if it has no name.
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
    """A request has more than one ``Authorization``; the spec has no code for that."""

    status = 400


@frozen
class Credentials:
    """
    Authenticates requests.

    :ivar logins: checks names and passwords.
    :ivar tokens: checks Bearer tokens.
    """

    logins: Logins
    tokens: BearerTokens

    async def caller(self, request: RegistryRequest) -> Caller:
        """
        Return the caller that ``Authorization`` names, or else the client's certificate, or else an
        anonymous one.

        :raises AmbiguousCredentials: if there is more than one ``Authorization``.
        :raises Unauthorized: if the credentials are malformed or wrong.
        :raises TooManyRequests: see ``Logins.log_in``.
        :raises BadGateway: see ``Logins.log_in``.
        """
        values = request.requestHeaders.getRawHeaders(b"Authorization")
        if not values:
            return certified(request) or Caller()
        if len(values) > 1:
            raise AmbiguousCredentials("more than one Authorization header: send one")
        scheme, _, rest = values[0].strip().partition(b" ")
        given = rest.strip()
        if scheme.lower() == b"basic":
            try:
                text = base64.b64decode(given, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                raise Unauthorized(
                    "malformed Basic credentials: expected Base64 of UTF-8"
                ) from None
            name, colon, password = text.partition(":")  # RFC 7617, 2
            if not colon or not fits_basic(name, password):
                raise Unauthorized("malformed Basic credentials: expected <user>:<password>")
            if not (name or password):
                # podman and skopeo send this when they are asked for Basic and have no login.
                return certified(request) or Caller()
            request.claimed = name
            caller = await self.logins.log_in(name, password, request.address)
            request.claimed = ""
            return caller
        if scheme.lower() == b"bearer":
            try:
                token = given.decode("ascii")
            except UnicodeDecodeError:
                raise Unauthorized("malformed Bearer token: expected ASCII") from None
            return await self.tokens.verify(token)
        raise Unauthorized("unknown kind of credentials: see WWW-Authenticate for those that count")
