"""Settings that say who may do what: accounts and access rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar

from attrs import frozen
from msgspec import Meta, Struct, field
from msgspec.structs import fields

from artifactd.kit.start import StartError
from artifactd.oci.names import Patterns as Compiled
from artifactd.settings.access import Action, Subject
from artifactd.settings.toml import as_table, key, read_values, shown
from artifactd.settings.values import (
    Duration,
    Expiry,
    Flag,
    Length,
    Moment,
    Pattern,
    Patterns,
    Text,
    Timeout,
    is_trustworthy,
)

_S = TypeVar("_S", bound=Struct)

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SECRET_HASH = re.compile(
    r"sha256:[0-9a-f]{64}|\$2[aby]\$(0[4-9]|1[0-7])\$[./A-Za-z0-9]{53}"  # what htpasswd -C allows
)


class SecretHash(str):
    """What a robot's secret is compared with: ``sha256:`` and 64 hexadecimal digits, or bcrypt."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if it is neither."""
        if not _SECRET_HASH.fullmatch(text):
            raise ValueError(text)
        return cls(text)


Subjects = Annotated[
    tuple[Subject, ...],
    Meta(
        min_length=1,
        description='a list of "anonymous", "authenticated", "user:<name>", "group:<name>",'
        ' "robot:<name>", "certificate:<name>", "issuer:<name>", "upstream:<repository>/*",'
        ' "claim:<issuer>:<claim>=<pattern>"',
    ),
]
Actions = Annotated[
    tuple[Action, ...],
    Meta(min_length=1, description='a list of "pull", "push", "delete", "administer"'),
]
Members = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^(robot:)?[^:\s]+$")], ...],
    Meta(description='a list of users, and of robots as "robot:<name>"'),
]
Groups = Annotated[Mapping[str, Members], Meta(description="lists of users by names of groups")]
Hash = Annotated[
    SecretHash,
    Meta(description='"sha256:…" as "artifactd robot" prints it, or a bcrypt hash ("$2b$…")'),
]
Failures = Annotated[int, Meta(ge=1, le=10_000, description="a whole number from 1 to 10000")]


class AuthSettings(Struct, frozen=True, kw_only=True):
    """``[auth]``: ``etc/artifactd.toml`` tells what each means."""

    htpasswd: Text = ""
    remember: Length = Duration(60)
    name_failures: Failures = 5
    address_failures: Failures = 20
    failure_period: Timeout = Duration(300)
    groups: Groups = field(default_factory=dict)


class AccessSettings(Struct, frozen=True, kw_only=True):
    """One ``[[access]]``: who may do what to which images, by their canonical names."""

    who: Subjects
    may: Actions
    images: Patterns


class RobotSettings(Struct, frozen=True, kw_only=True):
    """``[robot.<name>]``: an account for a machine; rules give it access, and this limits it."""

    secret_hash: Hash
    expires: Moment = Expiry("")
    may: Actions = tuple(Action)
    images: Patterns = (Pattern("*"),)


@frozen
class Accounts:
    """The tables that this module reads, checked against each other by :meth:`check`."""

    auth: AuthSettings
    access: tuple[AccessSettings, ...]
    robot: Mapping[str, RobotSettings]

    @classmethod
    def read(cls, tables: dict[str, Any], where: str) -> Self:
        """
        Take ``auth``, ``access`` and ``robot`` out of ``tables``.

        :param where: what an error calls the file.
        :raises StartError: naming the first setting that is wrong, and what it should be.
        """
        auth = _read_auth(tables.pop("auth", {}), f"{where}: auth")
        access = tables.pop("access", [])
        if not isinstance(access, list):
            raise StartError(f"{where}: access: expected [[access]] tables, got {shown(access)}")
        robots = as_table(tables.pop("robot", {}), f"{where}: robot")
        return cls(
            auth,
            tuple(
                _read(AccessSettings, table, f"{where}: access[{number}]")
                for number, table in enumerate(access)
            ),
            {name: _read_robot(name, table, where) for name, table in robots.items()},
        )

    def check(
        self,
        where: str,
        repositories: Collection[str],
        issuers: Collection[str] | None = None,
        proving: Collection[str] = (),
    ) -> None:
        """
        :param repositories: the configured ones, which canonical names begin with.
        :param issuers: the configured ones; ``None`` lets every name pass.
        :param proving: the repositories that want proof of access.
        :raises StartError: if a rule, a group or a robot means what there is not.
        """
        for name, members in self.auth.groups.items():
            for member in members:
                robot = member.removeprefix("robot:")
                if robot != member and robot not in self.robot:
                    raise _unknown(f"{where}: auth.groups.{key(name)}", "robots", robot, self.robot)
        for number, rule in enumerate(self.access):
            for subject in rule.who:
                self._check_subject(subject, f"{where}: access[{number}].who", issuers, proving)
            _check_visitors(rule, f"{where}: access[{number}]")
            _check_images(rule.images, f"{where}: access[{number}].images", repositories)
        for name, robot_settings in self.robot.items():
            place = f"{where}: robot.{key(name)}.images"
            _check_images(robot_settings.images, place, repositories)
        if not self.access and (self.auth.htpasswd or self.robot or issuers or proving):
            raise StartError(
                f"{where}: access: expected at least one [[access]]: without any nobody may do"
                " anything"
            )

    def _check_subject(
        self,
        subject: Subject,
        where: str,
        issuers: Collection[str] | None,
        proving: Collection[str],
    ) -> None:
        name = subject.name
        match subject.kind:
            case "user" if not self.auth.htpasswd:
                raise StartError(f"{where}: {shown(subject)}: expected auth.htpasswd with it")
            case "group" if name not in self.auth.groups:
                raise _unknown(where, "groups", name, self.auth.groups)
            case "robot" if not any(map(Compiled((name,)).match, self.robot)):
                raise _unknown(where, "robots", name, self.robot)
            case "upstream":
                repository, _, user = name.partition("/")
                if repository not in proving or not user:
                    what = "repositories with proof_of_access, as <repository>/*"
                    raise _unknown(where, what, name, proving)
            case "issuer" | "claim" if issuers is not None and name not in issuers:
                raise _unknown(where, "issuers", name, issuers)


def _check_visitors(rule: AccessSettings, where: str) -> None:
    """
    What is said to those of an upstream: many upstreams look at the password alone, so that the
    name is whatever a client says, and anybody may have an account there.
    """
    for subject in rule.who:
        if subject.kind != "upstream":
            continue
        everybody = f"upstream:{subject.name.partition('/')[0]}/*"
        if str(subject) != everybody:
            raise StartError(
                f"{where}.who: expected {shown(everybody)}, got {shown(subject)}: an upstream need"
                " not verify the user's name, so that anybody with an account there can take any"
            )
        for action in rule.may:
            if action is not Action.PULL:
                raise StartError(
                    f'{where}.may: expected "pull" alone for {shown(subject)}, got'
                    f" {shown(action)}: anybody may have an account there; let accounts of this"
                    " registry do it, in another rule"
                )


def _read_auth(value: object, where: str) -> AuthSettings:
    settings = _read(AuthSettings, value, where)
    for name in settings.groups:
        check_name(name, f"{where}.groups.{key(name)}")
    return settings


def _read_robot(name: str, value: object, where: str) -> RobotSettings:
    place = f"{where}: robot.{key(name)}"
    check_name(name, place)
    return _read(RobotSettings, value, place)


def _read(kind: type[_S], value: object, where: str) -> _S:
    """``value`` as a table of ``kind``, with everything that has no default."""
    values = read_values(kind, as_table(value, where), lambda name: f"{where}.{name}")
    for each in fields(kind):
        if each.required and each.name not in values:
            expected = next(m.description for m in each.type.__metadata__ if m.description)
            raise StartError(f"{where}.{each.name}: expected {expected}, got nothing")
    return kind(**values)


def check_name(name: str, where: str) -> None:
    """:raises StartError: if no robot or group can have the name."""
    if not _ACCOUNT.fullmatch(name):
        raise StartError(
            f"{where}: expected a name of letters, digits, '.', '_' and '-', got {shown(name)}"
        )


def _check_images(patterns: Iterable[str], where: str, repositories: Collection[str]) -> None:
    """A pattern that no canonical name can match is a mistake."""
    for pattern in patterns:
        repository, slash, _ = pattern.partition("/")
        if "*" in repository or "[" in repository:
            continue
        if not slash or not any(map(Compiled((repository,)).match, repositories)):
            known = _choice(f"{name}/*" for name in repositories)
            raise StartError(
                f"{where}: expected patterns of canonical names ({known}), got {shown(pattern)}"
            )


def _unknown(where: str, what: str, name: str, known: Iterable[str]) -> StartError:
    configured = _choice(known) or "there are none"
    return StartError(f"{where}: expected configured {what} ({configured}), got {shown(name)}")


def _choice(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names))


# Settings of Bearer tokens: artifactd's own token service, and other issuers.

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
