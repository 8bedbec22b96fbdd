"""Proxies of the environment variables, and tunnels through them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Self
from urllib.parse import unquote

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.kit.start import StartError
from artifactd.upstream.http.url import Target, is_loopback

_RULE = re.compile(r"(?P<host>\[[^\]]*\](?:/[0-9]+)?|[^:]*)(?::(?P<port>[0-9]+))?")


@frozen
class _Rule:
    """
    One rule of ``no_proxy``.

    :ivar domain: the domain, which covers all below it too; ``""`` covers every host.
    :ivar network: the network; an address is a network of one.
    """

    domain: str | None
    network: IPv4Network | IPv6Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        match = None if text.count(":") > 1 and "[" not in text else _RULE.fullmatch(text)
        host = match["host"].replace("[", "").replace("]", "") if match else text
        port = int(match["port"]) if match and match["port"] else None
        try:
            return cls(None, ip_network(host, strict=False), port)
        except ValueError:
            domain = host.removeprefix("*").strip(".")
            return cls(domain if domain or host == "*" else None, None, port)

    def covers(self, host: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.domain == "":
            return True
        try:
            address = ip_address(host)
        except ValueError:
            return self.domain is not None and f".{host}".endswith(f".{self.domain}")
        return self.network is not None and address in self.network


@frozen
class NoProxy:
    """
    The hosts that are asked without a proxy, by the rules of ``no_proxy``.

    They are curl's: separated by commas or spaces; each a domain (which covers all below it, with
    or without a leading dot), an address or a network in CIDR notation, any of them with ``:port``;
    ``*`` is every host.
    """

    _rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, value: str) -> Self:
        """Parse the rules; a malformed one covers nothing."""
        return cls(tuple(_Rule.parse(text) for text in re.split(r"[\s,]+", value.lower()) if text))

    def covers(self, host: str, port: int) -> bool:
        """Whether ``host`` (in lower case) is asked at ``port`` without a proxy."""
        host = host.rstrip(".")
        return any(rule.covers(host, port) for rule in self._rules)


_URL = re.compile(r"(?:(?P<scheme>[A-Za-z0-9+.-]+)://)?(?:(?P<login>[^/?#]*)@)?(?P<rest>[^@]*)")

# Read in this order.  HTTP_PROXY is not read: a web server that runs a program by CGI sets it to
# the client's header "Proxy" (CVE-2016-5385).
_VARIABLES = {
    "http": ("http_proxy", "all_proxy", "ALL_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
}


@frozen
class Proxy:
    """
    An HTTP proxy.

    :ivar authorization: the value of ``Proxy-Authorization``, or ``None``.
    """

    address: Target
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """
        Parse ``[http://][user:password@]host[:port]``; without a port it is 80.

        :raises ValueError: if it is anything else.
        """
        match = _URL.fullmatch(url.strip())
        if match is None or (match["scheme"] or "http").lower() != "http":
            raise ValueError("not the URL of an http proxy")
        address = Target.parse(f"http://{match['rest']}")
        if match["login"] is None:
            return cls(address)
        user, _, password = match["login"].partition(":")
        login = f"{unquote(user)}:{unquote(password)}".encode()
        return cls(address, f"Basic {b64encode(login).decode('ascii')}")


@frozen
class Proxies:
    """
    Chooses the proxy for a target.

    This machine's loopback is asked without one: a proxy elsewhere would ask its own loopback.

    :ivar by_scheme: the proxy for targets of a scheme.
    """

    by_scheme: Mapping[str, Proxy]
    _exempt: NoProxy

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """
        Read ``http_proxy`` (in lower case only), and ``https_proxy``, ``all_proxy`` and
        ``no_proxy`` (also in upper case); an empty variable counts as unset.

        :raises StartError: if a variable that counts is not the URL of an ``http`` proxy.
        """
        by_scheme: dict[str, Proxy] = {}
        for scheme, names in _VARIABLES.items():
            name = next((name for name in names if environ.get(name)), None)
            if name is not None:
                by_scheme[scheme] = _proxy(name, environ[name])
        exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        return cls(by_scheme, NoProxy.parse(exempt))

    def for_target(self, target: Target) -> Proxy | None:
        """Return the proxy through which ``target`` is asked, or ``None``."""
        if is_loopback(target.host) or self._exempt.covers(target.host, target.port):
            return None
        return self.by_scheme.get(target.scheme)


def _proxy(name: str, url: str) -> Proxy:
    try:
        return Proxy.parse(url)
    except ValueError:
        # Without the value, which may hold a password.
        raise StartError(
            f"the environment variable {name} has to be [http://][user:password@]host[:port]"
        ) from None


MAX_HEAD = 64 * 1024
"""Bytes of status line and headers that a proxy may answer with."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: [^\r\n]*)?\r?\n")


class ProxyRefused(Exception):
    """
    A proxy refused to make a tunnel.

    :ivar status: the status of its answer; ``None`` if that was not HTTP.
    """

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class _Tunnel(Protocol):
    """
    Asks a proxy for a tunnel, and connects another protocol inside of it.

    :ivar made: fires with the protocol inside.
    """

    transport: ITCPTransport

    def __init__(self, request: bytes, factory: IProtocolFactory, address: IAddress) -> None:
        self.made: Deferred[IProtocol] = Deferred(self._cancelled)
        self._request = request
        self._factory = factory
        self._address = address
        self._received = b""
        self._inside: IProtocol | None = None

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._inside is not None:
            self._inside.dataReceived(data)
        elif not self.made.called:
            self._received += data
            end = _HEAD_END.search(self._received)
            if end is not None:
                self._answered(self._received[: end.end()], self._received[end.end() :])
            elif len(self._received) > MAX_HEAD:
                self._fail(ProxyRefused(None))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inside is not None:
            self._inside.connectionLost(reason)
        elif not self.made.called:
            self.made.errback(reason)

    def _answered(self, head: bytes, rest: bytes) -> None:
        match = _STATUS.match(head)
        status = int(match[1]) if match else None
        if status is None or not 200 <= status < 300:
            self._fail(ProxyRefused(status))
            return
        self._received = b""
        inside = self._factory.buildProtocol(self._address)
        assert inside is not None
        self._inside = inside
        inside.makeConnection(self.transport)
        self.made.callback(inside)
        if rest:
            inside.dataReceived(rest)

    def _fail(self, error: ProxyRefused) -> None:
        self.transport.abortConnection()
        self.made.errback(error)

    def _cancelled(self, _: Deferred[IProtocol]) -> None:
        self.transport.abortConnection()


class _TunnelFactory(Factory):
    """Makes a :class:`_Tunnel`; ``inside`` makes the protocol inside of it."""

    noisy = False

    def __init__(self, request: bytes, inside: IProtocolFactory) -> None:
        self._request = request
        self._inside = inside

    def buildProtocol(self, addr: IAddress | None) -> _Tunnel:
        assert addr is not None
        return _Tunnel(self._request, self._inside, addr)


@implementer(IStreamClientEndpoint)
@frozen
class TunnelEndpoint:
    """
    Connects to a host through a proxy's tunnel.

    :ivar proxy: connects to the proxy.
    :ivar destination: ``host:port``, with a port always.
    :ivar authorization: the value of ``Proxy-Authorization``, or ``None``.
    """  # RFC 9110, 9.3.6 (CONNECT)

    proxy: IStreamClientEndpoint
    destination: str
    authorization: str | None = field(repr=False)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """
        :raises ProxyRefused: if the proxy answers with another status than 2xx.
        """
        lines = [f"CONNECT {self.destination} HTTP/1.1", f"Host: {self.destination}"]
        if self.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        request = "\r\n".join([*lines, "", ""]).encode("ascii")
        connecting: Deferred[Any] = self.proxy.connect(_TunnelFactory(request, protocolFactory))
        return connecting.addCallback(lambda tunnel: tunnel.made)
