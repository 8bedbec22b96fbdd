"""Where the keys of other issuers may come from."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_trustworthy(url: str) -> bool:
    """Whether nobody on the way can change what is there: https, or http on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
    return parts.scheme == "https" and bool(host) and not parts.username
