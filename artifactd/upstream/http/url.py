"""URLs as they are put on the wire: a CDN's signature breaks if anything rewrites them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from ipaddress import AddressValueError, IPv6Address, ip_address
from typing import Self
from urllib.parse import quote, urljoin

from attrs import define, field, frozen

from artifactd.upstream.http.errors import Unreachable

_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")

# RFC 3986, appendix B, for a URL with an authority.
_ABSOLUTE = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)"
    r"(?P<path>[^?#]*)(?P<query>\?[^#]*)?"
)
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{0,5}))?")

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


@frozen
class Target:
    """
    An ``http`` or ``https`` URL.

    :ivar host: in lower case; an IPv6 address without brackets.
    :ivar resource: path and query, exactly as written; begins with a slash (RFC 9112, 3.2.1).
    """

    scheme: str
    host: str
    port: int
    resource: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """
        Parse an absolute URL; its fragment is left out.

        Spaces and characters beyond ASCII are percent-encoded; nothing else is changed.

        :raises ValueError: if it is another kind of URL, malformed, or has a user name in it; the
            message does not repeat the URL.
        """
        match = _ABSOLUTE.match(quote(url.strip(), safe=_PRINTABLE))
        scheme = match["scheme"].lower() if match else ""
        if match is None or scheme not in _PORTS:
            raise ValueError("not an http or https URL")
        host, port = _host_and_port(match["authority"])
        resource = (match["path"] or "/") + (match["query"] or "")
        return cls(scheme, host, _PORTS[scheme] if port is None else port, resource)

    def join(self, reference: str) -> Self:
        """
        Resolve a ``Location`` relative to this URL.

        :param reference: its bytes beyond ASCII decoded from ISO 8859-1.
        :raises ValueError: as :meth:`parse`.
        """  # RFC 9110, 10.2.2
        location = quote(reference.strip(), safe=_PRINTABLE, encoding="iso-8859-1")
        return self.parse(
            location if _ABSOLUTE.match(location) else urljoin(self.url, location),
        )

    @property
    def path(self) -> str:
        """The path, exactly as written."""
        return self.resource.partition("?")[0]

    @property
    def origin(self) -> tuple[str, str, int]:
        """The origin: credentials go along to the same one only."""  # RFC 6454, 4
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """``host[:port]``, the port only if it is not the scheme's."""
        host = bracketed(self.host)
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def is_one_of(self, hosts: Set[str]) -> bool:
        """Whether ``hosts`` has its host, alone or with its port (``host:port``)."""
        host = bracketed(self.host)
        return host in hosts or f"{host}:{self.port}" in hosts

    @property
    def url(self) -> str:
        """The whole URL.  Not for messages, since a query may be a signature."""
        return f"{self.scheme}://{self.authority}{self.resource}"


def bracketed(host: str) -> str:
    """Put an IPv6 address into brackets; return any other host as it is."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address of this machine's loopback, or ``localhost``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".") == "localhost"


def _host_and_port(authority: str) -> tuple[str, int | None]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None or "@" in authority:
        raise ValueError("malformed host, or one with a user name")
    host, port = match["host"].lower(), match["port"]
    if host.startswith("["):
        host = _ipv6(host[1:-1])
    elif not _NAME.fullmatch(host):
        raise ValueError("malformed host name")
    if not port:
        return host, None
    if not 0 < int(port) < 65536:
        raise ValueError("no such port")
    return host, int(port)


def _ipv6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except AddressValueError:
        raise ValueError("malformed IPv6 address") from None


REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
"""Redirects that are followed, all with the same method: it is GET or HEAD (RFC 9110, 15.4)."""

LIMIT = 5
"""Redirects that one request follows at most."""


# Parameters with which a URL carries its own permission: S3 and what imitates it, Google, Azure,
# CloudFront, Akamai, and registries that sign by themselves.
_SIGNATURE = re.compile(
    r"[?&](?:x-(?:amz|goog)-(?:signature|credential)|(?:aws|google)access(?:key)?id"
    r"|signature|sig|policy|hmac|hdn(?:ts|ea)|jwt|(?:access_)?token|verify)=",
    re.IGNORECASE,
)
_API = "/v2/"


def leads_to_storage(before: Target, after: Target) -> bool:
    """
    Whether a redirect leads from the API of a registry to bytes that need no ``Authorization``, on
    the same host too: behind no API, or with a signature, to which storage takes none besides.
    """
    if _API not in before.path:
        return False
    return _API not in after.path or _SIGNATURE.search(after.resource) is not None


Origin = tuple[str, str, int]


@define
class Trail:
    """
    Follows the redirects of one request.

    :ivar target: the URL of the next step.
    :ivar headers: the headers to send there.
    :ivar others: ``Authorization`` for origins that a redirect may lead to.
    :ivar left: whether a redirect has led to another origin, or to storage.
    """

    target: Target
    headers: Mapping[str, str]
    others: Mapping[Origin, str] = field(factory=dict)
    left: bool = field(default=False, init=False)
    _seen: set[Target] = field(factory=set, init=False)

    def follow(self, location: str | None) -> None:
        """
        Move on to ``location``, to which ``target`` has redirected.

        ``Authorization`` goes along to the API of the very same origin only, and is not sent again
        when a later redirect leads back.  Another origin gets its own.

        :raises Unreachable: if it leads in a circle, too far, from https to http, or nowhere.
        """  # RFC 9110, 15.4
        before = self.target
        self._seen.add(before)
        try:
            after = before.join(location or "")
        except ValueError as error:
            raise Unreachable(f"{before.authority} redirects wrongly: {error}") from None
        if not location:
            raise Unreachable(f"{before.authority} redirects to nowhere")
        if before.scheme == "https" and after.scheme != "https":
            raise Unreachable(f"{before.authority} redirects from https to http")
        if after in self._seen:
            raise Unreachable(f"{before.authority} redirects in a circle")
        if len(self._seen) > LIMIT:
            raise Unreachable(f"{before.authority} redirects for more than {LIMIT} times")
        self.target = after
        to_storage = leads_to_storage(before, after)
        if after.origin == before.origin and not to_storage:
            return
        self.left = True
        self.headers = {
            name: value for name, value in self.headers.items() if name.lower() != "authorization"
        }
        if not to_storage and after.origin in self.others:
            self.headers["Authorization"] = self.others[after.origin]
