"""The options that the daemon and all commands have."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.python import usage

from artifactd import __version__
from artifactd.settings.settings import Settings

INSTALLED = Path("/etc/artifactd/artifactd.toml")
"""The settings file that is read without ``--config``, where there is one."""


class SettingsFileOptions(usage.Options):
    """A command line that says where the settings are."""

    def __init__(self) -> None:
        self._config: Path | None = None
        super().__init__()

    def opt_config(self, path: str) -> None:
        """The settings file (default: /etc/artifactd/artifactd.toml, if there is one)."""
        self._config = Path(path)

    opt_c = opt_config

    def opt_version(self) -> None:
        """Print the version of artifactd and exit."""
        print(f"artifactd {__version__}")
        sys.exit(0)

    @property
    def config(self) -> Path | None:
        """The settings file in force; ``None`` for the embedded settings."""
        if self._config is not None:
            return self._config
        return INSTALLED if INSTALLED.exists() else None

    def load(self) -> Settings:
        """:raises StartError: if a setting is wrong."""
        return Settings.load(self.config, os.environ)
