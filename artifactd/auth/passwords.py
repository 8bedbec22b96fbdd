"""Accounts with passwords: the users of an htpasswd file, and robots."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hmac import compare_digest, digest
from pathlib import Path
from typing import Any, Protocol

import bcrypt
from attrs import field, frozen
from cachetools import FIFOCache
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactd.auth.identity import Groups, Identity, Kind
from artifactd.kit.deferreds import RunInThread, SingleFlight
from artifactd.kit.followed import Followed, stamp_of
from artifactd.kit.start import StartError
from artifactd.kit.trusted import Untrusted, read_trusted
from artifactd.settings.accounts import RobotSettings, SecretHash, parse_robots
from artifactd.settings.settings import Settings

LONGEST = 72  # bytes of a password: bcrypt reads no more
COSTS = range(4, 18)  # those of Apache's htpasswd; each takes twice as long as the one before
_USUAL_COST = 12
_REMEMBERED = 4096
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FORM = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def read_cost(hashed: bytes) -> int:
    """
    The cost of a bcrypt hash (``$2a$``, ``$2b$``, ``$2y$``).

    :raises ValueError: if it is no bcrypt hash, or its cost is not one of :data:`COSTS`.
    """
    match = _FORM.fullmatch(hashed)
    if match is None or int(match[1]) not in COSTS:
        raise ValueError("not a bcrypt hash")
    return int(match[1])


def hash_password(password: str) -> bytes:
    """
    Return a bcrypt hash of ``password``, as ``htpasswd -B`` makes it.  Takes a quarter of a second.

    :raises ValueError: in one line, if no login could have the password.
    """
    try:
        secret = password.encode()
    except UnicodeEncodeError:
        raise ValueError("expected a password in UTF-8") from None
    if not 0 < len(secret) <= LONGEST:
        raise ValueError(f"expected a password of 1 to {LONGEST} bytes, got {len(secret)}")
    if _CONTROL.search(password):
        raise ValueError("expected a password without control characters")
    # Apache knows "$2b$" by the name of its own, "$2y$"; the two are the same.
    return bcrypt.hashpw(secret, bcrypt.gensalt(_USUAL_COST)).replace(b"$2b$", b"$2y$", 1)


def make_dummy(cost: int) -> bytes:
    """A hash of that cost which no password has."""
    checksum = "".join(secrets.choice(_ALPHABET) for _ in range(31))
    return bcrypt.gensalt(cost) + checksum.encode()


class Dummies:
    """
    Hashes to compare the passwords of unknown accounts with, so that these take as long to refuse
    as known ones: each cost is as frequent as among ``hashes``.
    """

    def __init__(self, hashes: Iterable[bytes]) -> None:
        costs = sorted(map(read_cost, hashes))
        made = {cost: make_dummy(cost) for cost in set(costs)}
        self._hashes = [made[cost] for cost in costs] or [make_dummy(_USUAL_COST)]
        self._key = secrets.token_bytes(32)

    def choose(self, account: str) -> bytes:
        """Return the dummy for that name, always the same one."""
        chosen = digest(self._key, account.encode(errors="surrogatepass"), "sha256")
        return self._hashes[int.from_bytes(chosen[:8]) % len(self._hashes)]


class Passwords:
    """
    Compares passwords with bcrypt hashes, in a few threads.

    A match is remembered for a short while, by a keyed hash of account, password and bcrypt hash:
    so a pull of many layers costs one bcrypt, a changed bcrypt hash has no match remembered, and
    the memory of the process does not reveal the password.  The same comparison asked for several
    times at once is done once (single flight).

    :param run: runs in a thread.
    :param parallel: the number of threads at most; further comparisons wait.
    :param remember: seconds for which a match is remembered; 0: not at all.
    """

    def __init__(
        self, run: RunInThread, clock: IReactorTime, *, parallel: int, remember: float
    ) -> None:
        self._run = run
        self._clock = clock
        self._turns = DeferredSemaphore(parallel)
        self._remember = remember
        self._key = secrets.token_bytes(32)
        # The times of matches.  No TTLCache: it remembers longer when the clock is set back.
        self._matched: FIFOCache[bytes, float] = FIFOCache(_REMEMBERED)
        self._single_flight: SingleFlight[bytes, bool] = SingleFlight()

    async def match(self, account: str, password: str, hashed: bytes) -> bool:
        """
        Whether ``hashed`` is a hash of ``password``.

        A password that bcrypt would read only in part (longer than :data:`LONGEST`, or with a NUL),
        that is empty or not UTF-8, matches no hash.  That takes no time, and so tells nothing.

        :param account: the name it is checked for.  The comparisons for two accounts are never one
            flight: unknown accounts with the same dummy hash would be told apart by their time.
        """
        if self.recall(account, password, hashed):
            return True
        key = self._digest(account, password, hashed)
        if key is None:
            return False
        check = partial(self._check, key, password.encode(), hashed)
        return await self._single_flight.join(key, check)

    def recall(self, account: str, password: str, hashed: bytes) -> bool:
        """Whether that comparison has matched, and the match is still remembered."""
        key = self._digest(account, password, hashed)
        matched = None if key is None else self._matched.get(key)
        return matched is not None and 0 <= self._clock.seconds() - matched < self._remember

    def _digest(self, account: str, password: str, hashed: bytes) -> bytes | None:
        try:
            secret = password.encode()
        except UnicodeEncodeError:
            return None
        if not 0 < len(secret) <= LONGEST or b"\0" in secret:
            return None
        name = hashlib.sha256(account.encode(errors="surrogatepass")).digest()
        return digest(self._key, name + hashed + b"\0" + secret, "sha256")

    async def _check(self, key: bytes, secret: bytes, hashed: bytes) -> bool:
        # The turn ends with the thread: nothing cancels a flight.
        check: Callable[[], Deferred[Any]] = partial(self._run, bcrypt.checkpw, secret, hashed)
        matches: bool = await self._turns.run(check)
        if matches and self._remember:
            self._matched[key] = self._clock.seconds()
        return matches


class Accounts(Protocol):
    """One kind of accounts that are listed here: :class:`Htpasswd`, or :class:`Robots`."""

    async def check(self, name: str, password: str) -> Identity | None:
        """
        Return the account with that name and password; ``None`` if there is none.

        Refusing an unknown name may take as long as refusing a wrong password.
        """

    def recall(self, name: str, password: str) -> Identity | None:
        """
        Do the same as :meth:`check` in microseconds, from matches in memory.

        ``None`` too if :meth:`check` would need a thread or a look at a file.
        """

    async def mark(self, identity: Identity) -> str | None:
        """
        A text that stays the same as long as the password of ``identity`` does, in every process
        that has the same settings, and does not reveal the password; ``None`` if the account is
        gone.  Tokens hold it, and so die with the password.
        """

    def recall_mark(self, identity: Identity) -> str | None:
        """
        Do the same as :meth:`mark` in microseconds; ``None`` too if that would look at a file.
        """


_LOOK_INTERVAL = 1.0  # seconds
_LARGEST = 16 << 20  # bytes
_TOO_LARGE = f"larger than {_LARGEST >> 20} MiB"
_USER = re.compile(r"[^\s:#][^\s:]*")


@frozen
class Users:
    """
    The content of an htpasswd file.

    :ivar hashes: by user names.
    :ivar identities: by user names.
    :ivar dummies: hashes to compare the passwords of unknown users with.
    """

    hashes: Mapping[str, bytes]
    identities: Mapping[str, Identity]
    dummies: Dummies = field(repr=False)

    @classmethod
    def read(cls, path: Path, groups: Groups) -> Users:
        """
        Read an htpasswd file.  Blocks.

        :raises StartError: in one line, if it can't be read, or one of its lines is wrong.
        """
        hashes = read_users(_read(path, _place(path)), path)
        identities = {name: groups.identity(Kind.USER, name) for name in hashes}
        return cls(hashes, identities, Dummies(hashes.values()))


def _read(path: Path, where: str) -> bytes:
    """
    Read a file of accounts, or, if it is larger than it may be, one byte more than that.

    :raises StartError: in one line that begins with ``where``, if it can't be read.
    """
    try:
        return read_trusted(path, _LARGEST + 1)
    except OSError as error:
        raise StartError(f"{where}: can't be read: {error.strerror}") from None
    except Untrusted as error:
        raise StartError(f"{where}: {error}") from None


def _decode(content: bytes) -> str:
    if len(content) > _LARGEST:
        raise ValueError(_TOO_LARGE)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _place(path: Path) -> str:
    return f"auth.htpasswd: {path}"


def read_users(content: bytes, path: Path) -> dict[str, bytes]:
    """
    The hashes in the content of the htpasswd file ``path``, by users.

    :raises StartError: in one line, if one of its lines is wrong.
    """
    try:
        return parse(_decode(content))
    except ValueError as error:
        raise StartError(f"{_place(path)}: {error}") from None


def check_user(name: str) -> None:
    """:raises ValueError: in one line, if no user of an htpasswd file can log in by ``name``."""
    if not _USER.fullmatch(name) or not name.isprintable() or name.startswith(LOGIN_PREFIX):
        raise ValueError(
            "expected a name without colons and spaces that begins neither with # nor with"
            f" {LOGIN_PREFIX}, got {name!r}"
        )


def change_user(content: bytes, name: str, hashed: bytes | None) -> bytes:
    """
    The content of an htpasswd file in which ``name`` has that hash, or (``None``) is not listed.
    All other lines stay as they are.
    """
    user = name.encode()
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    found = [at for at, each in enumerate(lines) if each.strip().partition(b":")[0] == user]
    if hashed is None:
        lines = [each for at, each in enumerate(lines) if at not in found]
    elif found:
        _, colon, rest = lines[found[0]].strip().partition(b":")[2].partition(b":")
        lines[found[0]] = b":".join((user, hashed)) + colon + rest
    else:
        lines.append(user + b":" + hashed)
    return b"".join(each + b"\n" for each in lines)


def parse(text: str) -> dict[str, bytes]:
    """
    The hashes in the text of an htpasswd file, by users.  Empty lines, lines that begin with ``#``
    and the text after a second colon are ignored.

    :raises ValueError: naming the first line that is wrong, without its hash.
    """
    hashes: dict[str, bytes] = {}
    # Not splitlines: it also splits at characters that a name may hold.
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
    :class:`Accounts` of the users in a file that Apache's ``htpasswd -B`` writes.

    The file is read again when it has changed.  While it can't be read, or is wrong, the users read
    before stay in use.
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
        """Read the file.  Blocks.  :raises StartError: if it can't be read, or is wrong."""
        self._path = path
        self._passwords = passwords
        self._users = Followed(
            partial(stamp_of, path),
            partial(Users.read, path, groups),
            run,
            clock.seconds,
            _LOOK_INTERVAL,
            refused=self._refused,
            changed=self._changed,
        )
        self._users.load()

    async def check(self, name: str, password: str) -> Identity | None:
        """Return the user; refusing an unknown one takes as long as refusing a wrong password."""
        await self._users.look()
        users = self._users.content
        hashed = users.hashes.get(name)
        matches = await self._passwords.match(name, password, hashed or users.dummies.choose(name))
        if hashed is None or not matches:
            return None
        # The file may have changed meanwhile: then the old password is refused.
        now = self._users.content
        return now.identities[name] if now.hashes.get(name) == hashed else None

    def recall(self, name: str, password: str) -> Identity | None:
        """
        Return the user if the match of the password is remembered and the file was looked at just
        now.
        """
        users = self._users.content
        hashed = users.hashes.get(name)
        if hashed is None or not self._users.is_fresh():
            return None
        return users.identities[name] if self._passwords.recall(name, password, hashed) else None

    async def mark(self, identity: Identity) -> str | None:
        """The SHA-256 of the hash, which gets a new salt each time that a password is set."""
        if identity.kind is Kind.USER:
            await self._users.look()
        return self._mark(identity)

    def recall_mark(self, identity: Identity) -> str | None:
        return self._mark(identity) if self._users.is_fresh() else None

    def _mark(self, identity: Identity) -> str | None:
        if identity.kind is not Kind.USER:
            return None
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


# The prefix of a robot's login.  No name in a Basic credential may hold a colon.
LOGIN_PREFIX = "robot+"
_SECRET_PREFIX = "artifactd_"  # scanners for leaked secrets can search for it
_SECRET_BYTES = 32
_SHA256 = "sha256:"


def make_secret() -> str:
    """A random secret for a robot, which can't be guessed."""
    return _SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> SecretHash:
    """The hash for the settings of a secret that :func:`make_secret` has made, and of no other."""
    return SecretHash(_SHA256 + hashlib.sha256(secret.encode()).hexdigest())


def read_robots(settings: Settings) -> dict[str, RobotSettings]:
    """
    All robots by their names: those of the settings and those of ``robots_file``.  Blocks.

    :raises StartError: in one line, if the file can't be read, or is wrong.
    """
    path = settings.auth.robots_file
    if not path:
        return dict(settings.robot)
    where = f"auth.robots_file: {path}"
    content = _read(Path(path), where)
    if len(content) > _LARGEST:
        raise StartError(f"{where}: {_TOO_LARGE}")
    return {**settings.robot, **parse_robots(content, where, settings.robot, settings.repository)}


class Robots:
    """
    :class:`Accounts` of robots, which log in as ``robot+<name>``.

    :param robots: by their names; :meth:`follow` takes others later.
    :param now: seconds since the epoch (:func:`time.time`).
    """

    _log = Logger()

    def __init__(
        self,
        robots: Mapping[str, RobotSettings],
        passwords: Passwords,
        groups: Groups,
        now: Callable[[], float],
    ) -> None:
        self._passwords = passwords
        self._groups = groups
        self._now = now
        self._file: Followed[Mapping[str, RobotSettings]] | None = None
        self._take(robots)

    def _take(self, robots: Mapping[str, RobotSettings]) -> None:
        self._robots = robots
        hashes = [robot.secret_hash for robot in robots.values()]
        chosen = [hashed.encode() for hashed in hashes if not hashed.is_generated]
        self._dummies = Dummies(chosen) if chosen else None

    def follow(
        self,
        path: Path,
        read: Callable[[], Mapping[str, RobotSettings]],
        run: RunInThread,
        clock: IReactorTime,
        changed: Callable[[Mapping[str, RobotSettings]], object],
    ) -> None:
        """
        Take the robots that ``read`` returns, now and whenever the file ``path`` has changed.
        Blocks.

        :param changed: is called with all robots each time.
        :raises StartError: as ``read`` does.
        """

        def take(robots: Mapping[str, RobotSettings]) -> None:
            self._take(robots)
            changed(robots)

        def read_again(robots: Mapping[str, RobotSettings]) -> None:
            take(robots)
            self._log.info(
                "auth.robots_file: {path} read again: {count} robots", path=path, count=len(robots)
            )

        def refused(problem: str) -> None:
            self._log.error("{problem}; the robots are those of before", problem=problem)

        stamp = partial(stamp_of, path)
        self._file = Followed(
            stamp, read, run, clock.seconds, _LOOK_INTERVAL, refused=refused, changed=read_again
        )
        self._file.load()
        take(self._file.content)

    async def check(self, name: str, password: str) -> Identity | None:
        """
        The robot, unless it has expired.

        If any robot's hash is a bcrypt hash, refusing a login takes one bcrypt, for each robot and
        for unknown ones alike.
        """
        if not name.startswith(LOGIN_PREFIX):
            return None
        await self._look()
        recalled = self._recall(name, password)
        if recalled is not None or self._dummies is None:
            return recalled
        robot = self._valid(name.removeprefix(LOGIN_PREFIX))
        if robot is None or robot.secret_hash.is_generated:
            await self._passwords.match(name, password, self._dummies.choose(name))
            return None
        matches = await self._passwords.match(name, password, robot.secret_hash.encode())
        return self._identity(name) if matches else None

    def recall(self, name: str, password: str) -> Identity | None:
        """
        Return the robot, unless its hash is a bcrypt hash whose match is not remembered, or a look
        at the file is due.
        """
        if not name.startswith(LOGIN_PREFIX) or not self._is_fresh():
            return None
        return self._recall(name, password)

    def _recall(self, name: str, password: str) -> Identity | None:
        robot = self._valid(name.removeprefix(LOGIN_PREFIX))
        if robot is None:
            return None
        if robot.secret_hash.is_generated:
            given = hashlib.sha256(password.encode(errors="surrogatepass")).hexdigest()
            matches = compare_digest(given, robot.secret_hash.removeprefix(_SHA256))
        else:
            matches = self._passwords.recall(name, password, robot.secret_hash.encode())
        return self._identity(name) if matches else None

    async def mark(self, identity: Identity) -> str | None:
        """The SHA-256 of the secret's hash; ``None`` too once the robot has expired."""
        if identity.kind is Kind.ROBOT:
            await self._look()
        return self._mark(identity)

    def recall_mark(self, identity: Identity) -> str | None:
        return self._mark(identity) if self._is_fresh() else None

    def _mark(self, identity: Identity) -> str | None:
        if identity.kind is not Kind.ROBOT:
            return None
        robot = self._valid(identity.name)
        return None if robot is None else hashlib.sha256(robot.secret_hash.encode()).hexdigest()

    def _is_fresh(self) -> bool:
        return self._file is None or self._file.is_fresh()

    async def _look(self) -> None:
        if self._file is not None:
            await self._file.look()

    def _identity(self, login: str) -> Identity:
        return self._groups.identity(Kind.ROBOT, login.removeprefix(LOGIN_PREFIX))

    def _valid(self, name: str) -> RobotSettings | None:
        robot = self._robots.get(name)
        if robot is None or self._now() >= robot.expires.timestamp:
            return None
        return robot


def fits_basic(user: str, password: str) -> bool:
    """
    Whether HTTP Basic can carry this user and password (RFC 7617, 2): a colon would end the user
    early, and control characters are not allowed.
    """
    return ":" not in user and not _CONTROL.search(user + password)
