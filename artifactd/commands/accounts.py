"""The commands that change accounts: ``artifactd user``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from getpass import getpass
from pathlib import Path
from typing import Any, ClassVar

from twisted.python import usage

from artifactd.auth.identity import Groups, Kind
from artifactd.auth.passwords import change_user, check_user, hash_password, read_users
from artifactd.commands.options import SettingsOptions
from artifactd.commands.table import JSON, Table
from artifactd.kit.printable import printable
from artifactd.kit.start import StartError
from artifactd.kit.trusted import Untrusted, read_trusted, replace_trusted
from artifactd.settings.settings import Settings

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

    # Options calls this with the arguments left over.
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
        print(f"{done} {printable(self.name)}")
        if is_new:
            print(f"made {path}, for this user alone: the daemon's user has to be able to read it")
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


def _replace(path: Path, change: Any) -> bool:
    """:raises StartError: in one line, if the file can't be replaced."""
    try:
        return replace_trusted(path, change)
    except (OSError, Untrusted) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> StartError:
    return StartError(f"{path}: {getattr(error, 'strerror', None) or error}")
