"""The commands that change accounts: ``artifactd user`` and ``artifactd robot``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from getpass import getpass
from pathlib import Path
from typing import ClassVar

from twisted.python import usage

from artifactd.auth.identity import Groups, Kind
from artifactd.auth.passwords import (
    LOGIN_PREFIX,
    change_user,
    check_user,
    hash_password,
    hash_secret,
    make_secret,
    read_robots,
    read_users,
)
from artifactd.commands.options import SettingsOptions
from artifactd.commands.table import JSON, Table, print_json
from artifactd.kit.printable import printable
from artifactd.kit.start import StartError
from artifactd.kit.trusted import Untrusted, read_trusted, replace_trusted
from artifactd.settings.access import Action
from artifactd.settings.accounts import RobotSettings, check_name, parse_robots
from artifactd.settings.settings import Settings
from artifactd.settings.toml import key, write_lines
from artifactd.settings.values import Duration, Expiry, Pattern

_WRITTEN = '# Written by "artifactd robot", which keeps the tables and nothing else.'
_LARGEST = 4096  # bytes of standard input that are read


class ChangeUsers(SettingsOptions):
    """``artifactd user``: the users of the htpasswd file."""

    longdesc = (
        "ls lists the users of the htpasswd file that the settings name; add makes one, passwd"
        " gives one another password, rm removes one.  The password is asked for, or read from"
        " standard input; it is no argument, since every user of the machine sees those.  Running"
        " daemons notice within a second."
    )
    synopsis = "[options] ls | add NAME | passwd NAME | rm NAME"
    optFlags: ClassVar = [
        JSON,
        ["password-stdin", None, "Read the password from standard input."],
    ]

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, verb: str, *names: str) -> None:  # type: ignore[override]
        if verb not in ("ls", "add", "passwd", "rm"):
            raise usage.UsageError(f"user: expected ls, add, passwd or rm, got {verb}")
        if len(names) != (verb != "ls"):
            # What else was given may be a password: it is not shown.
            raise usage.UsageError(f"user {verb}: wrong number of arguments; {self._usage}")
        self.verb, self.name = verb, "".join(names)

    def run(self) -> int:
        settings = self.load()
        if not settings.auth.htpasswd:
            raise StartError("the settings name no file of users: set htpasswd in [auth]")
        path = Path(settings.auth.htpasswd)
        if self.verb == "ls":
            return _list_users(path, settings, as_json=bool(self["json"]))
        known = _users(path)
        if self.verb == "add":
            try:
                check_user(self.name)
            except ValueError as error:
                raise usage.UsageError(f"user add: {error}") from None
            if self.name in known:
                raise StartError(f"{self.name} is in {path} already: see artifactd user passwd")
        elif self.name not in known:
            raise StartError(f"{self.name}: no such user in {path}")
        hashed = None if self.verb == "rm" else self._hash()
        is_new = _replace(path, partial(self._change, path, hashed))
        done = {"add": "added", "passwd": "changed the password of", "rm": "removed"}[self.verb]
        if self["json"]:
            print_json({"user": self.name, "done": self.verb})
        else:
            print(f"{done} {printable(self.name)}")
        if is_new:
            _tell_new(path)
        return 0

    def _change(self, path: Path, hashed: bytes | None, before: bytes | None) -> bytes:
        # Asked again, under the lock: another command may have been quicker.
        known = read_users(before or b"", path)
        if (self.name in known) is (self.verb == "add"):
            raise StartError(f"{self.name}: another command has just changed it in {path}")
        return change_user(before or b"", self.name, hashed)

    def _hash(self) -> bytes:
        try:
            return hash_password(self._password())
        except ValueError as error:
            raise StartError(str(error)) from None

    def _password(self) -> str:
        if self["password-stdin"]:
            try:
                given = sys.stdin.buffer.read(_LARGEST).decode()
            except UnicodeDecodeError:
                raise ValueError("expected a password in UTF-8") from None
            return given.removesuffix("\n").removesuffix("\r")
        if not sys.stdin.isatty():
            raise usage.UsageError("there is no terminal to ask at: use --password-stdin")
        password = getpass(f"password of {printable(self.name)}: ")
        if getpass("again: ") != password:
            raise StartError("the two passwords differ: nothing is changed")
        return password


class ChangeRobots(SettingsOptions):
    """``artifactd robot``: the robots of the settings and of ``robots_file``."""

    longdesc = (
        "ls lists the robots; add makes one in the file that robots_file of the settings names, and"
        " prints its secret, which is seen once and kept nowhere; rm removes one from there."
        "  Running daemons notice within a second.  NAME alone prints the secret to standard error,"
        " and to standard output the table to add to the settings."
    )
    synopsis = "[options] ls | add NAME | rm NAME | NAME"
    optFlags: ClassVar = [JSON]
    optParameters: ClassVar = [
        ["expires", "e", "90d", 'How long from now it is valid, such as 30d, or "never".'],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.may: list[Action] = []
        self.images: list[Pattern] = []

    def opt_may(self, action: str) -> None:
        """What it may do: pull (default), create, push, delete, administer; may be repeated."""
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
    def parseArgs(self, *words: str) -> None:
        match words:
            case ("ls",):
                self.verb, self.name = "ls", ""
            case ("add" | "rm" as verb, name):
                self.verb, self.name = verb, name
            case (name,) if name not in ("add", "rm"):
                self.verb, self.name = "print", name
            case _:
                got = " ".join(words) or "nothing"
                raise usage.UsageError(f"robot: wrong number of arguments: {got}; {self._usage}")

    def run(self) -> int:
        if self.verb == "print":
            return self._print()
        settings = self.load()
        path = settings.auth.robots_file
        if self.verb == "ls":
            return self._list(settings)
        if not path:
            raise StartError("the settings name no file of robots: set robots_file in [auth]")
        if self.name in settings.robot:
            raise StartError(f"{self.name} is a robot of the settings: change it there")
        secret, robot = self._make()
        added = None if self.verb == "rm" else robot
        is_new = _replace(Path(path), partial(self._change, settings, added))
        if added is None and self["json"]:
            print_json({"robot": self.name, "done": "rm"})
        elif added is None:
            print(f"removed {self.name}")
        elif self["json"]:
            told = {"robot": self.name, "user": f"{LOGIN_PREFIX}{self.name}", "secret": secret}
            print_json({**told, "expires": robot.expires or None})
        else:
            print(f"user name: {LOGIN_PREFIX}{self.name}\nsecret:    {secret}")
        if is_new:
            _tell_new(path)
        return 0

    def _change(
        self, settings: Settings, robot: RobotSettings | None, before: bytes | None
    ) -> bytes:
        where = f"auth.robots_file: {settings.auth.robots_file}"
        parse = partial(
            parse_robots, where=where, others=settings.robot, repositories=settings.repository
        )
        robots = parse(before or b"")
        if robot is None and self.name not in robots:
            raise StartError(f"{self.name}: no such robot in {settings.auth.robots_file}")
        if robot is not None and self.name in robots:
            raise StartError(f"{self.name} is in {settings.auth.robots_file} already")
        robots.pop(self.name, None)
        if robot is not None:
            robots[self.name] = robot
        lines = [_WRITTEN]
        for name, each in sorted(robots.items()):
            table = f"robot.{key(name)}"
            lines += ["", f"[{table}]", *write_lines(each, table)]
        content = "".join(f"{line}\n" for line in lines).encode()
        parse(content)  # its images may be none that there can be
        return content

    def _list(self, settings: Settings) -> int:
        table = Table("ROBOT", "EXPIRES", "MAY", "IMAGES", "IN", as_json=bool(self["json"]))
        rows: list[tuple[object, Sequence[str]]] = []
        for name, robot in sorted(read_robots(settings).items()):
            place = "settings" if name in settings.robot else settings.auth.robots_file
            told = {"robot": name, "expires": robot.expires or None, "may": robot.may}
            expired = " (expired)" if time.time() >= robot.expires.timestamp else ""
            cells = [name, f"{robot.expires or 'never'}{expired}", ",".join(robot.may)]
            cells += [",".join(robot.images), place]
            rows.append(({**told, "images": robot.images, "in": place}, cells))
        table.add(rows)
        return 0 if rows else 1

    def _print(self) -> int:
        secret, settings = self._make()
        print(f"user name: {LOGIN_PREFIX}{self.name}\nsecret:    {secret}", file=sys.stderr)
        table = f"robot.{key(self.name)}"
        print("\n".join(["", f"[{table}]", *write_lines(settings, table)]))
        return 0

    def _make(self) -> tuple[str, RobotSettings]:
        """A secret, and the robot that has it."""
        try:
            check_name(self.name, "robot")
        except StartError as error:
            raise usage.UsageError(str(error)) from None
        secret = make_secret()
        return secret, RobotSettings(
            secret_hash=hash_secret(secret),
            expires=self._expires(),
            may=tuple(self.may) or (Action.PULL,),
            images=tuple(self.images) or (Pattern("local/*"),),
        )

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


def _users(path: Path) -> dict[str, bytes]:
    """The users of the file; none if there is no such file.  :raises StartError: if it is wrong."""
    try:
        return read_users(read_trusted(path), path)
    except FileNotFoundError:
        return {}
    except (OSError, Untrusted) as error:
        raise _unusable(path, error) from None


def _list_users(path: Path, settings: Settings, *, as_json: bool) -> int:
    groups = Groups(settings.auth.groups)
    rows: list[tuple[object, Sequence[str]]] = []
    for name in sorted(_users(path)):
        of = sorted(groups.identity(Kind.USER, name).groups)
        rows.append(({"user": name, "groups": of}, [name, ",".join(of) or "-"]))
    Table("USER", "GROUPS", as_json=as_json).add(rows)
    return 0 if rows else 1


def _replace(path: Path, change: Callable[[bytes | None], bytes]) -> bool:
    """:raises StartError: in one line, if the file can't be replaced."""
    try:
        return replace_trusted(path, change)
    except (OSError, Untrusted) as error:
        raise _unusable(path, error) from None


def _tell_new(path: Path | str) -> None:
    print(
        f"artifactd: made {path}, for this user alone: the daemon's user has to be able to read it",
        file=sys.stderr,
    )


def _unusable(path: Path, error: Exception) -> StartError:
    return StartError(f"{path}: {getattr(error, 'strerror', None) or error}")
