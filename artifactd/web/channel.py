"""
Connections: what keeps a client from making us buffer or wait without bound.

The names private to Twisted that this takes are here and in the module of the request;
``tests/wire`` fails if any of them moves.
"""
# twisted.web is half annotated: what is overridden here mostly is not.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet import tcp
from twisted.internet.error import ConnectionAborted
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http_headers import Headers

from artifactd.auth.identity import Caller
from artifactd.oci.errors import Unsupported

if TYPE_CHECKING:
    from artifactd.web.site import RegistrySite

# Seconds that a client has to take what is left of the last answer on a connection.
CLOSE_SECONDS = 60.0

# The content type of the first TLS record of a connection: RFC 8446, 5.1.
_TLS_HANDSHAKE = b"\x16"

_BAD_REQUEST = Unsupported("malformed HTTP request").body()


class RegistryChannel(http.HTTPChannel):
    """
    One connection.

    Unlike its base it parses no request while the client does not read the answers to those before
    it, buffers a bounded number of bytes that follow a request being handled, and parses nothing
    any more once it has decided to close.
    """

    site: RegistrySite
    transport: tcp.Connection
    # What the certificate that the client has shown says, once it has been looked at.
    certified: Caller | None = None
    identified = False

    @property
    def busy(self) -> bool:
        """Whether a request is being handled."""
        return any(request.started is not None for request in self.requests)

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.channel_opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.site.channel_lost(self)

    def dataReceived(self, data: bytes) -> None:
        # A TLS transport goes on delivering after loseConnection.
        if self.transport.disconnecting:
            return
        if self.line_mode and data.startswith(_TLS_HANDSHAKE):
            # Docker and others try TLS first, and wait for an answer until they time out: there
            # need be no end of line in a ClientHello.
            self._respondToBadRequestAndDisconnect()
            return
        super().dataReceived(data)

    def rawDataReceived(self, data: bytes) -> None:
        if not self._handlingRequest:
            super().rawDataReceived(data)
            return
        self._dataBuffer.append(data)
        if sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize:
            # The base does not, while the transport waits for the client to read.
            self._networkProducer.pauseProducing()

    def requestDone(self, request: http.Request) -> None:
        if self.site.draining:
            self.persistent = False  # also where the headers were sent before
        if self._waitingForTransport and self.persistent:
            self.paused = True
            self._networkProducer.pauseProducing()
        super().requestDone(request)
        self.site.settle()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self.paused:
            self.paused = False
            self.dataReceived(b"")

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        if self.site.draining or self.requests[0].unread:
            self.persistent = False
            headers.setRawHeaders(b"Connection", [b"close"])
        lines = [b"%b %b %b\r\n" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            lines.extend(b"%b: %b\r\n" % (name, value) for value in values)
        # One write: the base has one for each word, which costs more than all the rest.
        self.transport.write(b"%b\r\n" % b"".join(lines))

    def loseConnection(self) -> None:
        if self._abortingCall is None:
            self._abortingCall = self.callLater(CLOSE_SECONDS, self.forceAbortClient)
        super().loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self.requests and self.requests[0].startedWriting:
            # Never in the middle of an answer.
            self.transport.abortConnection()
            return
        self._log.info("refused malformed HTTP from {peer}", peer=self.transport.getPeer())
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Docker-Distribution-Api-Version: registry/2.0\r\n"
            b"Cache-Status: artifactd\r\nServer-Timing: total;dur=0.0\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(_BAD_REQUEST), _BAD_REQUEST)
        )
        self.loseConnection()
        if self.busy:
            # The framing of its body is wrong: its handler must not add an answer of its own.
            request = self.requests.pop()
            request.setResponseCode(400)
            request.startedWriting = 1
            request.connectionLost(Failure(ConnectionAborted()))
