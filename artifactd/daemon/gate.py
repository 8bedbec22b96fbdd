"""Who may do what, put together as the settings say."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from artifactd.auth.bearer import AccountDirectory, BearerTokens
from artifactd.auth.guessing import Slowing
from artifactd.auth.identity import Groups, Identity, Kind
from artifactd.auth.issuers import (
    Fetch,
    FetchedKeys,
    Issuer,
    KeysInFile,
    KeySource,
    KeysUnavailable,
    discover,
)
from artifactd.auth.jwt import KEY_SET_LIMIT
from artifactd.auth.keys import Keys
from artifactd.auth.logins import Accounts, Logins, PasswordCheck, PasswordLogins, Rules, Visitors
from artifactd.auth.passwords import Htpasswd, Passwords, Robot, Robots
from artifactd.auth.rules import AccessRules, Limit, Rule
from artifactd.auth.token_service import Resolve, TokenService
from artifactd.auth.tokens import ISSUER, Tokens
from artifactd.daemon.assemble import Assembly
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.start import StartError
from artifactd.oci.errors import RegistryError
from artifactd.oci.names import ImageName, Patterns
from artifactd.registry.mirror.proofs import GuardedRepository
from artifactd.registry.registry import Registry
from artifactd.settings.accounts import IssuerSettings
from artifactd.settings.settings import Settings
from artifactd.store.folder import PrivateFile
from artifactd.upstream.http.errors import UpstreamError
from artifactd.upstream.http.proxy import Proxies
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import Transport
from artifactd.web.credentials import Credentials
from artifactd.web.gate import AccessGate, Challenge, Gate, LoopbackGate
from artifactd.web.server.proxies import TrustedProxies

# The accounts and the access rules of the settings, put together.


@frozen
class AccountsWiring:
    """
    Who may log in with a password, and who may do what.

    :ivar accounts: the kinds of accounts that are listed here.
    """

    groups: Groups
    rules: AccessRules
    accounts: Sequence[Accounts]
    _clock: IReactorTime
    slowing: Slowing

    def logins(self, *more: PasswordCheck) -> PasswordLogins:
        """:param more: what else a password may be, asked before the accounts here."""
        return PasswordLogins(
            [*more, *self.accounts],
            self._clock,
            self.slowing,
            [each.recall for each in self.accounts],
        )

    async def mark(self, identity: Identity) -> str | None:
        """As in :class:`artifactd.auth.logins.Accounts`, whichever lists ``identity``."""
        for accounts in self.accounts:
            mark = await accounts.mark(identity)
            if mark is not None:
                return mark
        return None


def wire_accounts(
    settings: Settings,
    run: RunInThread,
    clock: IReactorTime,
    now: Callable[[], float] = time.time,
) -> AccountsWiring:
    """
    Blocks: it reads the htpasswd file.

    :param run: runs in a thread; at most a quarter of ``settings.threads`` check passwords.
    :param now: seconds since the epoch.
    :raises StartError: if the file is wrong.
    """
    auth = settings.auth
    groups = Groups(auth.groups)
    parallel = max(1, settings.threads // 4)
    passwords = Passwords(run, clock, parallel=parallel, remember=auth.remember)
    robots = {
        name: Robot(str(each.secret_hash), each.expires.moment)
        for name, each in settings.robot.items()
    }
    accounts: list[Accounts] = [Robots(robots, passwords, groups, now)]
    if auth.htpasswd:
        accounts.append(Htpasswd(Path(auth.htpasswd), passwords, groups, run, clock))
    rules = AccessRules(
        [Rule(each.who, frozenset(each.may), each.images) for each in settings.access],
        {
            name: Limit(frozenset(each.may), each.images, each.expires.moment)
            for name, each in settings.robot.items()
        },
        now,
    )
    slowing = Slowing(auth.name_failures, auth.address_failures, auth.failure_period)
    return AccountsWiring(groups, rules, accounts, clock, slowing)


# Bearer tokens, put together as the settings say.

# What fetching keys may take in all, as a multiple of the timeout of its steps.
_STEPS = 3


def signing_keys(
    settings: Settings, run: RunInThread, now: Callable[[], float] = time.time
) -> Keys:
    """The keys in the data folder, which has to be locked; not started."""
    service = settings.token_service
    sessions = [issuer.session for issuer in settings.issuer.values()]
    longest = max(service.lifetime, service.refresh_lifetime, *sessions) + service.leeway
    file = PrivateFile(settings.data.absolute(), "tokens.json")
    return Keys(file, run, now, service.key_rotation, longest)


@define(eq=False)
class TokensWiring:
    """
    :ivar bearer: whose tokens count; to be asked too whether a password is one.
    :ivar tokens: artifactd's own; ``None``: the token service is off.
    """

    bearer: BearerTokens
    tokens: Tokens | None
    _directory: AccountDirectory
    _transports: list[Transport] = field(factory=list)

    def service(
        self, logins: Logins, rules: Rules, resolve: Resolve, visitors: Visitors | None = None
    ) -> TokenService | None:
        """The token service, unless it is off."""
        if self.tokens is None:
            return None
        return TokenService(logins, self._directory, rules, resolve, self.tokens, visitors)

    async def close(self) -> None:
        """Break off what is fetched, and close the connections."""
        for transport in self._transports:
            await transport.close()


def wire_tokens(
    settings: Settings,
    reactor: Any,
    run: RunInThread,
    mark: Callable[[Identity], Awaitable[str | None]],
    regrouped: Callable[[Identity], Identity],
    environ: Mapping[str, str],
    now: Callable[[], float] = time.time,
) -> TokensWiring:
    """
    Blocks: it makes or reads the keys.

    :param mark, regrouped: as of :class:`AccountDirectory`.
    :param environ: names the proxies.
    :raises StartError: if keys can't be made or read.
    """
    tokens = None
    service = settings.token_service
    if service.enabled:
        keys = signing_keys(settings, run, now)
        keys.start()
        tokens = Tokens(
            keys,
            service.service,
            service.lifetime,
            service.refresh_lifetime,
            service.leeway,
            now,
            {name: each.session for name, each in settings.issuer.items()},
        )
    transports: list[Transport] = []
    issuers = {}
    for name, each in settings.issuer.items():
        source = _keys(name, each, reactor, run, environ, now, transports)
        issuers[each.issuer] = Issuer(
            name,
            each.issuer,
            each.audience,
            [(claim, Patterns((pattern,))) for claim, _, pattern in _split(each.claims)],
            each.algorithms,
            each.leeway,
            source,
            now,
        )
    by_name = {issuer.name: issuer for issuer in issuers.values()}

    def accepted(identity: Identity) -> bool:
        issuer = by_name.get(identity.name.partition("/")[0])
        return issuer is not None and issuer.accepts(identity.claims)

    directory = AccountDirectory(mark, regrouped, accepted)
    bearer = BearerTokens(ISSUER, tokens, issuers, directory, now)
    return TokensWiring(bearer, tokens, directory, transports)


def _split(claims: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    return (claim.partition("=") for claim in claims)


def _keys(
    name: str,
    settings: IssuerSettings,
    reactor: Any,
    run: RunInThread,
    environ: Mapping[str, str],
    now: Callable[[], float],
    transports: list[Transport],
) -> KeySource:
    if settings.jwks_file:
        in_file = KeysInFile(Path(settings.jwks_file), run, now)
        try:
            in_file.start()
        except (OSError, ValueError) as error:
            raise StartError(f"issuer.{name}.jwks_file: {settings.jwks_file}: {error}") from None
        return in_file
    try:
        transport = Transport(
            reactor=reactor,
            trust=Trust.load(settings.ca_file),
            proxies=Proxies.from_environ(environ),
            connect_timeout=settings.timeout,
            first_byte_timeout=settings.timeout,
            idle_timeout=settings.timeout,
        )
    except StartError as error:
        raise StartError(f"issuer.{name}: {error}") from None
    transports.append(transport)
    fetch = _fetcher(transport, reactor, settings.timeout * _STEPS)

    async def key_set() -> bytes:
        return await fetch(settings.jwks_url or await discover(settings.issuer, fetch))

    return FetchedKeys(name, key_set, now, settings.refresh)


def _fetcher(transport: Transport, reactor: Any, seconds: float) -> Fetch:
    async def ask(url: str) -> bytes:
        response = await transport.request("GET", url, {"Accept": "application/json"})
        if response.status != 200:
            response.drop()
            raise KeysUnavailable(f"{url} answers {response.status}")
        return await response.read(KEY_SET_LIMIT)

    async def fetch(url: str) -> bytes:
        try:
            return await Deferred.fromCoroutine(ask(url)).addTimeout(seconds, reactor)
        except TimeoutError:
            raise KeysUnavailable(f"{url} takes longer than {seconds:g} s") from None
        except UpstreamError as error:
            raise KeysUnavailable(f"{url}: {error.reason}") from None

    return fetch


@frozen
class GateWiring:
    """
    :ivar service: gives tokens; ``None``: nobody does.
    """

    gate: Gate
    service: TokenService | None = None
    _tokens: TokensWiring | None = None

    async def close(self) -> None:
        """Break off what is under way."""
        if self._tokens is not None:
            await self._tokens.close()


def wire_gate(
    settings: Settings,
    reactor: Any,
    parts: Assembly,
    proxies: TrustedProxies,
    environ: Mapping[str, str],
) -> GateWiring:
    """
    Blocks: it reads the users, and reads or makes the keys of tokens.

    :param environ: names the proxies on the way to other issuers.
    :raises StartError: if it can't be done as things are.
    """
    read_only = parts.read_only.on
    if not settings.authentication:
        return GateWiring(LoopbackGate(read_only))
    accounts = wire_accounts(settings, parts.run, reactor)
    tokens = wire_tokens(
        settings,
        reactor,
        parts.run,
        accounts.mark,
        lambda identity: _regrouped(accounts.groups, identity),
        environ,
    )
    logins = accounts.logins(tokens.bearer)
    visitors = _visitors(settings, reactor, parts.registry, accounts.slowing)
    service = tokens.service(
        logins, accounts.rules, lambda name: images_named(parts.registry, name), visitors
    )
    gate = AccessGate(
        Credentials(logins, tokens.bearer, visitors),
        accounts.rules,
        Challenge(
            proxies,
            settings.external_url,
            "" if service is None else settings.token_service.service,
        ),
        read_only,
    )
    return GateWiring(gate, service, tokens)


def _visitors(
    settings: Settings, reactor: Any, registry: Registry, slowing: Slowing
) -> Visitors | None:
    proving = {
        name: each.proofs
        for name, each in registry.repositories.items()
        if isinstance(each, GuardedRepository)
    }
    if not proving:
        return None
    # Nobody's password here, mistyped, may go upstream, nor one upstream's to another.
    others = settings.auth.htpasswd or settings.robot or settings.issuer or len(proving) > 1
    return Visitors(proving, "" if others else next(iter(proving)), reactor, slowing)


def images_named(registry: Registry, name: str) -> Sequence[ImageName]:
    """
    The images that the name in a token's scope may mean: those that it may be pulled from, and the
    one that it is pushed to.  None if it means none; nothing is looked up.
    """
    try:
        target = registry.target(name)
    except RegistryError:
        return ()
    return tuple({target.image, *target.candidates})


def _regrouped(groups: Groups, identity: Identity) -> Identity:
    if identity.kind is Kind.USER:
        return groups.user(identity.name)
    return groups.robot(identity.name) if identity.kind is Kind.ROBOT else identity
