"""What the ways of telling who is asking have in common."""

from __future__ import annotations

from typing import Protocol

from artifactd.auth.identity import Caller, Identity
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action


class PasswordCheck(Protocol):
    """One kind of accounts: users of an htpasswd file, robots, tokens given as passwords."""

    async def check(self, name: str, password: str) -> Identity | None:
        """
        Who logs in as ``name`` with ``password``; ``None`` where these are not known here, which
        may take as long as if they were.
        """


class Accounts(PasswordCheck, Protocol):
    """Accounts that are listed here, each with a password that may change."""

    def recall(self, name: str, password: str) -> Identity | None:
        """
        As :meth:`check`, but at once: ``None`` too where that takes a thread or a look at a file.
        """

    async def mark(self, identity: Identity) -> str | None:
        """
        What stays the same as long as the password of ``identity`` does, in every process that
        has the same settings; it tells nothing about the password.  ``None`` if there is no such
        account any more.

        A refresh token holds it, and so dies with the password.
        """


class Logins(Protocol):
    """All kinds of accounts together, and what slows guessing down."""

    async def log_in(self, name: str, password: str, address: str) -> Identity:
        """
        :param address: of the client.
        :raises Unauthorized: if no account is of that name and password.
        :raises TooManyRequests: with ``Retry-After``, after too many failures from ``address``.
        """


class TokenCheck(Protocol):
    """Bearer tokens: of artifactd's own token service, or of another issuer."""

    async def verify(self, token: str) -> Caller:
        """
        Who carries ``token``, and what it is for.

        :raises Unauthorized: if it isn't valid here and now; the message says why.
        """


class Rules(Protocol):
    """The access rules of the settings."""

    def granted(self, identity: Identity, image: ImageName) -> frozenset[Action]:
        """What ``identity`` may do to ``image``; nothing is looked up, so it needn't exist."""

    def granted_everywhere(self, identity: Identity) -> frozenset[Action]:
        """What ``identity`` may do to every image there could be, and to the registry itself."""

    def grants_any(self, identity: Identity, action: Action) -> bool:
        """
        Whether ``identity`` may do ``action`` to any image there could be; ``True`` too where it
        can't be told without the name of one.
        """
