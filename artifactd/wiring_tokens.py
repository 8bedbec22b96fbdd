"""Bearer tokens, put together as the settings say."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, TimeoutError

from artifactd.auth.bearer import AccountDirectory, BearerTokens
from artifactd.auth.identity import Identity
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
from artifactd.auth.keys import Keys, Run
from artifactd.auth.logins import Logins, Rules, Visitors
from artifactd.auth.token_service import Resolve, TokenService
from artifactd.auth.tokens import ISSUER, Tokens
from artifactd.kit.deferreds import RunInThread
from artifactd.kit.start import StartError
from artifactd.oci.names import Patterns
from artifactd.settings.accounts import IssuerSettings
from artifactd.settings.settings import Settings
from artifactd.store.folder import PrivateFile
from artifactd.upstream.errors import UpstreamError
from artifactd.upstream.http.transport import Transport, TransportSettings

# What fetching keys may take in all, as a multiple of the timeout of its steps.
_STEPS = 3


def signing_keys(settings: Settings, run: Run, now: Callable[[], float] = time.time) -> Keys:
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
    timeouts = TransportSettings(
        connect_timeout=settings.timeout,
        first_byte_timeout=settings.timeout,
        idle_timeout=settings.timeout,
        ca_file=Path(settings.ca_file) if settings.ca_file else None,
    )
    try:
        transport = Transport.make(reactor, timeouts, environ)
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
