"""Connections of clients over TLS; failed handshakes are logged, and plain HTTP gets a hint."""

from __future__ import annotations

import re

from OpenSSL import SSL
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocolFactory,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
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

# The most that one record of TLS holds, in bytes: RFC 8446, 5.1.
_RECORD = 1 << 14

_log = Logger()


# Twisted's class is one of TLS only if TCP's interfaces come in that order.
@implementer(ISSLTransport, IHalfCloseableProtocol)
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
    _tcp_ended = False  # nothing more comes from the client, not even a close_notify

    def dataReceived(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._plain = _HTTP.match(data) is not None
            if self._plain:
                self._tell_https()
        if not self._plain:
            super().dataReceived(data)

    def readConnectionLost(self) -> None:
        """The client has closed its direction of TCP, with a close_notify before it or without."""
        self._tcp_ended = True
        if not self._client_ended():
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: this end closes both directions at once."""

    def _shutdownTLS(self) -> None:  # noqa: N802 - Twisted's name
        super()._shutdownTLS()
        if self._tcp_ended:  # the base waits for the client's close_notify
            self.transport.loseConnection()

    def _flushReceiveBIO(self) -> None:
        # The base closes the connection at a close_notify, but the client that sends it may still
        # read: RFC 8446, 6.1.
        while not self._lostTLSConnection:
            try:
                data = self._tlsConnection.recv(_RECORD)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                if self._client_ended():
                    break
                self._shutdownTLS()
                self._tlsShutdownFinished(None)
            except SSL.Error:
                self._tlsShutdownFinished(Failure())
            else:
                if not self._aborted:
                    self.wrappedProtocol.dataReceived(data)
        self._flushSendBIO()

    def _client_ended(self) -> bool:
        """Tell the protocol that the client sends no more; whether it can go on answering."""
        protocol = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if protocol is None or not self._handshakeDone or self._lostTLSConnection:
            return False
        if self.disconnecting and self._producer is None and not self._appSendBuffer:
            return False  # the protocol has closed, and a close_notify is waited for in vain
        protocol.readConnectionLost()
        return True

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
