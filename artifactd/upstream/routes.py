"""How a target is reached: directly, by a request to a proxy, or by a tunnel through one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool, ProxyAgent
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from artifactd.upstream.connection import Connection, ConnectionFactory, Connections
from artifactd.upstream.hop import Hop
from artifactd.upstream.proxy import Proxies, Proxy
from artifactd.upstream.target import Target, bracketed
from artifactd.upstream.tls import Trust
from artifactd.upstream.tunnel import TunnelEndpoint


class _VerbatimEndpoint(HostnameEndpoint):
    """
    Takes a name as it is: by IDNA, to which Twisted holds it, none has an underscore, or hyphens in
    the third and fourth place, and hosts do.
    """

    @staticmethod
    def _hostAsBytesAndText(host: Any) -> tuple[bool, bytes, str]:
        labels = host.rstrip(".").split(".")
        invalid = len(host) > 253 or not all(0 < len(label) < 64 for label in labels)
        return invalid, host.encode("ascii"), host


@implementer(IStreamClientEndpoint)
@frozen
class _WatchedEndpoint:
    """
    Connects by ``below`` and tells its hop of it.

    :ivar key: endpoints with the same one lead to the same peer: Twisted's agent for proxies looks
        in the pool by endpoint.
    """

    key: Hashable
    _below: IStreamClientEndpoint = field(eq=False)
    _connections: Connections = field(eq=False)
    _hop: Hop = field(eq=False)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        self._hop.connecting()
        # Otherwise each connection is worth two lines in the log to it.
        protocolFactory.noisy = False  # type: ignore[attr-defined]
        factory = ConnectionFactory(protocolFactory, self._connections)
        connecting: Deferred[Any] = self._below.connect(factory)
        return connecting.addCallback(self._connected)

    def _connected(self, connection: Connection) -> IProtocol:
        self._hop.connected()
        wrapped: IProtocol = connection.wrappedProtocol
        return wrapped


@implementer(IAgentEndpointFactory)
@frozen
class _Only:
    """The endpoint of the one request that an agent is made for."""

    endpoint: IStreamClientEndpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self.endpoint


@frozen
class Routes:
    """Makes the agents of a transport, which share its connections."""

    _reactor: Any
    _pool: HTTPConnectionPool
    _connections: Connections
    _proxies: Proxies
    _trust: Trust
    _connect_timeout: float

    def proxy(self, target: Target) -> Proxy | None:
        """The proxy through which ``target`` is asked, or ``None``."""
        return self._proxies.for_target(target)

    def agent(self, target: Target, proxy: Proxy | None, hop: Hop) -> IAgent:
        """An agent for ``hop``, a request of ``target``."""
        address = proxy.address if proxy else target
        socket: IStreamClientEndpoint = _VerbatimEndpoint(
            self._reactor, address.host, address.port, timeout=self._connect_timeout
        )
        if target.scheme == "https":
            socket = self._secured(socket, target, proxy)
        endpoint = _WatchedEndpoint(address, socket, self._connections, hop)
        if proxy and target.scheme == "http":
            agent: IAgent = ProxyAgent(endpoint, self._reactor, self._pool)
        else:
            agent = Agent.usingEndpointFactory(self._reactor, _Only(endpoint), self._pool)
        return agent

    def _secured(
        self, socket: IStreamClientEndpoint, target: Target, proxy: Proxy | None
    ) -> IStreamClientEndpoint:
        if proxy:
            destination = f"{bracketed(target.host)}:{target.port}"
            socket = TunnelEndpoint(socket, destination, proxy.authorization)
        return wrapClientTLS(self._trust.options(target.host), socket)
