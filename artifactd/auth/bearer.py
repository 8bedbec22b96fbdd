"""Bearer tokens (RFC 6750, 2.1) of this registry and of other issuers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import define, field, frozen
from cachetools import LRUCache
from twisted.logger import Logger

from artifactd.auth.identity import Caller, Groups, Identity, Kind
from artifactd.auth.jwt import invalid, is_token, read_header, read_source
from artifactd.auth.passwords import Accounts
from artifactd.oci.errors import Unauthorized
from artifactd.settings.access import Action
from artifactd.upstream.credentials import UpstreamLogin

_WITH_PASSWORD = frozenset({Kind.USER, Kind.ROBOT})


@frozen
class Account:
    """
    The present state of an account.

    :ivar identity: with the groups that it belongs to now.
    :ivar fingerprint: changes with the password, and does not reveal it; empty if the account has
        no password here.  A token holds the fingerprint of its time, and is refused once the
        account has another.
    """

    identity: Identity
    fingerprint: str = field(default="", repr=False)


@frozen
class Directory:
    """
    The present state of the accounts that tokens were given to.

    :param accounts: the kinds of accounts that are listed here.
    :param accepted: whether the settings still accept an identity of another issuer.
    """

    accounts: Sequence[Accounts]
    groups: Groups
    accepted: Callable[[Identity], bool]

    async def current(self, identity: Identity) -> Account | None:
        """
        The account of the identity in a token, as it is now.  ``None`` if it is gone: the user from
        the file, the robot from the settings or expired, the issuer's identity no longer accepted.
        Certificates and anonymous stay as the token has them.

        Each request with a token asks this, so it takes microseconds.
        """
        if identity.kind is Kind.ISSUER and not self.accepted(identity):
            return None
        if identity.kind not in _WITH_PASSWORD:
            return Account(identity)
        for accounts in self.accounts:
            mark = await accounts.mark(identity)
            if mark is not None:
                return Account(self.groups.identity(identity.kind, identity.name), mark)
        return None

    def recall(self, identity: Identity) -> Account | None:
        """The same as :meth:`current`; ``None`` too if that would look at a file."""
        if identity.kind is Kind.ISSUER and not self.accepted(identity):
            return None
        if identity.kind not in _WITH_PASSWORD:
            return Account(identity)
        for accounts in self.accounts:
            mark = accounts.recall_mark(identity)
            if mark is not None:
                return Account(self.groups.identity(identity.kind, identity.name), mark)
        return None


CACHED = 4096
"""The number of tokens whose signatures are not verified again."""


@frozen
class Opened:
    """
    The content of a token whose signature and times are verified.

    :ivar identity: the identity that the token was given to, as it was then.
    :ivar scopes: the scopes of the token; see :class:`~artifactd.auth.identity.Caller`.
    :ivar fingerprint: the fingerprint of the account then; empty if it had none.
    :ivar until: the end of its validity, in seconds since 1970.
    :ivar kid: the id of the key that it is signed with; of another issuer's key the mark.
    :ivar presented: the upstream's credential that it was given for, without the password.
    """

    identity: Identity
    scopes: Mapping[str, frozenset[Action]] | None = field(hash=False)
    fingerprint: str = field(repr=False)
    until: float
    kid: str
    presented: UpstreamLogin | None = None


class TokenSource(Protocol):
    """
    An issuer of tokens: this registry (:class:`artifactd.auth.tokens.Tokens`), or another issuer
    (:class:`artifactd.auth.issuers.Issuer`).
    """

    async def open(self, token: str) -> Opened:
        """
        Verify a token of this issuer.

        :raises Unauthorized: if it isn't valid.
        :raises Unavailable: if the keys to verify it can't be fetched or read now.
        """

    async def stands(self, opened: Opened) -> bool:
        """
        Whether the key of a token that was verified before is still good.  Takes microseconds.
        """

    def recalls(self, opened: Opened) -> bool:
        """
        The same as :meth:`stands`; ``False`` too if that would look at a file first.
        """


@define(eq=False)
class BearerTokens:
    """
    Verifies Bearer tokens of all issuers, and tokens of other issuers given as passwords.

    Verifying a signature takes a tenth of a millisecond and more, so verified tokens are kept in an
    LRU cache, by their hash.  Each request still checks everything that may have changed since: the
    time, the key, the account and its password.

    :param own_name: the ``iss`` of the tokens that ``own`` gives.
    :param own: the token service of this registry; ``None``: it is off.
    :param others: by the ``iss`` of their tokens.
    :param now: seconds since 1970.
    :param limit: tokens in the cache.
    """

    own_name: str
    own: TokenSource | None
    others: Mapping[str, TokenSource]
    accounts: Directory
    now: Callable[[], float]
    limit: int = CACHED
    _cached: LRUCache[bytes, tuple[TokenSource, Opened]] = field(init=False)
    _log = Logger()

    @_cached.default
    def _cache(self) -> LRUCache[bytes, tuple[TokenSource, Opened]]:
        return LRUCache(self.limit)

    async def verify(self, token: str) -> Caller:
        """
        Return the present identity of the account that ``token`` was given to, and the token's
        scopes.

        :raises Unauthorized: if the token isn't valid here and now; the message says why.
        :raises Unavailable: if its issuer's keys can't be fetched or read.
        """
        return await self._verify(token, own=True)

    def recall(self, token: str) -> Caller | None:
        """
        Do the same as :meth:`verify` in microseconds, for a token that was verified before;
        ``None`` if it isn't valid any more, or a file has to be looked at.
        """
        source, opened = self._cached.get(_digest(token), (None, None))
        if source is None or opened is None:
            return None
        if self.now() >= opened.until or not source.recalls(opened):
            return None
        account = self.accounts.recall(opened.identity)
        if account is None or account.fingerprint != opened.fingerprint:
            return None
        return Caller(account.identity, opened.scopes, opened.presented)

    async def check(self, name: str, password: str) -> Identity | None:
        """
        Return the identity of the token given as ``password``, with any ``name``; ``None`` if it is
        no valid token of another issuer.

        Tokens of this registry are not passwords.
        """
        if not is_token(password):
            return None
        try:
            return (await self._verify(password, own=False)).identity
        except Unauthorized as error:
            self._log.info("a password is refused as a token: {reason}", reason=error.message)
            return None

    async def _verify(self, token: str, *, own: bool) -> Caller:
        digest = _digest(token)
        source, opened = self._cached.get(digest, (None, None))
        if source is None or opened is None:
            read_header(token)
            source = self._source(read_source(token), own=own)
            opened = await source.open(token)
            self._cached[digest] = source, opened
        elif source is self.own and not own:
            raise invalid("it is no password")
        elif self.now() >= opened.until:
            self._cached.pop(digest, None)
            raise invalid("it has expired")
        elif not await source.stands(opened):
            self._cached.pop(digest, None)
            raise invalid("the key that it is signed with is no longer good")
        account = await self.accounts.current(opened.identity)
        if account is None:
            raise invalid("the account that it was given to is no more")
        if account.fingerprint != opened.fingerprint:
            raise invalid("the password has changed since it was given")
        return Caller(account.identity, opened.scopes, opened.presented)

    def _source(self, issuer: str, *, own: bool) -> TokenSource:
        if own and issuer == self.own_name and self.own is not None:
            return self.own
        source = self.others.get(issuer)
        if source is None:
            raise invalid("its issuer is none that this registry trusts")
        return source


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
