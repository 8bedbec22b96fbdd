"""Which addresses an upstream may lead the daemon to: SSRF ends here, after names are resolved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import inet_aton, inet_ntoa
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactd.upstream.http.errors import OutOfReach
from artifactd.upstream.http.url import Target


class Area(Enum):
    """A kind of addresses; the value completes "its address is …"."""

    PUBLIC = "public"
    LOOPBACK = "this machine's loopback"
    PRIVATE = "of a private network"  # RFC 1918, RFC 4193, RFC 6598 (carrier-grade NAT)
    BENCHMARK = "of the network for benchmarks"  # RFC 2544; some proxies resolve every name to it
    OTHER = "link-local, multicast or reserved"  # the metadata of clouds is at 169.254.169.254


# A private upstream may lead to hosts beside it, and one on loopback to others there.
_SHARED = frozenset({Area.LOOPBACK, Area.PRIVATE, Area.BENCHMARK})

_PRIVATE = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10"),
    )
)
_BENCHMARK = ip_network("198.18.0.0/15")
_GLOBAL_UNICAST = ip_network("2000::/3")  # RFC 4291, 2.4
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052, 2.1
_LOCAL_NAT64 = ip_network("64:ff9b:1::/48")  # RFC 8215
_THIS_NETWORK = ip_network("0.0.0.0/8")  # nobody's, and not translated


def area_of(address: str) -> Area:
    """
    Return the area of an IP address; one that carries an IPv4 address is where that is.

    :raises ValueError: if it is no address.
    """
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip in _LOCAL_NAT64:
            areas = {area_of(str(each)) for each in _translated(ip)}
            # Public addresses are within the reach of every upstream.
            restricted = areas - {Area.PUBLIC} or areas
            return restricted.pop() if len(restricted) == 1 else Area.OTHER
        ip = _carried(ip) or ip
    if ip.is_loopback:
        return Area.LOOPBACK
    if any(ip in network for network in _PRIVATE):
        return Area.PRIVATE
    if ip in _BENCHMARK:
        return Area.BENCHMARK
    # The standard library calls multicast, and much that nobody has been given, global.
    unicast = ip.version == 4 or ip in _GLOBAL_UNICAST
    return Area.PUBLIC if ip.is_global and unicast and not ip.is_multicast else Area.OTHER


def _carried(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that ``ip`` leads to: IPv4-mapped, by 6to4, or by NAT64."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def _translated(ip: IPv6Address) -> list[IPv4Address]:
    """
    The IPv4 addresses that ``ip``, of the local-use prefix, may lead to.

    A network uses a prefix of 48, 56, 64 or 96 bits; bits 64 to 71 are no part of the address.
    """  # RFC 6052, 2.2; RFC 8215, 5
    value = int(ip)
    without = (value >> 64 << 56) | (value & (1 << 56) - 1)  # 120 bits: none of bits 64 to 71
    shifts = (120 - 48 - 32, 120 - 56 - 32, 120 - 64 - 32, 0)
    found = (IPv4Address(without >> shift & 0xFFFFFFFF) for shift in shifts)
    return [each for each in found if each not in _THIS_NETWORK]


def _literal(host: str) -> str | None:
    """The address that ``host`` is without being resolved; ``None``: it is a name."""
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return "127.0.0.1"
    try:
        return str(ip_address(name))
    except ValueError:
        pass
    try:
        return inet_ntoa(inet_aton(name))  # "127.1", "2130706433", "0x7f.1", as resolvers take them
    except OSError:
        return None


@define(eq=False)
class Reach:
    """
    Decides which hosts one upstream may lead the daemon to, by redirects and as token servers.

    Public addresses are always within its reach.  The upstream's own host is, at the kinds of
    addresses that it has had when it was first resolved to one that can be used: a name that was
    public and then resolves to a private address (DNS rebinding) is refused.  Where the upstream
    itself is on loopback, in a private network or in that for benchmarks, other hosts of that same
    kind are within its reach too; link-local addresses of others, multicast and the like never are.

    :param upstream: the host in the upstream's URL, as :attr:`Target.host`; ``None``: it is not the
        upstream that leads, but a manifest, to public addresses alone.
    :param hosts: hosts (``host`` or ``host:port``, in lower case) that the settings name: they may
        have any address.
    :param setting: the setting that names them, for messages.
    """

    upstream: str | None
    hosts: frozenset[str] = frozenset()
    setting: str = "private_hosts"
    _areas: frozenset[Area] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        literal = None if self.upstream is None else _literal(self.upstream)
        if literal is not None:
            self._areas = frozenset({area_of(literal)})

    def check(self, target: Target) -> None:
        """
        Refuse a ``target`` that is an address, or ``localhost``, as :meth:`admitted` does.

        This is all that can be checked where a proxy resolves the name.
        """
        literal = _literal(target.host)
        if literal is not None:
            self.admitted(target, [literal])

    def admitted(self, target: Target, addresses: Sequence[str]) -> Collection[str]:
        """
        Return those of the ``addresses`` of ``target`` that may be connected to.

        :raises OutOfReach: if there are addresses, and none of them may.
        """
        if target.is_one_of(self.hosts):
            return addresses
        areas = {address: area_of(address) for address in addresses}
        if target.host != self.upstream:
            granted = (self._areas or frozenset()) & _SHARED
        else:
            if self._areas is None and areas:
                # Only a private upstream has private addresses alone.  A public one could list them
                # beside its own, to be led there later.
                found_areas = frozenset(areas.values())
                public = Area.PUBLIC in found_areas
                usable = frozenset({Area.PUBLIC}) if public else found_areas - {Area.OTHER}
                self._areas = usable or None
            granted = self._areas or frozenset()
        found = [a for a, area in areas.items() if area is Area.PUBLIC or area in granted]
        if addresses and not found:
            raise OutOfReach(
                f"{target.authority} is not asked: its address is {areas[addresses[0]].value}, and"
                f" {self.upstream or 'a manifest'} may lead there only if {self.setting} names it"
            )
        return found


@implementer(IStreamClientEndpoint)
@frozen
class CheckedEndpoint:
    """
    Connects to those addresses of ``target`` that are within reach.

    :ivar make: makes an endpoint that resolves the name, and connects, by the reactor it is given.
    """

    reactor: Any
    target: Target
    reach: Reach
    make: Callable[[Any], IStreamClientEndpoint]

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """:raises OutOfReach: if none of the addresses is."""
        resolver = _Resolver(self.reactor.nameResolver, self.target, self.reach)
        connecting: Deferred[Any] = self.make(_Resolving(self.reactor, resolver)).connect(
            protocolFactory
        )

        def failed(failure: Failure) -> Failure:
            return failure if resolver.refused is None else Failure(resolver.refused)

        return connecting.addErrback(failed)


@implementer(IReactorPluggableNameResolver)
@frozen
class _Resolving:
    """A reactor, with another resolver of names."""

    _reactor: Any
    nameResolver: IHostnameResolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IHostnameResolver)
@define(eq=False)
class _Resolver:
    """
    Resolves names, and leaves out the addresses that are out of reach.

    :ivar refused: the error if none was left.
    """

    _below: IHostnameResolver
    _target: Target
    _reach: Reach
    refused: OutOfReach | None = field(default=None, init=False)

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        receiver = _Receiver(resolutionReceiver, self._admitted)
        return self._below.resolveHostName(
            receiver, hostName, portNumber, addressTypes, transportSemantics
        )

    def _admitted(self, addresses: Sequence[str]) -> Collection[str]:
        try:
            return self._reach.admitted(self._target, addresses)
        except OutOfReach as error:
            self.refused = error
            return ()


@implementer(IResolutionReceiver)
@define(eq=False)
class _Receiver:
    """Passes on the addresses that ``admitted`` returns, once all have come."""

    _receiver: IResolutionReceiver
    _admitted: Callable[[Sequence[str]], Collection[str]]
    _addresses: list[Any] = field(factory=list, init=False)

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self._receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        admitted = self._admitted([address.host for address in self._addresses])
        for address in self._addresses:
            if address.host in admitted:
                self._receiver.addressResolved(address)
        self._receiver.resolutionComplete()
