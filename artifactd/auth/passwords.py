"""Passwords compared with bcrypt hashes: in threads, few at once, and seldom twice."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from hmac import compare_digest, digest
from pathlib import Path
from typing import Any

import bcrypt
from attrs import field, frozen
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.auth.identity import Groups, Identity, Kind
from artifactd.kit.deferreds import RunInThread, SingleFlight
from artifactd.kit.followed import Followed, stamp_of
from artifactd.kit.start import StartError

LONGEST = 72  # bytes: bcrypt looks at no more
COSTS = range(4, 18)  # what Apache's htpasswd makes; each takes twice as long as the one before
_USUAL_COST = 12
_REMEMBERED = 4096
_FORM = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def read_cost(hashed: bytes) -> int:
    """
    The cost of a bcrypt hash (``$2a$``, ``$2b$``, ``$2y$``).

    :raises ValueError: if it is none, or of a cost that is not one of :data:`COSTS`.
    """
    match = _FORM.fullmatch(hashed)
    if match is None or int(match[1]) not in COSTS:
        raise ValueError("not a bcrypt hash")
    return int(match[1])


def make_dummy(cost: int) -> bytes:
    """A hash that no password has, and with which comparing one takes as long as with another."""
    checksum = "".join(secrets.choice(_ALPHABET) for _ in range(31))
    return bcrypt.gensalt(cost) + checksum.encode()


def _encode(password: str) -> bytes | None:
    """What bcrypt looks at all of; ``None`` if there is no such thing."""
    try:
        secret = password.encode()
    except UnicodeEncodeError:
        return None
    return secret if 0 < len(secret) <= LONGEST and b"\0" not in secret else None


class Dummies:
    """
    Hashes with which to compare the passwords of accounts there are not, so that these take as long
    to be refused as the others: their costs are as frequent as those of the hashes there are.
    """

    def __init__(self, hashes: Iterable[bytes]) -> None:
        costs = sorted(map(read_cost, hashes))
        made = {cost: make_dummy(cost) for cost in set(costs)}
        self._hashes = [made[cost] for cost in costs] or [make_dummy(_USUAL_COST)]
        self._key = secrets.token_bytes(32)

    def choose(self, account: str) -> bytes:
        """Always the same for the same."""
        chosen = digest(self._key, account.encode(errors="surrogatepass"), "sha256")
        return self._hashes[int.from_bytes(chosen[:8]) % len(self._hashes)]


class Passwords:
    """
    Compares passwords of accounts with hashes.

    What matched is remembered for a short while, by a keyed hash over all three: so a pull
    of many layers costs one bcrypt, a hash that is changed finds nothing remembered, and what is in
    memory tells nobody the password.  Several who ask the same at the same time share one answer.

    :param run: runs in a thread.
    :param parallel: how many such threads there are at most; others wait for their turn.
    :param remember: seconds.
    """

    def __init__(
        self, run: RunInThread, clock: IReactorTime, *, parallel: int, remember: float
    ) -> None:
        self._run = run
        self._clock = clock
        self._turns = DeferredSemaphore(parallel)
        self._remember = remember
        self._key = secrets.token_bytes(32)
        self._matched: dict[bytes, float] = {}  # when, the oldest first
        self._single_flight: SingleFlight[bytes, bool] = SingleFlight()

    async def match(self, account: str, password: str, hashed: bytes) -> bool:
        """
        Whether ``password`` is that of ``hashed``.

        :param account: whose it is; one answer is for one account.  If those that don't exist
            shared their dummy's answer, they would be told apart by the time it takes.
        One that bcrypt would look at in part only (:data:`LONGEST`, a NUL), is empty, or can't be
        written in UTF-8 is that of no hash; it takes no time, and so tells nothing.
        """
        secret = _encode(password)
        if secret is None:
            return False
        key = self._digest(account, secret, hashed)
        if self._is_remembered(key):
            return True
        return await self._single_flight.join(key, partial(self._check, key, secret, hashed))

    def recall(self, account: str, password: str, hashed: bytes) -> bool:
        """Whether that has been found to match, and is remembered."""
        secret = _encode(password)
        return secret is not None and self._is_remembered(self._digest(account, secret, hashed))

    def _digest(self, account: str, secret: bytes, hashed: bytes) -> bytes:
        name = hashlib.sha256(account.encode(errors="surrogatepass")).digest()
        return digest(self._key, name + hashed + b"\0" + secret, "sha256")

    def _is_remembered(self, key: bytes) -> bool:
        matched = self._matched.get(key)
        return matched is not None and 0 <= self._clock.seconds() - matched < self._remember

    async def _check(self, key: bytes, secret: bytes, hashed: bytes) -> bool:
        # The turn ends with the thread: nothing cancels a flight.
        check: Callable[[], Deferred[Any]] = partial(self._run, bcrypt.checkpw, secret, hashed)
        matches: bool = await self._turns.run(check)
        if matches and self._remember:
            self._matched.pop(key, None)
            if len(self._matched) >= _REMEMBERED:
                del self._matched[next(iter(self._matched))]
            self._matched[key] = self._clock.seconds()
        return matches


# Users, listed in a file as Apache's ``htpasswd -B`` writes it.

_LOOK_INTERVAL = 1.0  # seconds
_LARGEST = 16 << 20  # bytes


@frozen
class Users:
    """
    The content of an htpasswd file.

    :ivar hashes: by user names.
    :ivar dummies: hashes to compare the passwords of unknown users with.
    """

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
                content = file.read(_LARGEST + 1)
            hashes = parse(_decode(content))
        except OSError as error:
            raise _wrong(path, f"can't be read: {error.strerror}") from None
        except ValueError as error:
            raise _wrong(path, error) from None
        return cls(hashes, Dummies(hashes.values()))


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
    Accounts: the users of an htpasswd file, which is read again when it has changed.

    While the file can't be read, or is wrong, the users of before stay.
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
        self._users = Followed(
            partial(stamp_of, path),
            partial(Users.read, path),
            run,
            clock.seconds,
            _LOOK_INTERVAL,
            refused=self._refused,
            changed=self._changed,
        )
        self._users.load()

    async def check(self, name: str, password: str) -> Identity | None:
        """The user; an unknown one takes as long to refuse as one with a wrong password."""
        await self._users.look()
        users = self._users.content
        hashed = users.hashes.get(name)
        matches = await self._passwords.match(name, password, hashed or users.dummies.choose(name))
        if hashed is None or not matches:
            return None
        # The file may have changed meanwhile: then the old password is refused.
        return self._groups.user(name) if self._users.content.hashes.get(name) == hashed else None

    def recall(self, name: str, password: str) -> Identity | None:
        """The user, if the password was found right and the file looked at just now."""
        hashed = self._users.content.hashes.get(name)
        if hashed is None or self._users.is_due():
            return None
        return self._groups.user(name) if self._passwords.recall(name, password, hashed) else None

    async def mark(self, identity: Identity) -> str | None:
        """The SHA-256 of the hash, which gets a new salt each time that a password is set."""
        if identity.kind is not Kind.USER:
            return None
        await self._users.look()
        hashed = self._users.content.hashes.get(identity.name)
        return None if hashed is None else hashlib.sha256(hashed).hexdigest()

    def _refused(self, problem: str) -> None:
        self._log.error("{problem}; the users are those of before", problem=problem)

    def _changed(self, users: Users) -> None:
        self._log.info(
            "auth.htpasswd: {path} read again: {count} users",
            path=self._path,
            count=len(users.hashes),
        )


# Robots: accounts for machines, which the settings list.

LOGIN_PREFIX = "robot+"  # what no name in a Basic credential may hold is a colon
_SECRET_PREFIX = "artifactd_"  # by which those who search for leaked secrets know one
_SECRET_BYTES = 32
_SHA256 = "sha256:"


@frozen
class Robot:
    """
    One robot.

    :ivar secret_hash: ``sha256:`` and the SHA-256 of its secret, in hexadecimal, or a bcrypt hash.
    :ivar expires: in UTC; ``None``: never.
    """

    secret_hash: str = field(repr=False)
    expires: datetime | None = None

    @property
    def is_generated(self) -> bool:
        """Whether its secret can't be guessed, however fast: not one for bcrypt."""
        return self.secret_hash.startswith(_SHA256)


def make_secret() -> str:
    """A secret for a robot, that can't be guessed."""
    return _SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """What the settings hold of a secret; only for one that :func:`make_secret` has made."""
    return _SHA256 + hashlib.sha256(secret.encode()).hexdigest()


class Robots:
    """
    Accounts: the robots of the settings, who log in as ``robot+<name>``.

    :param now: seconds since the epoch (:func:`time.time`).
    """

    def __init__(
        self,
        robots: Mapping[str, Robot],
        passwords: Passwords,
        groups: Groups,
        now: Callable[[], float],
    ) -> None:
        self._robots = dict(robots)
        chosen = [each.secret_hash.encode() for each in robots.values() if not each.is_generated]
        self._dummies = Dummies(chosen) if chosen else None
        self._passwords = passwords
        self._groups = groups
        self._now = now

    async def check(self, name: str, password: str) -> Identity | None:
        """
        The robot, unless it has expired.

        Where there are secrets for bcrypt, being refused takes one, whichever robot it is.
        """
        recalled = self.recall(name, password)
        if recalled is not None or self._dummies is None or not name.startswith(LOGIN_PREFIX):
            return recalled
        robot = self._called(name)
        if robot is None or robot.is_generated:
            await self._passwords.match(name, password, self._dummies.choose(name))
            return None
        matches = await self._passwords.match(name, password, robot.secret_hash.encode())
        return self._identity(name) if matches else None

    def recall(self, name: str, password: str) -> Identity | None:
        """The robot, unless its secret is one for bcrypt that was not given just now."""
        robot = self._called(name)
        if robot is None:
            return None
        if robot.is_generated:
            matches = _is_secret(password, robot.secret_hash)
        else:
            matches = self._passwords.recall(name, password, robot.secret_hash.encode())
        return self._identity(name) if matches else None

    async def mark(self, identity: Identity) -> str | None:
        """Of the secret's hash; ``None`` too once the robot has expired."""
        robot = self._valid(identity.name) if identity.kind is Kind.ROBOT else None
        return None if robot is None else hashlib.sha256(robot.secret_hash.encode()).hexdigest()

    def _identity(self, login: str) -> Identity:
        return self._groups.robot(login.removeprefix(LOGIN_PREFIX))

    def _called(self, login: str) -> Robot | None:
        """The robot that logs in by that name."""
        if not login.startswith(LOGIN_PREFIX):
            return None
        return self._valid(login.removeprefix(LOGIN_PREFIX))

    def _valid(self, name: str) -> Robot | None:
        robot = self._robots.get(name)
        if robot is None or robot.expires is None or self._now() < robot.expires.timestamp():
            return robot
        return None


def _is_secret(secret: str, hashed: str) -> bool:
    given = hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
    return compare_digest(given, hashed.removeprefix(_SHA256))


# What a user and a password may be made of: RFC 7617, 2.

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def fits_basic(user: str, password: str) -> bool:
    """
    Whether they arrive by Basic as they are: a ``:`` would end the user early, and control
    characters are not allowed.  Others that Basic is spoken to, upstreams, are shown no such ones.
    """
    return ":" not in user and not _CONTROL.search(user + password)
