"""Users of an htpasswd file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import bcrypt
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.identity import ANONYMOUS, Groups, Identity, Kind
from artifactd.auth.passwords import Htpasswd, Passwords, Users, parse, read_cost
from artifactd.kit.start import StartError
from tests.auth.held import HeldThreads


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
        return self.successResultOf(Deferred.fromCoroutine(self.htpasswd.mark(identity)))

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
        self.assertIsNone(self.htpasswd.recall("alice", "alice's"))
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
            Users.read(path)
        self.assertEqual(str(caught.exception), f"auth.htpasswd: {path}: {problem}")

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
            Users.read(path)
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
