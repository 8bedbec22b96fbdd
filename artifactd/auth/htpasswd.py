"""Users, listed in a file as Apache's ``htpasswd -B`` writes it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.auth.groups import Groups
from artifactd.auth.identity import Identity, Kind
from artifactd.auth.passwords import COSTS, Dummies, Passwords, read_cost
from artifactd.kit.deferreds import Flights, RunInThread
from artifactd.kit.start import StartError

_LOOK_INTERVAL = 1.0  # seconds
_LARGEST = 16 << 20  # bytes

_Stamp = tuple[int, int, int, int, int]


@frozen
class Users:
    """
    What a file says.

    :ivar stamp: what changes with the file, unless somebody means it not to.
    :ivar dummies: for users there are not.
    """

    stamp: _Stamp
    hashes: Mapping[str, bytes]
    dummies: Dummies = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Users:
        """
        Blocks.

        :raises StartError: in one line, if it can't be read, or one of its lines is wrong.
        """
        try:
            with path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                content = file.read(_LARGEST + 1)
            hashes = parse(_decode(content))
        except OSError as error:
            raise _wrong(path, f"can't be read: {error.strerror}") from None
        except ValueError as error:
            raise _wrong(path, error) from None
        return cls(stamp, hashes, Dummies(hashes.values()))


def _decode(content: bytes) -> str:
    if len(content) > _LARGEST:
        raise ValueError(f"larger than {_LARGEST >> 20} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _wrong(path: Path, problem: object) -> StartError:
    return StartError(f"auth.htpasswd: {path}: {problem}")


def parse(text: str) -> dict[str, bytes]:
    """
    The hashes of a file, by users.  Empty lines and those that begin with ``#`` don't count, nor
    does what follows a second colon.

    :raises ValueError: naming the first line that is wrong, but not what stands in it as a hash.
    """
    hashes: dict[str, bytes] = {}
    # Not splitlines, which knows ends of lines that may be in a name.
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        name, colon, rest = line.partition(":")
        if not name or not colon or "\0" in name:
            raise ValueError(f'line {number}: expected "name:hash"')
        if name in hashes:
            raise ValueError(f"line {number}: {name} is there already")
        hashed = rest.partition(":")[0].encode()
        try:
            read_cost(hashed)
        except ValueError:
            raise ValueError(
                f"line {number}: {name}: expected a bcrypt hash ($2a$, $2b$ or $2y$) of a cost from"
                f" {COSTS[0]} to {COSTS[-1]}, as htpasswd -B makes it"
            ) from None
        hashes[name] = hashed
    return hashes


class Htpasswd:
    """
    Accounts: the users of a file, which is read again when it has changed.

    While it can't be read, or is wrong, the users are those that it had before.
    """

    _log = Logger()

    def __init__(
        self,
        path: Path,
        passwords: Passwords,
        groups: Groups,
        run: RunInThread,
        clock: IReactorTime,
    ) -> None:
        """
        Blocks.

        :raises StartError: if the file can't be read, or is wrong.
        """
        self._path = path
        self._passwords = passwords
        self._groups = groups
        self._run = run
        self._clock = clock
        self._looked = clock.seconds()
        self._looking: Flights[Path, None] = Flights()
        self._wrong = ""
        self._users = Users.read(path)

    async def check(self, name: str, password: str) -> Identity | None:
        """The user; one who is not in the file takes as long to tell as one who is."""
        await self._look()
        hashed = self._users.hashes.get(name)
        compared = hashed or self._users.dummies.choose(name)
        matches = await self._passwords.match(name, password, compared)
        if hashed is None or not matches:
            return None
        # Meanwhile the file may have changed: by then the answer is no.
        return self._groups.user(name) if self._users.hashes.get(name) == hashed else None

    def recall(self, name: str, password: str) -> Identity | None:
        """The user, where password and file were looked at just now."""
        hashed = self._users.hashes.get(name)
        if hashed is None or self._is_due() or not self._passwords.recall(name, password, hashed):
            return None
        return self._groups.user(name)

    async def mark(self, identity: Identity) -> str | None:
        """Of the hash, which has a salt of its own each time that a password is set."""
        if identity.kind is not Kind.USER:
            return None
        await self._look()
        hashed = self._users.hashes.get(identity.name)
        return None if hashed is None else hashlib.sha256(hashed).hexdigest()

    async def _look(self) -> None:
        """See whether the file has changed."""
        if self._is_due():
            await self._looking.join(self._path, self._read_again)

    def _is_due(self) -> bool:
        return not 0 <= self._clock.seconds() - self._looked < _LOOK_INTERVAL

    async def _read_again(self) -> None:
        looked = self._clock.seconds()
        try:
            users = await self._run(_read_changed, self._path, self._users.stamp)
        except StartError as error:
            if str(error) != self._wrong:
                self._wrong = str(error)
                self._log.error("{problem}; the users are those of before", problem=self._wrong)
        else:
            self._wrong = ""
            if users is not None:
                self._users = users
                self._log.info(
                    "auth.htpasswd: {path} read again: {count} users",
                    path=self._path,
                    count=len(users.hashes),
                )
        self._looked = looked


def _read_changed(path: Path, stamp: _Stamp) -> Users | None:
    """What the file says; ``None`` if it is the one that ``stamp`` is of."""
    try:
        same = _stamp(path.stat()) == stamp
    except OSError as error:
        raise _wrong(path, f"can't be read: {error.strerror}") from None
    return None if same else Users.read(path)


def _stamp(status: os.stat_result) -> _Stamp:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
