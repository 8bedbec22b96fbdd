"""Settings of Bearer tokens: artifactd's own token service, and other issuers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from artifactd.auth.origins import is_trustworthy
from artifactd.config_tables import as_table, key, read_values
from artifactd.config_types import Flag, Length, Text, Timeout
from artifactd.kit.start import StartError
from artifactd.quantity import Duration

SERVICE_NAME = "artifactd"
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""Signatures of other issuers' tokens that may be allowed: all that need no shared secret."""

# Seconds: registry-auth-token, "a token should never be returned with less than 60 seconds".
_LEAST = Duration(60)

_Lifetime = Annotated[Length, Meta(extra={"least": _LEAST})]
_Service = Annotated[
    str, Meta(pattern=r"^[!#-\[\]-~]{1,255}$", description='a name such as "registry.example.com"')
]
_Audience = Annotated[
    tuple[Annotated[str, Meta(min_length=1)], ...],
    Meta(min_length=1, description='texts such as "https://registry.example.com", at least one'),
]
_Algorithms = Annotated[
    tuple[Annotated[str, Meta(pattern=f"^(?:{'|'.join(ALGORITHMS)})$")], ...],
    Meta(min_length=1, description=f"some of {', '.join(ALGORITHMS)}"),
]
_Claims = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^[^\s=]+=.+$")], ...],
    Meta(description='claims with patterns such as "repository_owner=octo-org"'),
]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SOURCES = ("jwks_file", "jwks_url")


class TokenServiceSettings(Struct, frozen=True):
    """
    ``[token_service]``: ``etc/artifactd.toml`` tells what each means.

    :ivar key_rotation: seconds; 0: never.
    """

    enabled: Flag = True
    service: _Service = SERVICE_NAME
    lifetime: _Lifetime = Duration(300)
    refresh_lifetime: _Lifetime = Duration(90 * 86400)
    key_rotation: Length = Duration(30 * 86400)
    leeway: Length = Duration(10)

    @classmethod
    def read(cls, table: object, where: str) -> TokenServiceSettings:
        """:raises StartError: naming the first setting that is wrong."""
        return cls(**read_values(cls, as_table(table, where), lambda name: f"{where}.{name}"))


class IssuerSettings(Struct, frozen=True, kw_only=True):
    """
    ``[issuer.<name>]``: ``etc/artifactd.toml`` tells what each means.

    :ivar jwks_file: a path, or empty, as is ``ca_file``; with neither it nor ``jwks_url``, the keys
        are where the issuer's discovery document says.
    """

    issuer: Text
    audience: _Audience
    claims: _Claims = ()
    jwks_file: Text = ""
    jwks_url: Text = ""
    ca_file: Text = ""
    algorithms: _Algorithms = ("RS256", "ES256")
    session: _Lifetime = Duration(3600)
    leeway: Length = Duration(60)
    refresh: _Lifetime = Duration(3600)
    timeout: Timeout = Duration(10)

    @classmethod
    def read(cls, table: object, where: str) -> IssuerSettings:
        """:raises StartError: naming the first setting that is wrong or missing."""
        values = read_values(cls, as_table(table, where), lambda name: f"{where}.{name}")
        for name, expected in (
            ("issuer", 'the "iss" of its tokens, such as "https://gitlab.example.com"'),
            ("audience", 'the "aud" of tokens that are for this registry'),
        ):
            if not values.get(name):
                raise StartError(f"{where}.{name}: expected {expected}, got nothing")
        _check_source(values, where)
        return cls(**values)


def read_issuers(tables: object, where: str) -> Mapping[str, IssuerSettings]:
    """
    ``[issuer.<name>]``, by their names.

    :raises StartError: naming the first setting that is wrong, or issuers that can't be told apart.
    """
    issuers: dict[str, IssuerSettings] = {}
    named: dict[str, str] = {}
    for name, table in as_table(tables, where).items():
        if not _NAME.fullmatch(name):
            raise StartError(f"{where}.{key(name)}: expected a name of letters, digits and . _ -")
        issuers[name] = issuer = IssuerSettings.read(table, f"{where}.{key(name)}")
        other = named.setdefault(issuer.issuer, name)
        if other != name:
            raise StartError(
                f"{where}.{key(name)}.issuer: expected an issuer of its own, got"
                f' "{issuer.issuer}", which is {key(other)} too'
            )
    return issuers


def _check_source(values: Mapping[str, Any], where: str) -> None:
    """One place the keys come from, which nobody on the way can change."""
    given = [name for name in _SOURCES if values.get(name)]
    if len(given) > 1:
        raise StartError(f"{where}.{given[1]}: expected one source of keys, got {given[0]} too")
    asked = given[0] if given else "issuer"
    if asked != "jwks_file" and not is_trustworthy(values[asked]):
        what = "" if given else ", or jwks_file or jwks_url with it"
        raise StartError(f'{where}.{asked}: expected a URL that begins with "https://"{what}')
