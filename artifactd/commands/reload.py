"""``artifactd reload``."""

from __future__ import annotations

import socket
import sys

from artifactd.commands.options import SettingsOptions
from artifactd.kit.start import StartError
from artifactd.store.folder import MARKER, ReloadSocket


class Reload(SettingsOptions):
    """``artifactd reload``: let new workers with the settings of now take over."""

    longdesc = (
        "Let new workers with the settings, and the program, of now take over from the old ones,"
        " which finish what they have begun.  No connection is refused.  If something is wrong with"
        " the settings, tell what, and change nothing.  For a daemon with several workers."
    )

    def run(self) -> int:
        data = self.load().data
        if not (data / MARKER).exists():
            raise StartError(f"{data}: there is no data folder")
        with ReloadSocket(data).named() as name, socket.socket(socket.AF_UNIX) as asking:
            try:
                asking.connect(name)
            except (FileNotFoundError, ConnectionRefusedError):
                raise StartError(
                    f"reload: no daemon with several workers runs on {data}; one process reads"
                    " accounts, passwords and certificates again by itself, and other settings when"
                    " it is restarted"
                ) from None
            with asking.makefile("r", encoding="utf-8") as answer:
                told = answer.read()
        if not told:
            raise StartError("reload: the daemon has ended meanwhile")
        if told != "\n":
            print(f"artifactd: reload refused: {told.strip()}", file=sys.stderr)
            return 1
        print("reloaded")
        return 0
