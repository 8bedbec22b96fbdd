"""Authorities and certificates for servers of the tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Self

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet.ssl import CertificateOptions, PrivateCertificate

DAY = timedelta(days=1)


@frozen
class Authority:
    """Somebody who signs certificates."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _builder(subject, subject, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        return cls(subject, key, builder.sign(key, hashes.SHA256()))

    def appoint(self, name: str) -> Authority:
        """Another one, whom this one vouches for."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _builder(subject, self.name, key, DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        return Authority(subject, key, builder.sign(self.key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def options(
        self, *hosts: str, protocols: tuple[bytes, ...] = (b"http/1.1",), expired: bool = False
    ) -> CertificateOptions:
        """
        TLS for a server.

        :param hosts: names and addresses that its certificate is for; without any it has only the
            ``Common Name`` "registry.example", which is none (RFC 9525, 6.3).
        :param protocols: what it offers by ALPN.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(hosts[0] if hosts else "registry.example")
        builder = _builder(subject, self.name, key, -2 * DAY if expired else DAY)
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        both = PrivateCertificate.loadPEM(signed.public_bytes(Encoding.PEM) + secret)
        return CertificateOptions(
            privateKey=both.privateKey.original,
            certificate=both.original,
            acceptableProtocols=list(protocols),
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: timedelta = DAY
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * DAY)
        .not_valid_after(now + until)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
