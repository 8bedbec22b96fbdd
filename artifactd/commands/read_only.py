"""``artifactd read-only``."""

from __future__ import annotations

import sys

from twisted.python import usage

from artifactd.commands.options import SettingsOptions
from artifactd.kit.start import StartError
from artifactd.store.folder import MARKER, ReadOnlyMode


class ReadOnly(SettingsOptions):
    """``artifactd read-only``: turn read-only mode on or off while the daemon serves."""

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
