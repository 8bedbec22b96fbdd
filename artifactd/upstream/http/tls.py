"""TLS to upstreams: the trusted authorities, and the verification of names."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Self
from weakref import ref

from attrs import define, field, frozen
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, platformTrust
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.kit.start import StartError
from artifactd.kit.trusted import Untrusted, read_trusted

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@implementer(IOpenSSLClientConnectionCreator)
@frozen
class _Verifying:
    """
    Creates TLS connections to a host and verifies its certificate.

    Twisted's ``optionsForClientTLS`` would not do: it accepts a certificate in which
    service-identity finds no name, or only names that it does not understand, and refuses hosts
    with an underscore.
    """

    host: str
    identity: DNS_ID | IPAddress_ID
    context: SSL.Context

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self.context)
        connection.set_alpn_protos([b"http/1.1"])
        if isinstance(self.identity, DNS_ID):  # RFC 6066, 3: no addresses
            connection.set_tlsext_host_name(self.host.encode("ascii"))
        protocol = ref(tlsProtocol)  # which has the connection, which has the callback

        def verify(_: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
            if depth or not ok:
                return bool(ok)
            try:
                verify_service_identity(extract_patterns(certificate), [self.identity], [])
            except Exception:
                # OpenSSL would swallow any exception.
                if (asking := protocol()) is not None:
                    asking.failVerification(Failure())
                return False
            return True

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection


@define(eq=False)
class Trust:
    """
    The authorities that vouch for upstreams: the platform's, and those of a file.

    A certificate has to be valid for the host's name; ALPN offers ``http/1.1`` alone.
    """

    _authorities: tuple[X509, ...] = ()
    # Made when it is first needed: reading the platform's certificates takes several milliseconds.
    _context: SSL.Context | None = field(default=None, init=False)

    @classmethod
    def load(cls, ca_file: str) -> Self:
        """
        Trust the platform's authorities and those of ``ca_file``.

        :param ca_file: the path of one or more certificates in PEM; empty: there are no others.
        :raises StartError: if the file can't be read, or has no certificate in it.
        """
        return cls(_authorities(Path(ca_file)) if ca_file else ())

    def options(self, host: str) -> IOpenSSLClientConnectionCreator:
        """
        Return the TLS options for ``host``, a name or an address.

        :raises ValueError: if it is neither.
        """
        if self._context is None:
            self._context = self._make()
        name = host.rstrip(".")
        return _Verifying(name, _identity(name), self._context)

    def _make(self) -> SSL.Context:
        context: SSL.Context = CertificateOptions(trustRoot=platformTrust()).getContext()
        store = context.get_cert_store()
        assert store is not None
        for authority in self._authorities:
            store.add_cert(authority)  # no harm if it is there
        if self._authorities:
            # An authority of the file may be intermediate, such as a department's.
            store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
        return context


def _identity(host: str) -> DNS_ID | IPAddress_ID:
    try:
        ip_address(host)
    except ValueError:
        return DNS_ID(host)
    return IPAddress_ID(host)


def _authorities(path: Path) -> tuple[X509, ...]:
    try:
        blocks = _CERTIFICATE.findall(read_trusted(path))
        authorities = tuple(Certificate.loadPEM(block).original for block in blocks)
    except OSError as error:
        raise StartError(f"the CA file {path} can't be read: {error.strerror}") from None
    except Untrusted as error:
        raise StartError(f"the CA file {path} can't be used: {error}") from None
    except Exception:
        # OpenSSL's own words would not help anyone.
        raise StartError(f"the CA file {path} has a broken certificate in it") from None
    if not authorities:
        raise StartError(f"the CA file {path} has no certificate in it (PEM is needed)")
    return authorities
