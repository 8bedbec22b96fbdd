"""The identities of clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from attrs import field, frozen

from artifactd.settings.access import Action
from artifactd.upstream.credentials import UpstreamLogin


class Kind(StrEnum):
    """The way in which a client is identified."""

    ANONYMOUS = "anonymous"  # it is not
    USER = "user"  # by the htpasswd file
    ROBOT = "robot"  # by the settings
    CERTIFICATE = "certificate"  # by a client certificate
    ISSUER = "issuer"  # by a token of another issuer, such as a CI system
    UPSTREAM = "upstream"  # by a login that an upstream accepts


@frozen(cache_hash=True)
class Identity:
    """
    A user, robot, certificate, CI job or upstream's user; :data:`ANONYMOUS` if the client has not
    identified itself.

    :ivar name: of the user or robot; for a certificate the common name of its subject; for a token
        of another issuer ``<issuer>/<subject>``, with the issuer's name in the settings; for an
        upstream's user ``<repository>/<user>``.
    :ivar groups: the groups of the settings that it belongs to.
    :ivar claims: the claims of another issuer's token, as text.
    :ivar label: for logs: ``alice``, ``robot:ci``, ``anonymous``.
    """

    kind: Kind
    name: str = ""
    groups: frozenset[str] = frozenset()
    claims: Mapping[str, str] = field(factory=dict, hash=False)
    label: str = field(init=False, eq=False, repr=False)

    @label.default
    def _label(self) -> str:
        if self.kind is Kind.ANONYMOUS:
            return str(self.kind)
        return self.name if self.kind is Kind.USER else f"{self.kind}:{self.name}"

    def __str__(self) -> str:
        return self.label


ANONYMOUS = Identity(Kind.ANONYMOUS)


@frozen(cache_hash=True)
class Caller:
    """
    The identity that makes a request, and the limits of its token.

    :ivar scopes: the actions that the token is for, by the names of images as the token has them;
        ``None`` without a token of this registry: then only the access rules count.  The name ``*``
        is the catalog (``registry:catalog:*``).
    :ivar presented: the upstream's credential, if the client logged in with one.
    """

    identity: Identity = ANONYMOUS
    scopes: Mapping[str, frozenset[Action]] | None = field(default=None, hash=False)
    presented: UpstreamLogin | None = None


NOBODY = Caller()
"""The caller of a request without a login."""


class Groups:
    """
    The groups of the settings.

    :param members: by groups, users by their names, and robots as ``robot:<name>``.
    """

    def __init__(self, members: Mapping[str, Iterable[str]]) -> None:
        self._of: dict[str, frozenset[str]] = {}
        for group, names in members.items():
            for name in names:
                self._of[name] = self._of.get(name, frozenset()) | {group}

    def identity(self, kind: Kind, name: str) -> Identity:
        """The user or robot of that name, with its groups."""
        key = name if kind is Kind.USER else f"robot:{name}"
        return Identity(kind, name, self._of.get(key, frozenset()))
