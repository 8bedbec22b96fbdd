"""Who is at the other end: the peer of the connection, or whom a trusted proxy speaks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from attrs import frozen
from twisted.internet.address import UNIXAddress
from twisted.web.server import Request

UNIX = "unix"

_LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})

# What a host and its port may look like in a URL that clients are told: RFC 3986, 3.2.
_AUTHORITY = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE
)

# A request that has one of these has come by way of something else: a proxy, or a web page that a
# browser of this machine shows (Origin: Fetch standard, 3.1).
_PASSED_ON = frozenset({b"forwarded", b"via", b"x-real-ip", b"origin"})


def is_local(request: Request) -> bool:
    """
    Whether it was made on this machine: over loopback or a Unix socket, and nothing in it tells of
    somebody else whom it was made for.
    """
    if not from_here(request.client):
        return False
    names = (name.lower() for name, _ in request.requestHeaders.getAllRawHeaders())
    return not any(name in _PASSED_ON or name.startswith(b"x-forwarded-") for name in names)


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


@frozen
class TrustedProxies:
    """
    The proxies whose word counts.

    :ivar networks: their addresses.
    :ivar unix: whether whoever connects to a Unix socket is one.
    """

    networks: Sequence[IPv4Network | IPv6Network] = ()
    unix: bool = False

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """
        Addresses (``127.0.0.1``), networks (``10.0.0.0/8``) and the word ``unix``.

        :raises ValueError: if one is none of these.
        """
        texts = list(texts)
        return cls([ip_network(text) for text in texts if text != UNIX], UNIX in texts)

    def trusts(self, peer: object) -> bool:
        """Whether the word of ``peer``, an address of Twisted's, counts."""
        if isinstance(peer, UNIXAddress):
            return self.unix
        return bool(self.networks) and self._has(_address(getattr(peer, "host", "")))

    def client(self, request: Request) -> str:
        """
        The address of the client: of the peer, or of the last one in ``X-Forwarded-For`` that is
        no trusted proxy.  ``unix`` for a Unix socket.
        """
        peer = request.client
        address = UNIX if isinstance(peer, UNIXAddress) else str(getattr(peer, "host", "-"))
        if not self.trusts(peer):
            return address
        values = request.requestHeaders.getRawHeaders(b"X-Forwarded-For", ())
        hops = b",".join(values).decode("latin-1").split(",")
        for hop in reversed(hops):
            said = _address(_without_port(hop.strip()))
            if said is None:
                break  # no address: whatever stands before it can't be believed either
            address = str(said)
            if not self._has(said):
                break
        return address

    def origin(self, request: Request) -> str:
        """
        Scheme and authority that the client has reached us by, such as ``https://registry:5000``.

        Both are the client's word, or a proxy's: fit for what this very client is told, and for
        nothing that is kept.
        """
        secure = request.isSecure()
        if self.trusts(request.client):
            said = request.requestHeaders.getRawHeaders(b"X-Forwarded-Proto", [b""])[-1]
            scheme = said.rpartition(b",")[2].strip().lower()
            if scheme in (b"http", b"https"):
                secure = scheme == b"https"
        hosts = request.requestHeaders.getRawHeaders(b"Host", ())
        host = hosts[0].decode("latin-1").strip() if len(hosts) == 1 else ""
        if not _AUTHORITY.fullmatch(host):
            host = _own_authority(request.host)
        return f"{'https' if secure else 'http'}://{host}"

    def _has(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self.networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, one of IPv4 in IPv6's clothes as the former; ``None`` if it is none."""
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
    """Where the connection ends, if the client doesn't name it."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        return "localhost"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
