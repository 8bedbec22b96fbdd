"""The actions and subjects of access rules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Self

from attrs import frozen


class Action(StrEnum):
    """
    An action on an image, as in a token's scope: registry-auth-scope, "Resource Actions", which
    does not have ``create``.
    """

    PULL = "pull"
    CREATE = "create"
    """To push what is not there."""
    PUSH = "push"
    """To push anything: also what moves a tag."""
    DELETE = "delete"
    ADMINISTER = "administer"


def implied(actions: Iterable[Action]) -> frozenset[Action]:
    """``actions`` with those that they include: ``push`` includes ``create``."""
    all_of_them = frozenset(actions)
    return all_of_them | {Action.CREATE} if Action.PUSH in all_of_them else all_of_them


_NAMED = ("user", "group", "robot", "certificate", "issuer", "upstream")
_CLAIM = re.compile(r"(?P<name>[^\s=&]+)=(?P<pattern>[^\s&]+)")


@frozen
class Claims:
    """
    Claims that a token of another issuer must have, all of them.

    :ivar issuer: its name in the settings.
    :ivar wanted: the names of claims, and the patterns that their whole values have to match.
    """

    issuer: str
    wanted: tuple[tuple[str, str], ...]


class Subject(str):
    """
    The clients that an access rule is for, as a text of one of these forms.

    * ``anonymous``: all clients, since a client that is logged in could also come anonymously;
    * ``authenticated``: clients that are logged in, except with an upstream's account;
    * ``user:<pattern>``: users of the htpasswd file;
    * ``group:<name>``, ``robot:<pattern>``: groups and robots of the settings;
    * ``certificate:<pattern>``: client certificates, by their common names;
    * ``upstream:<repository>/*``: clients with an account at the upstream of a repository;
    * ``issuer:<name>``: clients with a token of that issuer;
    * ``claim:<issuer>:<claim>=<pattern>``, perhaps with more ``&<claim>=<pattern>``: clients with a
      token of that issuer that has all these claims.

    In a pattern, ``*`` stands for any characters, slashes too.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises ValueError: if ``text`` has none of these forms."""
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
        """The text before the first colon."""
        return self.partition(":")[0]

    @property
    def name(self) -> str:
        """The text after the first colon: a name or a pattern; for ``claim:`` the issuer's name."""
        rest = self.partition(":")[2]
        return rest.partition(":")[0] if self.kind == "claim" else rest

    @property
    def claims(self) -> Claims:
        """
        The issuer and the claims of a ``claim:`` subject.

        :raises ValueError: if the subject is another one, or malformed.
        """
        kind, issuer, rest = [*self.split(":", 2), "", ""][:3]
        matches = [_CLAIM.fullmatch(each) for each in rest.split("&")]
        if kind != "claim" or not issuer or None in matches:
            raise ValueError(str(self))
        return Claims(issuer, tuple((each["name"], each["pattern"]) for each in matches if each))
