"""What is known of an account between logins, without its password."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import field, frozen

from artifactd.auth.identity import Identity, Kind

_WITH_PASSWORD = frozenset({Kind.USER, Kind.ROBOT})


@frozen
class Account:
    """
    Somebody as the settings and files have them now.

    :ivar identity: with the groups of now.
    :ivar fingerprint: changes with the password, and says nothing of it; empty where there is
        none.  Tokens hold it, and die when it is another.
    """

    identity: Identity
    fingerprint: str = field(default="", repr=False)


class Directory(Protocol):
    """Everybody to whom a token may have been given."""

    async def current(self, identity: Identity) -> Account | None:
        """
        What ``identity``, which a token tells of, is now; ``None`` if it is no more: the user is
        gone from the file, the robot from the settings, or has expired.

        Asked at every request with a token, so it costs microseconds.  Certificates and anonymous
        are what the token says, and so are jobs of another issuer, as long as it is accepted.
        """


@frozen
class AccountDirectory:
    """
    The accounts that are listed here, and everybody else.

    :param mark: what stays the same as long as the password of an account does; ``None`` if there
        is no such account (:meth:`artifactd.auth.interfaces.Accounts.mark`).
    :param regrouped: an account with the groups that the settings have it in now.
    :param accepted: whether somebody of another issuer is accepted, as the settings are now.
    """

    mark: Callable[[Identity], Awaitable[str | None]]
    regrouped: Callable[[Identity], Identity]
    accepted: Callable[[Identity], bool]

    async def current(self, identity: Identity) -> Account | None:
        """As in :class:`Directory`."""
        if identity.kind is Kind.ISSUER and not self.accepted(identity):
            return None
        if identity.kind not in _WITH_PASSWORD:
            return Account(identity)
        mark = await self.mark(identity)
        return None if mark is None else Account(self.regrouped(identity), mark)
