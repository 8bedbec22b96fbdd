"""Logging in, here or at an upstream, and how guessing is slowed down."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.bearer import BearerTokens
from artifactd.auth.identity import Identity, Kind
from artifactd.auth.logins import Logins, Visitors
from artifactd.auth.tokens import ISSUER
from artifactd.kit.shared import SharedMemory
from artifactd.oci.errors import TooManyRequests, Unauthorized
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import AccessProofs
from artifactd.settings.accounts import AuthSettings
from artifactd.upstream.credentials import UpstreamLogin
from tests.auth.accounts import FakeAccounts, Now
from tests.auth.issuing import GITHUB, FakeIssuer
from tests.auth.test_issuers import make_issuer

HOME, AWAY = "192.0.2.1", "198.51.100.7"


@define
class Known:
    """Accounts of one kind, each with its own name as a password."""

    kind: Kind
    names: set[str]
    held: bool = False
    recalled: set[str] = field(factory=set)
    asked: list[tuple[str, str]] = field(factory=list)
    waiting: list[Deferred[None]] = field(factory=list)

    async def check(self, name: str, password: str) -> Identity | None:
        self.asked.append((name, password))
        if self.held:
            self.waiting.append(Deferred())
            await self.waiting[-1]
        right = name in self.names and password == name
        return Identity(self.kind, name) if right else None

    def recall(self, name: str, password: str) -> Identity | None:
        return Identity(self.kind, name) if password == name in self.recalled else None

    async def mark(self, identity: Identity) -> str | None:
        raise AssertionError("logging in takes no mark")

    def recall_mark(self, identity: Identity) -> str | None:
        raise AssertionError("logging in takes no mark")

    def finish(self) -> None:
        self.waiting.pop(0).callback(None)


class LoginsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.users = Known(Kind.USER, {"alice", "bob"})
        self.robots = Known(Kind.ROBOT, {"robot+ci"})
        self.memory = SharedMemory.create()
        self.logins = self.another()

    def another(self) -> Logins:
        """Those of another process of the daemon."""
        accounts = [self.robots, self.users]
        memory = SharedMemory(self.memory.descriptor)
        return Logins(accounts, AuthSettings(), memory, seconds=self.clock.seconds)

    def begin(self, name: str, password: str, address: str = HOME) -> Deferred[Identity]:
        logging_in = Deferred.fromCoroutine(self.logins.log_in(name, password, address))
        return logging_in.addCallback(lambda caller: caller.identity)

    def assert_in(self, name: str, address: str = HOME) -> None:
        self.assertEqual(self.successResultOf(self.begin(name, name, address)).name, name)

    def assert_wrong(self, name: str, password: str = "guess", address: str = HOME) -> None:
        self.failureResultOf(self.begin(name, password, address), Unauthorized)

    def assert_slowed(self, name: str, password: str = "guess", address: str = HOME) -> int:
        """How long it has to wait, in seconds."""
        outcome = self.failureResultOf(self.begin(name, password, address), TooManyRequests)
        assert isinstance(outcome.value, TooManyRequests)
        return int(outcome.value.headers["Retry-After"])


class LoginTests(LoginsCase):
    def test_all_kinds_of_accounts_are_asked_in_turn(self) -> None:
        self.assertEqual(
            self.successResultOf(self.begin("alice", "alice")), Identity(Kind.USER, "alice")
        )
        self.assertEqual(
            self.successResultOf(self.begin("robot+ci", "robot+ci")),
            Identity(Kind.ROBOT, "robot+ci"),
        )
        self.assertEqual(self.robots.asked, [("alice", "alice"), ("robot+ci", "robot+ci")])
        self.assertEqual(self.users.asked, [("alice", "alice")])

    def test_an_unknown_name_and_a_wrong_password_read_the_same(self) -> None:
        outcomes = [
            self.failureResultOf(self.begin(name, "x"), Unauthorized).value
            for name in ("alice", "nobody", "n" * 1000)
        ]
        bodies = {each.body() for each in outcomes if isinstance(each, Unauthorized)}
        self.assertEqual(len(bodies), 1)

    def test_a_name_that_nobody_can_have_is_not_asked_for(self) -> None:
        self.assert_wrong("n" * 256)
        self.assertEqual(self.users.asked, [])

    def test_the_same_at_the_same_time_is_asked_once(self) -> None:
        self.users.held = True
        layers = [self.begin("alice", "alice") for _ in range(50)]
        self.assertEqual(len(self.users.asked), 1)
        self.users.finish()
        for each in layers:
            self.assertEqual(self.successResultOf(each).name, "alice")

    def test_names_and_passwords_are_not_mixed_up(self) -> None:
        self.users.held = True
        one, other = self.begin("alic", "ealice"), self.begin("alice", "alice")
        self.users.finish()
        self.users.finish()
        self.failureResultOf(one, Unauthorized)
        self.assertEqual(self.successResultOf(other).name, "alice")

    def test_a_client_that_leaves_takes_nothing_from_the_others(self) -> None:
        self.users.held = True
        gone, stays = self.begin("alice", "alice"), self.begin("alice", "alice")
        gone.addErrback(lambda failure: None)
        gone.cancel()
        self.users.finish()
        self.assertEqual(self.successResultOf(stays).name, "alice")


class TokenTests(SynchronousTestCase):
    def test_a_token_of_another_issuer_given_as_the_password_comes_first(self) -> None:
        now = Now()
        fake, users = FakeIssuer(now), Known(Kind.USER, set())
        bearer = BearerTokens(
            ISSUER, None, {GITHUB: make_issuer(fake)}, FakeAccounts().directory(), now
        )
        logins = Logins([users], AuthSettings(), SharedMemory.create(), bearer)
        caller = self.successResultOf(
            Deferred.fromCoroutine(logins.log_in("alice", fake.token(), HOME))
        )
        self.assertEqual((caller.identity.kind, users.asked), (Kind.ISSUER, []))
        self.assertIsNone(caller.scopes)

    def test_one_does_not_reset_what_guessing_the_password_of_that_name_costs(self) -> None:
        now = Now()
        fake, users = FakeIssuer(now), Known(Kind.USER, {"alice"})
        bearer = BearerTokens(
            ISSUER, None, {GITHUB: make_issuer(fake)}, FakeAccounts().directory(), now
        )
        logins = Logins([users], AuthSettings(), SharedMemory.create(), bearer)
        for number in range(5):
            guessing = Deferred.fromCoroutine(logins.log_in("alice", f"guess {number}", HOME))
            self.failureResultOf(guessing, Unauthorized)
            if number < 4:
                with_token = Deferred.fromCoroutine(logins.log_in("alice", fake.token(), HOME))
                self.assertEqual(self.successResultOf(with_token).identity.kind, Kind.ISSUER)
        last = Deferred.fromCoroutine(logins.log_in("alice", "alice", HOME))
        self.failureResultOf(last, TooManyRequests)


class SlowingTests(LoginsCase):
    def test_after_some_failures_nothing_is_checked_for_a_while(self) -> None:
        for _ in range(5):
            self.assert_wrong("alice")
        asked = len(self.users.asked)
        self.assertEqual(self.assert_slowed("alice"), 60)
        self.assertEqual(self.assert_slowed("alice", "alice"), 60)
        self.assertEqual(len(self.users.asked), asked)

    def test_then_one_attempt_is_free_at_a_time(self) -> None:
        for _ in range(5):
            self.assert_wrong("alice")
        self.clock.advance(60.001)
        self.assert_wrong("alice")
        self.assertEqual(self.assert_slowed("alice"), 60)

    def test_trying_while_slowed_down_makes_it_no_longer(self) -> None:
        for _ in range(5):
            self.assert_wrong("alice")
        for _ in range(100):
            self.assert_slowed("alice")
        self.clock.advance(60.001)
        self.assert_in("alice")

    def test_a_success_resets(self) -> None:
        for _ in range(10):
            for _ in range(4):
                self.assert_wrong("alice")
            self.assert_in("alice")

    def test_ones_own_success_does_not_reset_what_guessing_anothers_costs(self) -> None:
        for _ in range(5):
            self.assert_wrong("alice")
            self.assert_in("bob")
        self.assert_slowed("alice")

    def test_nor_does_it_when_many_names_are_guessed(self) -> None:
        for number in range(20):
            self.assert_wrong(f"name {number}")
            if number < 19:
                self.assert_in("bob")
        self.assertEqual(self.assert_slowed("bob", "bob"), 15)

    def test_one_with_an_old_password_does_not_lock_out_the_others_behind_its_address(self) -> None:
        for _ in range(5):
            self.assert_wrong("robot+ci", "old")
        for _ in range(100):
            self.assert_slowed("robot+ci", "old")
        self.assert_in("alice")

    def test_other_addresses_are_not_slowed_down(self) -> None:
        for _ in range(5):
            self.assert_wrong("alice")
        self.assert_slowed("alice")
        self.assert_in("alice", AWAY)

    def test_an_ipv6_network_counts_as_one_address(self) -> None:
        for number in range(5):
            self.assert_wrong("alice", address=f"2001:db8::{number}")
        self.assert_slowed("alice", address="2001:db8::ffff")
        self.assert_in("alice", "2001:db8:0:1::1")

    def test_failures_count_over_all_processes_of_the_daemon(self) -> None:
        one, other = self.logins, self.another()
        for self.logins in (one, other, one, other, one):
            self.assert_wrong("alice")
        for self.logins in (one, other):
            self.assertEqual(self.assert_slowed("alice", "alice"), 60)
        self.clock.advance(60.001)
        self.assert_in("alice")
        for self.logins in (one, other):
            for _ in range(2):
                self.assert_wrong("alice")

    def test_a_success_resets_them_over_all_processes(self) -> None:
        one, other = self.logins, self.another()
        for _ in range(10):
            self.logins = one
            for _ in range(4):
                self.assert_wrong("alice")
            self.logins = other
            self.assert_in("alice")

    def test_no_name_stands_in_the_memory_that_processes_share(self) -> None:
        self.assert_wrong("alice")
        self.assert_wrong("carol", "guess", "192.0.2.99")
        shared = self.memory.bytes[:]
        for told in (b"alice", b"carol", HOME.encode(), b"192.0.2.99", b"guess"):
            self.assertNotIn(told, shared)

    def test_an_address_that_has_gone_takes_no_memory(self) -> None:
        for number in range(300):
            self.assert_wrong("alice", address=f"10.1.{number // 256}.{number % 256}")
        self.assertEqual((self.logins._guard._queues, self.logins._guard.pending), ({}, 0))

    def test_what_a_check_raises_is_no_failure_to_log_in(self) -> None:
        class Broken(Known):
            async def check(self, name: str, password: str) -> Identity | None:
                raise OSError

        self.logins = Logins([Broken(Kind.USER, set())], AuthSettings(), SharedMemory.create())
        for _ in range(30):
            self.failureResultOf(self.begin("alice", "alice"), OSError)
        self.assertEqual((self.logins._guard._queues, self.logins._guard.pending), ({}, 0))

    def test_the_log_tells_when_it_begins(self) -> None:
        with capturedLogs() as events:
            for _ in range(5):
                self.assert_wrong("ali\nce")
            self.assert_slowed("ali\nce")
        self.assertEqual(
            [formatEvent(event) for event in events],
            [f"too many failed logins from {HOME} as 'ali\\nce': they are slowed down"],
        )

    def test_the_log_tells_when_it_begins_for_all_names(self) -> None:
        with capturedLogs() as events:
            for number in range(20):
                self.assert_wrong(f"a\n{number}")
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                f"too many failed logins from {HOME}, the last as 'a\\n19': they are slowed down",
            ],
        )


class RecallTests(LoginsCase):
    def setUp(self) -> None:
        super().setUp()
        self.users.recalled = {"alice"}

    def test_who_is_recalled_is_not_checked(self) -> None:
        self.assert_in("alice")
        self.assertEqual(self.users.asked, [])
        self.assert_in("bob")
        self.assertEqual(self.users.asked, [("bob", "bob")])

    def test_who_has_failed_too_often_is_not_recalled(self) -> None:
        for _ in range(5):
            self.assert_wrong("alice")
        self.assert_slowed("alice", "alice")
        self.assertIsNone(self.logins.recall("alice", "alice", HOME))
        self.assertIsNotNone(self.logins.recall("alice", "alice", AWAY))

    def test_asked_for_what_is_recalled_alone_nothing_is_checked(self) -> None:
        caller = self.logins.recall("alice", "alice", HOME)
        assert caller is not None
        self.assertEqual(caller.identity.name, "alice")
        for name, password in (("alice", "guess"), ("bob", "bob"), ("nobody", "nobody")):
            self.assertIsNone(self.logins.recall(name, password, HOME))
        self.assertEqual(self.users.asked, [])

    def test_being_recalled_resets_as_any_success(self) -> None:
        for _ in range(10):
            for _ in range(4):
                self.assert_wrong("alice")
            self.assert_in("alice")

    def test_where_guesses_are_turned_away_uncounted_nobody_is_recalled(self) -> None:
        self.users.held = True
        for number in range(64):
            self.begin("alice", f"guess {number}").addErrback(lambda failure: None)
        self.assert_slowed("alice")
        self.assert_slowed("alice", "alice")
        self.assert_in("alice", AWAY)

    def test_in_a_flood_from_everywhere_who_was_here_is_recalled_and_no_guess_is(self) -> None:
        self.assert_in("alice")
        self.users.held = True
        for number in range(256):
            self.begin("bob", "guess", f"10.0.0.{number}").addErrback(lambda failure: None)
        self.assert_in("alice")
        self.assert_slowed("alice")
        self.assert_slowed("alice", "alice", AWAY)


class FloodTests(LoginsCase):
    def setUp(self) -> None:
        super().setUp()
        self.users.held = True

    def test_few_logins_of_one_address_are_checked_at_a_time(self) -> None:
        for number in range(50):
            self.begin("alice", f"guess {number}").addErrback(lambda failure: None)
        self.assertEqual(len(self.users.waiting), 4)

    def test_the_others_wait_for_the_next_address_no_longer_than_for_these(self) -> None:
        for number in range(50):
            self.begin("alice", f"guess {number}").addErrback(lambda failure: None)
        there = self.begin("bob", "bob", AWAY)
        self.assertEqual(self.users.asked[-1], ("bob", "bob"))
        self.users.waiting.pop().callback(None)
        self.assertEqual(self.successResultOf(there).name, "bob")

    def test_guesses_made_at_once_count_as_if_made_one_after_the_other(self) -> None:
        made = [self.begin("alice", f"guess {number}") for number in range(60)]
        while self.users.waiting:
            self.users.finish()
        wrong = 0
        for each in made:
            wrong += self.failureResultOf(each).check(Unauthorized) is not None
        self.assertIn(wrong, range(5, 9))
        self.assertEqual(len(self.users.asked), wrong)

    def test_more_than_can_wait_are_turned_away(self) -> None:
        for number in range(64):
            self.begin("alice", f"guess {number}").addErrback(lambda failure: None)
        self.assertEqual(self.assert_slowed("bob", "bob"), 1)
        there = self.begin("bob", "bob", AWAY)
        self.assertNoResult(there)

    def test_a_flood_from_everywhere_does_not_lock_out_who_was_here_already(self) -> None:
        self.users.held = False
        self.assert_in("bob", AWAY)
        self.users.held = True
        for number in range(256):
            self.begin("alice", "guess", f"10.0.0.{number}").addErrback(lambda failure: None)
        self.assertEqual(self.assert_slowed("alice", "alice", AWAY), 1)
        again = self.begin("bob", "bob", AWAY)
        self.users.waiting.pop().callback(None)
        self.assertEqual(self.successResultOf(again).name, "bob")

    def test_when_it_is_over_everybody_is_let_in_again(self) -> None:
        for number in range(256):
            self.begin("alice", "guess", f"10.0.0.{number}").addErrback(lambda failure: None)
        while self.users.waiting:
            self.users.finish()
        self.users.held = False
        self.assert_in("alice", AWAY)
        self.assertEqual((self.logins._guard._queues, self.logins._guard.pending), ({}, 0))


class Refusing(AccessProofs):
    """
    An upstream to which every password is wrong, once it answers.

    :ivar asked: those that it has been shown.
    :ivar waiting: the answers to come.
    """

    def __init__(self) -> None:
        self.asked: list[UpstreamLogin] = []
        self.waiting: list[Deferred[None]] = []

    def present(self, user: str, password: str) -> UpstreamLogin:
        return UpstreamLogin("ghcr.io", user, password.encode(), password)

    async def log_in(self, presented: UpstreamLogin) -> bool:
        async with presented.turn():
            self.asked.append(presented)
            answer: Deferred[None] = Deferred()
            self.waiting.append(answer)
            await answer
            presented.failed()
        return False

    async def prove(self, image: ImageName, presented: UpstreamLogin) -> bool:
        return await self.log_in(presented)


class VisitorsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.upstream = Refusing()
        self.visitors = Visitors(
            {"ghcr.io": self.upstream}, "", AuthSettings(), SharedMemory.create(), Clock().seconds
        )

    def present(self, password: str, address: str = HOME) -> UpstreamLogin:
        presented = self.visitors.present("ghcr.io/alice", password, address)
        assert presented is not None
        return presented


class PresentedTests(VisitorsCase):
    def test_a_colon_in_a_password_is_part_of_it(self) -> None:
        presented = self.present("a:b")
        self.assertEqual((presented.user, presented.password), ("alice", "a:b"))

    def test_what_basic_can_not_carry_is_shown_to_no_upstream(self) -> None:
        for user, password in (("a:b", "x"), ("a\nb", "x"), ("a", "x\r\ny"), ("a", "\x7f")):
            self.assertIsNone(self.visitors.present(f"ghcr.io/{user}", password, HOME))


class VisitorsGuessingTests(VisitorsCase):
    def begin(self, number: int, address: str = HOME) -> Deferred[Any]:
        presented = self.present(f"guess {number}", address)
        return Deferred.fromCoroutine(self.visitors.log_in(presented, address))

    def finish(self) -> None:
        while self.upstream.waiting:
            self.upstream.waiting.pop(0).callback(None)

    def test_guesses_made_at_once_count_as_if_made_one_after_the_other(self) -> None:
        made = [self.begin(number) for number in range(60)]
        self.assertEqual(len(self.upstream.asked), 4)
        self.finish()
        self.assertIn(len(self.upstream.asked), range(5, 9))
        for each in made[8:]:
            self.failureResultOf(each, TooManyRequests)

    def test_so_do_those_made_for_an_image(self) -> None:
        image = ImageName("ghcr.io", "team/app")
        made = [
            Deferred.fromCoroutine(self.upstream.prove(image, self.present(f"guess {number}")))
            for number in range(60)
        ]
        self.finish()
        self.assertIn(len(self.upstream.asked), range(5, 9))
        for each in made[8:]:
            self.failureResultOf(each, TooManyRequests)

    def test_more_than_can_wait_are_turned_away_and_no_other_address(self) -> None:
        made = [self.begin(number) for number in range(65)]
        error = self.failureResultOf(made[64], TooManyRequests).value
        self.assertEqual(error.headers["Retry-After"], "1")
        self.begin(0, AWAY)
        self.assertEqual(len(self.upstream.asked), 5)
        self.finish()
        self.assertEqual(self.visitors._guard.pending, 0)
        for each in made[:64]:
            each.addErrback(lambda failure: None)
