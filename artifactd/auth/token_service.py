"""The token service: it gives tokens to clients (registry-auth-token, registry-auth-oauth)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from attrs import evolve, field, frozen

from artifactd.auth.bearer import Account, Directory
from artifactd.auth.identity import Caller, Identity
from artifactd.auth.jwt import invalid
from artifactd.auth.logins import Logins, Visitors
from artifactd.auth.rules import AccessRules
from artifactd.auth.tokens import (
    CATALOG,
    EVERYTHING,
    REGISTRY,
    REPOSITORY,
    Scope,
    Tokens,
    parse_scopes,
)
from artifactd.oci.errors import BadGateway, NameInvalid, QueryInvalid, Unauthorized
from artifactd.oci.names import ImageName, RepositoryName
from artifactd.settings.access import Action
from artifactd.upstream.credentials import UpstreamLogin

MOST_SCOPES = 100
"""The number of scopes that one request for a token may have."""

Resolve = Callable[[str], Sequence[ImageName]]
"""
Returns the images that a name in a scope may mean, as clients write it: ``hello`` may be
``local/hello`` when it is pushed and ``docker.io/library/hello`` when it is pulled.  Empty if it
means none; never fails.
"""


@frozen
class Asked:
    """
    A request for a token.

    :ivar scopes: resource scopes; each text holds one, or several divided by spaces.
    :ivar service: the service that the token is for; empty if the client doesn't say.
    :ivar offline: whether a refresh token is wanted too.
    """

    scopes: Sequence[str] = ()
    service: str = ""
    offline: bool = False


@frozen
class Granted:
    """
    The answer to a request for a token: registry-auth-token, "Token Response Fields".

    :ivar who: the account, for logs.
    :ivar expires_in: seconds from ``issued_at``.
    :ivar issued_at: seconds since 1970.
    :ivar scope: the granted scopes, divided by spaces.
    :ivar refresh_token: ``None`` if none was asked for, or the caller can't have one.
    """

    token: str = field(repr=False)
    who: str
    expires_in: int
    issued_at: int
    scope: str
    refresh_token: str | None = field(default=None, repr=False)


@frozen
class TokenService:
    """
    Gives tokens to clients that log in, and anonymous ones for the access of anonymous.

    A token is for the scopes that were asked for and that the rules grant.  If that is none, the
    client still gets a token, "as it is not the responsibility of the token server to indicate
    authorization errors" (registry-auth-token, "Requesting a Token").  ``docker login`` asks for no
    scope at all.

    :param resolve: returns the images that a name in a scope may mean.
    """

    logins: Logins
    accounts: Directory
    rules: AccessRules
    resolve: Resolve
    tokens: Tokens

    async def for_login(self, name: str, password: str, address: str, asked: Asked) -> Granted:
        """
        Give a token to the account with that name and password.

        :param address: the client's address.
        :raises Unauthorized: if no account has that name and password.
        :raises TooManyRequests: after too many failures from ``address``.
        :raises QueryInvalid: if ``asked`` is for another service, or for too many scopes.
        """
        self._check(asked)
        caller = await self.logins.log_in(name, password, address)
        return await self.for_caller(caller, asked)

    async def for_caller(self, caller: Caller, asked: Asked) -> Granted:
        """
        Give a token to a caller that is authenticated, or to an anonymous one.

        :raises Unauthorized: if the caller has a token of this registry: it gets no other.
        :raises QueryInvalid: see :meth:`for_login`.
        :raises BadGateway: if the caller has an upstream's credential, and that upstream can't be
            asked about any of the images.
        """
        self._check(asked)
        if caller.scopes is not None:
            raise Unauthorized("a token of this registry gets no other one: log in")
        account = await self.accounts.current(caller.identity)
        if account is None:
            raise Unauthorized("the account has gone this very moment: log in again")
        if caller.presented is not None and self.logins.visitors is not None:
            await self._prove(self.logins.visitors, account.identity, caller.presented, asked)
        granted = await self._grant(account, asked, caller.presented)
        if asked.offline and account.fingerprint:
            # The certificate or token of other callers expires; a refresh token would outlive it.
            refresh_token = await self.tokens.issue_refresh(account)
            granted = evolve(granted, refresh_token=refresh_token)
        return granted

    async def for_refresh_token(self, text: str, asked: Asked) -> Granted:
        """
        Give a token for a refresh token, which stays the same: registry-auth-oauth, "access_type".

        :raises Unauthorized: if the refresh token isn't valid any more; it dies with the password.
        :raises QueryInvalid: see :meth:`for_login`.
        """
        self._check(asked)
        opened = await self.tokens.open_refresh(text)
        account = await self.accounts.current(opened.identity)
        if account is None or account.fingerprint != opened.fingerprint:
            raise invalid("the password has changed since it was given, or the account has gone")
        return evolve(await self._grant(account, asked), refresh_token=text)

    def _check(self, asked: Asked) -> None:
        service = self.tokens.settings.service
        if asked.service and asked.service != service:
            raise QueryInvalid(
                f"tokens are given for the service {service!r} alone",
                {"service": asked.service[:255]},
            )
        if sum(len(text.split()) for text in asked.scopes) > MOST_SCOPES:
            raise QueryInvalid(f"ask for at most {MOST_SCOPES} scopes at once")

    async def _prove(
        self, visitors: Visitors, identity: Identity, presented: UpstreamLogin, asked: Asked
    ) -> None:
        """
        Ask the upstream now which of the images the credential gives access to.

        Later requests come with the token, which does not hold the password to ask with.  A refusal
        is reported to the client that uses the token.
        """
        upstream = visitors.upstreams[presented.repository]
        proved, failure = False, None
        for scope in parse_scopes(asked.scopes):
            if scope.type != REPOSITORY or Action.PULL not in scope.wanted:
                continue
            for image in self._meant(scope.name):
                if image.repository != presented.repository:
                    continue
                if Action.PULL not in self.rules.granted(identity, image):
                    continue
                try:
                    await upstream.prove(image, presented)
                    proved = True
                except BadGateway as error:
                    failure = error
        if failure is not None and not proved:
            raise failure

    async def _grant(
        self, account: Account, asked: Asked, presented: UpstreamLogin | None = None
    ) -> Granted:
        granted = list(self._granted(account.identity, asked.scopes))
        issued = await self.tokens.issue(account, granted, presented)
        scope = " ".join(map(str, granted))
        who = account.identity.label
        return Granted(issued.text, who, issued.expires_in, issued.issued_at, scope)

    def _granted(self, identity: Identity, texts: Sequence[str]) -> Iterator[Scope]:
        """
        The scopes asked for, each with the actions that are allowed; scopes without any are left
        out.
        """
        for scope in parse_scopes(texts):
            if scope.type == REPOSITORY:
                allowed = self._allowed(identity, scope.name)
                if Action.CREATE in allowed:
                    # Clients know no other scope to push with.  The gate asks the rules whether
                    # that is to create alone.
                    allowed |= {Action.PUSH}
                granted = scope.wanted & allowed
                if Action.PUSH in granted:
                    granted -= {Action.CREATE}  # which it includes
                actions = tuple(action.value for action in Action if action in granted)
            elif (scope.type, scope.name) == (REGISTRY, CATALOG) and EVERYTHING in scope.actions:
                # Everybody may ask for the catalog: it lists to each caller what they may pull.
                actions = (EVERYTHING,)
            else:
                actions = ()
            if actions:
                yield evolve(scope, actions=actions)

    def _allowed(self, identity: Identity, name: str) -> frozenset[Action]:
        """
        The actions that are allowed to any image that ``name`` may mean.  The gate decides which of
        them a request is about, and asks the rules again.
        """
        granted = [self.rules.granted(identity, image) for image in self._meant(name)]
        return frozenset[Action]().union(*granted)

    def _meant(self, name: str) -> Sequence[ImageName]:
        try:
            RepositoryName.parse(name)
        except NameInvalid:
            return ()  # of another registry: "registry.example:5000/team/app"
        return self.resolve(name)
