"""Accounts, rules and clocks for the tests of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import define, field

from artifactd.auth.bearer import Account
from artifactd.auth.identity import Identity, Kind
from artifactd.oci.errors import Unauthorized
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action

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
    Logins and a directory of accounts.

    :ivar passwords: by names.
    :ivar groups: by names.
    """

    passwords: dict[str, str] = field(factory=lambda: {"alice": "secret"})
    groups: dict[str, frozenset[str]] = field(factory=dict)
    asked: list[tuple[str, str, str]] = field(factory=list)

    async def log_in(self, name: str, password: str, address: str) -> Identity:
        self.asked.append((name, password, address))
        if self.passwords.get(name) != password:
            raise Unauthorized("wrong name or password")
        return self._identity(Kind.USER, name)

    async def current(self, identity: Identity) -> Account | None:
        if identity.kind not in (Kind.USER, Kind.ROBOT):
            return Account(identity)
        password = self.passwords.get(identity.name)
        if password is None:
            return None
        return Account(self._identity(identity.kind, identity.name), f"mark of {password}")

    def _identity(self, kind: Kind, name: str) -> Identity:
        return Identity(kind, name, self.groups.get(name, frozenset()))


@define
class FakeRules:
    """Rules that grant actions on images, by the names of those who ask."""

    grants: Mapping[str, Mapping[str, frozenset[Action]]]

    def granted(self, identity: Identity, image: ImageName) -> frozenset[Action]:
        return self.grants.get(str(identity), {}).get(str(image), frozenset())

    def granted_everywhere(self, identity: Identity) -> frozenset[Action]:
        return frozenset()

    def grants_any(self, identity: Identity, action: Action) -> bool:
        return any(action in actions for actions in self.grants.get(str(identity), {}).values())


def resolve(name: str) -> Sequence[ImageName]:
    """As with the embedded settings: names without prefix are local, and Docker Hub's."""
    first, slash, rest = name.partition("/")
    if slash and first in ("local", "docker.io"):
        return [ImageName(first, rest)]
    library = "" if slash else "library/"
    return [ImageName("local", name), ImageName("docker.io", f"{library}{name}")]
