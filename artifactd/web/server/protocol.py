"""
The HTTP server: connections, requests whose bodies stream, and the site that they belong to.

twisted.web gives a request to its resource when the whole body has been buffered.  This module
gives it when the headers are complete: ``HTTPChannel`` calls ``gotLength`` after the headers and
before the body, and ``requestReceived`` after the last byte.
"""
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property, lru_cache
from http import HTTPStatus
from io import BytesIO
from math import inf
from typing import Any

from msgspec.structs import replace
from twisted.internet import tcp
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from zope.interface import implementer

from artifactd.auth.identity import NOBODY, Caller
from artifactd.kit.budget import RECEIVE_SIZE, receive_size
from artifactd.kit.timers import Deadline, Timers
from artifactd.kit.turns import Turns
from artifactd.oci.errors import TooManyRequests, Unsupported
from artifactd.settings.settings import LimitsSettings
from artifactd.web.server.accesslog import OTHER, Access, AccessLog, Traffic
from artifactd.web.server.body import RequestBody
from artifactd.web.server.certificate import certified
from artifactd.web.server.cors import Cors
from artifactd.web.server.framing import (
    ChunkedDecoder,
    FramingError,
    closes,
    field_problem,
    origin_form,
    request_problem,
)
from artifactd.web.server.hot import READS, HotAnswers, Kept, Peer, Repeated
from artifactd.web.server.limits import BodyPace, Connections, Counted, Rates
from artifactd.web.server.proxies import TrustedProxies, owner_of, peer_address
from artifactd.web.server.refused import too_many_connections, whole

PRIVATE = {
    http.HTTPChannel: (
        "_abortingCall",
        "_buffer",
        "_busyReceiving",
        "_command",
        "_dataBuffer",
        "_finishRequestBody",
        "_handlingRequest",
        "_networkProducer",
        "_optimisticEagerReadSize",
        "_path",
        "_receivedHeaderCount",
        "_receivedHeaderSize",
        "_respondToBadRequestAndDisconnect",
        "_savedTimeOut",
        "_send100Continue",
        "_transferDecoder",
        "_version",
        "_waitingForTransport",
    ),
    http.Request: ("_disconnected",),
    Headers: ("_rawHeaders",),
}
"""All names private to Twisted that the package uses, in this module alone."""

# Seconds that a client has to take what is left of the last answer on a connection.
CLOSE_SECONDS = 60.0

# The content type of the first TLS record of a connection: RFC 8446, 5.1.
_TLS_HANDSHAKE = b"\x16"

_MALFORMED = "malformed HTTP"
_TLS_HERE = "this address speaks plain HTTP: use http://, or let the registry listen with TLS"
_BAD_REQUEST = b"400 Bad Request"
_TIMEOUT = b"408 Request Timeout"
_TOO_LARGE = b"431 Request Header Fields Too Large"  # RFC 6585, 5

# The reason phrases of statuses that Twisted does not know, such as 429: RFC 6585.
_PHRASES = {s.value: s.phrase.encode() for s in HTTPStatus if s.value not in http.RESPONSES}

_log = Logger()

# Ids of requests are no secrets: they come without a system call each.
_ids = random.Random()

# After an early answer at most this much of the body is read and dropped, in bytes and seconds, so
# that the client gets to read the answer before the connection is closed.
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 10.0

# Seconds that a new connection has for its first request when the service ends.
NEW_SECONDS = 2.0

# While requests are waited for at the end, the log names the longest of them, this many at a time.
TELL_SECONDS = 5.0
TELL_MOST = 5

# Above this number of connections each receives fewer bytes at a time.  Every connection may
# receive in one turn of the reactor, which has to stay short.
_FEW = 16

# A body of which more bytes than these have come is received in larger pieces, and in turns with
# others; one of which more than these have come, in the largest.
_SMALL, _LARGE = 64 << 10, 1 << 20


@implementer(IHalfCloseableProtocol)
class RegistryChannel(http.HTTPChannel):
    """
    One connection.

    Unlike its base it parses no request while the client does not read the answers to those before
    it, buffers a bounded number of bytes that follow a request being handled, and parses nothing
    once it has decided to close.

    :ivar address: the client's address; ``None`` if a trusted proxy may name another per request.
    :ivar repeated: the request that is being parsed, if the same has come before.
    :ivar counted: the keys under which the connection is counted; ``None`` if it is refused.
    """

    site: RegistrySite
    transport: tcp.Connection
    address: str | None = None
    counted: Counted | None = None
    repeated: Repeated | None = None
    _client_ended = False
    _asks_until = 0.0
    _host: Any
    _from: Any
    _peer: Peer
    _secure: bool
    _idle: Deadline
    _headers_due: Deadline

    @property
    def busy(self) -> bool:
        """Whether a request is being handled."""
        return any(request.started is not None for request in self.requests)

    @property
    def awaited(self) -> bool:
        """Whether a request is being handled that was begun before the site was drained."""
        return any(request.started is not None and not request.is_late for request in self.requests)

    @property
    def is_new(self) -> bool:
        """Whether its first request is still to come, and may come soon."""
        return self.site.reactor.seconds() < self._asks_until

    def connectionMade(self) -> None:
        site, limits = self.site, self.site.limits
        self._asks_until = site.reactor.seconds() + NEW_SECONDS
        self._idle = site.timers.deadline(self.timeoutConnection)
        self._headers_due = site.timers.deadline(self._headers_overdue)
        self._host, self._secure = self.transport.getHost(), super().isSecure()
        self._from = self.transport.getPeer()
        super().connectionMade()
        self.MAX_LENGTH = self.totalHeadersSize = int(limits.header_size)
        self.maxHeaders = limits.header_count
        peer = self.transport.getPeer()
        address, is_proxy = peer_address(peer), site.proxies.trusts(peer)
        if not is_proxy:
            self.address = address
        self._peer = Peer(self._secure, address if is_proxy else "")
        if site.channel_opened(self):
            return
        if self.isSecure():
            self.transport.abortConnection()  # a handshake would cost more than the answer is worth
        else:
            self.transport.write(too_many_connections())
            self.loseConnection()

    @cached_property
    def certified(self) -> Caller | None:
        """The caller that the client's certificate names, if it has shown one."""
        return certified(self.transport)

    @cached_property
    def _without_login(self) -> Caller:
        """The caller of a request without ``Authorization``."""
        return (self.certified if self.site.guarded else None) or NOBODY

    def getHost(self) -> Any:
        # The base makes a system call for each request.
        return self._host

    def getPeer(self) -> Any:
        return self._from  # the base makes one for each request

    def isSecure(self) -> bool:
        return self._secure

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._idle.cancel()
        self._headers_due.cancel()
        if self.counted is not None:
            self.site.channel_lost(self)

    def setTimeout(self, period: float | None) -> float | None:
        # The base makes a delayed call for each connection, and moves it with each read.
        before, self.timeOut = self.timeOut, period  # type: ignore[assignment]  # not int alone
        if period is None:
            self._idle.due = None
        else:
            self._idle.start(period)
        return before

    def dataReceived(self, data: bytes) -> None:
        # A TLS transport goes on delivering after loseConnection.
        if self.transport.disconnecting:
            return
        if self.line_mode and data.startswith(_TLS_HANDSHAKE):
            # Docker and others try TLS first, and wait for an answer until they time out: there
            # need be no end of line in a ClientHello.
            self._refuse(_TLS_HERE, is_usual=True)
            return
        if self._idle.due is not None and self.timeOut is not None:
            self._idle.start(self.timeOut)
        hot = self.site.hot
        if (
            hot is not None
            and data[:4] in READS
            and self.line_mode
            and not (self.requests or self._buffer or self.paused or self._waitingForTransport)
            and not self.site.draining
        ):
            found = hot.find(data, self._peer, self.address, self._without_login)
            if isinstance(found, Kept):
                if self._charge(found):
                    self._repeat(found)
                    return
                found = None  # the usual way refuses it
            if found is not None:
                self.site.traffic.misses += 1
            self.repeated = found
            super().dataReceived(data)
            self.repeated = None
        else:
            super().dataReceived(data)
        # All headers of a request have to come in time, however many bytes of them have come, and
        # so have trailers.  The base keeps the request line in an attribute while it reads headers.
        receiving = not self.paused and not self.transport.disconnecting
        if self.line_mode:
            incomplete = receiving and bool(self._buffer or hasattr(self, "_command"))
        else:
            decoder = self._transferDecoder
            incomplete = receiving and isinstance(decoder, ChunkedDecoder) and decoder.in_trailers
        if not incomplete:
            self._headers_due.due = None
        elif self._headers_due.due is None:
            self._headers_due.start(self.site.limits.header_timeout)
        if self._client_ended:
            self._close_if_answered()

    def _charge(self, kept: Kept) -> bool:
        """Count a request that is answered with ``kept``; return whether it is not refused."""
        rates = self.site.rates
        if rates is None:
            return True
        try:
            rates.charge_address(self.address or kept.access.client)
            rates.charge_user(kept.caller.identity)
        except TooManyRequests:
            return False
        return True

    def _repeat(self, kept: Kept) -> None:
        self._asks_until = 0.0
        started, date = self.site.reactor.seconds(), _date(int(time.time()))
        self.transport.write(
            b"%bDate: %b\r\nServer-Timing: total;dur=0.0\r\n\r\n%b" % (kept.fields, date, kept.body)
        )
        seconds = self.site.reactor.seconds() - started
        kept.tally.count(seconds, 0, kept.access.sent)
        self.site.traffic.hits += 1
        log = self.site.access_log
        if log.wanted:
            log.write(
                replace(
                    kept.access,
                    client=self.address or kept.access.client,
                    seconds=round(seconds, 6),
                    request=new_request_id(),
                )
            )

    def _headers_overdue(self) -> None:
        seconds = self.site.limits.header_timeout
        self._refuse(f"its headers take longer than {seconds:g} s", _TIMEOUT)

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
        self._asks_until = 0.0
        problem = request_problem(self._path, self._version, self.requests[-1].requestHeaders)
        if problem is not None:
            self._refuse(problem)
            # Nothing that follows is parsed: neither as a body nor as a request.
            self.length = None
            return
        if self.length is None:
            # Twisted's delivers each chunk by itself, and sets trailers other bounds than headers.
            limits = self.site.limits
            self._transferDecoder = ChunkedDecoder(
                self.requests[-1].handleContentChunk,
                self._finishRequestBody,
                int(limits.header_size),
                limits.header_count,
            )
        super().allHeadersReceived()

    def checkPersistence(self, request: http.Request, version: bytes) -> bool:
        if version != b"HTTP/1.1":
            return False
        values = request.requestHeaders.getRawHeaders(b"Connection")
        if values is None or not closes(values):
            return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def rawDataReceived(self, data: bytes) -> None:
        if self.transport.disconnecting:
            return
        if not self._handlingRequest:
            try:
                super().rawDataReceived(data)
            except FramingError as error:
                self._refuse(str(error))
            return
        self._dataBuffer.append(data)
        if sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize:
            # The base does not, while the transport waits for the client to read.
            self._networkProducer.pauseProducing()

    def skip_body(self) -> None:
        """Parse nothing more of the body that is being received: its request is answered."""
        if isinstance(self._transferDecoder, ChunkedDecoder):
            self._transferDecoder.skip()

    def trailers_paused(self) -> None:
        """Let trailers take their time: nothing is read for now."""
        self._headers_due.due = None

    def requestDone(self, request: http.Request) -> None:
        stops = self.site.stops
        if stops:
            # Also where the headers were sent before.  A retired site keeps what they said: the
            # client may have sent its next request already.
            self.persistent = False
        if self._waitingForTransport and self.persistent:
            self.paused = True
            self._networkProducer.pauseProducing()
        super().requestDone(request)
        if stops:
            self.site.settle()
        if self._client_ended:
            self._close_if_answered()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self.paused:
            self.paused = False
            self.dataReceived(b"")

    def readConnectionLost(self) -> None:
        """
        Close the connection after the answers to the requests that have come whole: the client
        sends no more, but may still read (``shutdown(SHUT_WR)``; ``nc -N``).
        """
        self._client_ended = True
        self._close_if_answered()

    def _close_if_answered(self) -> None:
        """
        Close the connection of a client that sends no more, unless a request is being handled or
        others wait behind it.
        """
        if self.paused or self._busyReceiving or self.transport.disconnecting:
            return
        request = self.requests[0] if self.busy else None
        body = None if request is None else request.body
        if request is not None and body is not None and not body.complete and not request.answered:
            self.transport.abortConnection()  # the rest of the body never comes
        elif request is None or (body is not None and not body.complete):
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: this end closes both directions at once."""

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        body = self.requests[0].body
        if self.site.draining or (body is not None and not body.complete):
            self.persistent = False
            headers.setRawHeaders(b"Connection", [b"close"])
        lines = [b"%b %b %b\r\n" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            lines.extend([b"%b: %b\r\n" % (name, value) for value in values])
        request = self.requests[0]
        if request.repeatable is not None and request.repeated is not None:
            self._keep(request, request.repeated, request.repeatable, lines)
        # One write: the base has one for each word, which costs more than all the rest.
        self.transport.write(b"%b\r\n" % b"".join(lines))

    def _keep(
        self, request: RegistryRequest, asked: Repeated, body: bytes, lines: list[bytes]
    ) -> None:
        """Keep an answer, unless something about the request or the connection is unusual."""
        hot = self.site.hot
        usual = request.body is None and self.persistent
        if hot is None or not usual or request.responseHeaders.hasHeader(b"Connection"):
            return
        fields = b"".join(
            line for line in lines if not line.startswith((b"Date: ", b"Server-Timing: "))
        )
        access = replace(self.site.access(request), status=request.code, sent=len(body))
        tally = self.site.traffic.tally(request.route, request.method, request.code)
        hot.keep(asked, request.caller, fields, body, access, tally)

    def loseConnection(self) -> None:
        # Without this the end of the idle timeout would replace the deadline made below.
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

    def _refuse(
        self, problem: str, status: bytes = _BAD_REQUEST, *, is_usual: bool = False
    ) -> None:
        """
        Answer bytes that are not a request, or one that is not handled, with an error, and close.

        :param is_usual: clients that are in order do that: nothing is logged.
        """
        if self.requests and self.requests[0].startedWriting:
            # Never in the middle of an answer.
            self.transport.abortConnection()
            return
        if not is_usual:
            self._log.info(
                "refused malformed HTTP from {peer}: {problem}",
                peer=self.transport.getPeer(),
                problem=problem,
            )
        self.transport.write(whole(status, Unsupported(f"bad request: {problem}")))
        self.loseConnection()
        if self.busy:
            # The framing of its body is wrong: its handler must not add an answer of its own.
            request = self.requests.pop()
            request.setResponseCode(int(status[:3]))
            request.startedWriting = 1
            request.connectionLost(Failure(ConnectionAborted()))


class _Peer:
    """
    The client as the sender of one body: invites, pauses and resumes it for a ``RequestBody``.

    The idle timeout runs while the server waits for the client and at no other time.

    A body that is not small takes turns with other transfers: after each piece that is received it
    asks for the next one.
    """

    _log = Logger()
    _takes_turns = False
    _next_size: float = _SMALL  # of the body, at which its pieces become larger
    _is_wanted = True

    def __init__(self, request: RegistryRequest, *, awaits_continue: bool) -> None:
        self.awaits_continue = awaits_continue
        self._request = request
        self._channel = channel = request.channel
        plain = isinstance(channel.transport, tcp.Connection)
        self._buffer_size = channel.transport.bufferSize if plain else None
        self._turns = channel.site.turns
        self._idle_timeout = channel.setTimeout(None)
        self._limits = limits = channel.site.limits
        self.pace = BodyPace(
            channel.site.timers,
            limits.body_rate,
            limits.body_window,
            lambda: request.received,
            self._too_slow,
        )

    def _too_slow(self) -> None:
        self._log.info(
            "{method} {path} of {address} dropped: its body comes slower than {rate} bytes a"
            " second over {window:g} s",
            method=self._request.method.decode("latin-1"),
            path=self._request.path.decode("latin-1"),
            address=self._request.address,
            rate=int(self._limits.body_rate),
            window=float(self._limits.body_window),
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

    def received(self, size: int) -> None:
        """
        Let other transfers have their turns, since a piece of the body has come.

        :param size: bytes of the body that have come so far.
        """
        if size > self._next_size:
            self._enlarge(size)
        if self._takes_turns and self._is_wanted and self._turns.crowded:
            self._stop_reading()
            self._turns.ask(self._step)

    def _enlarge(self, size: int) -> None:
        """Receive larger pieces from now on, and in turns."""
        if not self._takes_turns:
            self._takes_turns = True
            self._turns.join()
        if size > _LARGE:
            piece, self._next_size = receive_size(self._turns.transfers), inf
        else:
            piece, self._next_size = RECEIVE_SIZE, _LARGE
        if self._buffer_size is not None:
            self._channel.transport.bufferSize = max(piece, self._buffer_size)

    def pause(self) -> None:
        self._is_wanted = False
        self._stop_reading()

    def resume(self) -> None:
        self._is_wanted = True
        if self._takes_turns:
            self._turns.ask(self._step)
        else:
            self._step()

    def _stop_reading(self) -> None:
        self.pace.pause()
        self._channel.setTimeout(None)
        self._channel.trailers_paused()
        if not self._channel.transport.disconnecting:
            self._channel.transport.pauseProducing()

    def _step(self) -> None:
        """Let one piece come, if it is wanted still."""
        if self._is_wanted and not self._channel.transport.disconnecting:
            self.pace.wait()
            self._channel.setTimeout(self._idle_timeout)
            self._channel.transport.resumeProducing()

    def leave(self) -> None:
        """Take no turns any more."""
        self._is_wanted = False
        self.pace.stop()
        if self._takes_turns:
            self._takes_turns = False
            self._turns.leave(self._step)
        self._next_size = inf

    def drain(self) -> None:
        """Read the rest of the body, with no other deadline than :data:`DRAIN_SECONDS`."""
        self.leave()
        self._channel.setTimeout(None)
        self._channel.transport.resumeProducing()

    def ended(self) -> None:
        """
        End the body: the channel reads on, to notice if the client disconnects.

        The channel bounds the bytes that may follow.
        """
        self.leave()
        if self._buffer_size is not None:
            self._channel.transport.bufferSize = self._buffer_size
        self._channel._savedTimeOut = self._idle_timeout
        self._channel.transport.resumeProducing()


@lru_cache(1)  # all answers of one second share it
def _date(seconds: int) -> bytes:
    """A time since the epoch as ``Date`` has it: RFC 9110, 5.6.7."""
    return http.datetimeToString(seconds)  # type: ignore[no-any-return]  # it has no annotations


def _nothing() -> None:
    """Neither invite nor pause nor resume the sender of a body that is here."""


@lru_cache(256)
def _spelt(name: str) -> bytes:
    """The name of a header field as Twisted has it among those of an answer."""
    return next(Headers({name: [""]}).getAllRawHeaders())[0]


def new_request_id() -> str:
    """Return 16 hexadecimal digits that a client's report and the logs have in common."""
    return f"{_ids.getrandbits(64):016x}"


class RegistryRequest(server.Request):
    """
    A request, handled as soon as its headers are complete, and so is a body that comes with them.

    An answer given before the end of the body closes the connection: when the rest has been read
    and dropped, at most :data:`DRAIN_BYTES` and for :data:`DRAIN_SECONDS`; at once where the client
    still waits for ``100 Continue``.  No byte of a body is ever parsed as a request.

    :ivar body: the body that the client sends; ``None`` if it declared none.
    :ivar started: the clock's seconds when the headers were complete, or ``None`` before.
    :ivar caller: the authenticated caller, once the gate has identified it.
    :ivar actor: the caller's name for the logs; ``-`` where nobody is authenticated.
    :ivar claimed: the name of the login that is being checked, or has failed.
    :ivar named: the tag or digest in the form that it brings, for the audit log.
    :ivar answered: whether the answer was given before the end of the body.
    :ivar is_late: whether it came while the site was drained, and is answered 503.
    :ivar handling: is cancelled if the client leaves before the end of the answer.
    :ivar counted: the bytes received and sent that the metrics have counted so far.
    :ivar sees_cache: whether ``Cache-Status`` and ``Server-Timing`` may be sent.
    :ivar is_personal: whether the answer depends on the caller's login, so that no cache may give
        it to others: RFC 9111, 5.2.2.7.
    :ivar route: the route that handles it, as the metrics name it.
    :ivar repeated: the bytes of the request, if the same have come before.
    :ivar repeatable: the body of its answer, if the same request gets the same answer until a
        commit touches its image.
    :ivar sees_stored: whether a refused change may be answered with what is stored: whether the
        caller may pull the image that it would change.
    """

    defaultContentType = None
    channel: RegistryChannel
    site: RegistrySite
    body: RequestBody | None = None
    started: float | None = None
    caller: Caller = NOBODY
    actor: str = "-"
    claimed: str = ""
    named: str = ""
    sees_cache = False
    sees_stored = False
    is_personal = False
    route: str = OTHER
    repeated: Repeated | None = None
    repeatable: bytes | None = None
    answered = False
    is_late = False
    handling: Deferred[Any] | None = None
    counted: tuple[int, int] = (0, 0)
    _clock: IReactorTime
    _peer: _Peer | None = None
    _drain_due: Deadline | None = None
    _most = 0

    @cached_property
    def request_id(self) -> str:
        """See :func:`new_request_id`."""
        return new_request_id()

    @cached_property
    def address(self) -> str:
        """The client's address as far as it is known; ``unix`` for a Unix socket."""
        return self.site.proxies.client(self)

    @property
    def owner(self) -> str:
        """The user, or the address without a login, whose share of memory the request takes."""
        return owner_of(self.caller.identity, self.address) or f"address:{self.address}"

    def set_fields(self, fields: Mapping[str, str]) -> None:
        """
        Set header fields of the answer, each of which has one value.

        Twisted's own way to set one takes eight calls.
        """
        raw = self.responseHeaders._rawHeaders
        for name, value in fields.items():
            encoded = value.encode()
            if b"\n" in encoded or b"\r" in encoded:
                encoded = b" ".join(encoded.splitlines())  # else it could begin another field
            raw[_spelt(name)] = [encoded]

    def rests_on(self, image: str) -> None:
        """Say in which image the answer is about to be looked up."""
        if self.repeated is not None and self.site.hot is not None:
            self.repeated = self.site.hot.resting(self.repeated, image)

    @property
    def elapsed(self) -> float:
        """Seconds since the headers were complete."""
        return 0.0 if self.started is None else self._clock.seconds() - self.started

    @property
    def received(self) -> int:
        """Bytes of the body that have come."""
        return 0 if self.body is None else self.body.received

    @property
    def gone(self) -> bool:
        """Whether the connection was lost before the end of the answer."""
        return bool(self._disconnected)

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()
        expect = self.requestHeaders.getRawHeaders(b"Expect")
        if expect is not None:
            # Otherwise the channel would answer it by itself, before the handler wants the body.
            self.requestHeaders.removeHeader(b"Expect")
        if length == 0:
            return
        channel = self.channel
        if expect is None and length is not None and length == len(channel._buffer):
            # All of the body has come with the headers, and nothing else: nothing is awaited from
            # the client, and requestReceived() follows at once.
            self.body = RequestBody(length, _nothing, _nothing, _nothing)
            return
        continues = expect is not None and expect[0].lower() == b"100-continue"
        awaits_continue = continues and channel._version == b"HTTP/1.1"
        self._peer = peer = _Peer(self, awaits_continue=awaits_continue)
        self.body = RequestBody(
            length, peer.invite, peer.pause, peer.resume, awaits_continue=awaits_continue
        )
        super().requestReceived(channel._command, origin_form(channel._path), channel._version)

    def handleContentChunk(self, data: bytes) -> None:
        assert self.body is not None
        self.body.data_received(data)
        if self.answered:
            if self.body.received > self._most:
                self.abort()
        elif self._peer is not None:
            self._peer.received(self.body.received)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._peer is None:
            if self.body is not None:
                self.body.ended()
            target = path if path.startswith(b"/") else origin_form(path)
            super().requestReceived(command, target, version)
            return
        assert self.body is not None
        self._peer.ended()
        self.body.ended()
        if self.answered:
            self._stop_draining()
            super().finish()

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        super().setResponseCode(code, message or _PHRASES.get(code))

    def process(self) -> None:
        channel = self.channel
        self._clock = channel.site.reactor
        self.started = self._clock.seconds()
        self.is_late = channel.site.stops
        self.sees_cache = self.sees_stored = not channel.site.guarded
        if channel.address is not None:
            self.address = channel.address
        self.repeated = channel.repeated
        channel.site.traffic.running.add(self)
        # What the base does, but for the parts of the path, which no resource here looks at.
        self.site = channel.site
        self.responseHeaders.setRawHeaders(b"Date", [_date(int(time.time()))])
        try:
            self.render(self.site.resource)
        except BaseException:
            self.processingFailed(Failure())

    def finish(self) -> None:
        body = self.body
        if body is None or body.complete or self.gone:
            super().finish()
        elif not self.answered:
            self._answer_early(body)

    def _answer_early(self, body: RequestBody) -> None:
        self.answered = True
        if not self.startedWriting:
            self.write(b"")
        if self.chunked:
            # finish() would, but that has to wait.
            self.chunked = 0
            self.channel.write(b"0\r\n\r\n")
        body.refuse()
        self._drain_due = self.channel.site.timers.deadline(self.abort)
        self._drain_due.start(DRAIN_SECONDS)
        assert self._peer is not None  # the body is not complete
        if self._peer.awaits_continue and not body.received:
            self.channel.loseConnection()
        else:
            self._most = body.received + DRAIN_BYTES
            self.channel.skip_body()
            self._peer.drain()

    def abort(self) -> None:
        """Drop the connection at once, with all bytes that have not been sent."""
        if not self.gone:
            self.channel.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        site = self.site
        super().connectionLost(reason)
        if self.handling is not None:
            self.handling.cancel()  # before the body fails: that ends its wait for it quietly
        self._stop_draining()
        if self._peer is not None:
            self._peer.leave()
        if self.body is not None:
            self.body.failed(reason)
        if site is not None:
            site.log(self)

    def _stop_draining(self) -> None:
        if self._drain_due is not None:
            self._drain_due.cancel()


def _told(request: RegistryRequest) -> str:
    """A request in flight, for the log."""
    access = request.site.access(request)
    return (
        f"{access.method} {access.path} of {access.client} ({request.elapsed:.0f} s,"
        f" {request.received} bytes received, {access.sent} sent, request {access.request})"
    )


class RegistrySite(server.Site):
    """
    Serves a resource over HTTP/1.1; all connections of a listener share it.

    :param reactor: the clock of every timeout of the connections.
    :param idle_timeout: seconds after which a connection is closed on which something is awaited
        from the client and nothing comes.
    :param limits: the limits of all connections, of each one, and of an address or a user.
    :param stopping: answers requests that come while draining; by default ``resource`` does.
    :ivar proxies: the proxies that are believed when they name another client.
    :ivar cors: which web pages may read the answers; ``None``: none.
    :ivar origin: returns what a ``Location`` begins with, such as ``https://registry:5000``;
        ``None``: it is a path.
    :ivar hot: keeps answers that are asked for again; ``None``: none are kept.
    :ivar traffic: counts the requests, for the metrics.
    :ivar rates: how often an address and a user may ask; ``None``: as often as they like.
    :ivar guarded: whether ``Cache-Status`` and ``Server-Timing`` need the gate's permission.
    :ivar timers: makes the deadlines of the connections.
    :ivar turns: lets large transfers take turns.
    :ivar channels: the open connections.
    :ivar draining: whether every answer that begins closes its connection.
    :ivar stops: whether new requests are answered 503.
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
        limits: LimitsSettings | None = None,
        *,
        guarded: bool = False,
        stopping: IResource | None = None,
        cors: Cors | None = None,
        origin: Callable[[server.Request], str] | None = None,
        hot: HotAnswers | None = None,
        rates: Rates | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(
            resource, parsePOSTFormSubmission=False, timeout=idle_timeout, reactor=reactor
        )
        self.timers, self.turns = Timers(reactor), Turns(reactor)
        self.channels: set[RegistryChannel] = set()
        self.traffic = traffic or Traffic.apart()
        self.draining = self.stops = self._closes_idle = False
        self.guarded = guarded
        self.cors, self.origin = cors, origin
        self.proxies = proxies or TrustedProxies()
        self.limits = limits or LimitsSettings()
        self.rates, self.hot = rates, hot
        self._stopping = stopping or resource
        self._connections = Connections(self.limits, self.proxies)
        self.access_log = access_log
        self._settled: Deferred[None] | None = None
        self._emptied: list[Deferred[None]] = []

    @property
    def in_flight(self) -> int:
        """The number of requests that are being handled."""
        return sum(channel.busy for channel in self.channels)

    async def retire(self) -> None:
        """
        Let each connection end in its own time: after the next answer whose headers can still tell
        the client so, or when it has been idle for too long.  Nothing is cut, and no request is
        refused; there is no limit to the time.  The listeners have to be closed by then.
        """
        self.draining = True
        await self._empty()

    async def drain(
        self, seconds: float, close_listeners: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """
        Let the requests in flight end, for at most ``seconds``; then drop the rest.

        A connection is closed after the answer that is due, when the client has taken it; a new
        request, on an open connection or on a new one, is answered 503.  When no request is in
        flight any more, the listeners and all connections are closed, but that new ones get
        :data:`NEW_SECONDS` to send the request that they were made for.  The log says every
        :data:`TELL_SECONDS` what is waited for.

        :param close_listeners: closes them.
        """
        self.draining = self.stops = True
        self.resource = self._stopping
        end = self.reactor.seconds() + seconds
        telling = LoopingCall(self._tell, end)
        telling.clock = self.reactor
        telling.start(TELL_SECONDS, now=False)
        # In the next turn: a client that has just left is not waited for.
        calls = [self.reactor.callLater(0, self._tell, end)]
        try:
            await self._settle(seconds)
            if close_listeners is not None:
                await close_listeners()
            self._closes_idle = True
            self.settle()
            calls.append(self.reactor.callLater(NEW_SECONDS, self.settle))
            await self._empty().addTimeout(max(0.0, end - self.reactor.seconds()), self.reactor)
        except TimeoutError:
            self.cut()
        finally:
            telling.stop()
            for call in calls:
                if call.active():
                    call.cancel()

    async def _settle(self, seconds: float) -> None:
        """Wait for the requests in flight, for at most ``seconds``; drop all connections then."""
        if not any(channel.awaited for channel in self.channels):
            return
        self._settled = Deferred()
        try:
            await self._settled.addTimeout(seconds, self.reactor)
        except TimeoutError:
            self.cut()

    def _empty(self) -> Deferred[None]:
        """Return what fires when there are no connections."""
        emptied: Deferred[None] = Deferred()
        if self.channels:
            self._emptied.append(emptied)
        else:
            emptied.callback(None)
        return emptied

    def cut(self) -> None:
        """Drop all connections at once, which ends a :meth:`drain`."""
        for channel in list(self.channels):
            channel.transport.abortConnection()

    def _tell(self, end: float) -> None:
        """Log what is waited for, at most until ``end``, in seconds of the clock."""
        taking = sum(not channel.is_new for channel in self.channels)
        seconds = end - self.reactor.seconds()
        busy = list(self.traffic.running)
        if not busy and not taking:
            return
        if not busy:
            _log.info(
                "stopping: waiting up to {seconds:.0f} s for {count} clients to take their answers",
                seconds=seconds,
                count=taking,
            )
            return
        busy.sort(key=lambda request: -request.elapsed)
        more = f", and {len(busy) - TELL_MOST} more" if len(busy) > TELL_MOST else ""
        _log.info(
            "stopping: waiting up to {seconds:.0f} s for {count} running requests (another SIGTERM"
            " cuts them): {requests}",
            seconds=seconds,
            count=len(busy),
            requests=", ".join(map(_told, busy[:TELL_MOST])) + more,
        )

    def settle(self) -> None:
        """Go on with :meth:`drain` if no request is in flight any more that it waits for."""
        if not self.stops or any(channel.awaited for channel in self.channels):
            return
        settled, self._settled = self._settled, None
        if settled is not None:
            settled.callback(None)
        if self._closes_idle:
            for channel in list(self.channels):
                if not (channel.transport.disconnecting or channel.is_new):
                    channel.loseConnection()

    def channel_opened(self, channel: RegistryChannel) -> bool:
        """Count ``channel``, which has been connected.  Returns whether there is room for it."""
        transport = channel.transport
        channel.counted = self._connections.add(transport.getHost(), transport.getPeer())
        if channel.counted is None:
            return False
        self.channels.add(channel)
        self.traffic.connections.inc()
        return True

    def channel_lost(self, channel: RegistryChannel) -> None:
        """Forget ``channel``, which is closed."""
        if channel in self.channels:
            self.channels.discard(channel)
            self.traffic.connections.dec()
        if channel.counted is not None:
            self._connections.remove(channel.counted)
        if channel.busy:
            self.settle()
        if not self.channels:
            emptied, self._emptied = self._emptied, []
            for each in emptied:
                each.callback(None)

    def log(self, request: http.Request) -> None:
        """Count a request that has ended, one way or another, and write its line of the log."""
        assert isinstance(request, RegistryRequest)
        self.traffic.running.discard(request)
        status = request.code if request.startedWriting else 0
        key = (request.route, request.method, status)
        tally = self.traffic.tallies.get(key) or self.traffic.tally(*key)
        received, sent = request.counted
        body = request.body
        came = 0 if body is None else body.received - received
        tally.count(request.elapsed, came, request.sentLength - sent)
        if self.access_log.wanted:
            self.access_log.write(self.access(request))

    def access(self, request: RegistryRequest) -> Access:
        """Return what the access log says of ``request``, as far as it has been answered."""
        agent = request.requestHeaders.getRawHeaders(b"User-Agent", (b"-",))[0]
        return Access(
            client=request.address,
            user=request.actor,
            method=request.method.decode("utf-8", "backslashreplace"),
            path=request.uri.decode("utf-8", "backslashreplace"),
            status=request.code if request.startedWriting else 0,
            sent=request.sentLength,
            seconds=round(request.elapsed, 6),
            agent=agent.decode("utf-8", "backslashreplace"),
            request=request.request_id,
        )

    def startFactory(self) -> None:
        # Neither the log file nor the clock that ticks every second of the base.
        self.access_log.open()

    def stopFactory(self) -> None:
        # The last listener is closed, but not the access log: requests in flight have yet to end.
        pass

    def acceptableProtocols(self) -> list[bytes]:
        # Bodies don't stream over HTTP/2: Twisted has another path for them.
        return [b"http/1.1"]
