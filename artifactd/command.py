"""``artifactd``: what an operator types.  The daemon itself is ``twistd artifactd``."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from twisted.python import usage

from artifactd import __version__
from artifactd.backup import Backup
from artifactd.config import Settings
from artifactd.startup import StartError
from artifactd.storage.folder import MARKER, DataFolder

_PROGRESS = 1000  # blobs between two lines


class _Settings(usage.Options):
    """What all commands have."""

    optParameters: ClassVar = [
        ["config", "c", None, "The settings file; without one the defaults hold."]
    ]

    def load(self) -> Settings:
        """:raises StartError: if a setting is wrong."""
        path = self["config"]
        return Settings.load(None if path is None else Path(path), os.environ)

    def run(self) -> int:
        """Do it; the exit status.  :raises StartError, OSError: if it can't be done."""
        raise NotImplementedError


class CheckConfig(_Settings):
    """``artifactd check-config``: whether the settings are right, and what they are."""

    longdesc = "Check the settings and print those in force."

    def run(self) -> int:
        print(f"ok\n\n{self.load()}")
        return 0


class BackUp(_Settings):
    """``artifactd backup``: copy the data folder, while the daemon runs or not."""

    longdesc = (
        "Copy the catalog and all blobs into the folder DESTINATION, which a daemon can be started"
        " from.  Blobs that are there from an earlier backup are not copied again."
    )

    synopsis = "[options] DESTINATION"

    # Options calls this with the arguments left over.
    def parseArgs(self, destination: str) -> None:  # type: ignore[override]
        self.destination = Path(destination)

    def run(self) -> int:
        data = self.load().data
        if not (data / MARKER).exists():
            raise StartError(f"{data}: there is no data folder to back up")
        if self.destination.resolve().is_relative_to(data.resolve()):
            raise StartError(f"{self.destination}: expected a folder outside {data}")
        with closing(DataFolder.open(data)) as source:
            source.settle()
            with closing(DataFolder.open(self.destination)) as target, target.exclusive():
                backup = Backup(source, target, _progress)
                backup.run()
        for digest in backup.damaged:
            print(f"artifactd: {digest} is damaged and not in the backup", file=sys.stderr)
        print(f"done: {_copied(backup)}")
        return 1 if backup.damaged else 0


class Command(usage.Options):
    """The command line as a whole."""

    longdesc = "The daemon itself is run by twistd: twistd -n artifactd."
    subCommands: ClassVar = [
        ("check-config", None, CheckConfig, "Check the settings and print those in force."),
        ("backup", None, BackUp, "Copy the data folder, while the daemon runs or not."),
    ]

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"artifactd {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        if self.subCommand is None:
            raise usage.UsageError("say what to do: check-config or backup; --help tells more")


def main() -> int:
    """Run the command line of this process; the exit status."""
    command = Command()
    try:
        command.parseOptions()
        chosen = command.subOptions
        assert isinstance(chosen, _Settings)
        return chosen.run()
    except (usage.UsageError, StartError, OSError) as error:
        print(f"artifactd: {error}", file=sys.stderr)
        return 1


def _progress(backup: Backup) -> None:
    if backup.files % _PROGRESS == 0:
        print(_copied(backup), flush=True)


def _copied(backup: Backup) -> str:
    return f"blobs copied: {backup.files}, their bytes: {backup.size}"


if __name__ == "__main__":
    sys.exit(main())
