"""
Connections: what keeps a client from making us buffer or wait without bound.

The names private to Twisted that this takes are here and in the module of the request;
``tests/wire`` fails if any of them moves.
"""
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import secrets
from functools import cached_property
from io import BytesIO

from twisted.internet import tcp
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from artifactd.auth.identity import Caller
from artifactd.kit.budget import RECEIVE_SIZE
from artifactd.kit.timers import Deadline, Timers
from artifactd.oci.errors import RegistryError, Unavailable, Unsupported
from artifactd.web.server.accesslog import Access, AccessLog
from artifactd.web.server.body import RequestBody
from artifactd.web.server.framing import (
    MOST_BYTES,
    closes,
    field_problem,
    origin_form,
    request_problem,
)
from artifactd.web.server.limits import (
    BodyPace,
    ConnectionLimits,
    Connections,
    Counted,
    Rates,
    TokenBuckets,
)
from artifactd.web.server.proxies import TrustedProxies, from_here

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
    _idle: Deadline
    _headers_due: Deadline

    @property
    def busy(self) -> bool:
        """Whether a request is being handled."""
        return any(request.started is not None for request in self.requests)

    def connectionMade(self) -> None:
        self._idle = self.site.timers.deadline(self.timeoutConnection)
        self._headers_due = self.site.timers.deadline(self._overdue)
        super().connectionMade()
        limits = self.site.limits
        self.MAX_LENGTH = self.totalHeadersSize = limits.header_size
        self.maxHeaders = limits.header_count
        if not self.site.channel_opened(self):
            self._busy()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._idle.cancel()
        self._headers_due.cancel()
        if self.counted is not None:
            self.site.channel_lost(self)

    def setTimeout(self, period: float | None) -> float | None:
        # The base makes a delayed call for each connection and moves it with each read.
        before, self.timeOut = self.timeOut, period  # type: ignore[assignment]  # not int alone
        if period is None:
            self._idle.stop()
        else:
            self._idle.start(period)
        return before

    def resetTimeout(self) -> None:
        if self.timeOut is not None and self._idle.running:
            self._idle.start(self.timeOut)

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
        if not awaited:
            self._headers_due.stop()
        elif not self._headers_due.running:
            self._headers_due.start(self.site.limits.header_timeout)

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
            closing = self.site.timers.deadline(self.forceAbortClient)
            closing.start(CLOSE_SECONDS)
            self._abortingCall = closing  # which the base cancels when the connection ends
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


# Requests that are handled as soon as their headers are complete.
#
# Everything private to Twisted that serving HTTP relies on is here and in the module of the
# channel;
# ``tests/wire`` fails if any of it moves.  ``HTTPChannel`` calls ``gotLength`` after the headers
# and
# before the body, and ``requestReceived`` after the last byte.

# Bytes and seconds for which the rest of a body is read and dropped after an early answer, so that
# the client gets to read the answer before the connection is closed.
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 10.0
# With more connections than this each receives less at a time, so that a turn of the reactor, in
# which every one of them may receive, stays short.
_FEW = 16


class _Peer:
    """
    The sender of one body: an :class:`artifactd.web.server.body.BodySource`.

    The idle timeout runs while something is awaited from the peer and at no other time.
    """

    _log = Logger()

    def __init__(self, request: RegistryRequest, *, awaits_continue: bool) -> None:
        self.awaits_continue = awaits_continue
        self._request = request
        self._channel = channel = request.channel
        plain = isinstance(channel.transport, tcp.Connection)
        self._buffer_size = channel.transport.bufferSize if plain else None
        self._idle_timeout = channel.setTimeout(None)
        limits = channel.site.limits
        self.pace = BodyPace(
            channel.site.timers,
            limits.body_rate,
            limits.body_window,
            self._received,
            self._too_slow,
        )

    def _received(self) -> int:
        body = self._request.body
        return 0 if body is None else body.received

    def _too_slow(self) -> None:
        limits = self._channel.site.limits
        self._log.info(
            "{method} {path} of {address} dropped: its body comes slower than {rate} bytes a"
            " second over {window:g} s",
            method=self._request.method.decode("latin-1"),
            path=self._request.path.decode("latin-1"),
            address=self._request.address,
            rate=limits.body_rate,
            window=limits.body_window,
        )
        self._request.abort()

    def invite(self) -> None:
        if self._buffer_size is not None:
            crowded = len(self._channel.site.channels) > _FEW
            size = self._buffer_size if crowded else max(RECEIVE_SIZE, self._buffer_size)
            self._channel.transport.bufferSize = size
        if self.awaits_continue:
            self.awaits_continue = False
            self._channel._send100Continue()

    def pause(self) -> None:
        self.pace.pause()
        self._channel.setTimeout(None)
        if not self._channel.transport.disconnecting:
            self._channel.transport.pauseProducing()

    def resume(self) -> None:
        if not self._channel.transport.disconnecting:
            self.pace.wait()
            self._channel.setTimeout(self._idle_timeout)
            self._channel.transport.resumeProducing()

    def drain(self) -> None:
        """Read the rest, for as long as our own deadline allows."""
        self.pace.stop()
        self._channel.setTimeout(None)
        self._channel.transport.resumeProducing()

    def ended(self) -> None:
        """
        The body is over.  We may have paused the peer; the channel reads on, to notice if it
        leaves, and has its own limit to what may follow.
        """
        self.pace.stop()
        if self._buffer_size is not None:
            self._channel.transport.bufferSize = self._buffer_size
        self._channel._savedTimeOut = self._idle_timeout
        self._channel.transport.resumeProducing()


class RegistryRequest(server.Request):
    """
    A request, handled as soon as its headers are complete.

    An answer given before the end of the body closes the connection: when the rest has been read
    and dropped, at most :data:`DRAIN_BYTES` and for :data:`DRAIN_SECONDS`; at once where the client
    still waits for ``100 Continue``.  No byte of a body is ever parsed as a request.

    :ivar body: what the client sends, or ``None`` where it declared nothing.
    :ivar started: the clock's seconds when the headers were complete, or ``None`` before.
    :ivar caller: who is asking, once the gate knows.
    :ivar actor: the same for the logs; ``-`` as long as nobody can be anybody.
    :ivar claimed: the name of the login that is being checked, or has failed.
    :ivar sees_cache: whether the answer may tell how it was come by.
    """

    defaultContentType = None
    channel: RegistryChannel
    site: RegistrySite
    body: RequestBody | None = None
    started: float | None = None
    caller: Caller = Caller()
    actor: str = "-"
    claimed: str = ""
    sees_cache = False
    _answered = False
    _clock: IReactorTime
    _peer: _Peer
    _bound: Deadline | None = None
    _most = 0

    @cached_property
    def request_id(self) -> str:
        """16 hexadecimal digits that a client's report and the logs have in common."""
        return secrets.token_hex(8)

    @cached_property
    def address(self) -> str:
        """Of the client, as far as it is known: ``unix`` for a Unix socket."""
        return self.site.proxies.client(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the headers were complete."""
        return 0.0 if self.started is None else self._clock.seconds() - self.started

    @property
    def gone(self) -> bool:
        """Whether the connection was lost before the end of the answer."""
        return bool(self._disconnected)

    @property
    def unread(self) -> bool:
        """Whether some of the body has yet to be received."""
        return self.body is not None and not self.body.complete

    def getRequestHostname(self) -> bytes:
        # Klein and Werkzeug make a URL out of it, or fail; no route depends on it.
        return b"localhost"

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()
        expect = self.requestHeaders.getRawHeaders(b"Expect", [b""])[0].lower()
        # Else the channel would answer it by itself, before the handler wants the body.
        self.requestHeaders.removeHeader(b"Expect")
        if length == 0:
            return
        channel = self.channel
        self._peer = _Peer(
            self,
            awaits_continue=expect == b"100-continue" and channel._version == b"HTTP/1.1",
        )
        self.body = RequestBody(self._peer, length)
        super().requestReceived(channel._command, origin_form(channel._path), channel._version)

    def handleContentChunk(self, data: bytes) -> None:
        assert self.body is not None
        self.body.data_received(data)
        if self._answered and self.body.received > self._most:
            self.abort()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self.body is None:
            super().requestReceived(command, origin_form(path), version)
            return
        self._peer.ended()
        self.body.ended()
        if self._answered:
            self._unbind()
            super().finish()

    def process(self) -> None:
        self._clock = self.channel.site.reactor
        self.started = self._clock.seconds()
        self.sees_cache = not self.channel.site.guarded
        super().process()

    def finish(self) -> None:
        body = self.body
        if body is None or body.complete or self.gone:
            super().finish()
        elif not self._answered:
            self._answer_early(body)

    def _answer_early(self, body: RequestBody) -> None:
        self._answered = True
        if not self.startedWriting:
            self.write(b"")
        if self.chunked:
            # finish() would, but that has to wait.
            self.chunked = 0
            self.channel.write(b"0\r\n\r\n")
        body.refuse()
        self._bound = self.channel.site.timers.deadline(self.abort)
        self._bound.start(DRAIN_SECONDS)
        if self._peer.awaits_continue and not body.received:
            self.channel.loseConnection()
        else:
            self._most = body.received + DRAIN_BYTES
            self._peer.drain()

    def abort(self) -> None:
        """Drop the connection at once, with whatever has not been sent."""
        if not self.gone:
            self.channel.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        site = self.site
        # First, for Klein cancels the handler in there, which ends its wait for the body quietly.
        super().connectionLost(reason)
        self._unbind()
        if self.body is not None:
            self._peer.pace.stop()
            self.body.failed(reason)
        if site is not None:
            site.log(self)

    def _unbind(self) -> None:
        if self._bound is not None:
            self._bound.cancel()


# The site: what all connections of a listener share.


class RegistrySite(server.Site):
    """
    Serves a resource over HTTP/1.1.

    :param reactor: the clock of every timeout of the connections.
    :param idle_timeout: seconds after which a connection is closed on which something is awaited
        from the client and nothing comes.
    :param limits: of connections, and of what each may take.
    :param rates: how often one address and one user may ask.
    :param stopping: answers requests that come while draining; by default ``resource`` does.
    :ivar proxies: whose word counts on whom they speak for.
    :ivar guarded: whether answers tell how they were come by only where a gate lets them.
    :ivar timers: makes the deadlines of the connections.
    :ivar channels: the open connections.
    :ivar draining: whether every answer closes its connection.
    """

    # Typed as the proxy that changes over to HTTP/2, which is what we leave out.
    protocol = RegistryChannel  # type: ignore[assignment]
    requestFactory = RegistryRequest

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        access_log: AccessLog,
        idle_timeout: float = 60.0,
        proxies: TrustedProxies | None = None,
        limits: ConnectionLimits | None = None,
        rates: Rates | None = None,
        *,
        guarded: bool = False,
        stopping: IResource | None = None,
    ) -> None:
        super().__init__(
            resource, parsePOSTFormSubmission=False, timeout=idle_timeout, reactor=reactor
        )
        self.timers = Timers(reactor)
        self.channels: set[RegistryChannel] = set()
        self.draining = False
        self.guarded = guarded
        self._stopping = stopping or resource
        self.proxies = proxies or TrustedProxies()
        self.limits = limits or ConnectionLimits()
        self.rates = rates or Rates(TokenBuckets(0, 1, reactor), TokenBuckets(0, 1, reactor))
        self._connections = Connections(
            self.limits, lambda peer: from_here(peer) or self.proxies.trusts(peer)
        )
        self._access_log = access_log
        self._emptied: Deferred[None] | None = None

    @property
    def in_flight(self) -> int:
        """How many requests are being handled."""
        return sum(channel.busy for channel in self.channels)

    async def drain(self, seconds: float) -> None:
        """
        Let the requests in flight end, for at most ``seconds``; then drop what is left.

        The listeners have to be closed by then.  A connection is closed after the answer that is
        due, when the client has taken it; a new request on another one is answered 503.  When no
        request is in flight any more, all are closed.
        """
        self.draining = True
        self.settle()
        if not self.channels:
            return
        self._emptied = Deferred()
        try:
            await self._emptied.addTimeout(seconds, self.reactor)
        except TimeoutError:
            for channel in list(self.channels):
                channel.transport.abortConnection()

    def settle(self) -> None:
        """While draining, whenever a request has ended: close the rest if it was the last."""
        if self.draining and not any(channel.busy for channel in self.channels):
            for channel in list(self.channels):
                if not channel.transport.disconnecting:
                    channel.loseConnection()

    def getResourceFor(self, request: server.Request) -> IResource:
        # Every request comes by here.
        if self.draining:
            return self._stopping
        found: IResource = super().getResourceFor(request)
        return found

    def channel_opened(self, channel: RegistryChannel) -> bool:
        """``channel`` has been connected; whether there is room for it."""
        transport = channel.transport
        channel.counted = self._connections.add(transport.getHost(), transport.getPeer())
        if channel.counted is None:
            return False
        self.channels.add(channel)
        return True

    def channel_lost(self, channel: RegistryChannel) -> None:
        """``channel`` is closed."""
        self.channels.discard(channel)
        if channel.counted is not None:
            self._connections.remove(channel.counted)
        if channel.busy:
            self.settle()
        if not self.channels and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    def log(self, request: http.Request) -> None:
        """A request has ended, one way or another."""
        assert isinstance(request, RegistryRequest)
        if self._access_log.wanted:
            self._access_log.write(self._access(request))

    def _access(self, request: RegistryRequest) -> Access:
        agent = request.requestHeaders.getRawHeaders(b"User-Agent")
        return Access(
            client=request.address,
            user=request.actor,
            method=_text(request.method),
            path=_text(request.uri),
            status=request.code if request.startedWriting else 0,
            sent=request.sentLength,
            seconds=round(request.elapsed, 6),
            agent=_text(agent[0]) if agent else "-",
            request=request.request_id,
        )

    def startFactory(self) -> None:
        # Neither the log file nor the clock that ticks every second of the base.
        self._access_log.open()

    def stopFactory(self) -> None:
        # The last listener is closed, but not the access log: requests in flight have yet to end.
        pass

    def acceptableProtocols(self) -> list[bytes]:
        # Bodies don't stream over HTTP/2: Twisted has another path for them.
        return [b"http/1.1"]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
