"""The site: what all connections of a listener share."""
# twisted.web is half annotated: Site.__init__ is not.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.web import http, resource, server
from twisted.web.resource import IResource

from artifactd.oci.errors import RegistryError, Unavailable
from artifactd.web.accesslog import Access, AccessLog
from artifactd.web.answer import Answer
from artifactd.web.channel import RegistryChannel
from artifactd.web.connections import ConnectionLimits, Connections
from artifactd.web.forwarded import TrustedProxies, from_here
from artifactd.web.rates import Rates, TokenBuckets
from artifactd.web.request import RegistryRequest

# Seconds after which it is worth asking whether the service is back.
_RETRY_AFTER = "10"


class _Refusal(resource.Resource):
    """What is there for a request that is refused whatever it is about."""

    isLeaf = True

    def __init__(self, error: RegistryError) -> None:
        super().__init__()
        self._error = error

    def render(self, request: server.Request) -> int:
        assert isinstance(request, RegistryRequest)
        Answer.error(self._error).write(request)
        request.finish()
        return server.NOT_DONE_YET


_STOPPING = _Refusal(
    Unavailable(
        "the registry is being stopped: try again in a moment", None, {"Retry-After": _RETRY_AFTER}
    )
)


class RegistrySite(server.Site):
    """
    Serves a resource over HTTP/1.1.

    :param reactor: the clock of every timeout of the connections.
    :param idle_timeout: seconds after which a connection is closed on which something is awaited
        from the client and nothing comes.
    :param limits: of connections, and of what each may take.
    :param rates: how often one address and one user may ask.
    :ivar proxies: whose word counts on whom they speak for.
    :ivar guarded: whether answers tell how they were come by only where a gate lets them.
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
    ) -> None:
        super().__init__(
            resource, parsePOSTFormSubmission=False, timeout=idle_timeout, reactor=reactor
        )
        self.channels: set[RegistryChannel] = set()
        self.draining = False
        self.guarded = guarded
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
            return _STOPPING
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
