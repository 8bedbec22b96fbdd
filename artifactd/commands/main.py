"""``artifactd``: what an operator types.  The daemon itself is ``twistd artifactd``."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from twisted.python import usage

from artifactd import __version__
from artifactd.auth.passwords import Users
from artifactd.commands.backup import Backup
from artifactd.commands.keys import NewRobot, RotateKeys
from artifactd.commands.mirror_config import CLIENTS, own_url
from artifactd.commands.offline import CheckData, CollectGarbage, Purge, Release, Undelete, Warm
from artifactd.commands.options import SettingsOptions
from artifactd.daemon.assemble import check_ca_files
from artifactd.kit.start import StartError
from artifactd.settings.toml import shown
from artifactd.settings.values import Url
from artifactd.store.folder import MARKER, DataFolder, ReadOnlyMode

_PROGRESS = 1000  # blobs between two lines


class CheckConfig(SettingsOptions):
    """``artifactd check-config``: whether the settings are right, and what they are."""

    longdesc = "Check the settings and print those in force."

    def run(self) -> int:
        settings = self.load()
        if settings.auth.htpasswd:
            Users.read(Path(settings.auth.htpasswd))
        check_ca_files(settings)
        print(f"ok\n\n{settings}")
        return 0


class BackUp(SettingsOptions):
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


class ReadOnly(SettingsOptions):
    """``artifactd read-only``: let nobody change anything, while the daemon goes on serving."""

    longdesc = (
        "Refuse every push and delete from now on (on), or no longer (off).  All daemons on the"
        " data folder obey with the next request, also after a restart.  Without on or off: tell"
        " which it is."
    )
    synopsis = "[options] [on|off]"

    # Options calls this with the arguments left over.
    def parseArgs(self, mode: str = "") -> None:
        if mode not in ("", "on", "off"):
            raise usage.UsageError(f"read-only: expected on or off, got {mode}")
        self.mode = mode

    def run(self) -> int:
        settings = self.load()
        if not (settings.data / MARKER).exists():
            raise StartError(f"{settings.data}: there is no data folder")
        mode = ReadOnlyMode(settings.data)
        if self.mode == "on":
            mode.turn_on()
        elif self.mode == "off":
            mode.turn_off()
        print(f"read-only is {'on' if mode.on() else 'off'}")
        if settings.read_only and not mode.on():
            print("artifactd: the setting read_only keeps it on all the same", file=sys.stderr)
            return 1
        return 0


class MirrorConfig(SettingsOptions):
    """``artifactd mirror-config``: what to write where, so that a client uses the cache."""

    longdesc = (
        "Print the configuration that lets CLIENT (docker, containerd or podman) pull through this"
        " daemon, as the settings are."
    )
    synopsis = "[options] CLIENT"
    optParameters: ClassVar = [
        ["url", "u", None, "Where clients reach the daemon (default: the first TCP listener)."]
    ]

    # Options calls this with the arguments left over.
    def parseArgs(self, client: str) -> None:  # type: ignore[override]
        if client not in CLIENTS:
            raise usage.UsageError(f"expected {', '.join(CLIENTS)}, got {client}")
        self.client = client

    def run(self) -> int:
        settings = self.load()
        url = own_url(settings) if self["url"] is None else _base_url(self["url"])
        print(CLIENTS[self.client](settings, url), end="")
        return 0


class Command(usage.Options):
    """The command line as a whole."""

    longdesc = "The daemon itself is run by twistd: twistd -n artifactd."
    subCommands: ClassVar = [
        ("check-config", None, CheckConfig, "Check the settings and print those in force."),
        ("backup", None, BackUp, "Copy the data folder, while the daemon runs or not."),
        ("read-only", None, ReadOnly, "Refuse every push and delete, or no longer."),
        ("mirror-config", None, MirrorConfig, "Print a client's configuration for the cache."),
        ("robot", None, NewRobot, "Make a secret for a robot, and the settings to go with it."),
        ("warm", None, Warm, "Copy images into the cache."),
        ("purge", None, Purge, "Drop a name, a tag or a digest from the cache."),
        ("gc", None, CollectGarbage, "Collect garbage now, or list what would go."),
        ("fsck", None, CheckData, "Check the catalog against the store, and repair."),
        ("undelete", None, Undelete, "Bring back a deleted image, tag, manifest or blob."),
        ("rotate-keys", None, RotateKeys, "Sign tokens with a new key from now on."),
        ("release", None, Release, "Let an emptied local name be pulled from upstream again."),
    ]

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"artifactd {__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        if self.subCommand is None:
            raise usage.UsageError(
                "say what to do: "
                + ", ".join(name for name, *_ in self.subCommands)
                + "; --help tells more"
            )


def main() -> int:
    """Run the command line of this process; the exit status."""
    command = Command()
    try:
        command.parseOptions()
        chosen = command.subOptions
        assert isinstance(chosen, SettingsOptions)
        return chosen.run()
    except (usage.UsageError, StartError, OSError) as error:
        print(f"artifactd: {error}", file=sys.stderr)
        return 1


def _base_url(text: str) -> str:
    """:raises UsageError: if ``text`` is no URL of a host alone."""
    try:
        url = Url.parse(text)
        if urlsplit(url).path:
            raise ValueError(text)
    except ValueError:
        raise usage.UsageError(
            f'--url: expected one such as "http://cache.example:5000", got {shown(text)}'
        ) from None
    return url


def _progress(backup: Backup) -> None:
    if backup.files % _PROGRESS == 0:
        print(_copied(backup), flush=True)


def _copied(backup: Backup) -> str:
    return f"blobs copied: {backup.files}, their bytes: {backup.size}"


if __name__ == "__main__":
    sys.exit(main())
