"""Authorities, and the certificates that they sign: of servers, clients and authorities."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.internet.ssl import CertificateOptions, PrivateCertificate

DAY = timedelta(days=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@frozen
class Signed:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key."""
        return self.secret()

    def secret(self, passphrase: bytes = b"") -> bytes:
        """The key in PEM."""
        how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        secret: bytes = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
        return secret

    def sign(
        self,
        name: str,
        *,
        usage: x509.ObjectIdentifier = SERVER,
        begin: datetime | None = None,
        life: timedelta = 90 * DAY,
        authority: bool = False,
        key: Any = None,
        hosts: Sequence[str] = (),
    ) -> Signed:
        """
        Make a certificate called ``name``.

        :param hosts: the names and addresses that it is for; ``()``: those of this machine, if it
            is a server's; ``[""]``: none.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self.certificate.subject, key, begin, life)
        # Clients in Python 3.13 and later refuse a certificate without (RFC 5280, 4.2.1.1).
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        constraints = x509.BasicConstraints(ca=authority, path_length=None)
        builder = builder.add_extension(constraints, critical=True)
        if authority:
            builder = _authorised(builder, key)
        else:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        # Docker verifies the certificate by the last one.
        here = ("127.0.0.1", "0.0.0.0") if usage == SERVER else ()
        names = [_general_name(host) for host in hosts or ("node.example", *here) if host]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Signed(builder.sign(self.key, hashes.SHA256()), key)

    def options(
        self, *hosts: str, protocols: tuple[bytes, ...] = (b"http/1.1",), expired: bool = False
    ) -> CertificateOptions:
        """
        Make the TLS options of a server.

        :param hosts: names and addresses that its certificate is for; without any it has only the
            ``Common Name`` "registry.example", which is none (RFC 9525, 6.3).
        :param protocols: those that it offers by ALPN.
        """
        name = hosts[0] if hosts else "registry.example"
        begin = datetime.now(UTC) - 100 * DAY if expired else None
        signed = self.sign(name, begin=begin, hosts=hosts or [""])
        both = PrivateCertificate.loadPEM(signed.pem + signed.key_pem)
        return CertificateOptions(
            privateKey=both.privateKey.original,
            certificate=both.original,
            acceptableProtocols=list(protocols),
        )

    def trusting(self, client: Signed | None = None, *chain: Signed, folder: str = "") -> Any:
        """
        TLS for a client that trusts this authority.

        :param client: what it shows, with ``chain`` behind it.
        :param folder: of the test, to write that to.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode())
        if client is not None:
            path = Path(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.key_pem + client.pem + b"".join(each.pem for each in chain))
            context.load_cert_chain(path)
        return context


class Authority(Signed):
    """A root authority."""

    @classmethod
    def make(cls, name: str) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), _name(name), key, None, 365 * DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        return cls(_authorised(builder, key).sign(key, hashes.SHA256()), key)


def _authorised(builder: x509.CertificateBuilder, key: Any) -> x509.CertificateBuilder:
    """Add what clients in Python 3.13 and later demand of an authority (RFC 5280, 4.2.1)."""
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return builder.add_extension(own, critical=False).add_extension(usage, critical=True)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Any, begin: datetime | None, life: timedelta
) -> x509.CertificateBuilder:
    begin = begin or datetime.now(UTC) - DAY
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


ROOT = Authority.make("the authority of the tests")
OTHER = Authority.make("another authority")
