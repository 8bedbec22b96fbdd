"""The settings of accounts, access rules, tokens and other issuers."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Self

from msgspec import Meta, field

from artifactd.kit.start import StartError
from artifactd.oci.names import Patterns as Compiled
from artifactd.settings.access import Action, Subject
from artifactd.settings.toml import Section, as_table, key, read_table, shown
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

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SECRET_HASH = re.compile(
    r"sha256:[0-9a-f]{64}|\$2[aby]\$(0[4-9]|1[0-7])\$[./A-Za-z0-9]{53}"  # what htpasswd -C allows
)


class SecretHash(str):
    """The hash of a robot's secret: ``sha256:`` and 64 hexadecimal digits, or a bcrypt hash."""

    __slots__ = ()

    # Whatever it is printed inside of, a traceback or a failed test.
    def __repr__(self) -> str:
        return "'(not shown)'"

    @property
    def is_generated(self) -> bool:
        """
        Whether ``artifactd robot`` made the secret: it can't be guessed, so it needs no bcrypt.
        """
        return self.startswith("sha256:")

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` is neither."""
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
    Meta(min_length=1, description='a list of "pull", "create", "push", "delete", "administer"'),
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


class AuthSettings(Section, frozen=True, kw_only=True):
    """``[auth]``; ``etc/artifactd.toml`` explains each setting."""

    htpasswd: Text = ""
    robots_file: Text = ""
    remember: Length = Duration(60)
    name_failures: Failures = 5
    address_failures: Failures = 20
    failure_period: Timeout = Duration(300)
    groups: Groups = field(default_factory=dict)


class AccessSettings(Section, frozen=True, kw_only=True):
    """One ``[[access]]``: subjects, actions, and patterns of the images' canonical names."""

    who: Subjects
    may: Actions
    images: Patterns


class RobotSettings(Section, frozen=True, kw_only=True):
    """``[robot.<name>]``: an account for a machine; its ``may`` and ``images`` limit it."""

    secret_hash: Hash
    expires: Moment = Expiry("")
    may: Actions = tuple(Action)
    images: Patterns = (Pattern("*"),)


def check_accounts(
    auth: AuthSettings,
    access: Sequence[AccessSettings],
    robots: Mapping[str, RobotSettings],
    where: str,
    repositories: Collection[str],
    issuers: Collection[str],
    proving: Collection[str],
) -> None:
    """
    Check accounts and access rules against each other and against the other tables.

    :param where: names the file in an error.
    :param repositories: the names of those configured: canonical names begin with one.
    :param issuers: the names of those configured.
    :param proving: the names of the repositories with ``proof_of_access``.
    :raises StartError: if a rule, a group or a robot names something that is not configured.
    """
    for name, members in auth.groups.items():
        place = f"{where}: auth.groups.{key(name)}"
        check_name(name, place)
        for member in members:
            robot = member.removeprefix("robot:")
            if robot != member and robot not in robots and not auth.robots_file:
                raise _unknown(place, "robots", robot, robots)
    _check_robots(robots, where, repositories)
    for number, rule in enumerate(access):
        place = f"{where}: access[{number}]"
        for subject in rule.who:
            name = subject.name
            match subject.kind:
                case "user" if not auth.htpasswd:
                    raise StartError(
                        f"{place}.who: {shown(subject)}: expected auth.htpasswd with it"
                    )
                case "group" if name not in auth.groups:
                    raise _unknown(f"{place}.who", "groups", name, auth.groups)
                case "robot" if not (auth.robots_file or any(map(Compiled((name,)).match, robots))):
                    raise _unknown(f"{place}.who", "robots", name, robots)
                case "upstream":
                    repository, _, user = name.partition("/")
                    if repository not in proving or not user:
                        what = "repositories with proof_of_access, as <repository>/*"
                        raise _unknown(f"{place}.who", what, name, proving)
                case "issuer" | "claim" if name not in issuers:
                    raise _unknown(f"{place}.who", "issuers", name, issuers)
        _check_visitors(rule, place)
        check_images(rule.images, f"{place}.images", repositories)
    if not access and (auth.htpasswd or auth.robots_file or robots or issuers or proving):
        raise StartError(
            f"{where}: access: expected at least one [[access]]: without any nobody may do anything"
        )


def parse_robots(
    content: bytes, where: str, others: Mapping[str, RobotSettings], repositories: Collection[str]
) -> dict[str, RobotSettings]:
    """
    The robots in the content of a ``robots_file``: tables ``[robot.<name>]``, as in the settings.

    :param where: names the file in an error.
    :param others: those of the settings.
    :param repositories: the names of those configured.
    :raises StartError: naming the first setting that is wrong, or a robot that is in both.
    """
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:
        raise StartError(f"{where}: not TOML: {error}") from None
    if wrong := next((name for name in document if name != "robot"), None):
        raise StartError(f"{where}: {key(wrong)}: expected tables [robot.<name>] alone")
    tables = as_table(document.get("robot", {}), f"{where}: robot")
    robots = {
        name: read_table(RobotSettings, table, f"{where}: robot.{key(name)}", name)
        for name, table in tables.items()
    }
    _check_robots(robots, where, repositories)
    if both := next((name for name in robots if name in others), None):
        raise StartError(f"{where}: robot.{key(both)}: the settings have a robot of that name too")
    return robots


def _check_robots(
    robots: Mapping[str, RobotSettings], where: str, repositories: Collection[str]
) -> None:
    for name, settings in robots.items():
        place = f"{where}: robot.{key(name)}"
        check_name(name, place)
        check_images(settings.images, f"{place}.images", repositories)


def _check_visitors(rule: AccessSettings, where: str) -> None:
    """
    Refuse a rule that names single users of an upstream, or grants users of an upstream more than
    pull.

    Many upstreams check the password alone, so that a client can take any user name; and anyone may
    have an account there.
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


def check_name(name: str, where: str) -> None:
    """:raises StartError: if no robot or group can have the name."""
    if not _ACCOUNT.fullmatch(name):
        raise StartError(
            f"{where}: expected a name of letters, digits, '.', '_' and '-', got {shown(name)}"
        )


def check_images(patterns: Iterable[str], where: str, repositories: Collection[str]) -> None:
    """Refuse a pattern that no canonical name can match."""
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


# Bearer tokens of artifactd's own token service and of other issuers.

SERVICE_NAME = "artifactd"
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""The signature algorithms that an issuer's tokens may have: all without a shared secret."""

# Seconds: registry-auth-token, "a token should never be returned with less than 60 seconds".
_LEAST = Duration(60)

_Lifetime = Annotated[Length, Meta(extra={"least": _LEAST})]
_Service = Annotated[
    str, Meta(pattern=r"^[!#-\[\]-~]{1,255}$", description='a name such as "registry.example.com"')
]
_Audience = Annotated[
    tuple[Annotated[str, Meta(min_length=1)], ...],
    Meta(
        min_length=1,
        description='texts such as "https://registry.example.com", at least one',
        extra={"missing": 'the "aud" of tokens that are for this registry'},
    ),
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
_ISS = 'the "iss" of its tokens, such as "https://gitlab.example.com"'
_Issuer = Annotated[Text, Meta(extra={"missing": _ISS})]


class TokenServiceSettings(Section, frozen=True):
    """
    ``[token_service]``; ``etc/artifactd.toml`` explains each setting.

    :ivar key_rotation: seconds; 0: never.
    """

    enabled: Flag = True
    service: _Service = SERVICE_NAME
    lifetime: _Lifetime = Duration(300)
    refresh_lifetime: _Lifetime = Duration(90 * 86400)
    key_rotation: Length = Duration(30 * 86400)
    leeway: Length = Duration(10)


class IssuerSettings(Section, frozen=True, kw_only=True):
    """
    ``[issuer.<name>]``; ``etc/artifactd.toml`` explains each setting.

    :ivar jwks_file: a path, or empty; without it and ``jwks_url`` the issuer's discovery document
        says where its keys are.
    :ivar ca_file: a path, or empty.
    """

    issuer: _Issuer
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


def check_issuers(issuers: Mapping[str, IssuerSettings], where: str) -> None:
    """
    :param where: names the table of all issuers in an error.
    :raises StartError: if the keys of an issuer could be tampered with on the way, or come from
        two places, or if two issuers are the same.
    """
    named: dict[str, str] = {}
    for name, issuer in issuers.items():
        place = f"{where}.{key(name)}"
        if not _NAME.fullmatch(name):
            raise StartError(f"{place}: expected a name of letters, digits and . _ -")
        if not issuer.issuer:
            raise StartError(f"{place}.issuer: expected {_ISS}, got nothing")
        if issuer.jwks_file and issuer.jwks_url:
            raise StartError(f"{place}.jwks_url: expected one source of keys, got jwks_file too")
        if issuer.jwks_url and not is_trustworthy(issuer.jwks_url):
            raise StartError(f'{place}.jwks_url: expected a URL that begins with "https://"')
        # With neither setting the issuer itself is asked where its keys are.
        if not (issuer.jwks_file or issuer.jwks_url or is_trustworthy(issuer.issuer)):
            raise StartError(
                f'{place}.issuer: expected a URL that begins with "https://", or jwks_file or'
                " jwks_url with it"
            )
        other = named.setdefault(issuer.issuer, name)
        if other != name:
            raise StartError(
                f"{place}.issuer: expected an issuer of its own, got"
                f' "{issuer.issuer}", which is {key(other)} too'
            )
