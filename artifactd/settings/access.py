"""What may be done to an image."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Self

from attrs import frozen


class Action(StrEnum):
    """As a token's scope has them: registry-auth-scope, "Resource Actions"."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    ADMINISTER = "administer"


# Whom an access rule is for, as the settings write it.

_NAMED = ("user", "group", "robot", "certificate", "issuer", "upstream")
_CLAIM = re.compile(r"(?P<name>[^\s=&]+)=(?P<pattern>[^\s&]+)")


@frozen
class Claims:
    """
    Claims that another issuer's token must have, all of them.

    :ivar issuer: by its name in the settings.
    :ivar wanted: claims, and the pattern that all of each has to match.
    """

    issuer: str
    wanted: tuple[tuple[str, str], ...]


class Subject(str):
    """
    One of these; where it has a pattern, ``*`` stands for any characters, slashes too:

    * ``anonymous``: anybody, logged in or not, for whoever is logged in could as well not be;
    * ``authenticated``: anybody who is logged in, but for those whom an upstream knows;
    * ``user:<pattern>``: users of the htpasswd file;
    * ``group:<name>``, ``robot:<pattern>``: of the settings;
    * ``certificate:<pattern>``: client certificates by their common name;
    * ``upstream:<repository>/*``: those whom the upstream of a repository knows;
    * ``issuer:<name>``: whoever has a token of that issuer;
    * ``claim:<issuer>:<claim>=<pattern>``, perhaps with more ``&<claim>=<pattern>``: whoever has a
      token of that issuer with all these claims.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if it is none of these."""
        subject = cls(text)
        kind, colon, name = text.partition(":")
        if kind == "claim":
            subject.claims  # noqa: B018 - raises
        elif colon:
            if kind not in _NAMED or not name or re.search(r"[\s:]", name):
                raise ValueError(text)
        elif kind not in ("anonymous", "authenticated"):
            raise ValueError(text)
        return subject

    @property
    def kind(self) -> str:
        """What stands before the first colon."""
        return self.partition(":")[0]

    @property
    def name(self) -> str:
        """What stands behind the first colon: a name or a pattern; of a claim its issuer's name."""
        rest = self.partition(":")[2]
        return rest.partition(":")[0] if self.kind == "claim" else rest

    @property
    def claims(self) -> Claims:
        """:raises ValueError: if it isn't about claims, or they are not written so."""
        kind, issuer, rest = [*self.split(":", 2), "", ""][:3]
        matches = [_CLAIM.fullmatch(each) for each in rest.split("&")]
        if kind != "claim" or not issuer or None in matches:
            raise ValueError(str(self))
        return Claims(issuer, tuple((each["name"], each["pattern"]) for each in matches if each))
