"""Passwords compared with bcrypt hashes."""

from __future__ import annotations

import bcrypt
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.passwords import COSTS, Passwords, make_dummy, read_cost
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

    def test_a_dummy_is_a_hash_that_nothing_matches(self) -> None:
        dummy = make_dummy(4)
        self.assertEqual(read_cost(dummy), 4)
        self.assertFalse(bcrypt.checkpw(b"x", dummy))
        self.assertEqual([read_cost(make_dummy(cost)) for cost in COSTS], list(COSTS))
