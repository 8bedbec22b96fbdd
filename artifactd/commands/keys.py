"""``artifactd rotate-keys``."""

from __future__ import annotations

from contextlib import closing
from typing import ClassVar

from artifactd.commands.options import SettingsOptions
from artifactd.daemon.gate import signing_keys
from artifactd.kit.deferreds import run_here
from artifactd.kit.start import StartError
from artifactd.store.folder import MARKER, DataFolder


class RotateKeys(SettingsOptions):
    """``artifactd rotate-keys``: sign tokens with a new key from now on."""

    longdesc = (
        "Sign tokens with a new key from now on.  Tokens that were given before stay good until"
        " they expire, unless --forget says otherwise: then everybody has to log in again, which is"
        " what to do after a key may have been read by others.  Running daemons notice by"
        " themselves."
    )
    optFlags: ClassVar = [["forget", None, "Accept no token that was given before."]]

    def run(self) -> int:
        settings = self.load()
        if not (settings.data / MARKER).exists():
            raise StartError(f"{settings.data}: there is no data folder with keys in it")
        with closing(DataFolder.open(settings.data)) as folder:
            folder.settle()
            keys = signing_keys(settings, run_here)
            try:
                kid = keys.rotate(forget=bool(self["forget"]))
            except ValueError as error:
                raise StartError(f"{settings.data}: {error}") from None
        print(f"tokens are signed with the key {kid} from now on")
        return 0
