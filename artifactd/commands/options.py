"""The options that all commands have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from getopt import GetoptError, gnu_getopt
from inspect import signature
from pathlib import Path

from twisted.python import usage

from artifactd.daemon.options import SettingsFileOptions
from artifactd.kit.start import StartError

ERRORS = (usage.UsageError, StartError, OSError)
"""The exceptions that a command may raise; each has a message of one line."""


class SettingsOptions(SettingsFileOptions, ABC):
    """A command that reads the daemon's settings."""

    @abstractmethod
    def run(self) -> int:
        """
        Run the command.  Returns the exit status.

        :raises UsageError, StartError, OSError: if it can't be done.
        """

    @property
    def config(self) -> Path | None:
        """The settings file in force; ``--config`` may also stand before the command's name."""
        if self._config is None and isinstance(self.parent, SettingsFileOptions):
            return self.parent.config
        return super().config

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse the words after the command's name, options among the arguments too: Twisted's own
        parser takes every word after the first argument as an argument.

        :raises UsageError: if they are wrong.
        """
        words = list(options or ())
        try:
            given, arguments = gnu_getopt(words, self.shortOpt, self.longOpt)
        except GetoptError as error:
            raise usage.UsageError(f"{self._name}: {error}; {self._usage}") from None
        if not self._takes(arguments):
            got = " ".join(arguments) or "nothing"
            raise usage.UsageError(f"{self._name}: wrong number of arguments: {got}; {self._usage}")
        super().parseOptions([*(self._word(*each) for each in given), "--", *arguments])

    def _word(self, option: str, value: str) -> str:
        """An option with its value as one word of a command line."""
        if option.startswith("--") and f"{option[2:]}=" in self.longOpt:
            return f"{option}={value}"
        return option + value

    def _takes(self, arguments: Sequence[str]) -> bool:
        try:
            signature(self.parseArgs).bind(*arguments)
        except TypeError:
            return False
        return True

    @property
    def _name(self) -> str:
        """The name that the command line calls this command by."""
        name = "" if self.parent is None else self.parent.subCommand
        assert isinstance(name, str)
        return name

    @property
    def _usage(self) -> str:
        synopsis = getattr(self, "synopsis", "[options]")
        return f"usage: artifactd {self._name} {synopsis}; --help tells more"
