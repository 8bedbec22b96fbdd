"""Making secrets: ``artifactd robot`` and ``artifactd rotate-keys``."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from twisted.python import usage

from artifactd.auth.passwords import LOGIN_PREFIX, hash_secret, make_secret
from artifactd.commands.options import SettingsOptions
from artifactd.kit.deferreds import run_here
from artifactd.kit.start import StartError
from artifactd.settings.access import Action
from artifactd.settings.accounts import RobotSettings, SecretHash, check_name
from artifactd.settings.toml import key, write_lines
from artifactd.settings.values import Duration, Expiry, Pattern
from artifactd.store.folder import MARKER, DataFolder


class NewRobot(SettingsOptions):
    """``artifactd robot``: make the secret of a robot, and the table of its settings."""

    longdesc = (
        "Print a new secret for the robot NAME to standard error, where it is seen once and kept"
        " nowhere, and the table to add to the settings to standard output."
    )
    synopsis = "[options] NAME"
    optParameters: ClassVar = [
        ["expires", "e", "90d", 'How long from now it is valid, such as 30d, or "never".'],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.may: list[Action] = []
        self.images: list[Pattern] = []

    def opt_may(self, action: str) -> None:
        """What it may do: pull (default), push, delete, administer; may be given more than once."""
        if action not in tuple(Action):
            raise usage.UsageError(f"--may: expected {', '.join(Action)}, got {action}")
        self.may.append(Action(action))

    opt_m = opt_may

    def opt_images(self, pattern: str) -> None:
        """Names of its images (default: local/*), as local/a/*; may be given more than once."""
        try:
            self.images.append(Pattern.parse(pattern))
        except ValueError:
            raise usage.UsageError(f"--images: expected a pattern, got {pattern!r}") from None

    opt_i = opt_images

    # Options calls this with the arguments left over.
    def parseArgs(self, name: str) -> None:  # type: ignore[override]
        self.name = name

    def run(self) -> int:
        try:
            check_name(self.name, "robot")
        except StartError as error:
            raise usage.UsageError(str(error)) from None
        secret = make_secret()
        settings = RobotSettings(
            secret_hash=SecretHash(hash_secret(secret)),
            expires=self._expires(),
            may=tuple(self.may) or (Action.PULL,),
            images=tuple(self.images) or (Pattern("local/*"),),
        )
        print(f"user name: {LOGIN_PREFIX}{self.name}\nsecret:    {secret}", file=sys.stderr)
        table = f"robot.{key(self.name)}"
        print("\n".join(["", f"[{table}]", *write_lines(settings, table)]))
        return 0

    def _expires(self) -> Expiry:
        if self["expires"] == "never":
            return Expiry("")
        try:
            moment = datetime.now(UTC) + timedelta(seconds=Duration.parse(self["expires"]))
        except (ValueError, OverflowError):
            raise usage.UsageError(
                f"--expires: expected a time such as 90d, got {self['expires']}"
            ) from None
        return Expiry(moment.isoformat(timespec="seconds"))


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
        # Imported here: it takes a second, and "artifactd robot" does without.
        from artifactd.daemon.gate import signing_keys  # noqa: PLC0415 - see above

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
