"""The address of a client: that of the connection's peer, or the one that a trusted proxy names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Self

from attrs import frozen
from twisted.internet.address import UNIXAddress

from artifactd.auth.guessing import network
from artifactd.auth.identity import Identity, Kind

if TYPE_CHECKING:  # the supervisor, which has no requests, does without
    from twisted.web.server import Request

UNIX = "unix"

_LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})

# A host and its port, fit for a URL in an answer: RFC 3986, 3.2.
_AUTHORITY = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f]*:[0-9a-f:.]+\])(?::[0-9]{1,5})?",
    re.IGNORECASE,
)

# A request with one of these, or with X-Forwarded-…, was passed on by a proxy.
_PASSED_ON = frozenset({b"Forwarded", b"Via", b"X-Real-Ip"})


def is_local(request: Request) -> bool:
    """
    Whether ``request`` was made on this machine and not passed on for another client: it came over
    loopback or a Unix socket, and has no header that proxies or browsers add.

    A browser sends ``Origin`` with each request that may change something.  For a read see
    :func:`names_loopback`.
    """
    # A web page that a browser on this machine shows: Fetch standard, 3.1.
    if not from_here(request.client) or request.requestHeaders.hasHeader(b"Origin"):
        return False
    return not was_passed_on(request)


def was_passed_on(request: Request) -> bool:
    """Whether ``request`` has a header field that proxies add."""
    for name, _ in request.requestHeaders.getAllRawHeaders():  # in Twisted's capitals
        if name in _PASSED_ON or name.startswith(b"X-Forwarded-"):
            return True
    return False


def names_loopback(request: Request) -> bool:
    """
    Whether ``Host`` is a loopback address or ``localhost``, with or without a port; or the request
    came over a Unix socket, which no browser uses.

    The page of a web server that lets its name mean 127.0.0.1 (DNS rebinding) has a browser on this
    machine send that name, and no ``Origin`` with a GET.
    """
    if isinstance(request.client, UNIXAddress):
        return True
    hosts = request.requestHeaders.getRawHeaders(b"Host", ())
    if len(hosts) != 1:
        return False
    host = _without_port(hosts[0].decode("latin-1").strip())
    return host.lower() == "localhost" or is_loopback(host)


def from_here(peer: object) -> bool:
    """Whether ``peer``, an address of Twisted's, is loopback or a Unix socket."""
    if isinstance(peer, UNIXAddress):
        return True
    return is_loopback(getattr(peer, "host", ""))


def is_loopback(host: str) -> bool:
    """Whether an address is one of this machine's loopback."""
    if host in _LOCAL_HOSTS:
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def peer_address(peer: object) -> str:
    """Return the host of ``peer``, an address of Twisted's; ``unix`` for a Unix socket."""
    return UNIX if isinstance(peer, UNIXAddress) else str(getattr(peer, "host", "-"))


@frozen
class TrustedProxies:
    """
    The proxies that are believed when they name a client and its scheme.

    :ivar networks: their addresses.
    :ivar unix: whether every peer of a Unix socket is one.
    """

    networks: Sequence[IPv4Network | IPv6Network] = ()
    unix: bool = False

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """
        Parse addresses (``127.0.0.1``), networks (``10.0.0.0/8``) and the word ``unix``.

        :raises ValueError: if a text is none of these.
        """
        texts = list(texts)
        return cls([ip_network(text) for text in texts if text != UNIX], UNIX in texts)

    def trusts(self, peer: object) -> bool:
        """Whether ``peer``, an address of Twisted's, is one of these proxies."""
        if isinstance(peer, UNIXAddress):
            return self.unix
        return bool(self.networks) and self._has(_address(getattr(peer, "host", "")))

    def client(self, request: Request) -> str:
        """
        Return the address of the client: of the peer, or the last one in ``X-Forwarded-For`` that
        is no trusted proxy.  ``unix`` for a Unix socket.
        """
        peer = request.client
        address = peer_address(peer)
        if not self.trusts(peer):
            return address
        values = request.requestHeaders.getRawHeaders(b"X-Forwarded-For", ())
        hops = b",".join(values).decode("latin-1").split(",")
        for hop in reversed(hops):
            said = _address(_without_port(hop.strip()).partition("%")[0])
            if said is None:
                break  # no address: those before it can't be believed either
            address = str(said)
            if not self._has(said):
                break
        return address

    def origin(self, request: Request) -> str:
        """
        Return the scheme and authority that the client used, such as ``https://registry:5000``.

        The client or a proxy claims both.  They may stand in an answer to this client, and must not
        be stored.
        """
        secure = request.isSecure()
        if self.trusts(request.client):
            said = request.requestHeaders.getRawHeaders(b"X-Forwarded-Proto", [b""])[-1]
            scheme = said.rpartition(b",")[2].strip().lower()
            if scheme in (b"http", b"https"):
                secure = scheme == b"https"
        hosts = request.requestHeaders.getRawHeaders(b"Host", ())
        host = hosts[0].decode("latin-1").strip() if len(hosts) == 1 else ""
        is_host = _AUTHORITY.fullmatch(host) is not None
        if not is_host or (host[0] == "[" and _address(_without_port(host)) is None):
            host = _own_authority(request.host)
        return f"{'https' if secure else 'http'}://{host}"

    def _has(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self.networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address; an IPv4-mapped IPv6 address becomes IPv4, and other text ``None``."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, port = text.partition(":")
    return host if colon and port.isdigit() else text


def _own_authority(address: object) -> str:
    """Return the address and port of the server's end of the connection, as in a URL."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        return "localhost"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def owner_of(identity: Identity, address: str) -> str | None:
    """
    Return the owner of what a request takes: requests of one user count together, and those of one
    address that has not logged in; ``None`` for this machine.  No user's name has a colon.
    """
    if identity.kind is not Kind.ANONYMOUS:
        return str(identity)
    counted = counted_address(address)
    return None if counted is None else f"address:{counted}"


def counted_address(address: str) -> str | None:
    """
    Return the key by which limits count a client's address: an IPv4 address, or an IPv6 network of
    64 bits.  ``None`` for this machine, which such limits do not apply to.
    """
    return None if address == UNIX or is_loopback(address) else network(address)
