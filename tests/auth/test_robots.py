"""Robots of the settings log in."""

from __future__ import annotations

from datetime import UTC, datetime

import bcrypt
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import Groups, Identity, Kind
from artifactd.auth.passwords import Passwords, Robots, hash_secret, make_secret, read_cost
from artifactd.settings.accounts import RobotSettings, SecretHash
from artifactd.settings.values import Expiry
from tests.auth.held import HeldThreads

SECRET = make_secret()
EXPIRES = datetime(2027, 1, 31, tzinfo=UTC)
CI = Identity(Kind.ROBOT, "ci", frozenset({"builders"}))


def robot(secret_hash: str, expires: str = "") -> RobotSettings:
    return RobotSettings(secret_hash=SecretHash.parse(secret_hash), expires=Expiry.parse(expires))


class RobotsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.threads = HeldThreads()
        self.hashed = bcrypt.hashpw(b"chosen", bcrypt.gensalt(4))
        self.robots = self.listed(
            ci=robot(hash_secret(SECRET)),
            old=robot(self.hashed.decode()),
            guest=robot(hash_secret(SECRET), EXPIRES.isoformat()),
        )

    def listed(self, **robots: RobotSettings) -> Robots:
        passwords = Passwords(self.threads, Clock(), parallel=1, remember=60)
        return Robots(robots, passwords, Groups({"builders": ["robot:ci"]}), lambda: self.now)

    def check(self, name: str, secret: str) -> Identity | None:
        return self.successResultOf(Deferred.fromCoroutine(self.robots.check(name, secret)))

    def mark(self, name: str, kind: Kind = Kind.ROBOT) -> str | None:
        return self.successResultOf(Deferred.fromCoroutine(self.robots.mark(Identity(kind, name))))

    def test_a_robot_logs_in_with_its_secret(self) -> None:
        self.assertEqual(self.check("robot+ci", SECRET), CI)

    def test_a_generated_secret_takes_no_thread(self) -> None:
        self.check("robot+ci", SECRET)
        self.assertEqual(self.threads.hashes, [])

    def test_a_chosen_one_is_compared_with_bcrypt(self) -> None:
        self.assertEqual(self.check("robot+old", "chosen"), Identity(Kind.ROBOT, "old"))
        self.assertIsNone(self.check("robot+old", "other"))

    def test_nobody_else_logs_in(self) -> None:
        for name, secret in (
            ("ci", SECRET),
            ("robot+CI", SECRET),
            ("robot+ci", SECRET[:-1]),
            ("robot+ci", ""),
            ("robot+ci", "\udcff"),
            ("robot+ci", hash_secret(SECRET)),
            ("robot+other", SECRET),
            ("robot+", SECRET),
        ):
            self.assertIsNone(self.check(name, secret), name)

    def test_a_generated_secret_is_recalled_and_a_chosen_one_once_it_was_given(self) -> None:
        self.assertEqual(self.robots.recall("robot+ci", SECRET), CI)
        self.assertIsNone(self.robots.recall("robot+ci", "other"))
        self.assertIsNone(self.robots.recall("ci", SECRET))
        self.assertIsNone(self.robots.recall("robot+old", "chosen"))
        old = self.check("robot+old", "chosen")
        self.assertEqual(self.robots.recall("robot+old", "chosen"), old)
        self.assertEqual(self.threads.hashes, [self.hashed])

    def test_being_refused_takes_as_long_whichever_robot_it_is(self) -> None:
        for name in ("robot+ci", "robot+old", "robot+other", "robot+"):
            self.threads.hashes.clear()
            self.assertIsNone(self.check(name, "guess"))
            self.assertEqual([read_cost(each) for each in self.threads.hashes], [4], name)
        self.threads.hashes.clear()
        self.assertIsNone(self.check("alice", "guess"))
        self.assertEqual(self.threads.hashes, [])

    def test_it_expires(self) -> None:
        self.now = EXPIRES.timestamp() - 0.001
        self.assertIsNotNone(self.check("robot+guest", SECRET))
        self.assertIsNotNone(self.mark("guest"))
        self.now = EXPIRES.timestamp()
        self.assertIsNone(self.robots.recall("robot+guest", SECRET))
        self.assertIsNone(self.check("robot+guest", SECRET))
        self.assertIsNone(self.mark("guest"))

    def test_its_mark_changes_with_its_secret(self) -> None:
        mark = self.mark("ci")
        self.assertEqual(self.mark("ci"), mark)
        self.robots = self.listed(ci=robot(hash_secret(make_secret())))
        self.assertNotIn(self.mark("ci"), (mark, None))
        self.assertIsNone(self.mark("old"))
        self.assertIsNone(self.mark("ci", Kind.USER))

    def test_secrets_are_long_and_never_the_same(self) -> None:
        secrets = {make_secret() for _ in range(100)}
        self.assertEqual(len(secrets), 100)
        self.assertEqual({len(each) for each in secrets}, {len("artifactd_") + 43})

    def test_a_hash_is_not_shown(self) -> None:
        self.assertNotIn("sha256", repr(robot(hash_secret(SECRET))))
