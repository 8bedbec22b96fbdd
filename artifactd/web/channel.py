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
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http_headers import Headers

from artifactd.auth.identity import Caller
from artifactd.oci.errors import RegistryError, Unavailable, Unsupported
from artifactd.web.connections import Counted
from artifactd.web.framing import MOST_BYTES, closes, field_problem, request_problem

if TYPE_CHECKING:
    from artifactd.web.site import RegistrySite

# Seconds that a client has to take what is left of the last answer on a connection.
CLOSE_SECONDS = 60.0

# The content type of the first TLS record of a connection: RFC 8446, 5.1.
_TLS_HANDSHAKE = b"\x16"

_MALFORMED = "malformed HTTP"
_BAD_REQUEST = b"400 Bad Request"
_TIMEOUT = b"408 Request Timeout"
_TOO_LARGE = b"431 Request Header Fields Too Large"  # RFC 6585, 5

_BUSY = Unavailable("too many connections: close some, or try again later")


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
    # As what it counts among those there are, unless it is one too many.
    counted: Counted | None = None
    _headers_due: IDelayedCall | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being handled."""
        return any(request.started is not None for request in self.requests)

    def connectionMade(self) -> None:
        super().connectionMade()
        limits = self.site.limits
        self.MAX_LENGTH = self.totalHeadersSize = limits.header_size
        self.maxHeaders = limits.header_count
        if not self.site.channel_opened(self):
            self._busy()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._await_headers(False)
        super().connectionLost(reason)
        if self.counted is not None:
            self.site.channel_lost(self)

    def _busy(self) -> None:
        """There are too many connections.  It is said in plain, for TLS would cost more."""
        if not self.isSecure():
            self.transport.write(_answer(b"503 Service Unavailable", _BUSY))
            self.loseConnection()
        else:
            self.transport.abortConnection()

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
        self._await_headers(self._in_headers)

    @property
    def _in_headers(self) -> bool:
        """Whether some of a request has come, but not yet all of its headers."""
        if not self.line_mode or self.paused or self.transport.disconnecting:
            return False
        # The base keeps the request line in an attribute as long as its headers are being read.
        return bool(self._buffer) or hasattr(self, "_command")

    def _await_headers(self, awaited: bool) -> None:
        """However many bytes come: all headers of a request are here in time, or it is refused."""
        if awaited:
            if self._headers_due is None:
                self._headers_due = self.callLater(self.site.limits.header_timeout, self._overdue)
        elif self._headers_due is not None:
            due, self._headers_due = self._headers_due, None
            if due.active():
                due.cancel()

    def _overdue(self) -> None:
        self._refuse(
            f"its headers take longer than {self.site.limits.header_timeout:g} s", _TIMEOUT
        )

    def lineReceived(self, line: bytes) -> None:
        if self._receivedHeaderSize + len(line) > self.totalHeadersSize:
            self.lineLengthExceeded(line)
            return
        if line and hasattr(self, "_command"):
            problem = field_problem(line)
            if problem is not None:
                self._refuse(problem)
                return
            if self._receivedHeaderCount + 2 > self.maxHeaders:  # the base is one behind
                self._refuse(f"more than {self.maxHeaders} headers", _TOO_LARGE)
                return
        super().lineReceived(line)

    def allHeadersReceived(self) -> None:
        problem = request_problem(self._path, self._version, self.requests[-1].requestHeaders)
        if problem is not None:
            self._refuse(problem)
            # What follows it is nobody's any more: not a request, and no body of this one.
            self.length = None
            return
        super().allHeadersReceived()

    def checkPersistence(self, request: http.Request, version: bytes) -> bool:
        closing = closes(version, request.requestHeaders)
        if closing and version == b"HTTP/1.1":
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return not closing

    def rawDataReceived(self, data: bytes) -> None:
        if self.transport.disconnecting:
            return
        if not self._handlingRequest:
            super().rawDataReceived(data)
            if getattr(self._transferDecoder, "length", 0) > MOST_BYTES:
                self._refuse("the size of a chunk is too large")
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
        # Else that one's end would replace the call below, which nobody would cancel then.
        self.setTimeout(None)
        if self._abortingCall is None:
            self._abortingCall = self.callLater(CLOSE_SECONDS, self.forceAbortClient)
        super().loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(f"its headers are larger than {self.totalHeadersSize} bytes", _TOO_LARGE)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._refuse(_MALFORMED)

    def _refuse(self, problem: str, status: bytes = _BAD_REQUEST) -> None:
        """Answer what is no request, or not one to be handled, and close."""
        if self.requests and self.requests[0].startedWriting:
            # Never in the middle of an answer.
            self.transport.abortConnection()
            return
        self._log.info(
            "refused malformed HTTP from {peer}: {problem}",
            peer=self.transport.getPeer(),
            problem=problem,
        )
        self.transport.write(_answer(status, Unsupported(f"bad request: {problem}")))
        self.loseConnection()
        if self.busy:
            # The framing of its body is wrong: its handler must not add an answer of its own.
            request = self.requests.pop()
            request.setResponseCode(int(status[:3]))
            request.startedWriting = 1
            request.connectionLost(Failure(ConnectionAborted()))


def _answer(status: bytes, error: RegistryError) -> bytes:
    """A whole response, for where there is no request."""
    body = error.body()
    return (
        b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"Docker-Distribution-Api-Version: registry/2.0\r\n"
        b"Cache-Status: artifactd\r\nServer-Timing: total;dur=0.0\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (status, len(body), body)
    )
