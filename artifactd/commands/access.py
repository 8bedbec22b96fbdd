"""``artifactd access``: who may do what, and by which rule."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import ClassVar

from attrs import frozen
from twisted.python import usage

from artifactd.auth.identity import ANONYMOUS, Groups, Identity, Kind
from artifactd.auth.passwords import LOGIN_PREFIX, Users, read_robots
from artifactd.auth.rules import AccessRules, Judged
from artifactd.commands.offline import DataCommand
from artifactd.commands.table import JSON, Color, print_json
from artifactd.daemon.assemble import Assembly
from artifactd.kit.printable import printable
from artifactd.kit.start import StartError
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action
from artifactd.settings.accounts import AccessSettings, RobotSettings
from artifactd.settings.settings import Settings

_EVERY = "*"


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


class Access(DataCommand):
    """``artifactd access``: which rule grants something, or what the rules lack."""

    longdesc = (
        "Tell whether WHO (a user, robot:NAME, certificate:NAME or anonymous) may do ACTION (pull,"
        " create, push, delete, administer) to IMAGE ('*': every image), and which rule of the"
        " settings grants it, or what the rules lack.  The exit status is 0 if it is granted, 1 if"
        " not."
    )
    synopsis = "[options] WHO ACTION IMAGE"
    optFlags: ClassVar = [JSON]

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, who: str, action: str, image: str) -> None:  # type: ignore[override]
        if action not in tuple(Action):
            raise usage.UsageError(f"access: expected {', '.join(Action)}, got {action}")
        self.who, self.action, self.image = who, Action(action), image

    async def work(self, parts: Assembly, settings: Settings) -> int:
        decisions = self._decide(parts, settings)
        for each in decisions:
            if self["json"]:
                print_json(each)
                continue
            verdict = Color.GREEN.paint("granted") if each.granted else Color.RED.paint("denied")
            print(f"{verdict}: {printable(f'{each.who} {each.action} {each.image}: {each.why}')}")
            for line in [] if each.granted else _nearest(each, settings.access):
                print(printable(f"  {line}"))
        return 0 if any(each.granted for each in decisions) else 1

    def _decide(self, parts: Assembly, settings: Settings) -> list[Decision]:
        """A decision for each image that the name may stand for, as the gate makes it."""
        images: Sequence[ImageName | None] = [None]
        if self.image != _EVERY:
            target = parts.registry.target(self.image)
            images = [target.image]
            if self.action is Action.PULL:
                images = target.readable.candidates(target.image)
        if not settings.authentication:
            everybody = "the settings have neither accounts nor rules: everybody may pull"
            this_machine = f"{everybody}, and clients on this machine may do everything"
            why = everybody if self.action is Action.PULL else this_machine
            return [Decision(self.who, self.action, _named(each), True, why) for each in images]
        robots = read_robots(settings)
        identity = self._identity(settings, robots)
        rules = AccessRules(settings.access, robots, time.time)
        robot = robots[identity.name] if identity.kind is Kind.ROBOT else None
        return [self._decision(rules, identity, each, settings.access, robot) for each in images]

    def _decision(
        self,
        rules: AccessRules,
        identity: Identity,
        image: ImageName | None,
        access: Sequence[AccessSettings],
        robot: RobotSettings | None,
    ) -> Decision:
        judged = rules.judge(identity, self.action, image)
        granting = [each.rule for each in judged if each.grants]
        if image is None:
            granted = self.action in rules.granted_everywhere(identity)
        else:
            granted = self.action in rules.granted(identity, image)
        why = "; ".join(_rule(number, access) for number in granting)
        if not granting:
            why = "no rule grants it"
        elif robot is not None and not granted:
            limits = f"may {', '.join(robot.may)}; images {', '.join(robot.images)}"
            why = f"the robot's own limits exclude it ({limits})"
            if time.time() >= robot.expires.timestamp:
                why = f"the robot has expired, on {robot.expires}"
        return Decision(str(identity), self.action, _named(image), granted, why, judged)

    def _identity(self, settings: Settings, robots: Container[str]) -> Identity:
        """:raises StartError, UsageError: if there is no such account."""
        groups = Groups(settings.auth.groups)
        if self.who == Kind.ANONYMOUS:
            return ANONYMOUS
        kind, colon, name = self.who.partition(":")
        if self.who.startswith(LOGIN_PREFIX):
            kind, name = Kind.ROBOT, self.who.removeprefix(LOGIN_PREFIX)
        elif not colon:
            kind, name = Kind.USER, self.who
        if kind == Kind.CERTIFICATE:
            return Identity(Kind.CERTIFICATE, name)
        if kind == Kind.ROBOT:
            if name not in robots:
                raise StartError(f"{name}: no such robot")
            return groups.identity(Kind.ROBOT, name)
        if kind != Kind.USER:
            raise usage.UsageError(
                "access: expected a user, robot:NAME, certificate:NAME or anonymous,"
                f" got {self.who}"
            )
        if not settings.auth.htpasswd:
            raise StartError(f"{name}: no such user: the settings name no file of users (htpasswd)")
        users = Users.read(Path(settings.auth.htpasswd), groups)
        if name not in users.identities:
            raise StartError(f"{name}: no such user in {settings.auth.htpasswd}")
        return users.identities[name]


def _named(image: ImageName | None) -> str:
    return _EVERY if image is None else str(image)


def _rule(number: int, access: Sequence[AccessSettings]) -> str:
    rule = access[number]
    who, may, images = (", ".join(each) for each in (rule.who, rule.may, rule.images))
    return f"access[{number}] (who {who}; may {may}; images {images})"


def _nearest(decision: Decision, access: Sequence[AccessSettings]) -> list[str]:
    """The rules that lack one thing, and what that is."""
    lines = []
    for each in decision.rules:
        lacking = {
            f"is not for {decision.who}": not each.who,
            f"does not allow {decision.action}": not each.may,
            f"is not for {decision.image}": not each.images,
        }
        if sum(lacking.values()) == 1:
            what = next(text for text, is_lacking in lacking.items() if is_lacking)
            lines.append(f"{_rule(each.rule, access)} {what}")
    return lines
