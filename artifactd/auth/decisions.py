"""Whether an account may do something, by which rule, or what the rules lack."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from pathlib import Path

from attrs import frozen

from artifactd.auth.identity import ANONYMOUS, Groups, Identity, Kind
from artifactd.auth.passwords import LOGIN_PREFIX, Users, read_robots
from artifactd.auth.rules import AccessRules, Judged
from artifactd.kit.start import StartError
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action
from artifactd.settings.accounts import AccessSettings, RobotSettings
from artifactd.settings.settings import Settings

EVERY = "*"
"""In place of an image: every image there could be, and the registry itself."""


@frozen
class Decision:
    """
    Whether an identity may do an action to an image, and why.

    :ivar image: the canonical name, or ``*``: every image, and the registry itself.
    :ivar rules: how each rule of the settings fits.
    """

    who: str
    action: Action
    image: str
    granted: bool
    why: str
    rules: Sequence[Judged] = ()


def decide(
    settings: Settings, who: str, action: Action, images: Sequence[ImageName | None]
) -> list[Decision]:
    """
    A decision for each of ``images``, by the settings and the files of accounts as they are now.
    Blocks.

    :param who: a user, ``robot:NAME``, ``certificate:NAME`` or ``anonymous``.
    :param images: ``None``: every image there could be.
    :raises StartError: if there is no such account, or a file can't be read.
    """
    if not settings.authentication:
        everybody = "the settings have neither accounts nor rules: everybody may pull"
        this_machine = f"{everybody}, and clients on this machine may do everything"
        why = everybody if action is Action.PULL else this_machine
        return [Decision(who, action, _named(each), True, why) for each in images]
    robots = read_robots(settings)
    identity = _identity(settings, who, robots)
    rules = AccessRules(settings.access, robots, time.time)
    robot = robots[identity.name] if identity.kind is Kind.ROBOT else None
    return [_decision(rules, identity, action, each, settings.access, robot) for each in images]


def _decision(
    rules: AccessRules,
    identity: Identity,
    action: Action,
    image: ImageName | None,
    access: Sequence[AccessSettings],
    robot: RobotSettings | None,
) -> Decision:
    judged = rules.judge(identity, action, image)
    granting = [each.rule for each in judged if each.grants]
    if image is None:
        granted = action in rules.granted_everywhere(identity)
    else:
        granted = action in rules.granted(identity, image)
    why = "; ".join(rule_text(number, access) for number in granting)
    if not granting:
        why = "no rule grants it"
    elif robot is not None and not granted:
        limits = f"may {', '.join(robot.may)}; images {', '.join(robot.images)}"
        why = f"the robot's own limits exclude it ({limits})"
        if time.time() >= robot.expires.timestamp:
            why = f"the robot has expired, on {robot.expires}"
    return Decision(str(identity), action, _named(image), granted, why, judged)


def _identity(settings: Settings, who: str, robots: Container[str]) -> Identity:
    """:raises StartError: if there is no such account."""
    groups = Groups(settings.auth.groups)
    if who == Kind.ANONYMOUS:
        return ANONYMOUS
    kind, colon, name = who.partition(":")
    if who.startswith(LOGIN_PREFIX):
        kind, name = Kind.ROBOT, who.removeprefix(LOGIN_PREFIX)
    elif not colon:
        kind, name = Kind.USER, who
    if kind == Kind.CERTIFICATE:
        return Identity(Kind.CERTIFICATE, name)
    if kind == Kind.ROBOT:
        if name not in robots:
            raise StartError(f"{name}: no such robot")
        return groups.identity(Kind.ROBOT, name)
    if kind != Kind.USER:
        raise StartError(f"expected a user, robot:NAME, certificate:NAME or anonymous, got {who}")
    if not settings.auth.htpasswd:
        raise StartError(f"{name}: no such user: the settings name no file of users (htpasswd)")
    users = Users.read(Path(settings.auth.htpasswd), groups)
    if name not in users.identities:
        raise StartError(f"{name}: no such user in {settings.auth.htpasswd}")
    return users.identities[name]


def _named(image: ImageName | None) -> str:
    return EVERY if image is None else str(image)


def rule_text(number: int, access: Sequence[AccessSettings]) -> str:
    """The rule of that number, from 0, in one line."""
    rule = access[number]
    who, may, images = (", ".join(each) for each in (rule.who, rule.may, rule.images))
    return f"access[{number}] (who {who}; may {may}; images {images})"
