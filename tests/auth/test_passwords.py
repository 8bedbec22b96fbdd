"""Passwords, the users of an htpasswd file, and the robots of the settings."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import bcrypt
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import ANONYMOUS, Groups, Identity, Kind
from artifactd.auth.passwords import (
    COSTS,
    Htpasswd,
    Passwords,
    Robots,
    Users,
    hash_password,
    hash_secret,
    make_dummy,
    make_secret,
    parse,
    read_cost,
    read_robots,
)
from artifactd.kit.start import StartError
from artifactd.settings.accounts import AuthSettings, RobotSettings, SecretHash
from artifactd.settings.settings import Settings
from artifactd.settings.values import Expiry
from tests.auth.held import HeldThreads

HASHED = bcrypt.hashpw("pässword".encode(), bcrypt.gensalt(4))


class PasswordsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = HeldThreads()
        self.passwords = Passwords(self.threads, self.clock, parallel=2, remember=60)

    def begin(
        self, password: str, hashed: bytes = HASHED, account: str = "alice"
    ) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.passwords.match(account, password, hashed))

    def matches(self, password: str, hashed: bytes = HASHED) -> bool:
        return self.successResultOf(self.begin(password, hashed))

    def test_the_right_one_matches_and_no_other(self) -> None:
        self.assertTrue(self.matches("pässword"))
        self.assertFalse(self.matches("password"))

    def test_all_three_forms_of_bcrypt_are_one(self) -> None:
        for form in (b"$2a$", b"$2b$", b"$2y$"):
            self.assertTrue(self.matches("pässword", form + HASHED[4:]), form)

    def test_what_bcrypt_sees_in_part_only_matches_nothing(self) -> None:
        longest = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4))
        self.assertTrue(self.matches("x" * 72, longest))
        self.assertFalse(self.matches("x" * 73, longest))
        self.assertFalse(self.matches("pässword\0"))
        self.assertFalse(self.matches("pässword\0x"))
        self.assertFalse(self.matches("\0"))
        # Of "a\\0b", by a bcrypt that takes it; others refuse to, or stop at the NUL.
        self.assertFalse(
            self.matches("a\0b", b"$2b$04$fEs7H9NTdIIQ/.cmjCf9Kuh5oOYY//3G8W/oZ27GrAI2s0Dc4Nzie")
        )

    def test_an_empty_password_matches_nothing(self) -> None:
        self.assertFalse(self.matches("", bcrypt.hashpw(b"", bcrypt.gensalt(4))))

    def test_what_is_no_unicode_matches_nothing(self) -> None:
        self.assertFalse(self.matches("\udcff"))

    def test_many_at_once_cost_one_comparison(self) -> None:
        self.threads.held = True
        asked = [self.begin("pässword") for _ in range(50)]
        self.threads.finish()
        self.assertEqual([self.successResultOf(each) for each in asked], [True] * 50)
        self.assertEqual(len(self.threads.hashes), 1)

    def test_accounts_share_no_comparison_even_if_they_share_a_hash(self) -> None:
        self.threads.held = True
        self.begin("guess")
        self.begin("guess", account="bob")
        self.assertEqual(self.threads.running, 2)

    def test_many_one_after_the_other_cost_one_comparison(self) -> None:
        self.assertEqual([self.matches("pässword") for _ in range(50)], [True] * 50)
        self.assertEqual(len(self.threads.hashes), 1)

    def test_what_matched_is_remembered_for_a_while(self) -> None:
        self.matches("pässword")
        for seconds, comparisons in ((59.9, 1), (0.1, 2), (59.9, 2)):
            self.clock.advance(seconds)
            self.assertTrue(self.matches("pässword"))
            self.assertEqual(len(self.threads.hashes), comparisons)

    def test_using_it_makes_it_remembered_no_longer(self) -> None:
        self.matches("pässword")
        for _ in range(4):
            self.clock.advance(20)
            self.matches("pässword")
        self.assertEqual(len(self.threads.hashes), 2)

    def test_a_clock_set_back_makes_nothing_remembered_longer(self) -> None:
        self.clock.advance(1000)
        self.matches("pässword")
        self.clock.advance(-500)
        self.matches("pässword")
        self.assertEqual(len(self.threads.hashes), 2)

    def test_what_is_remembered_is_recalled_at_once(self) -> None:
        recall = self.passwords.recall
        self.assertFalse(recall("alice", "pässword", HASHED))
        self.matches("pässword")
        self.matches("other")
        self.assertTrue(recall("alice", "pässword", HASHED))
        for account, password in (
            ("bob", "pässword"),
            ("alice", "other"),
            ("alice", ""),
            ("alice", "\udcff"),
            ("alice", "pässword" + "\0"),
        ):
            self.assertFalse(recall(account, password, HASHED))
        self.clock.advance(60)
        self.assertFalse(recall("alice", "pässword", HASHED))

    def test_for_another_hash_nothing_is_remembered(self) -> None:
        self.matches("pässword")
        self.assertFalse(self.matches("pässword", bcrypt.hashpw(b"new", bcrypt.gensalt(4))))

    def test_what_did_not_match_is_not_remembered(self) -> None:
        self.assertFalse(self.matches("wrong"))
        self.assertFalse(self.matches("wrong"))
        self.assertEqual(len(self.threads.hashes), 2)

    def test_nothing_may_be_remembered_at_all(self) -> None:
        self.passwords = Passwords(self.threads, self.clock, parallel=2, remember=0)
        self.assertTrue(self.matches("pässword"))
        self.assertTrue(self.matches("pässword"))
        self.assertEqual(len(self.threads.hashes), 2)

    def test_no_password_is_in_memory_afterwards(self) -> None:
        self.matches("pässword")
        self.assertNotIn("pässword", repr(vars(self.passwords)))
        self.assertNotIn("pässword".encode(), b"".join(self.passwords._matched))

    def test_few_threads_are_taken_whatever_is_asked(self) -> None:
        self.threads.held = True
        asked = [self.begin(f"guess {number}") for number in range(10)]
        for left in range(10, 0, -1):
            self.assertEqual(self.threads.running, min(left, 2))
            self.threads.finish()
        self.assertEqual([self.successResultOf(each) for each in asked], [False] * 10)

    def test_who_leaves_does_not_end_the_turn_of_a_thread_that_goes_on(self) -> None:
        self.threads.held = True
        gone = [self.begin(f"guess {number}") for number in range(2)]
        for each in gone:
            each.addErrback(lambda failure: None)
            each.cancel()
        self.begin("pässword")
        self.assertEqual(self.threads.running, 2)
        self.threads.finish()
        self.threads.finish()
        self.assertEqual(self.threads.running, 1)

    def test_a_failure_of_the_thread_is_not_remembered(self) -> None:
        broken = b"$2b$04$" + b"!" * 53
        self.failureResultOf(self.begin("pässword", broken), ValueError)
        self.assertTrue(self.matches("pässword"))


class HashTests(SynchronousTestCase):
    def test_its_cost_is_read(self) -> None:
        self.assertEqual(read_cost(HASHED), 4)
        self.assertEqual(read_cost(b"$2y$17$" + HASHED[7:]), 17)

    def test_anything_else_is_refused(self) -> None:
        for hashed in (
            b"",
            b"secret",
            b"{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
            b"$apr1$x$y",
            b"$2x$" + HASHED[4:],
            b"$2$" + HASHED[4:],
            HASHED[:-1],
            HASHED + b"x",
            HASHED + b"\n",
            HASHED[:-1] + b"!",
            b"$2b$03$" + HASHED[7:],
            b"$2b$18$" + HASHED[7:],
            b"$2b$31$" + HASHED[7:],
        ):
            with self.assertRaises(ValueError, msg=repr(hashed)):
                read_cost(hashed)

    def test_it_is_made_as_apaches_htpasswd_makes_it(self) -> None:
        made = hash_password("pässword")
        self.assertTrue(made.startswith(b"$2y$12$"))
        self.assertEqual(12, read_cost(made))
        self.assertTrue(bcrypt.checkpw("pässword".encode(), made))

    def test_a_dummy_is_a_hash_that_nothing_matches(self) -> None:
        dummy = make_dummy(4)
        self.assertEqual(read_cost(dummy), 4)
        self.assertFalse(bcrypt.checkpw(b"x", dummy))
        self.assertEqual([read_cost(make_dummy(cost)) for cost in COSTS], list(COSTS))


def hashed(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


ALICE, BOB, ZOE = hashed("alice's"), hashed("bob's", 5), hashed("zoë's")


class HtpasswdCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = HeldThreads()
        self.path = Path(self.mktemp())
        self.replace(f"alice:{ALICE}\nbob:{BOB}\n")
        self.htpasswd = self.open()
        logs = ExitStack()
        self.events = logs.enter_context(capturedLogs())
        self.addCleanup(logs.close)

    @property
    def errors(self) -> list[str]:
        return [formatEvent(e) for e in self.events if e["log_level"] is LogLevel.error]

    def open(self) -> Htpasswd:
        passwords = Passwords(self.threads, self.clock, parallel=2, remember=60)
        groups = Groups({"dev": ["alice"], "ops": ["alice", "carol"]})
        return Htpasswd(self.path, passwords, groups, self.threads, self.clock)

    def replace(self, text: str | bytes) -> None:
        """As editors and ``htpasswd`` do: another file takes the name."""
        content = text.encode() if isinstance(text, str) else text
        beside = self.path.with_suffix(".new")
        beside.write_bytes(content)
        beside.replace(self.path)

    def begin(self, name: str, password: str) -> Deferred[Identity | None]:
        return Deferred.fromCoroutine(self.htpasswd.check(name, password))

    def check(self, name: str, password: str) -> Identity | None:
        return self.successResultOf(self.begin(name, password))

    def mark(self, identity: Identity) -> str | None:
        mark = self.successResultOf(Deferred.fromCoroutine(self.htpasswd.mark(identity)))
        self.assertEqual(mark, self.htpasswd.recall_mark(identity))
        return mark

    def a_second_later(self) -> None:
        self.clock.advance(1)


class HtpasswdTests(HtpasswdCase):
    def test_a_user_logs_in_with_the_password_of_the_file(self) -> None:
        self.assertEqual(
            self.check("alice", "alice's"),
            Identity(Kind.USER, "alice", frozenset({"dev", "ops"})),
        )
        self.assertEqual(self.check("bob", "bob's"), Identity(Kind.USER, "bob"))

    def test_nobody_logs_in_with_anothers(self) -> None:
        for name, password in (
            ("alice", "bob's"),
            ("Alice", "alice's"),
            ("alice ", "alice's"),
            ("", "alice's"),
            ("alice", ""),
            ("alice", ALICE),
            ("\udcff", "alice's"),
        ):
            self.assertIsNone(self.check(name, password))

    def test_fifty_layers_cost_one_comparison(self) -> None:
        for _ in range(50):
            self.assertIsNotNone(self.check("bob", "bob's"))
        self.assertEqual(self.threads.hashes, [BOB.encode()])

    def test_who_is_not_there_costs_as_much_as_who_is(self) -> None:
        self.replace("".join(f"u{number}:{BOB}\n" for number in range(9)))
        self.htpasswd = self.open()
        for _ in range(2):
            self.assertIsNone(self.check("nobody", "x"))
        first, again = self.threads.hashes
        self.assertEqual((read_cost(first), first), (5, again))
        self.assertNotEqual(first, BOB.encode())

    def test_nor_are_those_who_are_not_there_told_by_all_being_answered_at_once(self) -> None:
        self.threads.held = True
        for number in range(2):
            self.begin(f"nobody {number}", "x")
        self.assertEqual(self.threads.running, 2)

    def test_where_costs_differ_those_of_who_is_not_there_differ_as_well(self) -> None:
        for number in range(40):
            self.check(f"nobody {number}", "x")
        self.assertEqual({read_cost(each) for each in self.threads.hashes}, {4, 5})
        self.threads.hashes.clear()
        for _ in range(3):
            self.check("nobody 7", "x")
        self.assertEqual(len({read_cost(each) for each in self.threads.hashes}), 1)

    def test_names_and_passwords_are_utf8(self) -> None:
        self.replace(f"zoë:{ZOE}\n")
        self.htpasswd = self.open()
        self.assertEqual(self.check("zoë", "zoë's"), Identity(Kind.USER, "zoë"))

    def test_a_file_without_users_lets_nobody_in(self) -> None:
        self.replace("# nobody yet\n")
        self.htpasswd = self.open()
        self.assertIsNone(self.check("alice", "alice's"))
        self.assertEqual(read_cost(self.threads.hashes[0]), 12)

    def test_who_has_logged_in_is_recalled_for_a_second_and_nobody_else(self) -> None:
        self.assertIsNone(self.htpasswd.recall("alice", "alice's"))
        alice = self.check("alice", "alice's")
        self.assertEqual(self.htpasswd.recall("alice", "alice's"), alice)
        self.assertIsNone(self.htpasswd.recall("alice", "bob's"))
        self.assertIsNone(self.htpasswd.recall("bob", "alice's"))
        self.assertIsNone(self.htpasswd.recall("nobody", "alice's"))
        self.clock.advance(1)
        self.threads.held = True  # the look at the file takes its time
        self.assertIsNone(self.htpasswd.recall("alice", "alice's"))
        self.assertIsNone(self.htpasswd.recall_mark(Identity(Kind.USER, "alice")))
        self.threads.held = False
        self.threads.finish()
        self.check("bob", "bob's")
        self.assertEqual(self.htpasswd.recall("alice", "alice's"), alice)


class ChangedTests(HtpasswdCase):
    def test_a_file_that_is_replaced_is_read_again(self) -> None:
        self.replace(f"carol:{ALICE}\n")
        self.assertIsNotNone(self.check("alice", "alice's"))
        self.a_second_later()
        self.assertIsNone(self.check("alice", "alice's"))
        self.assertEqual(
            self.check("carol", "alice's"), Identity(Kind.USER, "carol", frozenset({"ops"}))
        )

    def test_a_file_that_is_written_in_place_is_read_again(self) -> None:
        with self.path.open("a") as file:
            file.write(f"carol:{ALICE}\n")
        self.a_second_later()
        self.assertIsNotNone(self.check("carol", "alice's"))

    def test_a_replacement_of_the_same_size_and_time_is_noticed(self) -> None:
        status = self.path.stat()
        other = hashed("other")
        self.replace(f"alice:{other}\nbob:{BOB}\n")
        os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.assertEqual(self.path.stat().st_size, status.st_size)
        self.a_second_later()
        self.assertIsNotNone(self.check("alice", "other"))

    def test_what_was_remembered_of_an_old_password_does_not_count(self) -> None:
        self.check("alice", "alice's")
        self.replace(f"alice:{hashed('new')}\nbob:{BOB}\n")
        self.a_second_later()
        self.check("bob", "bob's")
        self.assertIsNone(self.htpasswd.recall("alice", "alice's"))
        self.assertIsNone(self.check("alice", "alice's"))
        self.assertIsNotNone(self.check("alice", "new"))

    def test_a_file_that_stays_is_looked_at_once_a_second_and_not_read(self) -> None:
        for _ in range(3):
            self.a_second_later()
            self.threads.held = True
            asked = [self.begin("alice", "alice's") for _ in range(5)]
            self.assertEqual(self.threads.running, 1)
            self.threads.held = False
            self.threads.finish()
            for each in asked:
                self.assertIsNotNone(self.successResultOf(each))
        self.assertFalse(any("read again" in formatEvent(event) for event in self.events))

    def test_what_others_may_have_written_does_not_count(self) -> None:
        self.replace(f"mallory:{ALICE}\n")
        self.path.chmod(0o666)
        self.a_second_later()
        self.assertIsNone(self.check("mallory", "alice's"))
        self.assertIsNotNone(self.check("alice", "alice's"))
        problem = f"{self.path}: others may write it (mode 0666): chmod go-w; the users are those"
        self.assertEqual(sum(problem in formatEvent(event) for event in self.events), 1)
        self.path.chmod(0o644)
        self.a_second_later()
        self.assertIsNotNone(self.check("mallory", "alice's"))

    def test_a_password_that_changes_while_the_old_one_is_checked_is_not_let_in(self) -> None:
        self.threads.held = True
        asked = self.begin("alice", "alice's")
        self.threads.held = False
        self.replace(f"alice:{hashed('new')}\n")
        self.a_second_later()
        self.check("bob", "bob's")
        self.threads.finish()
        self.assertIsNone(self.successResultOf(asked))

    def test_a_wrong_file_leaves_the_users_of_before_and_one_line(self) -> None:
        self.replace("alice:secret\n")
        for _ in range(3):
            self.a_second_later()
            self.assertIsNotNone(self.check("alice", "alice's"))
        self.assertEqual(
            self.errors,
            [
                f"auth.htpasswd: {self.path}: line 1: alice: expected a bcrypt hash ($2a$, $2b$ or"
                " $2y$) of a cost from 4 to 17, as htpasswd -B makes it; the users are those of"
                " before"
            ],
        )

    def test_a_file_that_goes_away_and_comes_back(self) -> None:
        self.path.unlink()
        for _ in range(3):
            self.a_second_later()
            self.assertIsNotNone(self.check("alice", "alice's"))
        self.assertEqual(
            self.errors,
            [
                f"auth.htpasswd: {self.path}: can't be read: No such file or directory; the users"
                " are those of before"
            ],
        )
        self.replace(f"bob:{BOB}\n")
        self.a_second_later()
        self.assertIsNone(self.check("alice", "alice's"))
        self.path.unlink()
        self.a_second_later()
        self.check("bob", "bob's")
        self.assertEqual(len(self.errors), 2)

    def test_a_clock_set_back_does_not_keep_it_from_being_read(self) -> None:
        self.clock.advance(-1000)
        self.replace(f"carol:{ALICE}\n")
        self.assertIsNotNone(self.check("carol", "alice's"))


class MarkTests(HtpasswdCase):
    def test_it_stays_as_long_as_the_password_in_any_process(self) -> None:
        alice = Identity(Kind.USER, "alice", frozenset({"dev"}))
        mark = self.mark(alice)
        self.htpasswd = self.open()
        self.assertEqual(self.mark(alice), mark)
        self.replace(f"bob:{BOB}\nalice:{ALICE}\n")
        self.a_second_later()
        self.assertEqual(self.mark(alice), mark)
        self.assertNotEqual(self.mark(Identity(Kind.USER, "bob")), mark)

    def test_it_changes_with_the_password_even_if_that_is_the_same_again(self) -> None:
        alice = Identity(Kind.USER, "alice")
        mark = self.mark(alice)
        self.replace(f"alice:{hashed(chr(97))}\n")
        self.a_second_later()
        self.assertNotEqual(self.mark(alice), mark)

    def test_who_is_no_user_here_has_none(self) -> None:
        for identity in (
            Identity(Kind.USER, "carol"),
            Identity(Kind.ROBOT, "alice"),
            Identity(Kind.ISSUER, "alice"),
            ANONYMOUS,
        ):
            self.assertIsNone(self.mark(identity))


class FileTests(SynchronousTestCase):
    def assert_refused(self, content: bytes, problem: str) -> None:
        path = Path(self.mktemp())
        path.write_bytes(content)
        with self.assertRaises(StartError) as caught:
            Users.read(path, Groups({}))
        self.assertEqual(str(caught.exception), f"auth.htpasswd: {path}: {problem}")

    def test_a_file_that_others_may_write_is_refused(self) -> None:
        path = Path(self.mktemp())
        path.write_text(f"alice:{ALICE}\n")
        path.chmod(0o646)
        refused = self.assertRaises(StartError, Users.read, path, Groups({}))
        self.assertEqual(
            str(refused), f"auth.htpasswd: {path}: others may write it (mode 0646): chmod go-w"
        )

    def test_comments_empty_lines_and_what_comes_third_do_not_count(self) -> None:
        text = f"# users\r\n\r\n  alice:{ALICE}\r\nbob:{BOB}:Bob, from ops\n\n"
        self.assertEqual(parse(text), {"alice": ALICE.encode(), "bob": BOB.encode()})

    def test_a_name_may_hold_anything_but_a_colon(self) -> None:
        for name in ("a b", "a@b.example", "ä\u2028b", "robot+ci", "-", "*"):
            self.assertEqual(list(parse(f"{name}:{ALICE}")), [name])

    def test_hashes_of_other_kinds_are_refused_and_not_shown(self) -> None:
        for other in ("secret", "{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "$apr1$a$b", "$6$a$b", ""):
            self.assert_refused(
                f"alice:{ALICE}\nbob:{other}\n".encode(),
                "line 2: bob: expected a bcrypt hash ($2a$, $2b$ or $2y$) of a cost from 4 to 17,"
                " as htpasswd -B makes it",
            )

    def test_lines_without_a_name_are_refused(self) -> None:
        for line in ("alice", f":{ALICE}", ":", f"a\0b:{ALICE}"):
            self.assert_refused(line.encode(), 'line 1: expected "name:hash"')

    def test_a_name_twice_is_refused(self) -> None:
        self.assert_refused(
            f"alice:{ALICE}\n\nalice:{BOB}\n".encode(), "line 3: alice is there already"
        )

    def test_what_is_no_utf8_is_refused(self) -> None:
        self.assert_refused(b"\xff:x", "not UTF-8")

    def test_a_file_that_is_not_there_stops_the_start(self) -> None:
        path = Path(self.mktemp())
        with self.assertRaises(StartError) as caught:
            Users.read(path, Groups({}))
        self.assertEqual(
            str(caught.exception),
            f"auth.htpasswd: {path}: can't be read: No such file or directory",
        )

    @given(st.text())
    def test_any_text_is_read_or_refused_in_one_line(self, text: str) -> None:
        try:
            parse(text)
        except ValueError as error:
            self.assertEqual(len(str(error).split("\n")), 1)


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
        identity = Identity(kind, name)
        mark = self.successResultOf(Deferred.fromCoroutine(self.robots.mark(identity)))
        self.assertEqual(mark, self.robots.recall_mark(identity))
        return mark

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

    def test_those_of_a_file_come_and_go_within_a_second(self) -> None:
        clock, path = Clock(), Path(self.mktemp())
        held: dict[str, RobotSettings] = {"ci": robot(hash_secret(SECRET))}
        told: list[set[str]] = []

        def read() -> dict[str, RobotSettings]:
            if not path.read_bytes():
                raise StartError("empty")
            return dict(held)

        path.write_bytes(b"1")
        self.robots = self.listed()
        self.robots.follow(path, read, self.threads, clock, lambda robots: told.append({*robots}))
        self.assertEqual(
            (CI, CI), (self.check("robot+ci", SECRET), self.robots.recall("robot+ci", SECRET))
        )
        mark = self.mark("ci")
        held["new"] = robot(hash_secret(SECRET))
        del held["ci"]
        path.write_bytes(b"22")
        clock.advance(1)
        self.assertIsNone(self.robots.recall("robot+ci", SECRET), "a look is due")
        self.assertEqual((True, None), (mark is not None, self.mark("ci")))
        self.assertIsNone(self.check("robot+ci", SECRET))
        self.assertIsNotNone(self.robots.recall("robot+new", SECRET))
        path.write_bytes(b"")
        clock.advance(1)
        self.assertIsNotNone(self.check("robot+new", SECRET), "as before")
        self.assertEqual([{"ci"}, {"new"}], told)

    def test_secrets_are_long_and_never_the_same(self) -> None:
        secrets = {make_secret() for _ in range(100)}
        self.assertEqual(len(secrets), 100)
        self.assertEqual({len(each) for each in secrets}, {len("artifactd_") + 43})

    def test_a_hash_is_not_shown(self) -> None:
        self.assertNotIn("sha256", repr(robot(hash_secret(SECRET))))


class FilesOfAccountsTests(SynchronousTestCase):
    def test_one_larger_than_16_mib_is_refused_whatever_its_beginning_says(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(b"#" * ((16 << 20) + 1))
        settings = Settings(auth=AuthSettings(robots_file=str(path)))
        error = self.assertRaises(StartError, read_robots, settings)
        self.assertEqual(f"auth.robots_file: {path}: larger than 16 MiB", str(error))
        error = self.assertRaises(StartError, Users.read, path, Groups({}))
        self.assertEqual(f"auth.htpasswd: {path}: larger than 16 MiB", str(error))
