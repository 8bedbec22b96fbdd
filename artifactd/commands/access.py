"""``artifactd access``: who may do what, and by which rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from twisted.python import usage

from artifactd.auth.decisions import EVERY, Decision, decide, rule_text
from artifactd.commands.offline import DataCommand
from artifactd.commands.table import JSON, Color, print_json
from artifactd.daemon.assemble import Assembly
from artifactd.kit.printable import printable
from artifactd.oci.names import ImageName
from artifactd.settings.access import Action
from artifactd.settings.accounts import AccessSettings
from artifactd.settings.settings import Settings


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
        images: Sequence[ImageName | None] = [None]
        if self.image != EVERY:
            images = parts.registry.meant(self.image, self.action)
        decisions = await parts.run(decide, settings, self.who, self.action, images)
        for each in decisions:
            if self["json"]:
                print_json(each)
                continue
            verdict = Color.GREEN.paint("granted") if each.granted else Color.RED.paint("denied")
            print(f"{verdict}: {printable(f'{each.who} {each.action} {each.image}: {each.why}')}")
            for line in [] if each.granted else _nearest(each, settings.access):
                print(printable(f"  {line}"))
        return 0 if any(each.granted for each in decisions) else 1


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
            lines.append(f"{rule_text(each.rule, access)} {what}")
    return lines
