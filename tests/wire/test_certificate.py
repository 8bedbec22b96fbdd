"""Client certificates as identities."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import Identity, Kind
from artifactd.web.server.certificate import certified, identity_of
from artifactd.web.server.protocol import RegistryChannel

KEY = generate_private_key(SECP256R1())
ALTERNATIVES = (
    x509.DNSName("ci.example"),
    x509.DNSName("ci2.example"),
    x509.RFC822Name("ci@example.com"),
    x509.UniformResourceIdentifier("spiffe://example/ci"),
    x509.IPAddress(ip_address("192.0.2.1")),
)


def certificate(name: str | None, *alternatives: x509.GeneralName) -> x509.Certificate:
    """One of its own issuer."""
    attributes = [] if name is None else [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    subject = x509.Name(attributes)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
    return builder.sign(KEY, SHA256())


class IdentityTests(SynchronousTestCase):
    def test_it_is_the_common_name_of_the_subject(self) -> None:
        identity = identity_of(certificate("builder", x509.DNSName("ci.example")))
        self.assertEqual(
            identity, Identity(Kind.CERTIFICATE, "builder", claims={"dns": "ci.example"})
        )

    def test_without_one_it_is_the_first_alternative_name(self) -> None:
        identity = identity_of(certificate(None, *ALTERNATIVES))
        assert identity is not None
        self.assertEqual(identity.name, "ci.example")
        self.assertEqual(
            identity.claims,
            {
                "dns": "ci.example ci2.example",
                "email": "ci@example.com",
                "uri": "spiffe://example/ci",
                "ip": "192.0.2.1",
            },
        )

    def test_one_without_any_name_is_nobodys(self) -> None:
        self.assertIsNone(identity_of(certificate(None)))


class CertifiedTests(SynchronousTestCase):
    def test_a_connection_is_asked_once(self) -> None:
        shown = [SimpleNamespace(to_cryptography=lambda: certificate("builder"))]
        channel = RegistryChannel()
        channel.transport = cast(Any, SimpleNamespace(getPeerCertificate=shown.pop))
        for _ in range(2):
            caller = channel.certified
            assert caller is not None
            self.assertEqual((str(caller.identity), caller.scopes), ("certificate:builder", None))

    def test_who_shows_none_is_nobody(self) -> None:
        for transport in (SimpleNamespace(), SimpleNamespace(getPeerCertificate=lambda: None)):
            self.assertIsNone(certified(transport))
