"""Who may do what, put together as the settings say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from artifactd.auth.guessing import Slowing
from artifactd.auth.identity import Groups, Identity, Kind
from artifactd.auth.logins import Visitors
from artifactd.auth.token_service import TokenService
from artifactd.oci.errors import RegistryError
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.registry import Registry
from artifactd.settings.settings import Settings
from artifactd.web.credentials import Credentials
from artifactd.web.gate import AccessGate, Challenge, Gate, LoopbackGate
from artifactd.web.server.proxies import TrustedProxies
from artifactd.wiring import Assembly
from artifactd.wiring_accounts import wire_accounts
from artifactd.wiring_tokens import TokensWiring, wire_tokens


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
        if isinstance(each, RemoteRepository) and each.proofs is not None
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
