"""
This registry's own tokens: registry-auth-jwt.

Access tokens go to the registry, refresh tokens to the token service alone.  Both are signed and
hold all state, so that any process on the data folder can serve any request.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self

import msgspec
from attrs import define, field, frozen

from artifactd.auth.bearer import Account, Opened
from artifactd.auth.identity import Identity, Kind
from artifactd.auth.jwt import TOKEN_LIMIT, check_times, invalid, read_header, sign, verify
from artifactd.auth.keys import Keys
from artifactd.oci.errors import QueryInvalid
from artifactd.settings.access import Action, implied
from artifactd.settings.accounts import IssuerSettings, TokenServiceSettings
from artifactd.upstream.credentials import UpstreamLogin

# registry-auth-scope, "Resource Scope Grammar".

REPOSITORY = "repository"
REGISTRY = "registry"
CATALOG = "catalog"
EVERYTHING = "*"
"""The action that stands for all actions, and in ``Caller.scopes`` the name of the catalog."""

# A name may have a port in it, so it ends at the last colon; registry-auth-scope, note on
# "resourcename".  The class of a type is ignored ("Resource Class").
_SCOPE = re.compile(
    r"(?P<type>[a-z0-9]+)(?:\([a-z0-9]+\))?"
    r":(?P<name>[A-Za-z0-9._/:\[\]-]{1,512})"
    r":(?P<actions>(?:[a-z]*|\*)(?:,(?:[a-z]*|\*))*)"
)


@frozen
class Scope:
    """
    A resource and actions on it.

    :ivar type: ``repository``, ``registry``, or an unknown one.
    :ivar name: as the client writes it.
    :ivar actions: without doubles, in the order given; ``*`` and unknown ones may be among them.
    """

    type: str
    name: str
    actions: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse a scope; ``None`` if ``text`` is malformed."""
        match = _SCOPE.fullmatch(text)
        if match is None:
            return None
        actions = dict.fromkeys(action for action in match["actions"].split(",") if action)
        return cls(match["type"], match["name"], tuple(actions))

    @property
    def wanted(self) -> frozenset[Action]:
        """The known actions, with those that they include; ``*`` stands for all."""
        if EVERYTHING in self.actions:
            return frozenset(Action)
        return implied(action for action in Action if action in self.actions)

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(self.actions)}"


def parse_scopes(texts: Iterable[str]) -> Iterator[Scope]:
    """
    The scopes in ``texts``, each of which holds one, or several divided by spaces.  Scopes of the
    same resource become one.

    Malformed ones are left out: asking for too much is no error (registry-auth-token, "Requesting
    a Token").
    """
    actions: dict[tuple[str, str], dict[str, None]] = {}
    for text in texts:
        for each in text.split():
            scope = Scope.parse(each)
            if scope is not None:
                asked = actions.setdefault((scope.type, scope.name), {})
                asked.update(dict.fromkeys(scope.actions))
    for (kind, name), asked in actions.items():
        yield Scope(kind, name, tuple(asked))


ISSUER = "artifactd"
"""The ``iss`` of this registry's tokens."""

_ALGORITHM = "ES256"
_ACCESS, _REFRESH = "JWT", "refresh+jwt"


class _Access(msgspec.Struct, frozen=True):
    """One entry of the claim "access": a resource and the allowed actions."""  # registry-auth-jwt

    type: str
    name: str
    actions: list[str]


class _Shown(msgspec.Struct, frozen=True):
    """
    The upstream's credential that a token was given for, without the password.

    :ivar mark: the mark of the :class:`UpstreamLogin`, in hexadecimal digits.
    """

    repository: str
    user: str
    mark: str


class _Claims(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    The claims of registry-auth-jwt, "Claim Set", and those that identify the subject here.

    :ivar kind: the kind of identity that ``sub`` names.
    :ivar pwd: the fingerprint of the account.
    :ivar claims: the claims of another issuer's token, if this token was given for one.
    :ivar shown: the upstream's credential, if this token was given for one.
    """

    iss: str
    sub: str
    aud: str
    exp: int
    nbf: int
    iat: int
    jti: str
    kind: Kind
    access: list[_Access] | msgspec.UnsetType = msgspec.UNSET
    pwd: str = ""
    claims: dict[str, str] = msgspec.field(default_factory=dict)
    shown: _Shown | None = None


@frozen
class Issued:
    """
    An access token that was issued.

    :ivar issued_at: seconds since 1970.
    :ivar expires_in: seconds.
    """

    text: str = field(repr=False)
    issued_at: int
    expires_in: int


@define(eq=False)
class Tokens:
    """
    Issues and verifies this registry's own tokens.

    :param issuers: the other issuers of the settings, by their names: an access token given for a
        token of one of them has that issuer's ``session`` as its lifetime.
    :param now: seconds since 1970.
    """

    keys: Keys
    settings: TokenServiceSettings
    issuers: Mapping[str, IssuerSettings]
    now: Callable[[], float]

    async def issue(
        self, account: Account, granted: Sequence[Scope], presented: UpstreamLogin | None = None
    ) -> Issued:
        """
        Issue an access token for ``granted``, which may be empty.

        :param presented: the upstream's credential of the login; the token holds its mark.
        :raises QueryInvalid: if the scopes are more than a token can hold.
        """
        access = [_Access(each.type, each.name, list(each.actions)) for each in granted]
        claims = self._claims(account, self._lifetime(account), access, presented)
        text = await self._sign(claims, _ACCESS)
        if len(text) > TOKEN_LIMIT:
            raise QueryInvalid("the token would be too large: ask for fewer scopes at once")
        return Issued(text, claims.iat, claims.exp - claims.iat)

    async def issue_refresh(self, account: Account) -> str:
        """Issue a refresh token, which is valid for getting access tokens only."""
        return await self._sign(self._claims(account, self.settings.refresh_lifetime), _REFRESH)

    async def open(self, token: str) -> Opened:
        """Verify an access token; see :class:`artifactd.auth.bearer.TokenSource`."""
        return await self._open(token, _ACCESS)

    async def open_refresh(self, token: str) -> Opened:
        """Verify a refresh token; it has no scopes.  :raises Unauthorized: if it isn't valid."""
        return await self._open(token, _REFRESH)

    async def stands(self, opened: Opened) -> bool:
        """Whether the key of a token is still good."""
        return await self.keys.verifying(opened.kid) is not None

    def recalls(self, opened: Opened) -> bool:
        """Whether the key of a token is still good, as far as that is known at once."""
        return self.keys.holds(opened.kid)

    def _lifetime(self, account: Account) -> float:
        """
        The lifetime of an access token in seconds.

        A token given for a CI job's token has the ``session`` of that issuer: the job's own token
        may expire before its push ends.
        """
        identity = account.identity
        if identity.kind is Kind.ISSUER:
            issuer = self.issuers.get(identity.name.partition("/")[0])
            if issuer is not None:
                return issuer.session
        return self.settings.lifetime

    def _claims(
        self,
        account: Account,
        lifetime: float,
        access: list[_Access] | None = None,
        presented: UpstreamLogin | None = None,
    ) -> _Claims:
        identity, issued = account.identity, int(self.now())
        return _Claims(
            iss=ISSUER,
            sub=identity.name,
            aud=self.settings.service,
            exp=issued + int(lifetime),
            nbf=issued,
            iat=issued,
            jti=secrets.token_urlsafe(16),
            kind=identity.kind,
            access=msgspec.UNSET if access is None else access,
            pwd=account.fingerprint,
            claims=dict(identity.claims),
            shown=None
            if presented is None
            else _Shown(presented.repository, presented.user, presented.mark.hex()),
        )

    async def _sign(self, claims: _Claims, typ: str) -> str:
        key = await self.keys.signing()
        return sign(claims, key.private, _ALGORITHM, key.kid, typ)

    async def _open(self, token: str, typ: str) -> Opened:
        header = read_header(token)
        key = await self.keys.verifying(header.kid, look=typ == _REFRESH)
        if key is None:
            raise invalid("it is signed with a key that is not, or no longer, one of this registry")
        if header.typ != typ:
            raise invalid("it is not for this purpose")
        claims = verify(token, key, _ALGORITHM, _Claims)
        if claims.iss != ISSUER or claims.aud != self.settings.service:
            raise invalid("it is for another service")
        check_times(self.now(), self.settings.leeway, claims.exp, claims.nbf, claims.iat)
        return Opened(
            identity=Identity(claims.kind, claims.sub, claims=claims.claims),
            scopes=_scopes(claims.access or []),
            fingerprint=claims.pwd,
            until=claims.exp + self.settings.leeway,
            kid=header.kid,
            presented=_presented(claims.shown),
        )


def _presented(shown: _Shown | None) -> UpstreamLogin | None:
    if shown is None:
        return None
    return UpstreamLogin(shown.repository, shown.user, bytes.fromhex(shown.mark))


def _scopes(access: Sequence[_Access]) -> Mapping[str, frozenset[Action]]:
    """The ``access`` claim, as ``Caller.scopes`` has it."""
    scopes: dict[str, frozenset[Action]] = {}
    for each in access:
        scope = Scope(each.type, each.name, tuple(each.actions))
        name = each.name if each.type == REPOSITORY else ""
        if each.type == REGISTRY and each.name == CATALOG:
            name = EVERYTHING
        if name:
            scopes[name] = scopes.get(name, frozenset()) | scope.wanted
    return scopes
