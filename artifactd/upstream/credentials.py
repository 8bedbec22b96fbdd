"""Our credentials with an upstream, and who may have them."""

from __future__ import annotations

import re
from base64 import b64encode

from attrs import field, frozen

from artifactd.upstream.http.url import Target, bracketed

_DOCKER_HUB = re.compile(r"(?:.+\.)?docker\.(?:io|com)")
_DOCKER_AUTH = "auth.docker.io"


@frozen
class Credentials:
    """A user name, and a password or what a registry takes for one."""

    username: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """As ``Authorization`` (RFC 7617)."""
        return "Basic " + b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of them nobody else may read."""
        return (self.password, self.basic().partition(" ")[2])


@frozen
class Disclosure:
    """
    Who may be asked for a token, and who is shown the credentials.

    :ivar upstream: the upstream itself.
    :ivar auth_hosts: further hosts, in lower case, that may have the credentials; with a port
        (``host:port``) only that one.
    """

    upstream: Target
    auth_hosts: frozenset[str] = frozenset()

    def asks(self, realm: Target) -> bool:
        """Whether a token may come from ``realm``: with TLS, or if the upstream has none either."""
        return realm.scheme == "https" or self.upstream.scheme == "http"

    def shows(self, realm: Target) -> bool:
        """
        Whether ``realm`` may have the credentials: it is on the upstream's own host (whatever the
        port), Docker Hub's where the upstream is Docker Hub, or one of the settings'.
        """
        if not self.asks(realm):
            return False
        if realm.host == self.upstream.host:
            return True
        if realm.host == _DOCKER_AUTH and _DOCKER_HUB.fullmatch(self.upstream.host):
            return True
        host = bracketed(realm.host)
        return not self.auth_hosts.isdisjoint({host, f"{host}:{realm.port}"})
