"""Who is asking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from attrs import field, frozen

from artifactd.settings.access import Action
from artifactd.upstream.credentials import UpstreamLogin


class Kind(StrEnum):
    """By what somebody is known."""

    ANONYMOUS = "anonymous"
    USER = "user"  # of the htpasswd file
    ROBOT = "robot"  # of the settings
    CERTIFICATE = "certificate"  # a client certificate
    ISSUER = "issuer"  # a token of another issuer, such as a CI system's
    UPSTREAM = "upstream"  # a login that an upstream knows


@frozen
class Identity:
    """
    Somebody who asks; :data:`ANONYMOUS` where nothing tells who.

    :ivar name: of the user or robot; of a certificate its subject's common name; of another
        issuer's token ``<issuer>/<subject>``, the issuer by its name in the settings; of an
        upstream's user ``<repository>/<user>``.
    :ivar groups: the groups of the settings that it is in.
    :ivar claims: what another issuer's token says of it, as text.
    """

    kind: Kind
    name: str = ""
    groups: frozenset[str] = frozenset()
    claims: Mapping[str, str] = field(factory=dict, hash=False)

    def __str__(self) -> str:
        """For logs and journals: ``alice``, ``robot:ci``, ``anonymous``."""
        if self.kind is Kind.ANONYMOUS:
            return self.kind
        return self.name if self.kind is Kind.USER else f"{self.kind}:{self.name}"


ANONYMOUS = Identity(Kind.ANONYMOUS)


@frozen
class Caller:
    """
    Who makes a request, and what its token limits it to.

    :ivar scopes: by the names of images, as the token has them, the actions that the token is for;
        ``None`` where there is no such limit: then only the access rules count.  The name ``*`` is
        the catalog (``registry:catalog:*``).
    :ivar presented: the upstream's credential that it was logged in with, if it was one.
    """

    identity: Identity = ANONYMOUS
    scopes: Mapping[str, frozenset[Action]] | None = field(default=None, hash=False)
    presented: UpstreamLogin | None = None


# Who is in which group.


class Groups:
    """The groups of the settings: makes the identities of those who may be in one."""

    def __init__(self, members: Mapping[str, Iterable[str]]) -> None:
        """:param members: by groups, users, and robots as ``robot:<name>``."""
        self._of: dict[str, frozenset[str]] = {}
        for group, names in members.items():
            for name in names:
                self._of[name] = self._of.get(name, frozenset()) | {group}

    def user(self, name: str) -> Identity:
        """A user of the htpasswd file."""
        return Identity(Kind.USER, name, self._of.get(name, frozenset()))

    def robot(self, name: str) -> Identity:
        """A robot of the settings, by its name there."""
        return Identity(Kind.ROBOT, name, self._of.get(f"robot:{name}", frozenset()))
