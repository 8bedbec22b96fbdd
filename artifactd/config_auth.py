"""Settings that say who may do what: accounts and access rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar

from attrs import frozen
from msgspec import Meta, Struct, field
from msgspec.structs import fields

from artifactd.auth.access import Action
from artifactd.auth.subjects import Subject
from artifactd.config_tables import as_table, key, read_values, shown
from artifactd.config_types import Expiry, Length, Moment, Pattern, Patterns, Text, Timeout
from artifactd.kit.start import StartError
from artifactd.oci.names import Patterns as Compiled
from artifactd.quantity import Duration

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
