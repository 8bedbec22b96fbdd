"""TLS to upstreams: whom it trusts."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Self

from attrs import define, field, frozen
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from artifactd.startup import StartError

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

# Names whose options are kept: each has a context with the platform's certificates in it, which
# takes several milliseconds to make.
_NAMES = 32


@implementer(IOpenSSLClientConnectionCreator)
@frozen
class _AlsoTrusting:
    """What ``options`` make, with ``authorities`` trusted besides."""

    options: IOpenSSLClientConnectionCreator
    authorities: tuple[X509, ...]

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection: SSL.Connection = self.options.clientConnectionForTLS(tlsProtocol)
        store = connection.get_context().get_cert_store()
        assert store is not None
        for authority in self.authorities:
            store.add_cert(authority)  # no harm if it is there
        return connection


@define(eq=False)
class Trust:
    """
    The authorities that vouch for upstreams: the platform's, and those of a file.

    A certificate has to be valid for the name asked for (service-identity); of ALPN's protocols
    only ``http/1.1`` is offered.
    """

    _authorities: tuple[X509, ...] = ()
    _cached: Callable[[str], IOpenSSLClientConnectionCreator] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._cached = lru_cache(_NAMES)(self._make)

    @classmethod
    def load(cls, ca_file: Path | None) -> Self:
        """
        :param ca_file: one or more certificates in PEM.
        :raises StartError: if it can't be read, or there is none in it.
        """
        return cls() if ca_file is None else cls(_authorities(ca_file))

    def options(self, host: str) -> IOpenSSLClientConnectionCreator:
        """How to speak TLS with ``host``, a name or an address."""
        return self._cached(host)

    def _make(self, host: str) -> IOpenSSLClientConnectionCreator:
        options = optionsForClientTLS(host, acceptableProtocols=[b"http/1.1"])
        return _AlsoTrusting(options, self._authorities)


def _authorities(path: Path) -> tuple[X509, ...]:
    try:
        blocks = _CERTIFICATE.findall(path.read_bytes())
        authorities = tuple(Certificate.loadPEM(block).original for block in blocks)
    except OSError as error:
        raise StartError(f"the CA file {path} can't be read: {error.strerror}") from None
    except Exception:
        # OpenSSL's own words would not help anyone.
        raise StartError(f"the CA file {path} has a broken certificate in it") from None
    if not authorities:
        raise StartError(f"the CA file {path} has no certificate in it (PEM is needed)")
    return authorities
