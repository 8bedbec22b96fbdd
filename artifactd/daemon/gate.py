"""The gate put together: accounts, access rules and tokens, as the settings say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from artifactd.auth.bearer import BearerTokens, Directory
from artifactd.auth.identity import Caller, Groups, Identity
from artifactd.auth.issuers import FetchedKeys, Issuer, KeysInFile, KeySource, key_set_of
from artifactd.auth.keys import Keys
from artifactd.auth.logins import Logins, Visitors
from artifactd.auth.passwords import Accounts, Htpasswd, Passwords, Robots, read_robots
from artifactd.auth.rules import AccessRules
from artifactd.auth.sessions import Sessions
from artifactd.auth.token_service import TokenService
from artifactd.auth.tokens import ISSUER, Tokens
from artifactd.catalog.sessions import SessionCatalog
from artifactd.daemon.assemble import Assembly, secret_key
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.start import StartError
from artifactd.oci.errors import RegistryError
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import GuardedRepository
from artifactd.registry.registry import Registry
from artifactd.settings.accounts import IssuerSettings, RobotSettings
from artifactd.settings.settings import Settings
from artifactd.store.folder import PrivateFile
from artifactd.upstream.http.proxy import Proxies
from artifactd.upstream.http.reach import Reach
from artifactd.upstream.http.tls import Trust
from artifactd.upstream.http.transport import Transport
from artifactd.upstream.http.url import Target
from artifactd.web.gate import AccessGate, Challenge, Credentials, Gate, LoopbackGate
from artifactd.web.page.browser import Browser, CookieCredentials, is_used_here


def listed_accounts(
    settings: Settings,
    groups: Groups,
    run: RunInThread,
    clock: IReactorTime,
    now: Callable[[], float] = time.time,
    robots_changed: Callable[[Mapping[str, RobotSettings]], object] = lambda robots: None,
) -> list[Accounts]:
    """
    The kinds of accounts that the settings list.  Blocks: it reads the files that they name.

    :param run: runs in a thread; at most a quarter of ``settings.threads`` check passwords.
    :param now: seconds since the epoch.
    :param robots_changed: is called with all robots when ``robots_file`` has been read.
    :raises StartError: if a file is wrong.
    """
    auth = settings.auth
    parallel = max(1, settings.threads // 4)
    passwords = Passwords(run, clock, parallel=parallel, remember=auth.remember)
    robots = Robots(settings.robot, passwords, groups, now)
    if auth.robots_file:
        path = Path(auth.robots_file)
        robots.follow(path, partial(read_robots, settings), run, clock, robots_changed)
    accounts: list[Accounts] = [robots]
    if auth.htpasswd:
        accounts.append(Htpasswd(Path(auth.htpasswd), passwords, groups, run, clock))
    return accounts


def signing_keys(
    settings: Settings, run: RunInThread, now: Callable[[], float] = time.time
) -> Keys:
    """
    Return the keys in the data folder, which the caller has locked.  They are not started yet.
    """
    service = settings.token_service
    sessions = [issuer.session for issuer in settings.issuer.values()]
    longest = max(service.lifetime, service.refresh_lifetime, *sessions) + service.leeway
    file = PrivateFile(settings.data.absolute(), "tokens.json")
    return Keys(file, run, now, service.key_rotation, longest)


@define(eq=False)
class TokensWiring:
    """
    Makes the verification of Bearer tokens and the token service that the settings ask for.

    The constructor blocks: it makes or reads the keys of tokens.

    :param accounts: the accounts that tokens are given to.
    :param environ: names the proxies on the way to other issuers.
    :param now: seconds since the epoch.
    :raises StartError: if keys can't be made or read.
    :ivar tokens: the tokens of this registry; ``None``: the token service is off.
    """

    settings: Settings
    reactor: Any
    run: RunInThread
    groups: Groups
    accounts: Sequence[Accounts]
    environ: Mapping[str, str]
    now: Callable[[], float] = time.time
    tokens: Tokens | None = field(default=None, init=False)
    directory: Directory = field(init=False)
    bearer: BearerTokens = field(init=False)
    _issuers: dict[str, Issuer] = field(factory=dict, init=False)
    _transports: list[Transport] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        service, issuers = self.settings.token_service, self.settings.issuer
        if service.enabled:
            keys = signing_keys(self.settings, self.run, self.now)
            keys.start()
            self.tokens = Tokens(keys, service, issuers, self.now)
        for name, issuer in issuers.items():
            self._issuers[name] = Issuer(name, issuer, self._keys(name), self.now)
        self.directory = Directory(self.accounts, self.groups, self._accepts)
        others = {issuer.settings.issuer: issuer for issuer in self._issuers.values()}
        self.bearer = BearerTokens(ISSUER, self.tokens, others, self.directory, self.now)

    def _accepts(self, identity: Identity) -> bool:
        issuer = self._issuers.get(identity.name.partition("/")[0])
        return issuer is not None and issuer.accepts(identity.claims)

    def _keys(self, name: str) -> KeySource:
        issuer = self.settings.issuer[name]
        if issuer.jwks_file:
            try:
                return KeysInFile(Path(issuer.jwks_file), self.run, self.now)
            except (OSError, ValueError) as error:
                raise StartError(f"issuer.{name}.jwks_file: {issuer.jwks_file}: {error}") from None
        try:
            transport = Transport(
                reactor=self.reactor,
                trust=Trust.load(issuer.ca_file),
                proxies=Proxies.from_environ(self.environ),
                reach=_reach(issuer),
                connect_timeout=issuer.timeout,
                first_byte_timeout=issuer.timeout,
                idle_timeout=issuer.timeout,
            )
        except StartError as error:
            raise StartError(f"issuer.{name}: {error}") from None
        self._transports.append(transport)
        key_set = key_set_of(issuer, transport, self.reactor)
        return FetchedKeys(name, key_set, self.now, issuer.refresh)

    async def close(self) -> None:
        """Stop fetching keys, and close the connections."""
        for transport in self._transports:
            await transport.close()


@define(eq=False)
class GateWiring:
    """
    The gate and the token service that the settings ask for.

    :ivar browser: keeps the sessions of the page at ``/``.
    :ivar page_gate: decides about the requests of the page: by the same rules, but it knows callers
        by their sessions.
    :ivar recall: returns the caller for a value of ``Authorization`` and the client's address, or
        ``None`` where that takes longer than microseconds.
    :ivar rules_state: returns another object whenever the rules of access have changed.
    :ivar service: gives tokens; ``None``: the token service is off.
    :ivar logins: checks names and passwords; ``None``: there are no accounts.
    """

    gate: Gate
    browser: Browser
    page_gate: Gate
    recall: Callable[[bytes, str], Caller | None]
    rules_state: Callable[[], object]
    service: TokenService | None = None
    logins: Logins | None = None
    _tokens: TokensWiring | None = None

    async def close(self) -> None:
        """Stop fetching keys of other issuers, and close the connections."""
        if self._tokens is not None:
            await self._tokens.close()


def wire_gate(
    settings: Settings,
    reactor: Any,
    parts: Assembly,
    origin: Callable[[Request], str],
    environ: Mapping[str, str],
) -> GateWiring:
    """
    Blocks: it reads the users, and reads or makes the keys of tokens.

    :param origin: returns the URL under which the client of a request reaches the daemon.
    :param environ: names the proxies on the way to other issuers.
    :raises StartError: if a file of users or keys can't be used.
    """
    read_only = parts.read_only.on
    key = secret_key(parts.folder.path, "sessions")
    ended = SessionCatalog(parts.catalog.database)
    if not settings.authentication:
        browser = Browser(Sessions(key, None, ended, time.time), origin)
        gate, page_gate = LoopbackGate(read_only), LoopbackGate(read_only, is_used_here)
        return GateWiring(gate, browser, page_gate, gate.recall, gate.rules_state)
    groups = Groups(settings.auth.groups)
    rules = AccessRules(settings.access, settings.robot, time.time)
    accounts = listed_accounts(
        settings, groups, parts.run, reactor, robots_changed=rules.take_robots
    )
    tokens = TokensWiring(settings, reactor, parts.run, groups, accounts, environ)
    visitors = _visitors(settings, parts)
    logins = Logins(accounts, settings.auth, parts.memory, tokens.bearer, visitors)
    service = None
    if tokens.tokens is not None:
        resolve = partial(images_named, parts.registry)
        service = TokenService(logins, tokens.directory, rules, resolve, tokens.tokens)
    name = "" if service is None else settings.token_service.service
    challenge = Challenge(origin, name)
    credentials = Credentials(logins, tokens.bearer)
    browser = Browser(Sessions(key, tokens.directory, ended, time.time), origin)
    return GateWiring(
        AccessGate(credentials, rules, challenge, read_only),
        browser,
        AccessGate(CookieCredentials(browser), rules, challenge, read_only),
        credentials.recall,
        rules.state,
        service,
        logins,
        tokens,
    )


def _reach(issuer: IssuerSettings) -> Reach:
    """:raises StartError: if the URL that is asked first can't be asked."""
    try:
        host = Target.parse(issuer.jwks_url or issuer.issuer).host
    except ValueError as error:
        place = "jwks_url" if issuer.jwks_url else "issuer"
        raise StartError(f"{place}: expected a URL that can be asked: {error}") from None
    return Reach(host, setting="jwks_url")


def _visitors(settings: Settings, parts: Assembly) -> Visitors | None:
    proving = {
        name: each.proofs
        for name, each in parts.registry.repositories.items()
        if isinstance(each, GuardedRepository)
    }
    if not proving:
        return None
    # A mistyped password of an account here must not go upstream, nor one upstream's to another.
    listed = settings.auth.htpasswd or settings.auth.robots_file or settings.robot
    others = listed or settings.issuer or len(proving) > 1
    alone = "" if others else next(iter(proving))
    return Visitors(proving, alone, settings.auth, parts.memory)


def images_named(registry: Registry, name: str) -> Sequence[ImageName]:
    """
    The images that the name in a token's scope may mean: those that it may be pulled from, and the
    one that it is pushed to.  Empty if it means none; nothing is looked up.
    """
    try:
        target = registry.target(name)
    except RegistryError:
        return ()
    return tuple({target.image, *target.readable.candidates(target.image)})
