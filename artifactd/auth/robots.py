"""Robots: accounts for machines, which the settings list."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from hmac import compare_digest

from attrs import field, frozen

from artifactd.auth.groups import Groups
from artifactd.auth.identity import Identity, Kind
from artifactd.auth.passwords import Dummies, Passwords

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
