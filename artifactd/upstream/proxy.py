"""Proxies, as the environment names them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Self
from urllib.parse import unquote

from attrs import field, frozen

from artifactd.kit.start import StartError
from artifactd.upstream.noproxy import NoProxy
from artifactd.upstream.target import Target, is_loopback

_URL = re.compile(r"(?:(?P<scheme>[A-Za-z0-9+.-]+)://)?(?:(?P<login>[^/?#]*)@)?(?P<rest>[^@]*)")

# In this order.  Not HTTP_PROXY: where a web server runs programs by CGI, that is what a client
# has sent as its header "Proxy" (CVE-2016-5385).
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
    Who is asked through which proxy.

    This machine's own loopback never is: a proxy elsewhere would ask its own.

    :ivar by_scheme: the proxy for targets of a scheme.
    """

    by_scheme: Mapping[str, Proxy]
    _exempt: NoProxy

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """
        What ``http_proxy`` (only so), ``https_proxy``, ``all_proxy`` and ``no_proxy`` (also in
        upper case) say; an empty variable is as good as none.

        :raises StartError: if one that counts is not the URL of an ``http`` proxy.
        """
        by_scheme: dict[str, Proxy] = {}
        for scheme, names in _VARIABLES.items():
            name = next((name for name in names if environ.get(name)), None)
            if name is not None:
                by_scheme[scheme] = _proxy(name, environ[name])
        exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        return cls(by_scheme, NoProxy.parse(exempt))

    def for_target(self, target: Target) -> Proxy | None:
        """The proxy through which ``target`` is asked, or ``None``."""
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
