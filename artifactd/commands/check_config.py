"""``artifactd check-config``."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock

from artifactd.auth.identity import Groups
from artifactd.auth.passwords import Users, read_robots
from artifactd.commands.options import SettingsOptions
from artifactd.daemon.ca_files import check_ca_files
from artifactd.daemon.listen import parse_endpoint


class CheckConfig(SettingsOptions):
    """``artifactd check-config``: check the settings and print them."""

    longdesc = "Check the settings and print those in force."

    def run(self) -> int:
        settings = self.load()
        if settings.auth.htpasswd:
            Users.read(Path(settings.auth.htpasswd), Groups(settings.auth.groups))
        read_robots(settings)
        check_ca_files(settings)
        for description in settings.listen:
            parse_endpoint(description, Clock())
        print(f"ok\n\n{settings}")
        return 0
