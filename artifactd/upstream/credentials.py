"""Credentials for an upstream: the daemon's own, the hosts that may have them, and a client's."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

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


def _nothing() -> None:
    """Do nothing: nothing counts failed logins."""


@frozen
class UpstreamLogin:
    """
    A client's own user name and password at the upstream of one repository, not necessarily right.

    :ivar repository: the one whose upstream it is; the password is never sent to any other host.
    :ivar user: the name there.
    :ivar mark: a keyed hash of all of it, under which proofs are remembered; it reveals nothing.
    :ivar password: ``None`` where a token has come in its place, which holds the mark alone.
    :ivar turn: in which the upstream is asked with the password, and ``failed`` called; raises
        ``TooManyRequests`` if it may not be asked.
    :ivar failed: to be called when the upstream says that the password is wrong.
    """

    repository: str
    user: str
    mark: bytes = field(repr=False)
    password: str | None = field(default=None, repr=False)
    turn: Callable[[], AbstractAsyncContextManager[None]] = field(
        default=nullcontext, repr=False, eq=False
    )
    failed: Callable[[], object] = field(default=_nothing, repr=False, eq=False)

    def __str__(self) -> str:
        """The user name that a client logs in with here: ``ghcr.io/alice``."""
        return f"{self.repository}/{self.user}"
