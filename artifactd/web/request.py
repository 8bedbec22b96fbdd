"""
Requests that are handled as soon as their headers are complete.

Everything private to Twisted that serving HTTP relies on is here and in the module of the channel;
``tests/wire`` fails if any of it moves.  ``HTTPChannel`` calls ``gotLength`` after the headers and
before the body, and ``requestReceived`` after the last byte.
"""
# twisted.web is half annotated: what is overridden here mostly is not.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import secrets
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

from twisted.internet import tcp
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server

from artifactd.auth.identity import Caller
from artifactd.kit.budget import RECEIVE_SIZE
from artifactd.web.body import RequestBody
from artifactd.web.channel import RegistryChannel
from artifactd.web.connections import BodyPace
from artifactd.web.paths import origin_form

if TYPE_CHECKING:
    from artifactd.web.site import RegistrySite

# Bytes and seconds for which the rest of a body is read and dropped after an early answer, so that
# the client gets to read the answer before the connection is closed.
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 10.0
# With more connections than this each receives less at a time, so that a turn of the reactor, in
# which every one of them may receive, stays short.
_FEW = 16


class _Peer:
    """
    The sender of one body: an :class:`artifactd.web.body.BodySource`.

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
            channel.site.reactor,
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
    _bound: IDelayedCall | None = None
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
        self._bound = self.channel.callLater(DRAIN_SECONDS, self.abort)
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
        if self._bound is not None and self._bound.active():
            self._bound.cancel()
