"""What a token is for: registry-auth-scope, "Resource Scope Grammar"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Self

from attrs import frozen

from artifactd.settings.access import Action

REPOSITORY = "repository"
REGISTRY = "registry"
CATALOG = "catalog"
EVERYTHING = "*"
"""The action that stands for all; and in ``Caller.scopes`` the name of the catalog."""

# A name may have a port in it, so it ends at the last colon; registry-auth-scope, note on
# "resourcename".  The class of a type is ignored, "Resource Class".
_SCOPE = re.compile(
    r"(?P<type>[a-z0-9]+)(?:\([a-z0-9]+\))?"
    r":(?P<name>[A-Za-z0-9._/:\[\]-]{1,512})"
    r":(?P<actions>(?:[a-z]*|\*)(?:,(?:[a-z]*|\*))*)"
)


@frozen
class Scope:
    """
    A resource, and what is to be done to it.

    :ivar type: ``repository``, ``registry``, or one that there is nothing of here.
    :ivar name: as the client writes it.
    :ivar actions: without doubles, in the order given; perhaps ``*``, perhaps unknown ones.
    """

    type: str
    name: str
    actions: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """``None`` if it is no scope."""
        match = _SCOPE.fullmatch(text)
        if match is None:
            return None
        actions = dict.fromkeys(action for action in match["actions"].split(",") if action)
        return cls(match["type"], match["name"], tuple(actions))

    @property
    def wanted(self) -> frozenset[Action]:
        """The actions that there are, of those asked for; unknown ones are ignored."""
        if EVERYTHING in self.actions:
            return frozenset(Action)
        return frozenset(action for action in Action if action in self.actions)

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(self.actions)}"


def parse_scopes(texts: Iterable[str]) -> Iterator[Scope]:
    """
    The scopes in ``texts``, each one or several divided by spaces; those of one resource together.

    What is no scope is left out: it grants nothing, and asking for too much is no error
    (registry-auth-token, "Requesting a Token").
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
