"""Who carries a Bearer token: RFC 6750, 2.1."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import define, field, frozen
from twisted.logger import Logger

from artifactd.auth.accounts import Directory
from artifactd.auth.identity import Caller, Identity
from artifactd.auth.signed import invalid, is_token, read_header, read_source
from artifactd.oci.errors import Unauthorized
from artifactd.registry.mirror.proofs import Presented
from artifactd.settings.access import Action

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
    presented: Presented | None = None


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
    The tokens of all sources: a :class:`artifactd.auth.interfaces.TokenCheck`, and for those of
    other issuers a :class:`artifactd.auth.interfaces.PasswordCheck` too.

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
