"""Credentials for an upstream: the daemon's own, the hosts that may have them, and a client's."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Self
from urllib.parse import quote_plus

from attrs import field, frozen

from artifactd.settings.remote import RemoteSettings
from artifactd.upstream.http.url import Target

_DOCKER_HUB = re.compile(r"(?:.+\.)?docker\.(?:io|com)")
_DOCKER_AUTH = "auth.docker.io"


@frozen
class Credentials:
    """
    A user name, and a password or an access token in its place.

    :ivar identity_token: whether ``password`` is an identity token, which is shown to a token
        service by POST, as a refresh token of OAuth 2; such a login has no user name that counts.
    """

    username: str
    password: str = field(repr=False)
    identity_token: bool = False

    def basic(self) -> str:
        """Return the value of ``Authorization`` for Basic authentication."""  # RFC 7617
        return "Basic " + b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that no message may repeat."""
        return (self.password, quote_plus(self.password), self.basic().partition(" ")[2])


@frozen
class Disclosure:
    """
    Decides which token services are asked, and which of them get the credentials.

    :ivar auth_hosts: further hosts, in lower case, that may have the credentials; with a port
        (``host:port``) only that one.
    """

    upstream: Target
    auth_hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: RemoteSettings) -> Self:
        """:raises ValueError: if the URL of ``settings`` is none of http or https."""
        hosts = frozenset(host.lower() for host in settings.auth_hosts)
        return cls(Target.parse(settings.upstream), hosts)

    @property
    def is_docker_hub(self) -> bool:
        """Whether the upstream is Docker Hub itself."""
        return _DOCKER_HUB.fullmatch(self.upstream.host) is not None

    def asks(self, realm: Target) -> bool:
        """Whether ``realm`` is asked for tokens: with TLS, or if the upstream has none either."""
        return realm.scheme == "https" or self.upstream.scheme == "http"

    def shows(self, realm: Target) -> bool:
        """
        Whether ``realm`` may have the credentials.

        It is on the upstream's own host (at any port), is Docker Hub's where the upstream is Docker
        Hub, or is one of the settings' ``auth_hosts``.
        """
        if not self.asks(realm):
            return False
        if realm.host == self.upstream.host:
            return True
        if realm.host == _DOCKER_AUTH and self.is_docker_hub:
            return True
        return realm.is_one_of(self.auth_hosts)


@frozen
class UpstreamLogin:
    """
    A client's own user name and password at the upstream of one repository; they may be wrong.

    :ivar repository: the repository; the password is never sent to any host but its upstream's.
    :ivar user: the user name at the upstream.
    :ivar mark: a keyed hash of all of it, under which proofs are remembered; it reveals nothing.
    :ivar password: ``None`` if the client has sent a token instead, which holds the mark alone.
    :ivar turn: the context in which the upstream is asked with the password, and ``failed`` called;
        raises ``TooManyRequests`` if it may not be asked.
    :ivar failed: called when the upstream says that the password is wrong; it counts that.
    """

    repository: str
    user: str
    mark: bytes = field(repr=False)
    password: str | None = field(default=None, repr=False)
    turn: Callable[[], AbstractAsyncContextManager[None]] = field(
        default=nullcontext, repr=False, eq=False
    )
    failed: Callable[[], object] = field(default=lambda: None, repr=False, eq=False)

    def __str__(self) -> str:
        """Return the user name that the client logs in with here, such as ``ghcr.io/alice``."""
        return f"{self.repository}/{self.user}"
