"""The options that all commands have."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

from twisted.python import usage

from artifactd.settings.settings import Settings


class SettingsOptions(usage.Options, ABC):
    """A command that reads the daemon's settings."""

    def __init__(self) -> None:
        self._config: Path | None = None
        super().__init__()

    def opt_config(self, path: str) -> None:
        """The settings file; without one the defaults hold."""
        self._config = Path(path)

    opt_c = opt_config

    def load(self) -> Settings:
        """:raises StartError: if a setting is wrong."""
        return Settings.load(self._config, os.environ)

    @abstractmethod
    def run(self) -> int:
        """
        Run the command.  Returns the exit status.  :raises StartError, OSError: if it can't be
        done.
        """
