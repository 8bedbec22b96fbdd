"""``no_proxy``: the hosts that are asked without a proxy."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Self

from attrs import frozen

_RULE = re.compile(r"(?P<host>\[[^\]]*\](?:/[0-9]+)?|[^:]*)(?::(?P<port>[0-9]+))?")


@frozen
class _Rule:
    """
    :ivar domain: it and all below it; ``""`` is every host.
    :ivar network: an address is a network of one.
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
    The rules, as curl has them: separated by commas or spaces; each a domain (it and all below it,
    with or without a leading dot), an address or a network in CIDR notation, any of them with
    ``:port``; ``*`` is every host.
    """

    _rules: tuple[_Rule, ...] = ()

    @classmethod
    def parse(cls, value: str) -> Self:
        """What can't be understood covers nothing."""
        return cls(tuple(_Rule.parse(text) for text in re.split(r"[\s,]+", value.lower()) if text))

    def covers(self, host: str, port: int) -> bool:
        """Whether ``host`` (in lower case) is to be asked without a proxy at ``port``."""
        host = host.rstrip(".")
        return any(rule.covers(host, port) for rule in self._rules)
