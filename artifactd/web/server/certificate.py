"""A client's certificate as the identity of its connection."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from artifactd.auth.identity import Caller, Identity, Kind

# The claims that alternative names become.
_ALTERNATIVES: dict[type[Any], str] = {
    x509.DNSName: "dns",
    x509.RFC822Name: "email",
    x509.UniformResourceIdentifier: "uri",
    x509.IPAddress: "ip",
}


def certified(transport: object) -> Caller | None:
    """
    Return the caller that the client's certificate names; ``None`` if it has shown none, or one
    without any name.

    The TLS handshake has verified the certificate: a transport that asks for one offers it as
    ``getPeerCertificate``.
    """
    show = getattr(transport, "getPeerCertificate", None)
    shown = None if show is None else show()
    identity = None if shown is None else identity_of(_parsed(shown))
    return None if identity is None else Caller(identity)


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
