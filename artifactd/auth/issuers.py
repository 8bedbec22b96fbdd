"""Tokens of other issuers, such as GitHub Actions and GitLab CI: OpenID Connect Core 1.0, 2."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen

from artifactd.auth.bearer import Opened
from artifactd.auth.identity import Identity, Kind
from artifactd.auth.issuer_keys import KeySource
from artifactd.auth.jwks import VerificationKey
from artifactd.auth.signed import Header, check_times, invalid, read_header, verify
from artifactd.oci.errors import Unauthorized
from artifactd.oci.names import Patterns

# Keys that are tried where a token doesn't say which it is signed with.
_TRIED = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _Registered(msgspec.Struct, frozen=True):
    """RFC 7519, 4.1: the claims that are checked here."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: float
    nbf: float = 0.0
    iat: float = 0.0


@frozen
class Issuer:
    """
    One of the settings; an :class:`artifactd.auth.bearer.TokenSource`.

    :param name: in the settings.
    :param issuer: the ``iss`` of its tokens.
    :param audience: of which their ``aud`` has to have one.
    :param required: claims without which no token of it is accepted, with what they have to match.
    :param algorithms: of the signatures that are accepted.
    :param leeway: seconds by which its clock may differ.
    :param now: seconds since 1970.
    """

    name: str
    issuer: str
    audience: Collection[str]
    required: Sequence[tuple[str, Patterns]]
    algorithms: Collection[str]
    leeway: float
    keys: KeySource
    now: Callable[[], float]

    async def open(self, token: str) -> Opened:
        """As in :class:`artifactd.auth.bearer.TokenSource`."""
        header = read_header(token)
        if header.alg not in self.algorithms:
            raise invalid(f"signatures by {header.alg[:16]!r} are not accepted from its issuer")
        claims, kid = await self._verified(token, header)
        try:
            registered = msgspec.convert(claims, _Registered)
        except msgspec.ValidationError as error:
            raise invalid(f"its claims are not those of a token ({error})") from None
        if registered.iss != self.issuer:
            raise invalid("its issuer is none that this registry trusts")
        audience = registered.aud if isinstance(registered.aud, list) else [registered.aud]
        if not any(each in self.audience for each in audience):
            raise invalid(
                f"it is for another audience than {', '.join(self.audience)}: ask"
                f" {self.name} for one that is for this"
            )
        check_times(self.now(), self.leeway, registered.exp, registered.nbf, registered.iat)
        if not registered.sub or _CONTROL.search(registered.sub):
            raise invalid("it says of nobody that it is theirs")
        texts = as_text(claims)
        if not self.accepts(texts):
            names = ", ".join(name for name, _ in self.required)
            raise invalid(f"nobody is accepted whose {names} are like that")
        identity = Identity(Kind.ISSUER, f"{self.name}/{registered.sub}", claims=texts)
        return Opened(identity, None, "", registered.exp + self.leeway, kid)

    async def stands(self, opened: Opened) -> bool:
        """As in :class:`artifactd.auth.bearer.TokenSource`."""
        return self.keys.holds(opened.kid)

    def accepts(self, claims: Mapping[str, str]) -> bool:
        """Whether somebody with ``claims`` has those that are required."""
        return all(
            name in claims and patterns.match(claims[name]) for name, patterns in self.required
        )

    async def _verified(self, token: str, header: Header) -> tuple[Mapping[str, Any], str]:
        """The claims of ``token``, and the id of the key that it is signed with."""

        def fits(key: VerificationKey) -> bool:
            return header.alg in key.algorithms and header.kid in ("", key.kid)

        keys = await self.keys.keys(fits)
        for key in keys[:_TRIED]:
            try:
                return verify(token, key.public, header.alg, dict[str, Any]), key.kid
            except Unauthorized:
                continue
        raise invalid(
            "its signature is wrong"
            if keys
            else f"it is signed with a key that is not one of {self.name}'s"
        )


def as_text(claims: Mapping[str, Any]) -> Mapping[str, str]:
    """
    Claims as rules compare them: texts as they are, all else as JSON without spaces: ``true``,
    ``42``, ``["a","b"]``.  What is ``null`` is left out.
    """
    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in claims.items()
        if value is not None
    }
