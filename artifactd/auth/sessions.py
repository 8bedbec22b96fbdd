"""Sessions of the page at ``/``: a login that a browser keeps in a cookie."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

import msgspec
from attrs import field, frozen

from artifactd.auth.bearer import Account, Directory
from artifactd.auth.identity import Identity, Kind
from artifactd.catalog.sessions import SessionCatalog
from artifactd.kit.sealed import seal, unseal
from artifactd.oci.errors import Unauthorized

LIFETIME = 12 * 3600.0
"""Seconds after which a session ends, however much it is used."""

_KINDS = frozenset({Kind.USER, Kind.ROBOT})
_LONGEST = 2048  # characters of what is sealed


class _Content(msgspec.Struct, frozen=True, array_like=True):
    """A session as it is sealed."""

    id: bytes
    until: float
    kind: str = ""
    name: str = ""
    fingerprint: str = ""


_decode = msgspec.json.Decoder(_Content).decode


@frozen
class Session:
    """
    What a browser is known by.

    :ivar id: 16 bytes: eight by which the account is known, and eight random ones; a login makes
        new ones.
    :ivar until: when it ends, in seconds since the epoch.
    :ivar account: the account that has logged in, as it was then; ``None``: nobody has.
    """

    id: bytes = field(repr=False)
    until: float
    account: Account | None = None


@frozen
class Sessions:
    """
    Makes sessions and seals them, so that every process with the key can open them, and no browser
    can make or change one.

    A session ends with its account, when the account's password changes, or by logging out.

    :param key: 32 bytes, of the data folder.
    :param accounts: the accounts as they are now; ``None``: there are none, nobody logs in.
    :param ended: the sessions that were ended by logging out.
    :param now: seconds since the epoch.
    """

    _key: bytes = field(repr=False)
    accounts: Directory | None
    ended: SessionCatalog
    _now: Callable[[], float]

    def visitor(self) -> Session:
        """A session of nobody: its forms are known by it."""
        return self._new(None)

    async def begin(self, identity: Identity) -> Session:
        """
        A session of a user or robot whose password has just been checked.

        :raises Unauthorized: if ``identity`` is neither, or its account is gone.
        """
        account = None
        if self.accounts is not None and identity.kind in _KINDS:
            account = await self.accounts.current(identity)
        if account is None:
            raise Unauthorized("the page is for users and robots of this registry")
        return self._new(account)

    def _new(self, account: Account | None) -> Session:
        whose = "" if account is None else f"{account.identity.kind}:{account.identity.name}"
        known = hmac.digest(self._key, b"account" + whose.encode(), "sha256")[:8]
        return Session(known + secrets.token_bytes(8), self._now() + LIFETIME, account)

    async def identity(self, session: Session) -> Identity | None:
        """
        Return the identity that has logged in, with the groups that it has now.

        ``None``: nobody has, or has logged out, or the account is gone, or its password has
        changed since.
        """
        if session.account is None or self.accounts is None:
            return None
        account = await self.accounts.current(session.account.identity)
        if account is None or account.fingerprint != session.account.fingerprint:
            return None
        is_ended = await self.ended.is_ended(session.id, session.until)
        return None if is_ended else account.identity

    async def end(self, session: Session) -> None:
        """End a session in every process, for all that have its cookie."""
        await self.ended.end(session.id, session.until)

    def seal(self, session: Session) -> str:
        """Return what the browser keeps of ``session``: characters that a cookie may have."""
        content = _Content(session.id, session.until)
        if session.account is not None:
            identity, fingerprint = session.account.identity, session.account.fingerprint
            content = _Content(
                session.id, session.until, str(identity.kind), identity.name, fingerprint
            )
        return seal(self._key, msgspec.json.encode(content))

    def open(self, sealed: str) -> Session | None:
        """Return the session that :meth:`seal` has sealed; ``None`` if it has not, or it ended."""
        if not 0 < len(sealed) <= _LONGEST:
            return None
        text = unseal(self._key, sealed)
        if text is None:
            return None
        try:
            content = _decode(text)
        except msgspec.MsgspecError:  # another release has sealed it
            return None
        if not 0 < content.until - self._now() <= LIFETIME:
            return None
        account = None
        if content.kind:
            account = Account(Identity(Kind(content.kind), content.name), content.fingerprint)
        return Session(content.id, content.until, account)

    def form_token(self, session: Session) -> str:
        """Return what the forms of ``session`` send back, which no other page can know."""
        return hmac.new(self._key, b"form" + session.id, "sha256").hexdigest()
