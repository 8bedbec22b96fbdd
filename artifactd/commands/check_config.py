"""``artifactd check-config``."""

from __future__ import annotations

from pathlib import Path

from artifactd.auth.identity import Groups
from artifactd.auth.passwords import Users, read_robots
from artifactd.commands.options import SettingsOptions
from artifactd.daemon.ca_files import check_ca_files


class CheckConfig(SettingsOptions):
    """``artifactd check-config``: check the settings and print them."""

    longdesc = "Check the settings and print those in force."

    def run(self) -> int:
        settings = self.load()
        if settings.auth.htpasswd:
            Users.read(Path(settings.auth.htpasswd), Groups(settings.auth.groups))
        read_robots(settings)
        check_ca_files(settings)
        print(f"ok\n\n{settings}")
        return 0
