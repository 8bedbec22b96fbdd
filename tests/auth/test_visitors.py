"""Logging in with an upstream's credential."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.logins import Visitors
from artifactd.oci.errors import TooManyRequests
from artifactd.oci.names import ImageName
from artifactd.registry.mirror.proofs import AccessProofs
from artifactd.settings.accounts import AuthSettings
from artifactd.upstream.credentials import UpstreamLogin

HOME, AWAY = "192.0.2.1", "192.0.2.2"


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
        self.visitors = Visitors({"ghcr.io": self.upstream}, "", Clock(), AuthSettings())

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


class GuessingTests(VisitorsCase):
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
        self.assertEqual(self.visitors._turns.pending, 0)
        for each in made[:64]:
            each.addErrback(lambda failure: None)
