"""Who is in which group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from artifactd.auth.identity import Identity, Kind


class Groups:
    """The groups of the settings: makes the identities of those who may be in one."""

    def __init__(self, members: Mapping[str, Iterable[str]]) -> None:
        """:param members: by groups, users, and robots as ``robot:<name>``."""
        self._of: dict[str, frozenset[str]] = {}
        for group, names in members.items():
            for name in names:
                self._of[name] = self._of.get(name, frozenset()) | {group}

    def user(self, name: str) -> Identity:
        """A user of the htpasswd file."""
        return Identity(Kind.USER, name, self._of.get(name, frozenset()))

    def robot(self, name: str) -> Identity:
        """A robot of the settings, by its name there."""
        return Identity(Kind.ROBOT, name, self._of.get(f"robot:{name}", frozenset()))
