"""Connections of clients over TLS; failed handshakes are logged, and plain HTTP gets a hint."""

from __future__ import annotations

import re

from OpenSSL import SSL
from twisted.internet.interfaces import IProtocolFactory, IReactorTime, ISSLTransport, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.oci.errors import Unsupported
from artifactd.tls.certificates import Certificates
from artifactd.tls.context import reason_of

# No TLS record begins with a letter: RFC 8446, 5.1.
_HTTP = re.compile(rb"[A-Z]")
_HINT = Unsupported("this port speaks HTTPS: use https://").body()

_log = Logger()


@implementer(ISSLTransport)  # Twisted's class is one only if TCP's interfaces come in that order
class TlsConnection(BufferingTLSTransport):
    """
    A client's connection over TLS.

    Its protocol is connected before the handshake, so the protocol's timeout bounds the handshake.

    :ivar refusal: why the client's certificate is refused, or empty.
    """

    transport: ITCPTransport
    refusal = ""
    _begun = False
    _plain = False

    def dataReceived(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._plain = _HTTP.match(data) is not None
            if self._plain:
                self._tell_https()
        if not self._plain:
            super().dataReceived(data)

    def _tell_https(self) -> None:
        _log.info("refused HTTP without TLS from {peer}", peer=self.transport.getPeer())
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Docker-Distribution-Api-Version: registry/2.0\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(_HINT), _HINT)
        )
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # Private to Twisted: tests/tls fails if either moves.
        error = None if self._reason is None else self._reason.value
        if not self._handshakeDone and isinstance(error, SSL.Error):
            _log.info(
                "no TLS with {peer}: {reason}",
                peer=self.transport.getPeer(),
                reason=self.refusal or reason_of(error),
            )
        super().connectionLost(reason)


class TlsFactory(TLSMemoryBIOFactory):
    """Puts TLS under the protocols of ``factory``, and follows the files while a port listens."""

    protocol = TlsConnection

    def __init__(
        self, certificates: Certificates, factory: IProtocolFactory, clock: IReactorTime
    ) -> None:
        super().__init__(certificates, False, factory, clock)
        self._certificates = certificates

    def startFactory(self) -> None:
        self._certificates.start()

    def stopFactory(self) -> None:
        self._certificates.stop()
