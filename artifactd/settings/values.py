"""The types of settings: parsed texts, and the words that an error describes each type with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from msgspec import Meta

from artifactd.oci.errors import NameInvalid
from artifactd.oci.manifest import Sparse
from artifactd.oci.names import RepositoryName

# From the smallest; each unit is a multiple of the one before.
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _read_quantity(text: str, units: Mapping[str, int]) -> int:
    """
    Parse a quantity with a unit, and return it in the smallest of ``units``.

    :raises ValueError: if ``text`` is no such quantity.
    """
    if text == "0":
        return 0
    match = re.fullmatch(r"([0-9]{1,12})([A-Za-z]+)", text)
    if match is None or match[2] not in units:
        raise ValueError(f"not a number and a unit of {', '.join(units)}: {text!r}")
    return int(match[1]) * units[match[2]]


def _write_quantity(quantity: int, units: Mapping[str, int]) -> str:
    if quantity == 0:
        return "0"
    unit = max((u for u in units if quantity % units[u] == 0), key=units.__getitem__)
    return f"{quantity // units[unit]}{unit}"


class Duration(float):
    """Seconds, written with a unit: ``250ms``, ``60s``, ``15m``, ``24h``, ``7d``; or ``0``."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is no duration."""
        return cls(_read_quantity(text, _MILLISECONDS) / 1000)

    def __str__(self) -> str:
        return _write_quantity(round(self * 1000), _MILLISECONDS)


class Size(int):
    """Bytes, written with a unit: ``512B``, ``64KiB``, ``4MiB``, ``1GiB``, ``2TiB``; or ``0``."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is no size."""
        return cls(_read_quantity(text, _BYTES))

    def __str__(self) -> str:
        return _write_quantity(int(self), _BYTES)


_HOST = r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
_PATH = r"(?:/[A-Za-z0-9._~!$&'()*+,;=:%-]+)*"
_WEB_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_HOST}")
_URL = re.compile(rf"(https?)://(?P<host>{_HOST})(?P<path>{_PATH})/*", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


# host:port; any other word alone before the colon is a kind of endpoint, as in tcp:80.
_ADDRESS = r"(?P<host>localhost|\d+(\.\d+){3}|\[[0-9A-Fa-f:.]+\]|):(?P<port>\d{1,5})"


class Host(str):
    """A host as it stands in a URL, in lower case, with its port if it has one."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is no host."""
        match = re.fullmatch(_HOST, text.lower())
        if match is None or int(match["port"] or 1) > 65535:
            raise ValueError(text)
        return cls(match[0])


class Endpoint(str):
    """
    Where to listen, as Twisted's endpoint string.  It is made of ``host:port`` too, as other
    servers have it: ``127.0.0.1:5000``, ``[::1]:5000``, ``localhost:5000``, or ``:5000`` for all
    addresses.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is neither of them."""
        match = re.fullmatch(_ADDRESS, text)
        if match is None:
            port = re.match("(?:tcp6?|ssl|artifactd-tls):(?:port=)?([0-9]+)", text)
            if not re.match("[a-z0-9-]+:(?!//).", text) or (port and int(port[1]) > 65535):
                raise ValueError(text)
            return cls(text)
        if int(match["port"]) > 65535:
            raise ValueError(text)
        host = "127.0.0.1" if match["host"] == "localhost" else match["host"].strip("[]")
        if not host:
            return cls(f"tcp:{match['port']}")
        interface = host.replace(":", "\\:")
        return cls(f"tcp:{match['port']}:interface={interface}")


class Url(str):
    """
    The base URL of a registry: ``http`` or ``https``, a host, and perhaps the path before ``/v2/``;
    without a slash at its end.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is no such URL, or has a user, a query or ``/v2/``."""
        match = _URL.fullmatch(text)
        if match is None:
            raise ValueError(text)
        path = match["path"]
        if {".", ".."} & set(path.split("/")) or path.endswith("/v2"):
            raise ValueError(text)
        return cls(f"{match[1].lower()}://{Host.parse(match['host'])}{path}")

    @property
    def host(self) -> Host:
        """The host, with its port if the URL has one."""
        return Host(self.split("/")[2])


class Origin(str):
    """The URL under which clients reach the daemon, without a path; or an empty text."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is neither."""
        url = Url.parse(text) if text else ""
        if url.count("/") > 2:
            raise ValueError(text)
        return cls(url)


class WebOrigin(str):
    """Where a web page comes from, as its browser says: RFC 6454, 6.2; or ``*``: from anywhere."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is neither, and so never what a browser sends."""
        text = text.lower()
        if text != "*" and not _WEB_ORIGIN.fullmatch(text):
            raise ValueError(text)
        if text.startswith("http://") and text.endswith(":80"):
            raise ValueError(text)
        if text.startswith("https://") and text.endswith(":443"):
            raise ValueError(text)
        return cls(text)


class Proxy(str):
    """A trusted proxy: an address, a network, or ``unix`` for every peer on a Unix socket."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is none of these."""
        return cls(text if text == "unix" else ip_network(text).compressed)


class Prefix(str):
    """A text put before a name: empty, or path components that end in a slash."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if no name can begin so."""
        if text:
            try:
                RepositoryName.parse(text.removesuffix("/"))
            except NameInvalid:
                raise ValueError(text) from None
            if not text.endswith("/"):
                raise ValueError(text)
        return cls(text)


class Within(str):
    """The name under which an upstream has all images: empty, or path components as in a name."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if no name can begin so."""
        try:
            return cls(RepositoryName.parse(text)) if text else cls()
        except NameInvalid:
            raise ValueError(text) from None


class Pattern(str):
    """A pattern of names in the syntax of :mod:`fnmatch`: ``*`` matches slashes too."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is empty or holds white space."""
        if not text or re.search(r"\s", text):
            raise ValueError(text)
        return cls(text)


class Untagged(str):
    """``keep``, or a duration after which untagged manifests are collected."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is neither."""
        return cls(text if text == "keep" else Duration.parse(text))

    @property
    def seconds(self) -> float | None:
        """The duration; ``None``: untagged manifests are kept."""
        return None if self == "keep" else Duration.parse(self)


class User(str):
    """A user name, without a colon and control characters (RFC 7617, 2)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if HTTP Basic cannot carry it."""
        if ":" in text or _CONTROL.search(text):
            raise ValueError(text)
        return cls(text)


class Secret(str):
    """A password, without control characters (RFC 7617, 2); its repr() does not show it."""

    __slots__ = ()

    # A traceback or a failed test may print the value that holds the password.
    def __repr__(self) -> str:
        return "'(not shown)'" if self else "''"

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if HTTP Basic cannot carry it."""
        if _CONTROL.search(text):
            raise ValueError("it holds a control character")
        if not text.isprintable() and re.search("[\ud800-\udfff]", text):
            raise ValueError("it is not UTF-8")  # how the environment shows such bytes
        return cls(text)


class Puller(str):
    """Clients that pull: ``user:``, ``robot:``, ``certificate:`` or ``agent:``, and a pattern."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is none of these."""
        if not re.fullmatch(r"(?:user|robot|certificate):[^\s:]+|agent:[^\x00-\x1f\x7f]+", text):
            raise ValueError(text)
        return cls(text)

    @property
    def kind(self) -> str:
        """The text before the first colon."""
        return self.partition(":")[0]

    @property
    def pattern(self) -> str:
        """The text after the first colon."""
        return self.partition(":")[2]


class ReceiverUrl(Secret):
    """
    The URL of a webhook's receiver: ``http`` or ``https``.  Its path and query may hold a token, so
    that it is not shown, but for its :attr:`origin`.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is no such URL, or has a user or a fragment."""
        parts = urlsplit(text)
        if (
            not re.fullmatch("[!-~]+", text)
            or parts.scheme not in ("http", "https")
            or not re.fullmatch(_HOST, parts.netloc.lower())
            or parts.port == 0
            or "#" in text
        ):
            raise ValueError("it is not such a URL")
        return cls(text)

    @property
    def origin(self) -> str:
        """Its scheme and host, with the port if there is one."""
        parts = urlsplit(self)
        return f"{parts.scheme}://{parts.netloc}"


class Word(str):
    """A program, or an argument of it."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if no program can be given it."""
        if _CONTROL.search(text):
            raise ValueError(text)
        return cls(text)


class Probe(str):
    """A path such as ``/healthz``, or what the name of a client's program begins with."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if it is empty, which all begin with, or has white space."""
        if not text or re.search(r"\s", text):
            raise ValueError(text)
        return cls(text)


class Expiry(str):
    """A date-time of RFC 3339 with its offset from UTC; or empty: never."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if it is no moment: a date alone, or a time without offset."""
        expiry = cls(text)
        try:
            if text and datetime.fromisoformat(text).tzinfo is None:
                raise ValueError(text)
            expiry.moment  # noqa: B018 - raises
        except OverflowError:
            raise ValueError(text) from None
        return expiry

    @property
    def moment(self) -> datetime | None:
        """The date-time in UTC; ``None``: never."""
        return datetime.fromisoformat(self).astimezone(UTC) if self else None

    @property
    def timestamp(self) -> float:
        """Seconds since the epoch; infinite for never."""
        return float("inf") if self.moment is None else self.moment.timestamp()


# The description completes "expected …" in an error.
Text = Annotated[str, Meta(description="a text")]
Flag = Annotated[bool, Meta(description="true or false")]
Folder = Annotated[Path, Meta(description="the path of a folder")]
Listen = Annotated[
    tuple[Endpoint, ...],
    Meta(
        min_length=1,
        description='addresses such as "127.0.0.1:5000", or Twisted endpoint strings such as'
        ' "tcp:5000"',
    ),
]
Logging = Annotated[Literal["text", "json", "off"], Meta(description='"text", "json" or "off"')]
LogFormat = Annotated[Literal["text", "json"], Meta(description='"text" or "json"')]
Level = Annotated[
    Literal["debug", "info", "warn", "error"],
    Meta(description='"debug", "info", "warn" or "error"'),
]
Probes = Annotated[
    tuple[Probe, ...],
    Meta(description='paths such as "/healthz", or programs such as "kube-probe"'),
]
Sparseness = Annotated[Sparse, Meta(description='"no", "indexes" or "images"')]
Threads = Annotated[int, Meta(ge=1, le=64, description="a whole number from 1 to 64")]
Workers = Annotated[
    Annotated[int, Meta(ge=1, le=64)] | Literal["auto"],
    Meta(description='"auto" or a whole number from 1 to 64'),
]
Attempts = Annotated[int, Meta(ge=0, le=100, description="a whole number from 0 to 100")]
Length = Annotated[Duration, Meta(description='a number with unit such as "60s", "15m", "24h"')]
Timeout = Annotated[Length, Meta(extra={"least": Duration(0.001)})]
Retention = Annotated[Untagged, Meta(description='"keep" or a number with unit such as "30d"')]
Rate = Annotated[int, Meta(ge=0, le=1_000_000, description="a whole number from 0 to 1000000")]
Bytes = Annotated[Size, Meta(description='a number with unit such as "64KiB", "4MiB", "1GiB"')]
Buffers = Annotated[Bytes, Meta(extra={"least": Size(4 << 20)})]
Limit = Annotated[Bytes, Meta(extra={"least": Size(1)})]
Login = Annotated[User, Meta(description="the name of a login, without a colon")]
Password = Annotated[Secret, Meta(description="a text without control characters")]
Receiver = Annotated[
    ReceiverUrl,
    Meta(
        description='a URL such as "https://ci.example.com/hook", without user and fragment',
        extra={"missing": "the URL of a receiver"},
    ),
]
Hosts = Annotated[
    tuple[Host, ...], Meta(description='hosts such as "ghcr.io", "registry.example:5000"')
]
Location = Annotated[
    Url,
    Meta(
        description='a URL such as "https://registry-1.docker.io", without user, query and /v2/',
    ),
]
ExternalUrl = Annotated[
    Origin, Meta(description='"" or a URL such as "https://registry.example:5000", without a path')
]
Proxies = Annotated[
    tuple[Proxy, ...],
    Meta(description='addresses and networks such as "127.0.0.1", "10.0.0.0/8", or "unix"'),
]
WebOrigins = Annotated[
    tuple[WebOrigin, ...],
    Meta(
        description='"*" or origins such as "https://ui.example.com", without a path or the'
        " port of the scheme"
    ),
]
NamePrefix = Annotated[Prefix, Meta(description='"" or a text such as "library/"')]
NameWithin = Annotated[
    Within, Meta(description='"" or a name such as "dockerhub-proxy", without a slash at its ends')
]
Patterns = Annotated[
    tuple[Pattern, ...], Meta(description='patterns such as "*", "library/*", "team/*/app"')
]
Pullers = Annotated[
    tuple[Puller, ...],
    Meta(
        description='a list of "user:<name>", "robot:<name>", "certificate:<name>",'
        ' "agent:<pattern>"'
    ),
]
Names = Annotated[tuple[str, ...], Meta(description="names of configured repositories")]
Command = Annotated[
    tuple[Word, ...],
    Meta(description='a program and its arguments such as ["docker-credential-ecr-login"]'),
]
Moment = Annotated[
    Expiry,
    Meta(description='a date-time with offset such as 2027-01-31T00:00:00Z, or ""'),
]


def is_trustworthy(url: str) -> bool:
    """Whether nobody on the network can tamper with ``url``: https, or http on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
    return parts.scheme == "https" and bool(host) and not parts.username
