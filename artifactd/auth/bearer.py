"""Who carries a Bearer token: RFC 6750, 2.1."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from attrs import define, field, frozen
from twisted.logger import Logger

from artifactd.auth.identity import Caller, Identity, Kind
from artifactd.auth.jwt import invalid, is_token, read_header, read_source
from artifactd.oci.errors import Unauthorized
from artifactd.settings.access import Action
from artifactd.upstream.credentials import UpstreamLogin

# What is known of an account between logins, without its password.

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
        is no such account (:meth:`artifactd.auth.logins.Accounts.mark`).
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


CACHED = 4096
"""Tokens whose signatures are not verified again."""


@frozen
class Opened:
    """
    What a token says, its signature and its times verified.

    :ivar identity: as it was when the token was given.
    :ivar scopes: as ``Caller`` has them.
    :ivar fingerprint: of the account then; empty: it had none.
    :ivar until: when it ends, in seconds since 1970.
    :ivar kid: of the key that it is signed with.
    :ivar presented: the upstream's credential that it was given for, without the password.
    """

    identity: Identity
    scopes: Mapping[str, frozenset[Action]] | None = field(hash=False)
    fingerprint: str = field(repr=False)
    until: float
    kid: str
    presented: UpstreamLogin | None = None


class TokenSource(Protocol):
    """Somebody who gives tokens: artifactd itself, or another issuer."""

    async def open(self, token: str) -> Opened:
        """
        Verify one.

        :raises Unauthorized: if it isn't valid.
        :raises Unavailable: if that can't be told now.
        """

    async def stands(self, opened: Opened) -> bool:
        """Whether the key of one that was verified before is still good.  Takes microseconds."""


@define(eq=False)
class BearerTokens:
    """
    The tokens of all sources: a :class:`artifactd.auth.logins.TokenCheck`, and for those of
    other issuers a :class:`artifactd.auth.logins.PasswordCheck` too.

    Verifying a signature takes a tenth of a millisecond and more, so that what was verified is
    kept by the token's hash.  What may have changed since is asked anew each time: whether the
    account is there and has the same password, and whether the key is still good.

    :param own: gives the tokens whose ``iss`` is ``own_name``; ``None``: nobody does.
    :param others: by the ``iss`` of their tokens.
    :param now: seconds since 1970.
    """

    own_name: str
    own: TokenSource | None
    others: Mapping[str, TokenSource]
    accounts: Directory
    now: Callable[[], float]
    limit: int = CACHED
    _cached: OrderedDict[bytes, tuple[TokenSource, Opened]] = field(factory=OrderedDict, init=False)
    _log = Logger()

    async def verify(self, token: str) -> Caller:
        """
        Who carries ``token``, as they are now, and what it is for.

        :raises Unauthorized: if it isn't valid here and now; the message says why.
        :raises Unavailable: if its issuer's keys can't be had.
        """
        return await self._verify(token, self._source)

    async def check(self, name: str, password: str) -> Identity | None:
        """
        Whose token is given as the password; ``None`` if it is none.  Any ``name`` does, and
        tokens of artifactd's own are not passwords.
        """
        if not is_token(password):
            return None
        try:
            return (await self._verify(password, self._other)).identity
        except Unauthorized as error:
            self._log.info("a password is refused as a token: {reason}", reason=error.message)
            return None

    async def _verify(self, token: str, source_of: Callable[[str], TokenSource]) -> Caller:
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        source, opened = self._cached.get(digest, (None, None))
        if source is None or opened is None:
            read_header(token)
            source = source_of(read_source(token))
            opened = await source.open(token)
            self._keep(digest, source, opened)
        elif source is self.own and source_of == self._other:
            raise invalid("it is no password")
        else:
            await self._check_again(digest, source, opened)
        account = await self.accounts.current(opened.identity)
        if account is None:
            raise invalid("the account that it was given to is no more")
        if account.fingerprint != opened.fingerprint:
            raise invalid("the password has changed since it was given")
        return Caller(account.identity, opened.scopes, opened.presented)

    async def _check_again(self, digest: bytes, source: TokenSource, opened: Opened) -> None:
        if self.now() >= opened.until:
            reason = "it has expired"
        elif not await source.stands(opened):
            reason = "the key that it is signed with is no longer good"
        else:
            if digest in self._cached:
                self._cached.move_to_end(digest)
            return
        self._cached.pop(digest, None)
        raise invalid(reason)

    def _source(self, issuer: str) -> TokenSource:
        if issuer == self.own_name and self.own is not None:
            return self.own
        return self._other(issuer)

    def _other(self, issuer: str) -> TokenSource:
        source = self.others.get(issuer)
        if source is None:
            raise invalid("its issuer is none that this registry trusts")
        return source

    def _keep(self, digest: bytes, source: TokenSource, opened: Opened) -> None:
        self._cached[digest] = source, opened
        if len(self._cached) > self.limit:
            self._cached.popitem(last=False)
