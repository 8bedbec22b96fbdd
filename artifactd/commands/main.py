"""The console script ``artifactd``.  The daemon itself is ``twistd artifactd``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from getopt import GetoptError, getopt
from typing import ClassVar

from attrs import frozen
from twisted.python import usage
from twisted.python.reflect import namedAny

from artifactd.commands.options import ERRORS, SettingsOptions
from artifactd.daemon.options import SettingsFileOptions


@frozen
class _Lazy:
    """Imports a command when it is chosen: the imports of all of them take more than a second."""

    name: str

    def __call__(self) -> SettingsOptions:
        command = namedAny(f"artifactd.commands.{self.name}")()
        assert isinstance(command, SettingsOptions)
        return command


class Command(SettingsFileOptions):
    """The command line as a whole."""

    longdesc = "The daemon itself is run by twistd: twistd -n artifactd."
    subCommands: ClassVar = [
        (
            "check-config",
            None,
            _Lazy("check_config.CheckConfig"),
            "Check the settings and print those in force.",
        ),
        ("reload", None, _Lazy("reload.Reload"), "Read the settings again, without a pause."),
        (
            "backup",
            None,
            _Lazy("backup.BackUp"),
            "Copy the data folder, while the daemon runs or not.",
        ),
        (
            "read-only",
            None,
            _Lazy("read_only.ReadOnly"),
            "Refuse every push and delete, or no longer.",
        ),
        (
            "mirror-config",
            None,
            _Lazy("mirror_config.MirrorConfig"),
            "Print a client's configuration for the cache.",
        ),
        (
            "robot",
            None,
            _Lazy("accounts.ChangeRobots"),
            "List robots, add and remove them, or print one for the settings.",
        ),
        (
            "user",
            None,
            _Lazy("accounts.ChangeUsers"),
            "List the users of the htpasswd file, add and remove them, set passwords.",
        ),
        (
            "access",
            None,
            _Lazy("access.Access"),
            "Tell which rule grants something, or what the rules lack.",
        ),
        ("ls", None, _Lazy("seeing.List"), "List the images that are here."),
        ("tags", None, _Lazy("seeing.Tags"), "List the tags of an image."),
        ("show", None, _Lazy("seeing.Show"), "Show a manifest as a tree, and why it is kept."),
        ("history", None, _Lazy("seeing.History"), "List every movement of an image's tags."),
        ("du", None, _Lazy("seeing.Usage"), "List what each repository holds."),
        ("top", None, _Lazy("top.Top"), "Show what the daemon does now, each second."),
        ("rm", None, _Lazy("seeing.Remove"), "Delete tags and manifests."),
        ("restore", None, _Lazy("seeing.Restore"), "Point a tag at what it pointed at before."),
        ("warm", None, _Lazy("offline.Warm"), "Copy images into the cache."),
        (
            "purge",
            None,
            _Lazy("offline.Purge"),
            "Drop a name, a tag or a digest from the cache.",
        ),
        (
            "gc",
            None,
            _Lazy("offline.CollectGarbage"),
            "Collect garbage now, or list what would go.",
        ),
        (
            "retention",
            None,
            _Lazy("retention.Retain"),
            "Drop the tags that no rule keeps, or list each tag and why it stays or goes.",
        ),
        (
            "fsck",
            None,
            _Lazy("offline.CheckData"),
            "Check the catalog against the store, and repair.",
        ),
        (
            "undelete",
            None,
            _Lazy("offline.Undelete"),
            "Bring back a deleted image, tag, manifest or blob.",
        ),
        (
            "webhooks",
            None,
            _Lazy("webhooks.Webhooks"),
            "List webhooks and their events, show, replay and test.",
        ),
        (
            "rotate-keys",
            None,
            _Lazy("keys.RotateKeys"),
            "Sign tokens with a new key from now on.",
        ),
        (
            "release",
            None,
            _Lazy("offline.Release"),
            "Let an emptied local name be pulled from upstream again.",
        ),
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """:raises UsageError: if ``options`` are wrong, or name no command that there is."""
        words = list(options or ())
        names = [name for name, *_ in self.subCommands]
        try:
            _, arguments = getopt(words, self.shortOpt, self.longOpt)
        except GetoptError as error:
            raise usage.UsageError(f"{error}; --help tells more") from None
        if arguments and arguments[0] not in names:
            near = "".join(
                f" (did you mean {n}?)" for n in get_close_matches(arguments[0], names, 1)
            )
            raise usage.UsageError(
                f"no such command: {arguments[0]}{near}; there are {', '.join(names)}"
            )
        super().parseOptions(words)

    def postOptions(self) -> None:
        if self.subCommand is None:
            raise usage.UsageError(
                "say what to do: "
                + ", ".join(name for name, *_ in self.subCommands)
                + "; --help tells more"
            )


def parse(argv: Sequence[str]) -> SettingsOptions:
    """
    The command that ``argv`` chooses, with its options.

    :raises UsageError: if ``argv`` is wrong.
    """
    command = Command()
    command.parseOptions(list(argv))
    chosen = command.subOptions
    assert isinstance(chosen, SettingsOptions)
    return chosen


def main() -> int:
    """Run the command line of this process.  Returns the exit status."""
    try:
        return parse(sys.argv[1:]).run()
    except ERRORS as error:
        print(f"artifactd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
