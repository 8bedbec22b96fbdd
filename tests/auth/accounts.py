"""Accounts, rules and clocks for the tests of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field

from artifactd.auth.bearer import Directory
from artifactd.auth.identity import Groups, Identity, Kind
from artifactd.auth.logins import Logins
from artifactd.auth.rules import AccessRules
from artifactd.kit.shared import SharedMemory
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action, Subject
from artifactd.settings.accounts import AccessSettings, AuthSettings
from artifactd.settings.values import Pattern

ALICE = Identity(Kind.USER, "alice")
BUILDER = Identity(Kind.ROBOT, "builder")


@define
class Now:
    """Seconds since 1970 that pass when a test says so."""

    seconds: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


@define
class FakeAccounts:
    """
    Users and robots without bcrypt.

    :ivar passwords: by names.
    :ivar asked: the names and passwords that were checked.
    """

    passwords: dict[str, str] = field(factory=lambda: {"alice": "secret"})
    asked: list[tuple[str, str]] = field(factory=list)

    async def check(self, name: str, password: str) -> Identity | None:
        self.asked.append((name, password))
        return Identity(Kind.USER, name) if self.passwords.get(name) == password else None

    def recall(self, name: str, password: str) -> Identity | None:
        return None

    async def mark(self, identity: Identity) -> str | None:
        return self.recall_mark(identity)

    def recall_mark(self, identity: Identity) -> str | None:
        password = self.passwords.get(identity.name)
        return None if password is None else f"mark of {password}"

    def directory(self, **groups: list[str]) -> Directory:
        """The directory with these accounts in ``groups``."""
        return Directory([self], Groups(groups), lambda identity: True)

    def logins(self) -> Logins:
        """Logs these accounts in."""
        return Logins([self], AuthSettings(), SharedMemory.create())


def granting(grants: Mapping[str, Mapping[str, Iterable[Action]]]) -> AccessRules:
    """Rules that grant actions on images, by the subjects that they are for."""
    rules = [
        AccessSettings(who=(Subject.parse(who),), may=tuple(actions), images=(Pattern(image),))
        for who, images in grants.items()
        for image, actions in images.items()
    ]
    return AccessRules(rules, {}, lambda: 0.0)


def resolve(name: str) -> Sequence[ImageName]:
    """As with the embedded settings: names without prefix are local, and Docker Hub's."""
    first, slash, rest = name.partition("/")
    if slash and first in ("local", "docker.io"):
        return [ImageName(first, rest)]
    library = "" if slash else "library/"
    return [ImageName("local", name), ImageName("docker.io", f"{library}{name}")]
